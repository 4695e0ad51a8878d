"""Processes that end in time, and with whoever started them, however that one ended. Standard library only.

A process of a tour that outlived it would go on holding the device and the file of records, and the next command would
start a second one beside it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import BinaryIO

PR_SET_PDEATHSIG = 1
POLL_SECONDS = 0.05


def ends_with_us() -> Callable[[], None]:
    """For `preexec_fn`: the kernel kills the new process when this one is gone."""
    system, parent = ctypes.CDLL(None), os.getpid()

    def bind() -> None:
        system.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # gone before it could be asked for
            os._exit(1)

    return bind


def run_bound(command: Sequence[str], log: BinaryIO, seconds: float, grace: float) -> int | None:
    """Run a command in a session of its own for at most `seconds`, its output in `log`; returns its exit code, None where it
    was not over. All that it has started in its session ends with it.

    Where this process is interrupted meanwhile, the command has `grace` seconds to save what it has.
    """
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=ends_with_us(),
    )
    try:
        return process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return None
    except KeyboardInterrupt:
        _ask_to_end(process, grace)
        raise
    finally:
        with contextlib.suppress(ProcessLookupError):  # all of it has ended by itself
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _ask_to_end(process: subprocess.Popen[bytes], grace: float) -> None:
    end = time.monotonic() + grace
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        while time.monotonic() < end:
            process.poll()  # buries the first of them, which would otherwise stay a member of its group
            os.killpg(process.pid, 0)
            time.sleep(POLL_SECONDS)
