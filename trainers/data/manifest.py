"""The manifest of a prepared corpus: what its directory holds, and the check that it still holds it.

It is written last, into a directory that is renamed into place when complete: a directory with a manifest whose files
have the stated sizes and hashes is whole, anything else is as good as absent. Standard library only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

MANIFEST_FILE = "manifest.json"
FORMAT_VERSION = 2
"""Raised whenever the same request would give another stream of tokens, or other files."""

HASH_BLOCK_BYTES = 1 << 20


class BrokenCorpus(ValueError):  # noqa: N818 - it is named for what is found
    """A directory that holds no whole prepared corpus; the message is one line."""


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file beside the manifest: `size` in bytes, `sha256` in hexadecimal."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """A prepared corpus in numbers. Token counts include one separator a document.

    `fingerprint` identifies the stream of tokens on any machine, `key` the request and its inputs in this cache.
    """

    format: int
    key: str
    fingerprint: str
    tokenizer_fingerprint: str
    vocab_size: int
    separator: int
    token_dtype: str
    train_tokens: int
    validation_tokens: int
    train_documents: int
    validation_documents: int
    description: str
    files: tuple[FileEntry, ...]

    @property
    def num_documents(self) -> int:
        """Documents of both splits."""
        return self.train_documents + self.validation_documents


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write the manifest of a directory whose other files are complete."""
    text = json.dumps(asdict(manifest), indent=1, allow_nan=False)
    (directory / MANIFEST_FILE).write_text(text + "\n", encoding="utf-8")


def read_manifest(directory: Path) -> Manifest:
    """Read a manifest and check every file against it. Raises `BrokenCorpus` saying what is missing or differs."""
    path = directory / MANIFEST_FILE
    try:
        manifest = _from_plain(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise BrokenCorpus(f"{directory}: no prepared corpus ({MANIFEST_FILE} is missing)") from None
    except (ValueError, KeyError, TypeError) as error:
        raise BrokenCorpus(f"{path}: not a corpus manifest ({error})") from None
    if manifest.format != FORMAT_VERSION:
        raise BrokenCorpus(f"{path}: format {manifest.format}, this version reads {FORMAT_VERSION}")
    for entry in manifest.files:
        try:
            found = file_entry(directory / entry.name)
        except FileNotFoundError:
            raise BrokenCorpus(f"{directory}: {entry.name} is missing") from None
        if found.size != entry.size:
            raise BrokenCorpus(f"{directory / entry.name}: {found.size} bytes, {entry.size} were written")
        if found != entry:
            raise BrokenCorpus(f"{directory / entry.name}: the content is not what was written")
    return manifest


def file_entry(path: Path) -> FileEntry:
    """Measure and hash a file as it is on disk."""
    digest = hashlib.sha256()
    size = 0
    with path.open("rb") as file:
        while block := file.read(HASH_BLOCK_BYTES):
            digest.update(block)
            size += len(block)
    return FileEntry(path.name, size, digest.hexdigest())


def _from_plain(plain: Mapping[str, Any]) -> Manifest:
    unknown = set(plain) ^ {field.name for field in fields(Manifest)}
    if unknown:
        raise ValueError(f"unexpected or missing: {', '.join(sorted(unknown))}")
    return Manifest(**{**plain, "files": tuple(FileEntry(**entry) for entry in plain["files"])})
