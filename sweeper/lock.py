"""One driver per sweep: a lock that the kernel holds, and the file by which another terminal asks the driver to stop.

The lock is `flock` on a file that says who holds it, so that it ends with its process, however that ends, and no clock
decides. A file system that is shared without its locks is why the driver also gives a sign of life: another machine
believes the file for as long as its time of change is young.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from trainers.contract.errors import InputError, UserError, given
from trainers.contract.reading import json_value, value_of

LOCK = "driver.json"
STOP = "stop"
BEAT_SECONDS = 20.0
"""Between two signs of life."""
SILENT_SECONDS = 180.0
"""After which a driver on another machine, whose lock is not seen here, counts as gone."""


class LockedError(UserError):
    """Another driver runs this sweep."""


@dataclass(frozen=True, slots=True)
class Driver:
    """The process that runs a sweep; `started` in seconds since 1970."""

    host: str
    pid: int
    started: float

    def __post_init__(self) -> None:
        if not 0 < self.pid < 2**31:
            raise ValueError(f"pid: {self.pid} is not the number of a process")


def current_driver(folder: Path) -> Driver | None:
    """Who runs the sweep in `folder`, None where nobody does; host `unknown` where the file does not say who holds it."""
    for _ in range(20):
        try:
            with (folder / LOCK).open(encoding="utf-8") as file:
                held = not _take(file, fcntl.LOCK_SH)
                driver = _read(file)
        except OSError:
            return None
        if driver is not None or not held:
            break
        time.sleep(0.05)  # locked a moment ago, and not yet written
    if held:
        return driver or Driver("unknown", 1, 0.0)
    elsewhere = driver is not None and driver.host != socket.gethostname()
    return driver if elsewhere and _silence(folder / LOCK) < SILENT_SECONDS else None


@contextmanager
def driving(folder: Path) -> Iterator[None]:
    """Hold the lock of the sweep in `folder`; an old stop request is forgotten. Raises `LockedError` in one line."""
    lock = folder / LOCK
    with _held(folder) as file:
        file.truncate(0)
        file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "started": time.time()}))
        file.flush()
        (folder / STOP).unlink(missing_ok=True)
        ended = threading.Event()
        threading.Thread(target=_beat, args=(lock, ended), name="driver's sign of life", daemon=True).start()
        try:
            yield
        finally:
            ended.set()
            lock.unlink(missing_ok=True)  # while it is held: nobody else's file can be at this place
            (folder / STOP).unlink(missing_ok=True)
    with suppress(OSError):  # what was refused leaves no empty folder
        folder.rmdir()


def request_stop(folder: Path) -> Driver | None:
    """Ask the driver of `folder` to stop; returns it, or None where nobody drives."""
    driver = current_driver(folder)
    if driver is not None:
        (folder / STOP).touch()
    return driver


@contextmanager
def _held(folder: Path) -> Iterator[TextIO]:
    """The lock's file, locked, and certainly the one that lies at its path."""
    while True:
        with given(folder):
            folder.mkdir(parents=True, exist_ok=True)
        # Before the lock is taken: a young sign of life from a machine whose locks are not seen here counts, too.
        other = current_driver(folder)
        if other is not None:
            raise _locked(folder, other)
        with given(folder / LOCK):
            try:
                file = (folder / LOCK).open("a+", encoding="utf-8")
            except FileNotFoundError:  # a driver that had nothing to leave has just taken its folder away
                continue
        with file:
            if not _take(file, fcntl.LOCK_EX):
                # A look at the lock holds it for an instant, too: then nobody drives, and the next try has it.
                time.sleep(0.01)
                continue
            if _is_at(file, folder / LOCK):
                yield file
                return


def _locked(folder: Path, other: Driver) -> LockedError:
    return LockedError(
        f"{folder.name}: process {other.pid} on {other.host} runs this sweep; stop it with `sweeper stop {folder.name}`"
    )


def _take(file: TextIO, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read(file: TextIO) -> Driver | None:
    try:
        return value_of(Driver, json_value(file.read()), "a driver's lock")
    except (ValueError, InputError):
        return None


def _is_at(file: TextIO, path: Path) -> bool:
    """Whether the open file still is what lies at `path`: the holder before takes its file away when it ends."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _silence(lock: Path) -> float:
    """Seconds since the last sign of life, by the clock of the file system that keeps the file where one may write there."""
    changed = lock.stat().st_mtime
    try:
        with tempfile.TemporaryFile(dir=lock.parent) as now:
            return os.fstat(now.fileno()).st_mtime - changed
    except OSError:
        return time.time() - changed


def _beat(lock: Path, ended: threading.Event) -> None:
    while not ended.wait(BEAT_SECONDS):
        with suppress(OSError):
            os.utime(lock)
