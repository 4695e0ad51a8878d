"""The files that decide what another trainer's trials come to: which they are, and the fingerprint of what is in them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from trainers.contract.spec import fingerprint

MOST_FILES = 2_000
"""What one glob of code may name: all of it is read for each plan."""


def matching(directory: Path, pattern: str) -> list[Path]:
    """The files below `directory` that a glob names, in order; `**` passes any number of folders. Stops one above
    `MOST_FILES`, so that a glob of a whole machine is refused before it is walked."""
    try:
        return sorted(islice((file for file in directory.glob(pattern) if file.is_file()), MOST_FILES + 1))
    except (ValueError, NotImplementedError):  # an empty or an absolute pattern
        return []


def code_fingerprint(directory: Path, patterns: Iterable[str]) -> str:
    """Sixteen hexadecimal digits of the files' names below `directory` and of their content.

    Raises `OSError` for a file that cannot be read.
    """
    files = sorted({file for pattern in patterns for file in matching(directory, pattern)})
    return fingerprint(
        {file.relative_to(directory).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    )
