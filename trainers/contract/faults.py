"""How a program ends after an exception: the user's mistake in its own words, a fault with a log that holds its traceback.

A fault is never told as if the user had made it: whoever reads "bad number" without a traceback looks for it in their file.
"""

from __future__ import annotations

import errno
import os
import platform
import re
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

from trainers.contract.errors import UserError

USER, FAULT, STOPPED, INTERRUPTED, TERMINATED = 2, 1, 3, 130, 143
"""Exit codes: the user's mistake, a fault of the program or the machine, no room on a disk, Ctrl-C, SIGTERM."""
FULL_DISK = ("[Errno 28]", "[Errno 122]", "os error 28", "os error 122", "database or disk is full")
"""No space left, and no quota left, as Python, Rust and SQLite say it."""
LONGEST_SHOWN = 200
"""Characters of a path in a message about it."""
_NO_PATH = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR)
_LOGIN = re.compile(r"(?<=://)[^/\s]\S*@")
"""Up to the last `@`: a password may hold one, or a `/`, that should have been quoted."""
_SECRET = re.compile(r"(?i)([?&;](?:\w*passw(?:or)?d|pwd|\w*token|\w*secret|\w*key)=)[^&;\s'\"]+")


class Terminated(KeyboardInterrupt):
    """A SIGTERM (Slurm, `docker stop`, a spot machine): like Ctrl-C, with an exit code of its own."""


def end_of(error: Exception, program: str, folder: Path | None, *, debug: bool = False) -> int:
    """Say on standard error what ended `program`; returns its exit code.

    A `UserError` is its own text, and so is a path that no file system takes: it can only have been given. Of a full disk the
    place is named. Anything else is one line with the path of a log, which is written into `folder`, or among the machine's
    temporary files where that does not exist or cannot be written. `debug` prints the traceback at once.
    """
    code = STOPPED if is_full_disk(str(error)) else USER if _is_given(error) else FAULT
    if debug:
        sys.stderr.write(without_login("".join(traceback.format_exception(error))))
        return code
    said = " ".join(str(error).split())[:300]
    if isinstance(error, UserError):
        words = str(error) or type(error).__name__
    elif isinstance(error, OSError) and code == USER:
        words = f"{str(error.filename)[:LONGEST_SHOWN]}: {error.strerror}"
    elif code == STOPPED:
        words = f"{program} stopped: {_full(error, folder)}: no room on the disk ({said}); make room there"
    else:
        what = f"{type(error).__name__}: {said}" if said else type(error).__name__
        words = f"{program} failed: {without_login(what)}; the traceback is in {_write_log(error, program, folder)}"
    print(words, file=sys.stderr)
    return code


def _is_given(error: Exception) -> bool:
    return isinstance(error, UserError) or (isinstance(error, OSError) and error.errno in _NO_PATH)


def is_full_disk(reason: str) -> bool:
    """Whether that is why something failed: nobody's fault, and done with where there is room again."""
    return any(word in reason for word in FULL_DISK)


def _full(error: Exception, folder: Path | None) -> Path | str:
    """The file that an error names, else the place with the least room: a write that fails names none."""
    if isinstance(error, OSError) and error.filename:
        return str(error.filename)
    places = [place for place in (folder, _temporary()) if place is not None and os.path.isdir(place)]
    return min(places, key=lambda place: shutil.disk_usage(place).free, default="somewhere")


def _temporary() -> Path | None:
    try:
        return Path(tempfile.gettempdir())
    except OSError:  # it looks for one that can be written
        return None


def without_login(text: str) -> str:
    """Without the user name and password that an address may hold, before its host or among its options."""
    return _SECRET.sub(r"\1***", _LOGIN.sub("", text))


def _write_log(error: Exception, program: str, folder: Path | None) -> Path:
    name = f"fault-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    head = f"{program}, Python {platform.python_version()} on {platform.platform()}\n"
    text = head + without_login("".join(traceback.format_exception(error)))
    for place in (folder, _temporary()):
        if place is not None and os.path.isdir(place):
            try:
                (place / name).write_text(text, encoding="utf-8")
                return (place / name).absolute()
            except OSError:  # a full disk or a folder of somebody else's: the next place, and in the end the screen
                continue
    sys.stderr.write(text)
    return Path(os.devnull)
