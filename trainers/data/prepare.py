"""Text to a prepared corpus, once: list, hash, split, train the tokenizer, encode, put in place.

What is listed and compared as a whole is built here; what is streamed is built by `streamed.build`, in a folder that a killed
preparation is gone on from.

A corpus lies in the cache under a key of the request and of every document's content, so that an edited file is
noticed and unchanged text costs one reading. It is built in a directory of its own and renamed when whole: readers see
all of it or nothing, preparers at the same time do the same work twice and agree on the result. A directory whose
name starts with a dot was left by a preparer that was killed, and may be deleted.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trainers.contract.errors import InputError
from trainers.contract.spec import fingerprint
from trainers.data.documents import SPLIT_RULE, HashedDocument, Split, hash_document, split_documents
from trainers.data.manifest import (
    FORMAT_VERSION,
    SPLITS,
    STREAMED_FORMAT,
    TOKENIZER_FILE,
    BrokenCorpus,
    Manifest,
    SourceEntry,
    file_entry,
    read_manifest,
    token_dtype_of,
    write_manifest,
)
from trainers.data.request import HUGGINGFACE, CorpusRequest, PartRequest
from trainers.data.shards import PreparedCorpus, SplitWriter, open_corpus, tokens_path
from trainers.data.shared_content import TOGETHER_RULE, groups_of, seen_share
from trainers.data.sources import SOURCES
from trainers.data.streamed.build import Pace, build
from trainers.data.streamed.readers import stamps
from trainers.data.streamed.state import SHARD_TOKENS
from trainers.data.tokenizer import SETTINGS_FILE, tokenizer_file, tokenizer_text

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PROGRESS_BYTES = 64 << 20
"""Text between two progress messages."""


def _say_nothing(message: str) -> None:
    """Progress is optional."""


def _watch_nothing(pace: Pace) -> None:
    """So is the bar."""


def prepare(
    request: CorpusRequest,
    cache: Path,
    say: Callable[[str], None] = _say_nothing,
    watch: Callable[[Pace], None] = _watch_nothing,
    processes: int = 0,
) -> PreparedCorpus:
    """The corpus that was asked for, from the cache when its text is unchanged and whole, else made now.

    `say` is told about the work, a line at a time, `watch` often how far it is; `processes` 0 means one a core. Raises
    `InputError` in one line for text that cannot be used, and lets `OSError` travel where a file cannot be read or written.
    """
    if request.streamed:
        return _prepare_streamed(request, cache, say, watch, processes)
    inputs = _read_inputs(request)
    home = cache / inputs.key
    try:
        return open_corpus(home)
    except BrokenCorpus as reason:
        if home.exists():
            say(f"Preparing again: {reason}")
    building = cache / f".{inputs.key}.{secrets.token_hex(8)}"
    building.mkdir(parents=True)
    try:
        _build(request, inputs, building, say)
        _publish(building, home)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return open_corpus(home)


def find_prepared(request: CorpusRequest, cache: Path) -> Manifest | None:
    """The manifest of the corpus if `prepare` would have nothing to do, else nothing. Only reads.

    Raises `InputError` like `prepare` when the text itself cannot be found.
    """
    try:
        return read_manifest(cache / (_streamed_key(request) if request.streamed else _read_inputs(request).key))
    except BrokenCorpus:
        return None


def _prepare_streamed(
    request: CorpusRequest, cache: Path, say: Callable[[str], None], watch: Callable[[Pace], None], processes: int
) -> PreparedCorpus:
    key = _streamed_key(request)
    home = cache / key
    with suppress(BrokenCorpus):
        return open_corpus(home)
    with _alone(cache, key, say):
        try:  # by whoever was here before
            return open_corpus(home)
        except BrokenCorpus as reason:
            if home.exists():
                say(f"Preparing again: {reason}")
        building = cache / f".{key}.building"
        build(request, key, building, say, watch, processes, SHARD_TOKENS)
        _publish(building, home)
    return open_corpus(home)


@contextmanager
def _alone(cache: Path, key: str, say: Callable[[str], None]) -> Iterator[None]:
    """One process at a time builds a streamed corpus; others wait for it."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f".{key}.lock").open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("Another process prepares this text; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _streamed_key(request: CorpusRequest) -> str:
    """Of a request and the state of its local files, none of which is read: they may be terabytes."""
    return fingerprint(
        {
            "format": STREAMED_FORMAT,
            "source": request.source,
            "parts": [_part_identity(part) for part in request.parts],
            "tokens": request.tokens,
            "validation_fraction": request.validation_fraction,
            "vocab_size": request.vocab_size,
            "tokenizer": _given_tokenizer(request),
            **_named_tokenizer(request),
        }
    )


