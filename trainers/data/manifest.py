"""The manifest of a prepared corpus: what its directory holds, and the check that it still holds it.

It is written last, into a directory that is renamed into place when complete: a directory with a manifest whose files
have the stated sizes and hashes is whole, anything else is as good as absent.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from trainers.contract.errors import InputError
from trainers.contract.reading import json_value, value_of
from trainers.contract.spec import fingerprint

MANIFEST_FILE, TOKENIZER_FILE = "manifest.json", "tokenizer.json"
FORMAT_VERSION = 2
"""Raised whenever the same request would give another stream of tokens, or other files."""

HASH_BLOCK_BYTES = 1 << 20
OFFSET_BYTES = 8


class BrokenCorpus(InputError):  # noqa: N818 - it is named for what is found
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

    `fingerprint` identifies the stream of tokens on any machine, `key` the request and its inputs in this cache. `seen_share`
    is the share of the validation tokens in spans of 64 that occur in training, `bytes_per_token` the bytes of a mean
    validation token, separators included; None where that was not measured.
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
    seen_share: float | None = None
    bytes_per_token: float | None = None

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
        plain = json_value(path.read_bytes(), "a corpus manifest")
        if isinstance(plain, dict) and plain.get("format", FORMAT_VERSION) != FORMAT_VERSION:
            raise BrokenCorpus(f"{path}: format {plain['format']!r}, this version reads {FORMAT_VERSION}")
        manifest = value_of(Manifest, plain, "a corpus manifest")
    except FileNotFoundError:
        raise BrokenCorpus(f"{directory}: no prepared corpus ({MANIFEST_FILE} is missing)") from None
    except BrokenCorpus:
        raise
    except (InputError, OSError) as error:
        raise BrokenCorpus(f"{path}: {error}") from None
    for entry in manifest.files:
        if not entry.name or Path(entry.name).name != entry.name:  # also a way out of the folder
            raise BrokenCorpus(f"{path}: {entry.name!r} is not the name of a file beside it")
        try:
            found = file_entry(directory / entry.name)
        except FileNotFoundError:
            raise BrokenCorpus(f"{directory}: {entry.name} is missing") from None
        # The size first: a truncated file of many gigabytes is told without reading it as another one.
        if found.size != entry.size:
            raise BrokenCorpus(f"{directory / entry.name}: {found.size} bytes, {entry.size} were written")
        if found != entry:
            raise BrokenCorpus(f"{directory / entry.name}: the content is not what was written")
    _refuse_other_counts(directory, manifest)
    tokenizer = fingerprint(json_value((directory / TOKENIZER_FILE).read_bytes(), "a tokenizer"))
    if tokenizer != manifest.tokenizer_fingerprint:
        raise BrokenCorpus(f"{directory}: its tokenizer is {tokenizer}, not {manifest.tokenizer_fingerprint} as stated")
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


def _refuse_other_counts(directory: Path, manifest: Manifest) -> None:
    """Raise `BrokenCorpus` where the manifest counts other tokens than the files hold: it is no hash of itself."""
    sizes = {entry.name: entry.size for entry in manifest.files}
    width = {"<u2": 2, "<u4": 4}.get(manifest.token_dtype)
    if width is None or not 0 <= manifest.separator < manifest.vocab_size <= 1 << 8 * width:
        said = f"separator {manifest.separator} and vocab_size {manifest.vocab_size} are impossible"
        raise BrokenCorpus(f"{directory}: {said} for {manifest.token_dtype}")
    for split, tokens, documents in (
        ("train", manifest.train_tokens, manifest.train_documents),
        ("validation", manifest.validation_tokens, manifest.validation_documents),
    ):
        if sizes.get(f"{split}.tokens") != width * tokens:
            raise BrokenCorpus(f"{directory}: {split}.tokens does not hold {tokens} tokens of {manifest.token_dtype}")
        if sizes.get(f"{split}.offsets") != OFFSET_BYTES * (documents + 1):
            raise BrokenCorpus(f"{directory}: {split}.offsets does not hold {documents} documents")
