"""What is left to do when all parts have been read: the weights of a mixture, what was seen, the manifest.

Everything here can be done twice: a preparation that is killed in it does it again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from trainers.contract.errors import InputError
from trainers.contract.spec import fingerprint
from trainers.data.manifest import (
    SPLITS,
    STREAMED_FORMAT,
    TOKENIZER_FILE,
    FileEntry,
    Manifest,
    Shard,
    SourceEntry,
    file_entry,
    token_dtype_of,
    write_manifest,
)
from trainers.data.request import HUGGINGFACE, CorpusRequest, PartRequest
from trainers.data.shared_content import seen_share
from trainers.data.streamed.encoder import SPLIT_RULE
from trainers.data.streamed.order import BlockStream, ShardedTokens
from trainers.data.streamed.state import PROGRESS_FILE, PartState, Progress, cut_split, shard_name, write_progress

SEEN_TOKENS = 1 << 20
"""Held-out tokens, taken evenly from all of them, of which is said how many were seen in training."""
SEEN_BLOCK_TOKENS = 1_024
ORDER_RULE = "units, and blocks of their tokens, in the order of a Feistel network"


def finish(
    request: CorpusRequest, key: str, directory: Path, progress: Progress, say: Callable[[str], None], cores: int
) -> None:
    """Keep the weights and write the manifest. Raises `InputError` where a split is left without text."""
    dtype = token_dtype_of(request.vocab_size)
    if len(request.parts) > 1 and not progress.cut:
        _keep_weights(request, directory, progress, dtype, say)
    shards = _shards(progress)
    tokens = {split: sum(shard.tokens for shard in shards if shard.split == split) for split in SPLITS}
    documents = [state.train.documents + state.validation.documents for state in progress.parts]
    if not sum(documents):
        raise InputError("corpus: there is no document with text in what was read")
    if not all(tokens.values()):
        raise InputError(
            f"corpus.validation_fraction: with {request.validation_fraction:g} of {sum(documents):,} documents held out one "
            "of the splits is empty; add text or give another fraction"
        )
    say("Comparing held-out text with training text")
    seen = _seen(directory, shards, dtype, cores)
    sources = tuple(map(_source, request.parts, progress.parts))
    identity = fingerprint(json.loads((directory / TOKENIZER_FILE).read_text(encoding="utf-8")))
    held_out = sum(state.validation.documents for state in progress.parts)
    manifest = Manifest(
        format=STREAMED_FORMAT,
        key=key,
        fingerprint=_stream_fingerprint(request, progress, identity),
        tokenizer_fingerprint=identity,
        vocab_size=request.vocab_size,
        separator=progress.separator,
        token_dtype=dtype,
        train_tokens=tokens["train"],
        validation_tokens=tokens["validation"],
        train_documents=sum(documents) - held_out,
        validation_documents=held_out,
        description=_description(request, sources),
        files=(file_entry(directory / TOKENIZER_FILE), *_files(progress, np.dtype(dtype).itemsize)),
        seen_share=seen,
        bytes_per_token=round(sum(state.validation.text_bytes for state in progress.parts) / tokens["validation"], 6),
        sources=sources,
        shards=shards,
    )
    write_manifest(directory, manifest.sealed())
    (directory / PROGRESS_FILE).unlink()
    say(f"Prepared {manifest.train_tokens:,} training and {manifest.validation_tokens:,} validation tokens")


def _keep_weights(
    request: CorpusRequest, directory: Path, progress: Progress, dtype: str, say: Callable[[str], None]
) -> None:
    """Cut the parts of a mixture to their shares of what the shortest has, where that is less than was wanted."""
    held = [state.train.tokens for state in progress.parts]
    shortest = min(range(len(held)), key=lambda index: held[index] / request.shares[index])
    whole = held[shortest] / request.shares[shortest]
    if request.tokens is not None and whole >= request.tokens:
        return
    say(
        f"{progress.parts[shortest].origin} has {held[shortest]:,} training tokens for {request.shares[shortest]:.3g} of "
        f"the mixture: all parts are cut to their shares of {int(whole):,}"
    )
    for index, (state, share) in enumerate(zip(progress.parts, request.shares, strict=True)):
        target = max(1, math.ceil(whole * share - 1e-6))
        if held[index] <= target:
            continue
        # The held-out side with it: the loss would otherwise be that of another mixture.
        held_out = math.ceil(state.validation.tokens * target / held[index])
        for split, each, wanted in (
            ("train", state.train, target),
            ("validation", state.validation, max(1, held_out)),
        ):
            if each.tokens > wanted:
                cut_split(directory, index, split, each, wanted, progress.separator, dtype)
    progress.cut = True
    write_progress(directory, progress)


def _shards(progress: Progress) -> tuple[Shard, ...]:
    """All shards, the training split's first, in the order in which they are read."""
    return tuple(
        Shard(shard_name(index, split, number), split, tokens)
        for split in SPLITS
        for index, state in enumerate(progress.parts)
        for number, (tokens, _) in enumerate(state.split(split).shards)
    )


def _files(progress: Progress, width: int) -> tuple[FileEntry, ...]:
    return tuple(
        FileEntry(shard_name(index, split, number), tokens * width, sha256)
        for split in SPLITS
        for index, state in enumerate(progress.parts)
        for number, (tokens, sha256) in enumerate(state.split(split).shards)
    )


def _seen(directory: Path, shards: tuple[Shard, ...], dtype: str, cores: int) -> float:
    train, held_out = (
        ShardedTokens(
            [directory / shard.name for shard in shards if shard.split == split],
            [shard.tokens for shard in shards if shard.split == split],
            dtype,
        )
        for split in SPLITS
    )
    if len(held_out) <= SEEN_TOKENS:
        sample = held_out[:]
    else:
        sample = BlockStream(held_out, SEEN_BLOCK_TOKENS, seed=0).read(0, SEEN_TOKENS)
    return round(seen_share(train, sample, cores), 6)


def _source(part: PartRequest, state: PartState) -> SourceEntry:
    return SourceEntry(
        name=state.origin,
        documents=state.train.documents + state.validation.documents,
        tokens=state.train.tokens,
        text_bytes=state.train.text_bytes + state.validation.text_bytes,
        weight=part.weight,
        revision=state.revision,
        licence=state.licence,
    )


def _description(request: CorpusRequest, sources: tuple[SourceEntry, ...]) -> str:
    parts = " and ".join(f"{each.name}{f' at {each.revision[:7]}' if each.revision else ''}" for each in sources)
    documents, size = sum(each.documents for each in sources), sum(each.text_bytes for each in sources)
    given = request.tokenizer_name or ("given tokenizer" if request.tokenizer_path else "byte-level BPE")
    return f"{parts}: {documents:,} documents, {size / 1e6:,.1f} MB, {given} of {request.vocab_size:,} tokens"


def _stream_fingerprint(request: CorpusRequest, progress: Progress, tokenizer_identity: str) -> str:
    """Identity of the tokens, how they came to be and in which order they are read, on any machine: local paths have no
    part in it."""
    parts = []
    for part, state in zip(request.parts, progress.parts, strict=True):
        shards = [[list(shard) for shard in state.split(split).shards] for split in SPLITS]
        hub = [state.origin, state.revision] if part.source == HUGGINGFACE else []
        parts.append([part.source, *hub, part.field, float(part.weight), shards])
    return fingerprint(
        {
            "format": STREAMED_FORMAT,
            "split": [SPLIT_RULE, request.validation_fraction],
            "order": ORDER_RULE,
            "tokens": request.tokens,
            "parts": parts,
            "tokenizer": tokenizer_identity,
        }
    )