def _part_identity(part: PartRequest) -> list[Any]:
    """What is asked of a part, and the state of its local files; a name of the hub stands for the commit found first."""
    if part.source != HUGGINGFACE:
        return [part.source, part.field, float(part.weight), stamps(part.paths)]
    folder = Path(str(part.name)).expanduser()
    local = stamps((str(folder),)) if folder.is_dir() else []
    return [part.source, part.name, part.config, part.split, part.revision, part.field, float(part.weight), local]


@dataclass(frozen=True, slots=True)
class _Inputs:
    """Every document that is not empty, sorted by name, and the key of the request on them."""

    documents: tuple[HashedDocument, ...]
    key: str

    @property
    def size(self) -> int:
        return sum(entry.size for entry in self.documents)

    def identities(self) -> list[list[str]]:
        """Name and content hash of each document."""
        return [[entry.name, entry.sha256] for entry in self.documents]


def _read_inputs(request: CorpusRequest) -> _Inputs:
    listed = SOURCES[request.source].documents(request.paths)
    documents = tuple(entry for entry in map(hash_document, listed) if entry.size)
    inputs = _Inputs(documents, "")
    key = fingerprint(
        {
            "format": FORMAT_VERSION,
            "together": TOGETHER_RULE,
            "source": request.source,
            "validation_fraction": request.validation_fraction,
            "vocab_size": request.vocab_size,
            "tokenizer": _given_tokenizer(request),
            "documents": inputs.identities(),
            **_named_tokenizer(request),
        }
    )
    return _Inputs(documents, key)


def _named_tokenizer(request: CorpusRequest) -> dict[str, Any]:
    """What a request says of its tokenizer besides the file; nothing for those that say nothing, whose keys stay."""
    said = {
        "tokenizer_name": request.tokenizer_name,
        "tokenizer_revision": request.tokenizer_revision,
        "end_of_document": request.end_of_document,
    }
    if request.tokenizer_path is not None and Path(request.tokenizer_path).expanduser().is_dir():
        settings = Path(request.tokenizer_path).expanduser() / SETTINGS_FILE
        said["tokenizer_settings"] = settings.read_text(encoding="utf-8") if settings.is_file() else None
    return {name: value for name, value in said.items() if value is not None}


def _given_tokenizer(request: CorpusRequest) -> str | None:
    """The text of the tokenizer that the request names. Raises `InputError` where it cannot be read."""
    if request.tokenizer_path is None:
        return None
    return tokenizer_text(tokenizer_file(request.tokenizer_path), request.tokenizer_path)


def _tokenizer(request: CorpusRequest, split: Split, say: Callable[[str], None]) -> tuple[Tokenizer, int]:
    """The tokenizer and its token between documents."""
    from trainers.data.tokenizer import given_tokenizer, separator_id, train_tokenizer

    if (given := given_tokenizer(request)) is not None:
        return given
    say(f"Training a tokenizer of {request.vocab_size:,} tokens on {len(split.train):,} files")
    tokenizer = train_tokenizer(_texts(split.train, "Counted words in", say), request.vocab_size)
    return tokenizer, separator_id(tokenizer)


