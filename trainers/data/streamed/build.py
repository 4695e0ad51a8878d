"""A corpus of any size from its parts: read in order, encoded on all cores, written in shards, gone on with after a kill.

Each part is read until it has its share of the tokens that are wanted. The bytes depend on the request and the text alone:
not on the number of processes, on blocks, or on where the work was interrupted. The folder in which a corpus is built is
known by its key; one process at a time works in it.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainers.data.manifest import MANIFEST_FILE, SPLITS, TOKENIZER_FILE, token_dtype_of
from trainers.data.request import HUGGINGFACE, CorpusRequest, PartRequest
from trainers.data.streamed.encoder import Encoded, is_held_out
from trainers.data.streamed.finish import finish
from trainers.data.streamed.order import Permutation
from trainers.data.streamed.pool import EncoderPool, usable_cores
from trainers.data.streamed.readers import LocalReader, Reader
from trainers.data.streamed.state import (
    SHARD_TOKENS,
    PartState,
    Progress,
    ShardWriter,
    read_progress,
    write_progress,
)

BLOCK_BYTES = 1 << 20
"""Text that an encoder gets at once: a fraction of a second's work."""
COMMIT_SECONDS = 10.0
"""Between two points that a killed preparation goes on from."""
TOKENIZER_TRAINING_BYTES = 32 << 20
"""Text from the beginning of the parts, in their shares, that a tokenizer is trained on."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How far a preparation is: training tokens in all and in this process's `seconds`, `wanted` where that is known."""

    tokens: int
    wanted: int | None
    fresh_tokens: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Of this process."""
        return self.fresh_tokens / self.seconds if self.seconds else 0.0

    @property
    def seconds_left(self) -> float | None:
        """At this speed; None where nothing is known of the end."""
        if self.wanted is None or not self.fresh_tokens:
            return None
        return max(0, self.wanted - self.tokens) / self.tokens_per_second


Say = Callable[[str], None]
Watch = Callable[[Pace], None]
Place = tuple[int, int]


def open_reader(part: PartRequest, revision: str | None = None) -> Reader:
    """What reads a part; of a hub's data set the commit `revision`, where one is given."""
    if part.source == HUGGINGFACE:
        from trainers.data.hub import HubReader

        return HubReader(part, revision)
    return LocalReader(part)


def build(
    request: CorpusRequest,
    key: str,
    directory: Path,
    say: Say,
    watch: Watch,
    processes: int = 0,
    shard_tokens: int = SHARD_TOKENS,
) -> None:
    """Fill `directory`, going on from what is in it, and write the manifest last. `processes` 0 means one a core.

    Raises `UserError` in one line for text that cannot be used.
    """
    dtype = token_dtype_of(request.vocab_size)
    progress = read_progress(directory, key, dtype)
    if progress is None and (directory / MANIFEST_FILE).exists():
        return  # all was done but for putting it in its place
    if progress is None:
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        progress = _begin(request, key, directory, say)
    else:
        say(f"Going on from {_total(progress):,} training tokens")
    run = _Run(request, directory, progress, dtype, shard_tokens, watch, time.monotonic(), _total(progress))
    cores = processes or usable_cores()
    tokenizer = directory / TOKENIZER_FILE
    with EncoderPool(cores, tokenizer, dtype, progress.separator, request.validation_fraction) as pool:
        for index, state in enumerate(progress.parts):
            if not state.done:
                run.read_part(index, pool)
    finish(request, key, directory, progress, say, cores)


def _total(progress: Progress) -> int:
    return sum(state.train.tokens for state in progress.parts)


def _begin(request: CorpusRequest, key: str, directory: Path, say: Say) -> Progress:
    """The tokenizer, and what is known of the parts before they are read."""
    from trainers.data.tokenizer import given_tokenizer, separator_id, train_tokenizer

    readers = [open_reader(part) for part in request.parts]
    given = given_tokenizer(request)
    if given is None:
        say(f"Training a tokenizer of {request.vocab_size:,} tokens on the beginning of the text")
        tokenizer = train_tokenizer(_training_texts(request, readers), request.vocab_size)
        separator = separator_id(tokenizer)
    else:
        tokenizer, separator = given
    (directory / TOKENIZER_FILE).write_text(tokenizer.to_str(), encoding="utf-8")
    origins = [reader.origin for reader in readers]
    states = tuple(PartState(each.name, each.revision, each.licence) for each in origins)
    progress = Progress(key, separator, states)
    write_progress(directory, progress)
    say(f"Preparing {' and '.join(each.name for each in origins)}")
    return progress


