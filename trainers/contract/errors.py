"""What separates the user's mistakes from faults of ours: the former are `UserError`, whatever else is raised is a fault.

It stands here, below everything, so that trainers and reports can raise it as well as the sweeper, which hands it out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(Exception):
    """What the user gave cannot be used as it is: a file, a name, a folder, a server. As text it is one line a problem
    that says what was given, what is allowed, and where to change it."""


class InputError(UserError, ValueError):
    """A value that the user gave, in a file or as an argument, is not one that can be used."""


@contextmanager
def given(path: Path | str) -> Iterator[None]:
    """What goes wrong with a file or folder of the user's choice is told by its name: an `OSError` becomes a `UserError`."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
