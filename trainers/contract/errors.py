"""What separates the user's mistakes from faults of ours: the former are `UserError`, whatever else is raised is a fault.

It stands here, below everything, so that trainers and reports can raise it as well as the sweeper, which hands it out.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
"""A full disk, or a full share of it."""
MOST_PROBLEMS = 20
"""Problems of one file that are spelled out; more of them are counted."""


class UserError(Exception):
    """What the user gave cannot be used as it is: a file, a name, a folder, a server. As text it is one line a problem
    that says what was given, what is allowed, and where to change it."""


class InputError(UserError, ValueError):
    """A value that the user gave, in a file or as an argument, is not one that can be used."""


def first_lines(lines: Sequence[str]) -> str:
    """The first lines of a long list of problems, and how many more there are."""
    more = len(lines) - MOST_PROBLEMS
    return "\n".join([*lines[:MOST_PROBLEMS], *([f"and {more:,} more like these"] if more > 0 else [])])


@contextmanager
def given(path: Path | str) -> Iterator[None]:
    """What goes wrong with a file or folder of the user's choice is told by its name: an `OSError` becomes a `UserError`.

    But for a full disk, which is nobody's mistake.
    """
    try:
        yield
    except OSError as error:
        if error.errno in NO_ROOM:
            raise
        raise UserError(f"{path}: {error.strerror or error}") from error
