"""Much text that any machine of ours has: the standard library's sources and those of every installed package.

Another set of packages is another corpus, with another fingerprint. Files that hold the same text (packages carry copies of
others) count once, so that nothing that is held out has been trained on; files that are not UTF-8 are left out.
"""

from __future__ import annotations

import hashlib
import platform
import sysconfig
from pathlib import Path

from trainers.data import stdlib
from trainers.data.documents import Document


def documents(paths: tuple[str, ...] = ()) -> tuple[Document, ...]:
    """Every module's source, in the order of names: `stdlib/...`, then `site-packages/...`. Takes no paths.

    Raises `ValueError` where Python came without its sources.
    """
    places = sysconfig.get_paths()
    packages = {Path(places["purelib"]): "site-packages", Path(places["platlib"]): "site-packages"}
    standard = tuple(Document(f"stdlib/{one.name}", one.load) for one in stdlib.documents())
    return distinct((*standard, *(one for root, name in packages.items() for one in sources(root, name))))


def sources(root: Path, name: str) -> tuple[Document, ...]:
    """Python files below `root`, tests left out as in `stdlib`, each called by `name` and its path."""
    return tuple(
        Document(f"{name}/{path.relative_to(root).as_posix()}", path.read_bytes) for path in stdlib.sources_below(root)
    )


def distinct(found: tuple[Document, ...]) -> tuple[Document, ...]:
    """In the order of names, without texts that an earlier name has, and without what is not UTF-8."""
    seen: set[bytes] = set()
    kept = []
    for document in sorted(found, key=lambda one: one.name):
        content = document.load()
        digest = hashlib.sha256(content).digest()
        try:
            content.decode("utf-8")
        except UnicodeDecodeError:
            continue
        if digest not in seen:
            seen.add(digest)
            kept.append(document)
    return tuple(kept)


def label(paths: tuple[str, ...] = ()) -> str:
    """What a report calls this corpus."""
    return f"Python {platform.python_version()} standard library and the installed packages, without their tests"
