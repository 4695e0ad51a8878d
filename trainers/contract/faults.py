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

USER, FAULT, INTERRUPTED, TERMINATED = 2, 1, 130, 143
"""Exit codes: the user's mistake, a fault of the program or the machine, Ctrl-C, SIGTERM."""
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
    not exist or cannot be written. `debug` prints the traceback at once.
    """
    if debug:
        sys.stderr.write(without_login("".join(traceback.format_exception(error))))
    if isinstance(error, UserError):
        if not debug:
            print(str(error) or type(error).__name__, file=sys.stderr)
        return USER
    if isinstance(error, OSError) and error.errno in _NO_PATH:
        if not debug:
            print(f"{str(error.filename)[:LONGEST_SHOWN]}: {error.strerror}", file=sys.stderr)
        return USER
    if not debug:
        said = " ".join(str(error).split())[:300]
        what = f"{type(error).__name__}: {said}" if said else type(error).__name__
        print(
            f"{program} failed: {without_login(what)}; the traceback is in {_write_log(error, program, folder)}",
            file=sys.stderr,
        )
    return FAULT


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
