"""The order in which a corpus of any size is read: blocks of equal length, put in a new order in every epoch.

Where block `i` of an epoch lies is computed, not looked up: a Feistel network over a rectangle of at least as many places
as there are blocks, walked until it ends on a block (Black and Rogaway, 2002). So a reader keeps no table, waits for
nothing at the end of an epoch, and a position decides its tokens by itself. Documents lie in the blocks as they came, cut
where a block ends; the tokens after the last whole block end every epoch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from math import isqrt
from pathlib import Path

import numpy as np

ROUNDS = 6
_WORD = (1 << 64) - 1
MOST_EPOCHS_KEPT = 4


class Permutation:
    """A permutation of `range(count)`: a pure function of (count, seed, epoch) on every machine."""

    def __init__(self, count: int, seed: int, epoch: int) -> None:
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed: {seed} is not in [0, 2**64)")
        digest = hashlib.sha512(f"order {seed} {epoch}".encode()).digest()
        self._count = count
        self._keys = [int.from_bytes(digest[8 * index : 8 * index + 8], "big") for index in range(ROUNDS)]
        self._rows = max(1, isqrt(count - 1) + 1) if count else 1
        self._columns = max(1, -(-count // self._rows))

    def __call__(self, index: int) -> int:
        """Where `index` goes. Raises `IndexError` outside the range."""
        if not 0 <= index < self._count:
            raise IndexError(f"{index} is not in [0, {self._count})")
        # The rectangle has at most one row more than is needed, so that one round trip is nearly always enough.
        while True:
            index = self._network(index)
            if index < self._count:
                return index

    def _network(self, index: int) -> int:
        left, right = divmod(index, self._columns)
        sides = (self._rows, self._columns)
        for turn, key in enumerate(self._keys):
            # The sides take turns, each moved by what a hash says of the other: every round can be undone.
            left, right = right, (left + _mixed(right ^ key)) % sides[turn % 2]
        return left * self._columns + right


def _mixed(word: int) -> int:
    """The finalizer of SplitMix64."""
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 & _WORD
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB & _WORD
    return word ^ (word >> 31)


class ShardedTokens:
    """Files of raw tokens as one sequence, mapped into memory when first read. `sizes` are their tokens, in order."""

    def __init__(self, paths: Sequence[Path], sizes: Sequence[int], token_dtype: str) -> None:
        self._paths, self._dtype = tuple(paths), token_dtype
        self._ends = np.cumsum(sizes, dtype=np.int64)
        self._starts = self._ends - np.asarray(sizes, dtype=np.int64)
        self._maps: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, part: slice) -> np.ndarray:
        """The tokens `[start, stop)`, as far as they are there. Read from the files and not mapped, so that going through a
        whole split leaves nothing of it in this process."""
        start, stop, _ = part.indices(len(self))
        found = [np.empty(0, dtype=self._dtype)]
        for shard, inside, length in self._pieces(start, max(0, stop - start)):
            offset = inside * np.dtype(self._dtype).itemsize
            found.append(np.fromfile(self._paths[shard], dtype=self._dtype, count=length, offset=offset))
        return np.concatenate(found)

    def copy_to(self, out: np.ndarray, start: int) -> None:
        """Fill `out` with the tokens from `start` on, which all have to be there."""
        filled = 0
        for shard, inside, length in self._pieces(start, len(out)):
            out[filled : filled + length] = self._map(shard)[inside : inside + length]
            filled += length

    def _pieces(self, start: int, count: int) -> Iterator[tuple[int, int, int]]:
        """Shard, place in it and length of what `count` tokens from `start` on are made of."""
        shard = int(np.searchsorted(self._ends, start, side="right"))
        while count > 0:
            inside = start - int(self._starts[shard])
            length = min(count, int(self._ends[shard]) - start)
            yield shard, inside, length
            start, count, shard = start + length, count - length, shard + 1

    def _map(self, shard: int) -> np.ndarray:
        if shard not in self._maps:
            self._maps[shard] = np.asarray(np.memmap(self._paths[shard], dtype=self._dtype, mode="r"))
        return self._maps[shard]


class BlockStream:
    """An endless stream of tokens: epoch after epoch of `tokens` in blocks of `block_tokens`, each in its own order."""

    def __init__(self, tokens: ShardedTokens, block_tokens: int, seed: int) -> None:
        self.tokens_per_epoch = len(tokens)
        self._tokens, self._block, self._seed = tokens, block_tokens, seed
        self._orders: dict[int, Permutation] = {}
        self._order(0)

    def read(self, position: int, count: int) -> np.ndarray:
        """Tokens `[position, position + count)` of the stream, int64 `(count,)`, over any number of epochs.

        Raises `ValueError` for a negative position or count.
        """
        if position < 0 or count < 0:
            raise ValueError(f"token stream: cannot read {count} tokens at {position}")
        out = np.empty(count, dtype=np.int64)
        whole = self.tokens_per_epoch // self._block
        filled = 0
        while filled < count:
            epoch, inside = divmod(position + filled, self.tokens_per_epoch)
            block, offset = divmod(inside, self._block)
            place = self._order(epoch)(block) if block < whole else block
            length = min(count - filled, self._block - offset, self.tokens_per_epoch - inside)
            self._tokens.copy_to(out[filled : filled + length], place * self._block + offset)
            filled += length
        return out

    def _order(self, epoch: int) -> Permutation:
        if epoch not in self._orders:
            while len(self._orders) >= MOST_EPOCHS_KEPT:
                self._orders.pop(next(iter(self._orders)))
            self._orders[epoch] = Permutation(self.tokens_per_epoch // self._block, self._seed, epoch)
        return self._orders[epoch]
