"""Runs one command and sees to it that everything it started ends with it. A program of its own: standard library only.

It outlives whoever started it just long enough to clean up: a byte on its standard input, or the end of it (the worker is
gone, however it went), ends the command with SIGTERM, and after a grace everything below it with SIGKILL. What detached
itself into another session is found, too: orphans come to the guard as their subreaper. On its standard output it says, in one
line, how the command ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
POLL_SECONDS = 0.05


def _parents() -> dict[int, int]:
    """Every process of this machine with its parent."""
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                # The name stands in brackets and may hold anything, brackets and spaces among it.
                fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
                found[int(entry)] = int(fields[1])
    return found


def below(process: int) -> list[int]:
    """All descendants of a process that are there now."""
    parents = _parents()
    found: list[int] = []
    waiting = [process]
    while waiting:
        parent = waiting.pop()
        children = [child for child, above in parents.items() if above == parent]
        found += children
        waiting += children
    return found


def _end_all() -> None:
    """Kill whatever is left, also what appears meanwhile, and bury it."""
    for _ in range(200):
        left = below(os.getpid())
        for process in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(process, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not below(os.getpid()):
            return
        time.sleep(0.01)


def _asked(stop: list[int]) -> bool:
    """Whether somebody wants an end. Waits a little, so that this can be asked in a loop."""
    ready, _, _ = select.select([0], [], [], POLL_SECONDS)
    return bool(ready or stop)


def _watch(child: subprocess.Popen[bytes], grace: float, stop: list[int]) -> None:
    while child.poll() is None:
        if not _asked(stop):
            continue
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(grace)
        child.kill()  # nothing where it has ended
        child.wait()
        return


def main(arguments: Sequence[str]) -> None:
    """`guard.py GRACE LOG COMMAND...`: the command's output is appended to LOG."""
    # A child of nobody: a worker that is ended together with its children would otherwise take the guard along.
    if os.fork():
        os._exit(0)
    stop: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        stop.append(number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, ask)
    system = ctypes.CDLL(None)
    system.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    grace, log, *command = arguments
    try:
        with open(log, "ab") as output:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # Should the guard itself be killed, at least the command does not go on alone.
                preexec_fn=lambda: system.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0),
            )
    except (OSError, ValueError) as error:
        print("missing", f"{command[0]}: {getattr(error, 'strerror', None) or error}", flush=True)
        return
    try:
        _watch(child, float(grace), stop)
    finally:
        _end_all()
    code = child.returncode
    with contextlib.suppress(BrokenPipeError):
        print(*(("signal", -code) if code < 0 else ("exit", code)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
