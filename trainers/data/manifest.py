"""The manifest of a prepared corpus: what its directory holds, and the check that it still holds it.

It is written last, into a directory that is renamed into place when complete: a directory with a manifest whose files
have the stated sizes and hashes is whole, anything else is as good as absent. A large file is hashed again only when its
size or time of change is another: a trial would otherwise read hundreds of gigabytes before its first step.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from trainers.contract.errors import InputError
from trainers.contract.reading import json_value, value_of
from trainers.contract.spec import fingerprint
from trainers.contract.writing import write_atomically

SPLITS = ("train", "validation")
MANIFEST_FILE, TOKENIZER_FILE, VERIFIED_FILE = "manifest.json", "tokenizer.json", "verified.json"
FORMAT_VERSION = 2
"""Raised whenever the same request would give another stream of tokens, or other files."""
STREAMED_FORMAT = 3
"""The same of a corpus whose documents were streamed: tokens in shards, and a seal on the manifest."""

HASH_BLOCK_BYTES = 1 << 20
HASHED_ONCE_BYTES = 64 << 20
"""Files from this size on are hashed once for each state of theirs."""
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
class Shard:
    """A file of a split's tokens, one after the other in the order of the manifest."""

    name: str
    split: str
    tokens: int


@dataclass(frozen=True, slots=True)
class SourceEntry:
    """Where a part of the text is from, and how much of it there is; tokens are those to train on, bytes those of all its
    documents. `revision` is the hub's commit, `licence` what its card says, None where there is none to be known."""

    name: str
    documents: int
    tokens: int
    text_bytes: int
    weight: float = 1.0
    revision: str | None = None
    licence: str | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """A prepared corpus in numbers. Token counts include one separator a document.

    `fingerprint` identifies the stream of tokens on any machine, `key` the request and its inputs in this cache. `seen_share`
    is the share of the validation tokens in spans of 64 that occur in training, `bytes_per_token` the bytes of a mean
    validation token, separators included; None where that was not measured. A corpus that was streamed has `shards`, and a
    `seal` on all the rest.
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
    sources: tuple[SourceEntry, ...] = ()
    shards: tuple[Shard, ...] = ()
    seal: str = ""

    def sealed(self) -> Manifest:
        """With the hash of everything else: counts of documents are in no file that could be held against them."""
        return replace(self, seal=_seal_of(json.loads(json.dumps(asdict(self)))))

    @property
    def num_documents(self) -> int:
        """Documents of both splits."""
        return self.train_documents + self.validation_documents


def _seal_of(plain: dict[str, Any]) -> str:
    return fingerprint({**plain, "seal": ""})


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write the manifest of a directory whose other files are complete."""
    text = json.dumps(asdict(manifest), indent=1, allow_nan=False)
    (directory / MANIFEST_FILE).write_text(text + "\n", encoding="utf-8")


def read_manifest(directory: Path) -> Manifest:
    """Read a manifest and check every file against it. Raises `BrokenCorpus` saying what is missing or differs."""
    path = directory / MANIFEST_FILE
    try:
        plain = json_value(path.read_bytes(), "a corpus manifest")
        known = (FORMAT_VERSION, STREAMED_FORMAT)
        if isinstance(plain, dict) and plain.get("format", FORMAT_VERSION) not in known:
            raise BrokenCorpus(
                f"{path}: format {plain['format']!r}, this version reads {' and '.join(map(str, known))}"
            )
        manifest = value_of(Manifest, plain, "a corpus manifest")
        if manifest.format == STREAMED_FORMAT and manifest.seal != _seal_of(plain):
            raise BrokenCorpus(f"{path}: not what was written: its seal does not fit")
    except FileNotFoundError:
        raise BrokenCorpus(f"{directory}: no prepared corpus ({MANIFEST_FILE} is missing)") from None
    except BrokenCorpus:
        raise
    except (InputError, OSError) as error:
        raise BrokenCorpus(f"{path}: {error}") from None
    _refuse_other_files(directory, manifest)
    if manifest.format == FORMAT_VERSION:
        _refuse_other_counts(directory, manifest)
    else:
        _refuse_other_shards(directory, manifest)
    try:
        tokenizer = fingerprint(json_value((directory / TOKENIZER_FILE).read_bytes(), "a tokenizer"))
    except (InputError, OSError) as error:
        raise BrokenCorpus(f"{directory / TOKENIZER_FILE}: {error}") from None
    if tokenizer != manifest.tokenizer_fingerprint:
        raise BrokenCorpus(f"{directory}: its tokenizer is {tokenizer}, not {manifest.tokenizer_fingerprint} as stated")
    return manifest


