"""Which documents share content, and how much of the held-out text was seen in training.

Held-out text that also occurs in training measures memory. Documents with the same text (white space and case aside) or
nearly the same are put on one side of the split together, found by MinHash over runs of five words; what they still have
in common is measured on the tokens themselves.
"""

from __future__ import annotations

import hashlib
import zlib
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np

SHINGLE_WORDS = 5
SIMILARITY = 0.2
"""Jaccard similarity of two documents' runs of words from which they stay together. Far below what is called a duplicate,
because staying together costs nothing: at 0.5 two thirds of a held-out module of the standard library were in another one."""
PERMUTATIONS = 64
MOST_SHINGLES = 20_000
"""Of a longer document the runs of words with the smallest hashes are compared: a sample by value, the same everywhere."""
TOGETHER_RULE = f"equal, or {SIMILARITY} alike by MinHash of {PERMUTATIONS} over runs of {SHINGLE_WORDS} words"

SPAN = 64
"""Tokens in a row that count as seen when training holds the same ones."""
BLOCK = 1 << 20
FILTER_BITS = 24


def groups_of(texts: Iterable[tuple[str, Callable[[], bytes]]]) -> Mapping[str, str]:
    """For each document (its name, and what reads it) that shares content with another the first name of its group.

    Documents that are like no other are left out. Depends on the texts and names alone, not on their order.
    """
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(threshold=SIMILARITY, num_perm=PERMUTATIONS)
    sketches: dict[str, MinHash] = {}
    parent: dict[str, str] = {}
    first_with: dict[bytes, str] = {}
    for name, load in sorted(texts, key=lambda one: one[0]):
        parent[name] = name
        words = load().lower().split()
        digest = hashlib.sha256(b" ".join(words)).digest()
        if (other := first_with.setdefault(digest, name)) != name:
            _join(parent, name, other)
            continue
        sketch = MinHash(num_perm=PERMUTATIONS, hashfunc=_as_it_is)
        sketch.update_batch(_shingles(words))
        # The index answers with candidates; the sketches decide, so that a lucky bucket joins nothing.
        for other in sorted(index.query(sketch)):
            if sketch.jaccard(sketches[other]) >= SIMILARITY:
                _join(parent, name, other)
        index.insert(name, sketch)
        sketches[name] = sketch
    members: dict[str, list[str]] = defaultdict(list)
    for name in parent:
        members[_root(parent, name)].append(name)
    return {name: min(group) for group in members.values() if len(group) > 1 for name in group}


def _as_it_is(hashed: int) -> int:
    return hashed


def _shingles(words: Sequence[bytes]) -> list[int]:
    """Hashes of every run of five words (of all words, where there are fewer)."""
    runs = range(max(1, len(words) - SHINGLE_WORDS + 1))
    found = {zlib.crc32(b" ".join(words[start : start + SHINGLE_WORDS])) for start in runs}
    return sorted(found)[:MOST_SHINGLES]


def _root(parent: dict[str, str], name: str) -> str:
    while parent[name] != name:
        parent[name] = parent[parent[name]]
        name = parent[name]
    return name


def _join(parent: dict[str, str], one: str, other: str) -> None:
    first, second = sorted((_root(parent, one), _root(parent, other)))
    parent[second] = first


class Tokens(Protocol):
    """A split's tokens, wherever they lie."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> np.ndarray: ...


def seen_share(train: Tokens, validation: np.ndarray, threads: int = 1) -> float:
    """The share of the tokens in `validation` `[V]` that lie in a span of 64 tokens which occurs in `train` `[N]`.

    Takes memory in proportion to V and reads `train` in blocks, so that it may be of any length. Equal 64-bit hashes
    count as equal spans: with 1e11 pairs of spans the chance of one false match is about one in 1e8.
    """
    if len(validation) < SPAN:
        return 0.0
    ordered, inverse = np.unique(_span_hashes(validation), return_inverse=True)
    # Most spans of the training text are turned away by a bit each; the others are looked up.
    mask = np.uint64((1 << FILTER_BITS) - 1)
    known = np.zeros(1 << FILTER_BITS, dtype=bool)
    known[ordered & mask] = True
    found = np.zeros(len(ordered), dtype=bool)

    def look(start: int) -> None:
        hashes = _span_hashes(train[start : start + BLOCK + SPAN - 1])
        hashes = hashes[known[hashes & mask]]
        place = np.searchsorted(ordered, hashes)
        place[place == len(ordered)] = 0
        found[place[ordered[place] == hashes]] = True

    with ThreadPoolExecutor(threads) as workers:  # numpy lets go of Python's lock in every line of `look`
        deque(workers.map(look, range(0, len(train) - SPAN + 1, BLOCK)), maxlen=0)
    starts = np.flatnonzero(found[inverse])
    covered = np.zeros(len(validation) + 1, dtype=np.int64)
    np.add.at(covered, starts, 1)
    np.add.at(covered, starts + SPAN, -1)
    return float((np.cumsum(covered[:-1]) > 0).mean())


def _span_hashes(tokens: np.ndarray) -> np.ndarray:
    """A hash of each 64 tokens in a row, uint64 `[len - 63]`: of twice as many from those of its halves, six times."""
    with np.errstate(over="ignore"):
        hashes = (np.asarray(tokens).astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        width = 1
        while width < SPAN:
            left, right = hashes[:-width], hashes[width:]
            hashes = (left ^ (left >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9) + right
            width *= 2
    return hashes
