"""How far the preparing of a streamed corpus is: what is written down so that another process goes on from it.

Only what has reached the disk is written down. Going on cuts every file to that, so that what comes after it comes as if
nothing had happened.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from trainers.contract.errors import InputError
from trainers.contract.reading import json_value, value_of
from trainers.contract.writing import write_atomically
from trainers.data.manifest import HASH_BLOCK_BYTES, SPLITS
from trainers.data.streamed.order import ShardedTokens

PROGRESS_FILE = "progress.json"
SHARD_TOKENS = 1 << 28
"""Tokens of a whole shard: a gigabyte of four-byte tokens."""


@dataclass(slots=True)
class SplitState:
    """Whole shards with their hashes, the tokens of the one that is being written; documents in all, and their bytes."""

    shards: tuple[tuple[int, str], ...] = ()
    open_tokens: int = 0
    documents: int = 0
    text_bytes: int = 0

    @property
    def written(self) -> tuple[int, ...]:
        """Tokens of each file."""
        return (*(tokens for tokens, _ in self.shards), *((self.open_tokens,) if self.open_tokens else ()))

    @property
    def tokens(self) -> int:
        """All tokens of the split so far."""
        return sum(self.written)


@dataclass(slots=True)
class PartState:
    """One part: the place of the next record, what was read so far, and what was found out about its origin."""

    origin: str = ""
    revision: str | None = None
    licence: str | None = None
    unit: int = 0
    row: int = 0
    done: bool = False
    train: SplitState = field(default_factory=SplitState)
    validation: SplitState = field(default_factory=SplitState)

    def split(self, name: str) -> SplitState:
        """`train` or `validation`."""
        return self.train if name == "train" else self.validation


@dataclass(slots=True)
class Progress:
    """All parts, in order. `cut` when a mixture's have been cut to its weights."""

    key: str
    separator: int
    parts: tuple[PartState, ...] = ()
    cut: bool = False


def shard_name(part: int, split: str, index: int) -> str:
    """File of a part's shard."""
    return f"part{part}-{split}-{index:05d}.tokens"


def write_progress(directory: Path, progress: Progress) -> None:
    """Write down how far all is; what it speaks of has to be on the disk."""
    write_atomically(directory / PROGRESS_FILE, json.dumps(asdict(progress)))


def read_progress(directory: Path, key: str, token_dtype: str) -> Progress | None:
    """What was written down for `key`; None where there is nothing that could be gone on from, files gone or cut included."""
    try:
        plain = json_value((directory / PROGRESS_FILE).read_bytes())
        progress = value_of(Progress, plain, "the progress of a corpus")
        there = all(
            (directory / shard_name(index, split, number)).stat().st_size >= tokens * np.dtype(token_dtype).itemsize
            for index, state in enumerate(progress.parts)
            for split in SPLITS
            for number, tokens in enumerate(state.split(split).written)
        )
    except (InputError, OSError):
        return None
    return progress if there and progress.key == key else None


class ShardWriter:
    """Appends to one split of one part, from where `state` says that it ends. `sync` brings it to the disk, and `state` up
    to date."""

    def __init__(
        self, directory: Path, part: int, split: str, state: SplitState, token_dtype: str, shard_tokens: int
    ) -> None:
        self._directory, self._part, self._split = directory, part, split
        self._state, self._dtype, self._shard_tokens = state, np.dtype(token_dtype), shard_tokens
        self._written = state.open_tokens
        self._open()

    @property
    def tokens(self) -> int:
        """All tokens of the split so far."""
        return sum(tokens for tokens, _ in self._state.shards) + self._written

    def add(self, tokens: np.ndarray, documents: int, text_bytes: int) -> None:
        """Append the tokens of so many documents and bytes, `(num_tokens,)`."""
        self._state.documents += documents
        self._state.text_bytes += text_bytes
        while len(tokens):
            room = self._shard_tokens - self._written
            content = tokens[:room].astype(self._dtype, copy=False).tobytes()
            self._file.write(content)
            self._hash.update(content)
            self._written += len(content) // self._dtype.itemsize
            tokens = tokens[room:]
            if self._written == self._shard_tokens:
                self._end_shard()
                self._open()

    def sync(self) -> None:
        """Bring everything to the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._state.open_tokens = self._written

    def close(self) -> None:
        """End the last shard, where there is anything in it."""
        if self._written:
            self._end_shard()
        else:
            self._file.close()
            self._path().unlink()
        self._written = self._state.open_tokens = 0

    def leave(self) -> None:
        """Close the file as it is."""
        self._file.close()

    def _end_shard(self) -> None:
        self.sync()
        self._file.close()
        self._state.shards = (*self._state.shards, (self._written, self._hash.hexdigest()))
        self._state.open_tokens = self._written = 0

    def _path(self) -> Path:
        return self._directory / shard_name(self._part, self._split, len(self._state.shards))

    def _open(self) -> None:
        size = self._written * self._dtype.itemsize
        self._file: Any = self._path().open("r+b" if size else "w+b")
        self._file.truncate(size)
        self._hash = hashlib.sha256()
        while block := self._file.read(HASH_BLOCK_BYTES):
            self._hash.update(block)


def cut_split(
    directory: Path, part: int, split: str, state: SplitState, target: int, separator: int, token_dtype: str
) -> None:
    """Cut a finished split at the end of the document that token `target` (at least 1) is of, where it is longer. Its bytes
    are then a share of what they were.

    Cutting twice is cutting once, also when `state` has not been written down in between.
    """
    width = np.dtype(token_dtype).itemsize
    paths = [directory / shard_name(part, split, index) for index in range(len(state.shards))]
    paths = [path for path in paths if path.exists()]
    sizes = [path.stat().st_size // width for path in paths]
    tokens = ShardedTokens(paths, sizes, token_dtype)
    end = _document_end(tokens, target, separator)
    kept: list[tuple[int, str]] = []
    for path, size, (written, sha256) in zip(paths, sizes, state.shards, strict=False):
        length = min(size, end)
        end -= length
        if not length:
            path.unlink()
            continue
        if length < written:
            os.truncate(path, length * width)
            with path.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        kept.append((length, sha256))
    before = state.tokens
    state.shards = tuple(kept)
    state.text_bytes = round(state.text_bytes * state.tokens / before)
    left = ShardedTokens(paths[: len(kept)], [size for size, _ in kept], token_dtype)
    blocks = range(0, len(left), HASH_BLOCK_BYTES)
    state.documents = sum(int((left[start : start + HASH_BLOCK_BYTES] == separator).sum()) for start in blocks)


def _document_end(tokens: ShardedTokens, target: int, separator: int) -> int:
    """Tokens up to and with the first separator from token number `target` on; all, where there is none."""
    for start in range(target - 1, len(tokens), HASH_BLOCK_BYTES):
        found = np.flatnonzero(tokens[start : start + HASH_BLOCK_BYTES] == separator)
        if len(found):
            return start + int(found[0]) + 1
    return len(tokens)
