"""The files that decide what another trainer's trials come to: which they are, and what is in them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path


def matching(directory: Path, pattern: str) -> list[Path]:
    """The files below `directory` that a glob names, in order; `**` passes any number of folders."""
    try:
        return sorted(file for file in directory.glob(pattern) if file.is_file())
    except (ValueError, NotImplementedError):  # an empty or an absolute pattern
        return []


def code_hashes(directory: Path, patterns: Iterable[str]) -> dict[str, str]:
    """The files' names below `directory` with the SHA-256 of their content; the `fingerprint` of this is a trial's code.

    Raises `OSError` for a file that cannot be read.
    """
    files = sorted({file for pattern in patterns for file in matching(directory, pattern)})
    return {file.relative_to(directory).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
