"""Tokens on disk, and the one stream that every method reads: position decides token, whatever was read before.

A split is one file of raw little-endian tokens, every document followed by the separator, and one of document offsets.
Epoch `e` of the stream holds positions `[e * train_tokens, (e + 1) * train_tokens)`: all training documents, each
once, in an order drawn from (seed, e). Long documents are cut into pieces that are ordered each for itself.
Nothing is shuffled below the piece, so that bags of tokens and sequences of bags stay whole.
A corpus that was streamed lies in shards and is read in `streamed.order`'s blocks instead.
Which documents are trained on is decided in `documents`, how far a run reads in `trainers.contract.schedule`.

The order is made of raw Philox words and a stable sort: numpy keeps a bit generator's words fixed over versions, and
makes no such promise for `Generator.permutation`.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from trainers.data.manifest import Shard, read_manifest
from trainers.data.request import refuse_few_held_out
from trainers.data.streamed.order import BlockStream, ShardedTokens

MATERIALISE_BYTES = 256 << 20
"""A corpus below this size is put in order once an epoch, in memory; a larger one is gathered at each read."""


PIECE_TOKENS = 4_096
"""Longer than most documents of a large corpus; a trainer asks for pieces that suit its sequences."""

VALIDATION_PIECE_TOKENS = 1_024


@dataclass(frozen=True, slots=True)
class PreparedCorpus:
    """A whole prepared corpus: numbers and a directory, cheap to hand to another process.

    Token counts include one separator a document; `num_documents` counts both splits. `separator` is a token id,
    `seen_share` and `bytes_per_token` as in the manifest.
    """

    directory: Path
    fingerprint: str
    tokenizer_fingerprint: str
    vocab_size: int
    separator: int
    token_dtype: str
    train_tokens: int
    validation_tokens: int
    num_documents: int
    description: str
    seen_share: float | None
    bytes_per_token: float | None
    shards: tuple[Shard, ...] = ()

    def stream(
        self, seed: int, materialise_bytes: int = MATERIALISE_BYTES, piece_tokens: int = PIECE_TOKENS
    ) -> TokenStream | BlockStream:
        """The training tokens in the order of `seed`, which is in [0, 2**64), in pieces of at most `piece_tokens`.

        `materialise_bytes` moves no token.
        """
        if self.shards:
            return BlockStream(self._sharded("train"), piece_tokens, seed)
        tokens = np.memmap(tokens_path(self.directory, "train"), dtype=self.token_dtype, mode="r")
        offsets = np.fromfile(_offsets_path(self.directory, "train"), dtype="<i8").astype(np.int64)
        return TokenStream(np.asarray(tokens), piece_offsets(offsets, piece_tokens), seed, materialise_bytes)

    def validation(self, num_tokens: int) -> np.ndarray:
        """`num_tokens` held-out tokens, int64 `(num_tokens,)`, the same for every seed and method.

        Pieces of all held-out documents in one fixed order, so that a prefix is a mixture: the first few whole files
        would make the loss hang on whether a run has lately read their like. Raises `InputError` when there are fewer.
        """
        refuse_few_held_out(num_tokens, self.validation_tokens)
        if self.shards:
            return BlockStream(self._sharded("validation"), VALIDATION_PIECE_TOKENS, seed=0).read(0, num_tokens)
        tokens = np.memmap(tokens_path(self.directory, "validation"), dtype=self.token_dtype, mode="r")
        offsets = np.fromfile(_offsets_path(self.directory, "validation"), dtype="<i8").astype(np.int64)
        pieces = piece_offsets(offsets, VALIDATION_PIECE_TOKENS)
        order = document_order(len(pieces) - 1, seed=0, epoch=0)
        ends = np.cumsum(np.diff(pieces)[order])
        needed = order[: int(np.searchsorted(ends, num_tokens)) + 1]
        return np.concatenate([tokens[pieces[i] : pieces[i + 1]] for i in needed]).astype(np.int64)[:num_tokens]

    def _sharded(self, split: str) -> ShardedTokens:
        mine = [shard for shard in self.shards if shard.split == split]
        paths = [self.directory / shard.name for shard in mine]
        return ShardedTokens(paths, [shard.tokens for shard in mine], self.token_dtype)


def tokens_path(directory: Path, split: str) -> Path:
    """The file of a split's tokens in a prepared corpus."""
    return directory / f"{split}.tokens"


def _offsets_path(directory: Path, split: str) -> Path:
    return directory / f"{split}.offsets"


def open_corpus(directory: Path) -> PreparedCorpus:
    """Open what `prepare` made. Raises `BrokenCorpus` when a file is missing, truncated or altered."""
    manifest = read_manifest(directory)
    return PreparedCorpus(
        directory=directory,
        fingerprint=manifest.fingerprint,
        tokenizer_fingerprint=manifest.tokenizer_fingerprint,
        vocab_size=manifest.vocab_size,
        separator=manifest.separator,
        token_dtype=manifest.token_dtype,
        train_tokens=manifest.train_tokens,
        validation_tokens=manifest.validation_tokens,
        num_documents=manifest.num_documents,
        description=manifest.description,
        seen_share=manifest.seen_share,
        bytes_per_token=manifest.bytes_per_token,
        shards=manifest.shards,
    )