def _build(request: CorpusRequest, inputs: _Inputs, directory: Path, say: Callable[[str], None]) -> None:
    """Write all files of the corpus into `directory`, the manifest last."""
    from trainers.data.tokenizer import tokenizer_fingerprint

    say(f"Looking for shared content in {len(inputs.documents):,} files")
    groups = groups_of((entry.name, entry.document.load) for entry in inputs.documents)
    split = split_documents(inputs.documents, request.validation_fraction, groups)
    label = SOURCES[request.source].label(request.paths)
    say(f"Preparing {label}: {len(inputs.documents):,} files, {inputs.size / 1e6:.1f} MB")
    tokenizer, separator = _tokenizer(request, split, say)
    tokenizer_json = tokenizer.to_str()
    (directory / TOKENIZER_FILE).write_text(tokenizer_json, encoding="utf-8")
    say("Encoding")
    dtype = token_dtype_of(request.vocab_size)
    train = SplitWriter(directory, "train", dtype, separator)
    validation = SplitWriter(directory, "validation", dtype, separator)
    _encode(tokenizer, split, train, validation, say)
    if not (train.num_documents and validation.num_documents):
        raise InputError("corpus: no text left in one of the splits; its files hold only separators")
    paths = (directory / TOKENIZER_FILE, *train.paths, *validation.paths)
    tokenizer_identity = tokenizer_fingerprint(tokenizer_json)
    num_documents = train.num_documents + validation.num_documents
    manifest = Manifest(
        format=FORMAT_VERSION,
        key=inputs.key,
        fingerprint=_stream_fingerprint(request, inputs, tokenizer_identity, groups),
        tokenizer_fingerprint=tokenizer_identity,
        vocab_size=request.vocab_size,
        separator=separator,
        token_dtype=dtype,
        train_tokens=train.num_tokens,
        validation_tokens=validation.num_tokens,
        train_documents=train.num_documents,
        validation_documents=validation.num_documents,
        description=f"{label}: {num_documents:,} documents, {inputs.size / 1e6:.1f} MB, "
        f"{'given tokenizer' if request.tokenizer_path else 'byte-level BPE'} of {request.vocab_size:,} tokens",
        files=tuple(file_entry(path) for path in paths),
        seen_share=_seen_share(directory, dtype),
        bytes_per_token=round(sum(entry.size for entry in split.validation) / validation.num_tokens, 6),
        sources=(SourceEntry(label, num_documents, train.num_tokens, inputs.size),),
    )
    write_manifest(directory, manifest)
    say(f"Prepared {train.num_tokens:,} training and {validation.num_tokens:,} validation tokens")


def _seen_share(directory: Path, dtype: str) -> float:
    train, validation = (np.memmap(tokens_path(directory, split), dtype=dtype, mode="r") for split in SPLITS)
    return round(seen_share(train, validation), 6)


def _encode(
    tokenizer: Tokenizer, split: Split, train: SplitWriter, validation: SplitWriter, say: Callable[[str], None]
) -> None:
    from trainers.data.tokenizer import encode_documents

    for entries, writer in ((split.validation, validation), (split.train, train)):
        with writer:
            own = str(tokenizer.id_to_token(writer.separator))
            for tokens in encode_documents(tokenizer, _texts(entries, "Encoded", say, own)):
                writer.add(tokens)


def _texts(
    entries: tuple[HashedDocument, ...], action: str, say: Callable[[str], None], *separators: str
) -> Iterator[str]:
    """The texts of one split; a separator written out in a file parts it into several documents."""
    from trainers.data.tokenizer import pieces

    total = sum(entry.size for entry in entries)
    done = announced = 0
    for entry in entries:
        yield from pieces(entry.text(), *separators)
        done += entry.size
        if done - announced >= PROGRESS_BYTES:
            announced = done
            say(f"{action} {done / 1e6:,.0f} of {total / 1e6:,.0f} MB")


def _stream_fingerprint(
    request: CorpusRequest, inputs: _Inputs, tokenizer_identity: str, groups: Mapping[str, str]
) -> str:
    """Identity of the tokens and their order, on any machine: paths and caches have no part in it.

    Where no document shares content with another, the stream is the one of before that was looked for.
    """
    return fingerprint(
        {
            "format": FORMAT_VERSION,
            "split": [SPLIT_RULE, request.validation_fraction, *([dict(groups)] if groups else [])],
            "documents": inputs.identities(),
            "tokenizer": tokenizer_identity,
        }
    )


def _publish(building: Path, home: Path) -> None:
    """Rename the finished directory into place, unless a whole one stands there; a broken one makes way."""
    while True:
        try:
            # A rename is all or nothing. A reader sees a whole corpus or none, also after a power cut in the middle.
            building.rename(home)
            return
        except OSError:
            if not home.exists():
                raise
        try:
            read_manifest(home)
            return
        except BrokenCorpus:
            aside = building.with_name(building.name + ".broken")
            with suppress(FileNotFoundError):  # another preparer was faster
                os.rename(home, aside)
            shutil.rmtree(aside, ignore_errors=True)
