"""A command under its guard, as the worker sees it: start, ask to end, how it ended.

Never through a shell. One command at a time in a folder: whoever starts the next one waits until the guard of the last has
cleaned up.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from sweeper.foreign import guard
from trainers.contract.faults import without_login


class StillRunsError(RuntimeError):
    """The command of an earlier attempt has not ended."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a command ended. `code` is None where it never started or was killed; `words` say it for people."""

    words: str
    code: int | None = None
    killed: bool = False


def _ending(said: str) -> Ending:
    match = re.match(r"(exit|signal|missing) (.+)", said)
    if match is None:
        return Ending("its guard died", killed=True)
    if match[1] == "exit":
        return Ending(f"exit code {match[2]}", code=int(match[2]))
    if match[1] == "signal":
        number = int(match[2])
        name = signal.Signals(number).name if number in [*signal.Signals] else f"signal {number}"
        return Ending(f"killed by {name}", killed=True)
    return Ending(f"the command cannot be started: {match[2]}")


@contextlib.contextmanager
def held(lock: Path, patience: float) -> Iterator[int]:
    """The folder's lock as an open file. Waits `patience` seconds for an earlier attempt, then raises `StillRunsError`.

    A guard that inherits the file holds the lock until it has cleaned up, whatever becomes of its worker.
    """
    file = os.open(lock, os.O_RDWR | os.O_CREAT)
    try:
        until = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise StillRunsError(f"the command of an earlier attempt still runs; its lock is {lock}") from None
                time.sleep(guard.POLL_SECONDS)
        yield file
    finally:
        os.close(file)


@dataclass
class GuardedProcess:
    """A command that runs; its output is appended to `log`. Use it as a context manager: leaving it ends what still runs."""

    command: Sequence[str]
    directory: Path
    environment: Mapping[str, str]
    log: Path
    lock: int
    grace_seconds: float
    ending: Ending | None = None
    _guard: subprocess.Popen[bytes] | None = None
    _said: bytearray = field(default_factory=bytearray)

    def __enter__(self) -> Self:
        try:
            self._guard = subprocess.Popen(
                [sys.executable, "-I", "-S", guard.__file__, str(self.grace_seconds), str(self.log), *self.command],
                cwd=self.directory,
                env=dict(self.environment),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,
                pass_fds=(self.lock,),
            )
        except (OSError, ValueError) as error:  # the directory is gone, or a word holds what no command line can
            self.ending = Ending(f"the command cannot be started: {getattr(error, 'strerror', None) or error}")
            return self
        self._guard.wait()  # its first half, which ends at once
        assert self._guard.stdout is not None
        os.set_blocking(self._guard.stdout.fileno(), False)
        return self

    def __exit__(self, *error: object) -> None:
        self.end()
        while self.poll() is None:
            time.sleep(guard.POLL_SECONDS)
        if self._guard is not None and self._guard.stdout is not None:
            self._guard.stdout.close()

    def end(self) -> None:
        """Ask for an end: SIGTERM, and SIGKILL after the grace."""
        if self._guard is not None and self._guard.stdin is not None:
            with contextlib.suppress(OSError):
                self._guard.stdin.close()

    def poll(self) -> Ending | None:
        """How it ended, None while it runs."""
        if self.ending is None and self._guard is not None and self._guard.stdout is not None:
            with contextlib.suppress(BlockingIOError):
                while chunk := os.read(self._guard.stdout.fileno(), 4096):
                    self._said += chunk
                # The end of the pipe: the guard is gone, and with it everything that it guarded.
                self.ending = _ending(self._said.decode(errors="replace").strip())
        return self.ending


def last_lines(log: Path, lines: int = 5, longest: int = 160) -> str:
    """The end of a log in one line of text, each of its lines in quotes and without the login of an address; empty where there
    is none."""
    try:
        with log.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 8_192))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    # Progress bars overwrite their line: what was seen last is what stands behind the last carriage return.
    kept = [line.rstrip("\r").rpartition("\r")[2].strip() for line in without_login(text).split("\n")]
    return " | ".join(repr(line[:longest]) for line in [line for line in kept if line][-lines:])