def piece_offsets(offsets: np.ndarray, piece_tokens: int = PIECE_TOKENS) -> np.ndarray:
    """Offsets of the pieces, int64 `(num_pieces + 1,)`, from those of the documents: cut every `piece_tokens`, and the
    last piece of a document is what is left of it."""
    starts = [np.arange(start, end, piece_tokens) for start, end in pairwise(offsets)]
    return np.concatenate([*starts, offsets[-1:]]).astype(np.int64)


def document_order(num_documents: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of documents or pieces, int64 `(num_documents,)`: a pure function of its arguments on every machine."""
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed: {seed} is not in [0, 2**64)")
    words = np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64)).random_raw(num_documents)
    return np.argsort(words, kind="stable").astype(np.int64)


@dataclass(frozen=True, slots=True)
class _Epoch:
    """Piece `order[i]` starts at `starts[i]` of the epoch; `tokens` is the whole epoch where it is in memory."""

    order: np.ndarray
    starts: np.ndarray
    tokens: np.ndarray | None


class TokenStream:
    """An endless stream of training tokens. Reads depend on the position only; what is kept between them is a cache.

    `tokens (num_tokens,)` are a split as it lies on disk, `offsets (num_pieces + 1,)` the pieces that are put in order.
    """

    def __init__(self, tokens: np.ndarray, offsets: np.ndarray, seed: int, materialise_bytes: int) -> None:
        if len(offsets) < 2 or offsets[0] != 0 or offsets[-1] != len(tokens):
            raise ValueError(f"token stream: {len(offsets)} offsets do not describe {len(tokens)} tokens")
        self.tokens_per_epoch = len(tokens)
        self._tokens, self._offsets, self._seed = tokens, offsets, seed
        self._materialise = tokens.nbytes < materialise_bytes
        self._epochs: dict[int, _Epoch] = {}
        self._epoch(0)

    def read(self, position: int, count: int) -> np.ndarray:
        """Tokens `[position, position + count)` of the stream, int64 `(count,)`, over any number of epochs.

        Raises `ValueError` for a negative position or count.
        """
        if position < 0 or count < 0:
            raise ValueError(f"token stream: cannot read {count} tokens at {position}")
        out = np.empty(count, dtype=np.int64)
        filled = 0
        while filled < count:
            epoch, start = divmod(position + filled, self.tokens_per_epoch)
            end = min(start + count - filled, self.tokens_per_epoch)
            self._fill(out[filled : filled + end - start], self._epoch(epoch), start)
            filled += end - start
        return out

    def _fill(self, out: np.ndarray, epoch: _Epoch, start: int) -> None:
        """Copy the epoch's tokens from `start` on; `out` does not reach beyond the epoch."""
        if epoch.tokens is not None:
            out[:] = epoch.tokens[start : start + len(out)]
            return
        place = int(np.searchsorted(epoch.starts, start, side="right")) - 1
        filled = 0
        while filled < len(out):
            document = epoch.order[place]
            source = int(self._offsets[document]) + start + filled - int(epoch.starts[place])
            length = min(len(out) - filled, int(self._offsets[document + 1]) - source)
            out[filled : filled + length] = self._tokens[source : source + length]
            filled += length
            place += 1

    def _epoch(self, epoch: int) -> _Epoch:
        """The epoch's index, kept for two epochs: a step may reach over the end of one."""
        if epoch not in self._epochs:
            while len(self._epochs) >= 2:
                self._epochs.pop(next(iter(self._epochs)))
            self._epochs[epoch] = self._arrange(epoch)
        return self._epochs[epoch]

    def _arrange(self, epoch: int) -> _Epoch:
        order = document_order(len(self._offsets) - 1, self._seed, epoch)
        lengths = np.diff(self._offsets)[order]
        starts = np.cumsum(lengths) - lengths
        if not self._materialise:
            return _Epoch(order, starts, None)
        tokens = np.concatenate([self._tokens[self._offsets[i] : self._offsets[i + 1]] for i in order])
        return _Epoch(order, starts, tokens)


class SplitWriter:
    """Writes one split: `add` each document, `close` by leaving the `with` block. Offsets are written at the end."""

    def __init__(self, directory: Path, split: str, token_dtype: str, separator: int) -> None:
        self._tokens_path, self._offsets_path = tokens_path(directory, split), _offsets_path(directory, split)
        self._dtype, self.separator = token_dtype, separator
        self._offsets = array("q", [0])

    @property
    def num_tokens(self) -> int:
        """Tokens so far, one separator a document included."""
        return self._offsets[-1]

    @property
    def num_documents(self) -> int:
        """Documents so far."""
        return len(self._offsets) - 1

    @property
    def paths(self) -> tuple[Path, Path]:
        """The two files that this split is made of."""
        return self._tokens_path, self._offsets_path

    def __enter__(self) -> Self:
        self._file = self._tokens_path.open("wb")
        return self

    def add(self, tokens: np.ndarray) -> None:
        """Append a document, `(num_tokens,)`, and its separator."""
        assert not (tokens == self.separator).any()
        self._file.write(np.append(tokens, self.separator).astype(self._dtype).tobytes())
        self._offsets.append(self._offsets[-1] + len(tokens) + 1)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if error is None:
            np.array(self._offsets, dtype="<i8").tofile(self._offsets_path)
