"""Encoders on all cores, fed in order and answering in order.

Processes of their own and pipes, since what tokenizers hand out is made under Python's lock: threads would share one core.
They are started as programs, so that a script which calls this needs no guard and no state of it is copied.
"""

from __future__ import annotations

import os
import queue
import subprocess
import sys
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from trainers.data.streamed.encoder import Encoded, read_encoded, write_block

BLOCKS_AHEAD = 2
"""Blocks under way for each process: one that it works on, one that waits."""
ROOT = Path(__file__).parents[3]
Tag = TypeVar("Tag")


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class EncoderPool:
    """Up to `processes` encoders of one tokenizer, as many as there is work for; they end with the `with` block."""

    def __init__(
        self, processes: int, tokenizer: Path, token_dtype: str, separator: int, validation_fraction: float
    ) -> None:
        self._size, self._dtype = processes, token_dtype
        module = "trainers.data.streamed.encoder"
        self._command = [
            *(sys.executable, "-P", "-m", module),
            *(str(tokenizer), token_dtype, str(separator), repr(validation_fraction)),
        ]

    def __enter__(self) -> Self:
        self._all: list[subprocess.Popen[bytes]] = []
        self._free: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()
        self._threads = ThreadPoolExecutor(self._size)
        return self

    def _start(self) -> subprocess.Popen[bytes]:
        # Each has a core to itself; threads of its own would only wait for others'.
        quiet = {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **quiet, "PYTHONPATH": path},
        )
        self._all.append(process)
        return process

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            for process in self._all:
                process.kill()
        self._threads.shutdown(cancel_futures=True)
        for process in self._all:
            assert process.stdin is not None
            assert process.stdout is not None
            with suppress(BrokenPipeError):  # it has ended already
                process.stdin.close()
            process.stdout.close()
            process.wait()

    def encode(self, blocks: Iterable[tuple[Tag, Sequence[bytes]]]) -> Generator[tuple[Tag, Encoded]]:
        """Every block's documents encoded, with its tag, in the order of `blocks`, of which only a few are read ahead.

        Raises `RuntimeError` when an encoder has ended by itself.
        """
        waiting: deque[tuple[Tag, Future[Encoded]]] = deque()
        for tag, texts in blocks:
            waiting.append((tag, self._threads.submit(self._ask, texts)))
            if len(waiting) >= BLOCKS_AHEAD * self._size:
                first, answer = waiting.popleft()
                yield first, answer.result()
        while waiting:
            first, answer = waiting.popleft()
            yield first, answer.result()

    def _ask(self, texts: Sequence[bytes]) -> Encoded:
        try:
            process = self._free.get_nowait()
        except queue.Empty:  # there are no more threads than processes may be
            process = self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            write_block(process.stdin, texts)
            return read_encoded(process.stdout, self._dtype)
        except (EOFError, BrokenPipeError, OSError):
            raise RuntimeError(f"an encoding process ended with code {process.wait()}") from None
        finally:
            self._free.put(process)
