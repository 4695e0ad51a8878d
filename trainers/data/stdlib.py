"""The default corpus: the sources of the running Python's standard library, which every machine has.

Test packages are left out, since not every installation has them, and so is what the build wrote on this machine:
two installations of one Python version then give one corpus. `encodings` is left out, too: generated tables that share most
of their lines with one another.
"""

from __future__ import annotations

import os
import platform
import sysconfig
from pathlib import Path

from trainers.contract.errors import InputError
from trainers.data.documents import Document

LEFT_OUT_DIRECTORIES = frozenset(
    {"encodings", "test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
)
MACHINE_PREFIXES = ("config-", "_sysconfigdata", "sitecustomize")
"""Build settings and a distribution's own start-up file: they differ between installations of one version."""


def documents(paths: tuple[str, ...] = ()) -> tuple[Document, ...]:
    """Every module's source, in the order of relative paths. Takes no paths.

    Raises `InputError` where Python came without its sources.
    """
    root = library_root()
    found = {path.relative_to(root).as_posix(): path for path in sources_below(root)}
    if not found:
        raise InputError(f"corpus.source: this Python has no library sources in {root}; use the source `files`")
    return tuple(Document(name, found[name].read_bytes) for name in sorted(found))


def library_root() -> Path:
    """Where the standard library lies, also when Python runs in a virtual environment."""
    return Path(sysconfig.get_paths()["stdlib"])


def label(paths: tuple[str, ...] = ()) -> str:
    """What a report calls this corpus."""
    return f"Python {platform.python_version()} standard library without its tests"


def sources_below(root: Path) -> list[Path]:
    """Python files below `root` that are neither tests nor written by a build."""
    found: list[Path] = []
    for directory, subdirectories, files in os.walk(root):
        subdirectories[:] = [
            name
            for name in subdirectories
            if name not in LEFT_OUT_DIRECTORIES and not name.startswith(MACHINE_PREFIXES)
        ]
        found += [
            Path(directory, name) for name in files if name.endswith(".py") and not name.startswith(MACHINE_PREFIXES)
        ]
    return found