def _training_texts(request: CorpusRequest, readers: Iterable[Reader]) -> Iterator[str]:
    """Documents that are trained on, from the beginning of each part, as many bytes as its share has a claim to."""
    for reader, share in zip(readers, request.shares, strict=True):
        left = share * TOKENIZER_TRAINING_BYTES
        with closing(_records(reader, 0, 0)) as records:
            for _, content in records:
                text = content.decode()
                if not is_held_out(text, request.validation_fraction):
                    yield text
                    left -= len(content)
                    if left <= 0:
                        break


def _records(reader: Reader, unit: int, row: int) -> Generator[tuple[Place, bytes]]:
    """Documents from a place on, UTF-8, each with the place after it; records without text are left out.

    Units come in an order that has nothing to do with theirs: what is taken of a part would else be its oldest crawls.
    """
    order = Permutation(reader.units, seed=0, epoch=0)
    for current in range(unit, reader.units):
        for text in reader.texts(order(current), row):
            row += 1
            if text and not text.isspace():
                yield (current, row), text.encode("utf-8", "replace")
        row = 0


Block = tuple[tuple[Place, list[int]], list[bytes]]


def _blocks(reader: Reader, unit: int, row: int) -> Iterator[Block]:
    """Documents in blocks, each tagged with the place after it and the sizes of its documents."""
    texts: list[bytes] = []
    size, place = 0, (unit, row)
    for place, content in _records(reader, unit, row):
        texts.append(content)
        size += len(content)
        if size >= BLOCK_BYTES:
            yield (place, [len(text) for text in texts]), texts
            texts, size = [], 0
    if texts:
        yield (place, [len(text) for text in texts]), texts


@dataclass(slots=True)
class _Run:
    """The reading of all parts in one process."""

    request: CorpusRequest
    directory: Path
    progress: Progress
    dtype: str
    shard_tokens: int
    watch: Watch
    began: float
    tokens_before: int

    def read_part(self, index: int, pool: EncoderPool) -> None:
        """Read one part from where it was left to its share of the tokens, or to its end."""
        state = self.progress.parts[index]
        reader = open_reader(self.request.parts[index], state.revision)
        share = self.request.shares[index]
        quota = math.inf if self.request.tokens is None else math.ceil(share * self.request.tokens)
        writers = [
            ShardWriter(self.directory, index, split, each, self.dtype, self.shard_tokens)
            for split, each in zip(SPLITS, (state.train, state.validation), strict=True)
        ]
        committed = time.monotonic()
        with ExitStack() as stack:
            for writer in writers:
                stack.callback(writer.leave)
            blocks = stack.enter_context(closing(pool.encode(_blocks(reader, state.unit, state.row))))
            for (place, sizes), encoded in blocks:
                self._take(writers, encoded, np.array(sizes), quota)
                state.unit, state.row = place
                if writers[0].tokens >= quota:
                    break
                if time.monotonic() - committed >= COMMIT_SECONDS:
                    self._commit(writers)
                    committed = time.monotonic()
                self._tell(index, writers[0].tokens)
            for writer in writers:
                writer.close()
        state.done = True
        write_progress(self.directory, self.progress)
        self._tell(index, state.train.tokens)

    def _take(self, writers: list[ShardWriter], encoded: Encoded, sizes: np.ndarray, quota: float) -> None:
        """Write a block, whose documents have `sizes` in bytes, up to the one that reaches the quota."""
        lengths = encoded.lengths.astype(np.int64)
        reached = np.cumsum(np.where(encoded.held_out, 0, lengths)) + writers[0].tokens >= quota
        count = int(np.argmax(reached)) + 1 if reached.any() else len(lengths)
        sides = ((~encoded.held_out[:count], encoded.train), (encoded.held_out[:count], encoded.validation))
        for writer, (mine, tokens) in zip(writers, sides, strict=True):
            taken = tokens[: int(lengths[:count][mine].sum())]
            writer.add(taken, documents=int(mine.sum()), text_bytes=int(sizes[:count][mine].sum()))

    def _commit(self, writers: list[ShardWriter]) -> None:
        for writer in writers:
            writer.sync()
        write_progress(self.directory, self.progress)

    def _tell(self, index: int, tokens: int) -> None:
        others = (state.train.tokens for place, state in enumerate(self.progress.parts) if place != index)
        total = tokens + sum(others)
        seconds = time.monotonic() - self.began
        self.watch(Pace(total, self.request.tokens, total - self.tokens_before, seconds))
