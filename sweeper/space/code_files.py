"""The files that decide what another trainer's trials come to: which they are, and what is in them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

MOST_FILES = 2_000
"""What one glob of code may name: all of it is read for each plan."""


def matching(directory: Path, pattern: str) -> list[Path]:
    """The files below `directory` that a glob names, in order; `**` passes any number of folders. Stops one above
    `MOST_FILES`, so that a glob of a whole machine is refused before it is walked."""
    try:
        return sorted(islice((file for file in directory.glob(pattern) if file.is_file()), MOST_FILES + 1))
    except (ValueError, NotImplementedError):  # an empty or an absolute pattern
        return []


def code_hashes(directory: Path, patterns: Iterable[str]) -> dict[str, str]:
    """The files' names below `directory` with the SHA-256 of their content; the `fingerprint` of this is a trial's code.

    Raises `OSError` for a file that cannot be read.
    """
    files = sorted({file for pattern in patterns for file in matching(directory, pattern)})
    return {file.relative_to(directory).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
