"""One driver per sweep: a lock file with host and process, and the file by which another terminal asks it to stop."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from trainers.contract.errors import InputError, UserError, given
from trainers.contract.reading import json_value, value_of

LOCK = "driver.json"
STOP = "stop"


class LockedError(UserError):
    """Another driver runs this sweep."""


@dataclass(frozen=True, slots=True)
class Driver:
    """The process that runs a sweep. `started` tells a process from a later one with its number."""

    host: str
    pid: int
    started: float

    def __post_init__(self) -> None:
        if not 0 < self.pid < 2**31:
            raise ValueError(f"pid: {self.pid} is not the number of a process")

    @property
    def here(self) -> bool:
        """Whether it runs, or ran, on this machine."""
        return self.host == socket.gethostname()

    @property
    def alive(self) -> bool:
        """False when it is certainly gone; a driver on another machine counts as alive."""
        if not self.here:
            return True
        try:
            return bool(abs(psutil.Process(self.pid).create_time() - self.started) < 1.0)
        except psutil.NoSuchProcess:
            return False


def current_driver(folder: Path) -> Driver | None:
    """Who runs the sweep in `folder`, None where nobody does."""
    try:
        driver = value_of(Driver, json_value((folder / LOCK).read_bytes()), "a driver's lock")
    except (OSError, InputError):
        return None
    return driver if driver.alive else None


@contextmanager
def driving(folder: Path) -> Iterator[None]:
    """Hold the lock of the sweep in `folder`; an old stop request is forgotten. Raises `LockedError` in one line."""
    lock = folder / LOCK
    me = Driver(socket.gethostname(), os.getpid(), psutil.Process().create_time())
    text = json.dumps({"host": me.host, "pid": me.pid, "started": me.started})
    while True:
        with given(folder):
            folder.mkdir(parents=True, exist_ok=True)
        try:
            with lock.open("x", encoding="utf-8") as file:
                file.write(text)
            break
        except FileNotFoundError:  # a driver that had nothing to leave has just taken its folder away
            continue
        except FileExistsError:
            # Left by a driver that was killed, or held by one that runs. A dead driver's lock makes way; of several that
            # see it at once, one opens the next file exclusively.
            other = current_driver(folder)
            if other is not None:
                raise LockedError(
                    f"{folder.name}: process {other.pid} on {other.host} runs this sweep; "
                    f"stop it with `sweeper stop {folder.name}`, or delete {lock} if that machine is gone"
                ) from None
            lock.unlink(missing_ok=True)
    (folder / STOP).unlink(missing_ok=True)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        (folder / STOP).unlink(missing_ok=True)
        with suppress(OSError):  # what was refused leaves no empty folder
            folder.rmdir()


def request_stop(folder: Path) -> Driver | None:
    """Ask the driver of `folder` to stop; returns it, or None where nobody drives."""
    driver = current_driver(folder)
    if driver is not None:
        (folder / STOP).touch()
    return driver