def _refuse_other_files(directory: Path, manifest: Manifest) -> None:
    """Raise `BrokenCorpus` where a file is missing or differs."""
    stamps = _stamps(directory)
    known = dict(stamps)
    for entry in manifest.files:
        if not entry.name or Path(entry.name).name != entry.name:  # also a way out of the folder
            raise BrokenCorpus(f"{directory / MANIFEST_FILE}: {entry.name!r} is not the name of a file beside it")
        path = directory / entry.name
        try:
            state = path.stat()
            # The size first: a truncated file of many gigabytes is told without reading it as another one.
            if state.st_size != entry.size:
                raise BrokenCorpus(f"{path}: {state.st_size} bytes, {entry.size} were written")
            stamp = [state.st_size, state.st_mtime_ns, entry.sha256]
            if entry.size >= HASHED_ONCE_BYTES and stamps.get(entry.name) == stamp:
                continue
            if file_entry(path) != entry:
                raise BrokenCorpus(f"{path}: the content is not what was written")
        except BrokenCorpus:
            raise
        except FileNotFoundError:
            raise BrokenCorpus(f"{directory}: {entry.name} is missing") from None
        except (IsADirectoryError, ValueError) as error:  # a name with a null in it
            raise BrokenCorpus(f"{path}: {error}") from None
        if entry.size >= HASHED_ONCE_BYTES:
            known[entry.name] = stamp
    if known != stamps:
        with suppress(OSError):  # a folder that cannot be written is read each time
            write_atomically(directory / VERIFIED_FILE, json.dumps(known))


def look_of(directory: Path) -> tuple[tuple[str, int, int], ...]:
    """Name, size and time of change of a corpus's files: another look is a reason to hash them again."""
    try:
        found = [(file.name, file.stat()) for file in directory.iterdir() if file.name != VERIFIED_FILE]
    except OSError:
        return ()
    return tuple(sorted((name, state.st_size, state.st_mtime_ns) for name, state in found))


def _stamps(directory: Path) -> dict[str, Any]:
    """Of each large file the size, time of change and hash with which it was found whole."""
    try:
        found = json_value((directory / VERIFIED_FILE).read_bytes())
    except (InputError, OSError):
        return {}
    return found if isinstance(found, dict) else {}


def file_entry(path: Path) -> FileEntry:
    """Measure and hash a file as it is on disk."""
    digest = hashlib.sha256()
    size = 0
    with path.open("rb") as file:
        while block := file.read(HASH_BLOCK_BYTES):
            digest.update(block)
            size += len(block)
    return FileEntry(path.name, size, digest.hexdigest())


def token_dtype_of(vocab_size: int) -> str:
    """How a token is written: little-endian whatever the machine, since the files travel."""
    return "<u2" if vocab_size <= 1 << 16 else "<u4"


def _width(directory: Path, manifest: Manifest) -> int:
    """Bytes of a token. Raises `BrokenCorpus` for a vocabulary that does not fit into them."""
    width = {"<u2": 2, "<u4": 4}.get(manifest.token_dtype)
    if width is None or not 0 <= manifest.separator < manifest.vocab_size <= 1 << 8 * width:
        said = f"separator {manifest.separator} and vocab_size {manifest.vocab_size} are impossible"
        raise BrokenCorpus(f"{directory}: {said} for {manifest.token_dtype}")
    return width


def _refuse_other_shards(directory: Path, manifest: Manifest) -> None:
    """Raise `BrokenCorpus` where the shards are not files of the stated tokens, or not all of their split's."""
    sizes = {entry.name: entry.size for entry in manifest.files}
    width = _width(directory, manifest)
    for shard in manifest.shards:
        if sizes.get(shard.name) != width * shard.tokens:
            raise BrokenCorpus(
                f"{directory}: {shard.name} does not hold {shard.tokens} tokens of {manifest.token_dtype}"
            )
    for split, tokens in (("train", manifest.train_tokens), ("validation", manifest.validation_tokens)):
        found = sum(shard.tokens for shard in manifest.shards if shard.split == split)
        if found != tokens:
            raise BrokenCorpus(f"{directory}: the shards of {split} hold {found} tokens, not {tokens} as stated")


def _refuse_other_counts(directory: Path, manifest: Manifest) -> None:
    """Raise `BrokenCorpus` where the manifest counts other tokens than the files hold: it is no hash of itself."""
    sizes = {entry.name: entry.size for entry in manifest.files}
    width = _width(directory, manifest)
    for split, tokens, documents in (
        ("train", manifest.train_tokens, manifest.train_documents),
        ("validation", manifest.validation_tokens, manifest.validation_documents),
    ):
        if sizes.get(f"{split}.tokens") != width * tokens:
            raise BrokenCorpus(f"{directory}: {split}.tokens does not hold {tokens} tokens of {manifest.token_dtype}")
        if sizes.get(f"{split}.offsets") != OFFSET_BYTES * (documents + 1):
            raise BrokenCorpus(f"{directory}: {split}.offsets does not hold {documents} documents")
