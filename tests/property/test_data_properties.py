"""The stream against its definition: a list of documents, an order an epoch, and counting."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from trainers.data.documents import Document, hash_document, split_documents, split_key
from trainers.data.shards import MATERIALISE_BYTES, TokenStream, document_order

SEPARATOR = 0
DOCUMENTS = st.lists(
    st.lists(st.integers(1, 511), min_size=1, max_size=12).map(lambda tokens: [*tokens, SEPARATOR]),
    min_size=1,
    max_size=12,
)
SEEDS = st.one_of(st.integers(0, 3), st.integers(0, 2**64 - 1))
POSITIONS = st.integers(0, 400)
COUNTS = st.integers(0, 200)
NAMES = st.lists(st.text(min_size=1, max_size=20), min_size=2, max_size=40, unique=True)


def _stream(documents: list[list[int]], seed: int, materialise_bytes: int = MATERIALISE_BYTES) -> TokenStream:
    tokens = np.array([token for document in documents for token in document], dtype="<u2")
    return TokenStream(tokens, np.cumsum([0, *map(len, documents)]), seed, materialise_bytes)


def _reference(documents: list[list[int]], seed: int, position: int, count: int) -> list[int]:
    """Write epoch after epoch down, then cut."""
    written: list[int] = []
    epoch = 0
    while len(written) < position + count:
        for index in document_order(len(documents), seed, epoch):
            written += documents[index]
        epoch += 1
    return written[position : position + count]


@given(documents=DOCUMENTS, seed=SEEDS, position=POSITIONS, count=COUNTS)
def test_both_ways_of_reading_give_what_the_definition_says(
    documents: list[list[int]], seed: int, position: int, count: int
) -> None:
    expected = _reference(documents, seed, position, count)
    assert _stream(documents, seed).read(position, count).tolist() == expected
    assert _stream(documents, seed, materialise_bytes=0).read(position, count).tolist() == expected


@given(
    documents=DOCUMENTS, seed=SEEDS, reads=st.lists(st.tuples(POSITIONS, COUNTS), max_size=8), in_memory=st.booleans()
)
def test_a_read_depends_on_no_earlier_read(
    documents: list[list[int]], seed: int, reads: list[tuple[int, int]], in_memory: bool
) -> None:
    materialise_bytes = MATERIALISE_BYTES if in_memory else 0
    used = _stream(documents, seed, materialise_bytes)
    for position, count in reads:
        fresh = _stream(documents, seed, materialise_bytes)
        assert np.array_equal(used.read(position, count), fresh.read(position, count))


@given(documents=DOCUMENTS, seed=SEEDS, epoch=st.integers(0, 50))
def test_an_epoch_holds_every_document_once(documents: list[list[int]], seed: int, epoch: int) -> None:
    stream = _stream(documents, seed)
    assert stream.tokens_per_epoch == sum(map(len, documents))
    tokens = stream.read(epoch * stream.tokens_per_epoch, stream.tokens_per_epoch).tolist()
    read: list[tuple[int, ...]] = []
    document: list[int] = []
    for token in tokens:
        document.append(token)
        if token == SEPARATOR:
            read.append(tuple(document))
            document = []
    assert not document
    assert Counter(read) == Counter(map(tuple, documents))


@given(num_documents=st.integers(0, 300), seed=SEEDS, epoch=st.integers(0, 2**32))
def test_an_order_is_a_permutation(num_documents: int, seed: int, epoch: int) -> None:
    assert sorted(document_order(num_documents, seed, epoch)) == list(range(num_documents))


def _documents(names: list[str]) -> tuple[Document, ...]:
    return tuple(Document(name, name.encode) for name in names)


@given(names=NAMES, fraction=st.floats(0.01, 0.49), shuffled=st.randoms())
def test_the_split_does_not_depend_on_the_order_of_listing(names: list[str], fraction: float, shuffled: object) -> None:
    entries = [hash_document(document) for document in _documents(names)]
    split = split_documents(tuple(entries), fraction, {})
    shuffled.shuffle(entries)  # type: ignore[attr-defined]
    again = split_documents(tuple(entries), fraction, {})
    assert [entry.name for entry in again.train] == [entry.name for entry in split.train]
    assert [entry.name for entry in again.validation] == [entry.name for entry in split.validation]
    assert split.train
    assert split.validation
    assert sorted(entry.name for entry in (*split.train, *split.validation)) == sorted(names)


@given(names=NAMES, fraction=st.floats(0.2, 0.49))
def test_a_new_document_moves_no_other(names: list[str], fraction: float) -> None:
    """Where both sides have documents of their own; the rule that no side is empty may otherwise have lent one."""
    *old, new = [hash_document(document) for document in _documents(names)]
    below = {entry.name for entry in old if split_key(entry.name) < int(fraction * 2**64)}
    if not below or len(below) == len(old):
        return
    before, after = split_documents(tuple(old), fraction, {}), split_documents((*old, new), fraction, {})
    assert {entry.name for entry in before.validation} == below
    assert {entry.name for entry in after.validation} - {new.name} == below
