"""Shards as they lie on disk, and the order in which the stream reads them."""

from __future__ import annotations

import itertools
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from trainers.data.shards import MATERIALISE_BYTES, SplitWriter, TokenStream, document_order, piece_offsets


def _stream(documents: list[list[int]], seed: int = 0, materialise_bytes: int = MATERIALISE_BYTES) -> TokenStream:
    tokens = np.array([token for document in documents for token in document], dtype="<u2")
    offsets = np.cumsum([0, *map(len, documents)])
    return TokenStream(tokens, offsets, seed, materialise_bytes)


def test_the_random_words_are_those_of_the_published_generator() -> None:
    """Known answer of Philox4x64-10 for a zero counter and a zero key (numpy steps the counter before each block)."""
    words = np.random.Philox(key=np.zeros(2, dtype=np.uint64), counter=2**256 - 1).random_raw(4)
    assert [f"{int(word):016x}" for word in words] == [
        "16554d9eca36314c",
        "db20fe9d672d0fdc",
        "d7e772cee186176b",
        "7e68b68aec7ba23b",
    ]


def test_the_order_of_documents_is_pinned() -> None:
    """A record names its stream by fingerprint and seed only: this order may change with the format version alone."""
    assert document_order(8, seed=0, epoch=0).tolist() == [0, 2, 1, 5, 4, 3, 6, 7]
    assert document_order(8, seed=1000, epoch=3).tolist() == [2, 1, 6, 7, 0, 5, 4, 3]


def test_seeds_and_epochs_give_orders_of_their_own() -> None:
    orders = {tuple(document_order(50, seed, epoch)) for seed in (0, 1, 2**64 - 1) for epoch in range(3)}
    assert len(orders) == 9


def test_the_end_of_an_epoch_goes_on_with_the_next_order() -> None:
    documents = [[10 * index, 10 * index + 1, 0] for index in range(1, 6)]
    stream = _stream(documents, seed=3)
    expected = [token for epoch in (0, 1, 2) for index in document_order(5, 3, epoch) for token in documents[index]]
    assert stream.tokens_per_epoch == 15
    assert stream.read(0, 45).tolist() == expected
    assert stream.read(13, 4).tolist() == expected[13:17]


def test_reads_are_int64_and_not_views_of_the_cache() -> None:
    stream = _stream([[1, 2, 0], [3, 0]])
    first = stream.read(0, 5)
    assert first.dtype == np.int64
    expected = first.tolist()
    first[:] = 7
    assert stream.read(0, 5).tolist() == expected
    assert stream.read(4, 0).shape == (0,)


def test_a_long_run_holds_no_more_than_a_few_epochs() -> None:
    stream = _stream([[index % 500 + 1] * 999 + [0] for index in range(100)])
    epoch_bytes = 2 * stream.tokens_per_epoch
    tracemalloc.start()
    try:
        for epoch in range(1, 30):
            stream.read(epoch * stream.tokens_per_epoch - 500, 1_000)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert epoch_bytes < peak < 5 * epoch_bytes


@pytest.mark.parametrize(("position", "count"), [(-1, 2), (0, -1)])
def test_impossible_reads_are_refused(position: int, count: int) -> None:
    with pytest.raises(ValueError, match=r"^token stream: cannot read"):
        _stream([[1, 0]]).read(position, count)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_impossible_seeds_are_refused(seed: int) -> None:
    with pytest.raises(ValueError, match=r"is not in \[0, 2\*\*64\)"):
        _stream([[1, 0]], seed=seed)


def test_offsets_must_describe_the_tokens() -> None:
    with pytest.raises(ValueError, match="3 offsets do not describe 4 tokens"):
        TokenStream(np.zeros(4, dtype="<u2"), np.array([0, 2, 3]), 0, MATERIALISE_BYTES)


@pytest.mark.parametrize(("token_dtype", "largest", "width"), [("<u2", 2**16 - 1, 2), ("<u4", 151_935, 4)])
def test_a_split_on_disk_holds_every_token_and_a_separator_a_document(
    tmp_path: Path, token_dtype: str, largest: int, width: int
) -> None:
    with SplitWriter(tmp_path, "train", token_dtype, 0) as writer:
        writer.add(np.array([5, largest], dtype=np.uint32))
        writer.add(np.array([7], dtype=np.uint32))
    assert (writer.num_tokens, writer.num_documents) == (5, 2)
    assert (tmp_path / "train.tokens").stat().st_size == 5 * width
    assert np.fromfile(tmp_path / "train.tokens", dtype=token_dtype).tolist() == [5, largest, 0, 7, 0]
    assert np.fromfile(tmp_path / "train.offsets", dtype="<i8").tolist() == [0, 3, 5]


def test_pieces_cut_documents_and_lose_no_token() -> None:
    offsets = np.array([0, 10, 13, 13 + 8])
    pieces = piece_offsets(offsets, 4)
    assert pieces.tolist() == [0, 4, 8, 10, 13, 17, 21]
    tokens = np.arange(21)
    stream = TokenStream(tokens, pieces, seed=3, materialise_bytes=1 << 20)
    epoch = stream.read(0, 21)
    assert sorted(epoch.tolist()) == tokens.tolist()
    assert epoch.tolist() != tokens.tolist()
    for start, end in itertools.pairwise(pieces):
        place = epoch.tolist().index(start)
        assert epoch[place : place + end - start].tolist() == list(range(start, end)), "a piece stays whole"
