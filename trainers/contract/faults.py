"""How a program ends after an exception: the user's mistake in its own words, a fault with a log that holds its traceback.

A fault is never told as if the user had made it: whoever reads "bad number" without a traceback looks for it in their file.
"""

from __future__ import annotations

import errno
import os
import platform
import re
import sys
import tempfile
import time
import traceback
from pathlib import Path

from trainers.contract.errors import UserError

USER, FAULT, STOPPED, INTERRUPTED, TERMINATED = 2, 1, 3, 130, 143
"""Exit codes: the user's mistake, a fault of the program or the machine, an end before the end, Ctrl-C, SIGTERM."""
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_NO_ROOM_WORDS = ("No space left on device", "Disk quota exceeded", "database or disk is full")
"""How libraries say so that raise errors of their own."""
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

    A `UserError` is its own text, and so is a path that no file system takes: it can only have been given. Anything else is
    one line with the path of a log, which is written into `folder`, or among the machine's temporary files where that does
    not exist or cannot be written; but a full disk, which has no room for a log, is one line and an end before the end.
    `debug` prints the traceback at once.
    """
    if debug:
        sys.stderr.write(without_login("".join(traceback.format_exception(error))))
    if isinstance(error, UserError):
        if not debug:
            print(str(error) or type(error).__name__, file=sys.stderr)
        return STOPPED if _no_room(error) else USER
    if isinstance(error, OSError) and error.errno in _NO_PATH:
        if not debug:
            print(f"{str(error.filename)[:LONGEST_SHOWN]}: {error.strerror}", file=sys.stderr)
        return USER
    said = " ".join(str(error).split())[:300]
    if _no_room(error):
        if not debug:
            print(f"{program} stopped: {without_login(said)}; with room the same command goes on", file=sys.stderr)
        return STOPPED
    if not debug:
        what = f"{type(error).__name__}: {said}" if said else type(error).__name__
        print(
            f"{program} failed: {without_login(what)}; the traceback is in {_write_log(error, program, folder)}",
            file=sys.stderr,
        )
    return FAULT


def _no_room(error: BaseException | None) -> bool:
    """Whether a disk was full: this, or what it came of."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            return True
        if any(words in str(error) for words in _NO_ROOM_WORDS):
            return True
        error = error.__cause__ or error.__context__
    return False


def without_login(text: str) -> str:
    """Without the user name and password that an address may hold, before its host or among its options."""
    return _SECRET.sub(r"\1***", _LOGIN.sub("", text))


def _write_log(error: Exception, program: str, folder: Path | None) -> Path:
    name = f"fault-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    head = f"{program}, Python {platform.python_version()} on {platform.platform()}\n"
    text = head + without_login("".join(traceback.format_exception(error)))
    for place in (folder, Path(tempfile.gettempdir())):
        if place is not None and os.path.isdir(place):
            try:
                (place / name).write_text(text, encoding="utf-8")
                return (place / name).absolute()
            except OSError:  # a full disk or a folder of somebody else's: the next place, and in the end the screen
                continue
    sys.stderr.write(text)
    return Path(os.devnull)
