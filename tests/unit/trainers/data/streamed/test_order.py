"""The computed order of blocks, and the stream that is read in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trainers.data.streamed.order import BlockStream, Permutation, ShardedTokens


def sharded(folder: Path, sizes: list[int]) -> ShardedTokens:
    """Tokens 0, 1, 2 ... in shards of these sizes."""
    paths, start = [], 0
    for index, size in enumerate(sizes):
        paths.append(folder / f"{index}.tokens")
        np.arange(start, start + size, dtype="<u4").tofile(paths[-1])
        start += size
    return ShardedTokens(paths, sizes, "<u4")


def test_the_order_of_blocks_is_pinned() -> None:
    """A record names its stream by fingerprint and seed only: this order may change with the order's rule alone."""
    assert [Permutation(8, 0, 0)(index) for index in range(8)] == [4, 2, 7, 1, 3, 0, 5, 6]
    assert [Permutation(8, 1000, 3)(index) for index in range(8)] == [7, 0, 2, 6, 5, 1, 3, 4]


def test_seeds_and_epochs_give_orders_of_their_own() -> None:
    orders = {tuple(map(Permutation(50, seed, epoch), range(50))) for seed in (0, 1, 2**64 - 1) for epoch in range(3)}
    assert len(orders) == 9


def test_every_place_is_as_likely() -> None:
    counts = np.bincount([Permutation(8, seed, 0)(3) for seed in range(4_000)], minlength=8)
    assert counts.min() > 500 - 5 * 21
    assert counts.max() < 500 + 5 * 21


def test_neighbours_do_not_stay_neighbours() -> None:
    order = np.array([Permutation(10_000, 7, 0)(index) for index in range(10_000)])
    assert np.mean(np.diff(order) == 1) < 0.001
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.05


@pytest.mark.parametrize("index", [-1, 5])
def test_an_index_outside_is_refused(index: int) -> None:
    with pytest.raises(IndexError):
        Permutation(5, 0, 0)(index)


def test_an_epoch_holds_every_token_once_in_blocks(tmp_path: Path) -> None:
    tokens = sharded(tmp_path, [7, 30, 1, 26])
    stream = BlockStream(tokens, 10, seed=3)
    first, second = stream.read(0, 64), stream.read(64, 64)
    for epoch in (first, second):
        assert sorted(epoch) == list(range(64))
        starts = epoch[:60:10]
        assert all(
            np.array_equal(epoch[10 * index : 10 * index + 10], np.arange(s, s + 10)) for index, s in enumerate(starts)
        )
        assert epoch[60:].tolist() == [60, 61, 62, 63]
    assert not np.array_equal(first, second)


def test_a_corpus_shorter_than_a_block_is_read_over_and_over(tmp_path: Path) -> None:
    assert BlockStream(sharded(tmp_path, [3]), 10, seed=0).read(1, 6).tolist() == [1, 2, 0, 1, 2, 0]


def test_only_what_is_read_is_mapped(tmp_path: Path) -> None:
    tokens = sharded(tmp_path, [10, 10, 10])
    (tmp_path / "0.tokens").unlink()
    out = np.empty(5, dtype=np.int64)
    tokens.copy_to(out, 18)
    assert out.tolist() == [18, 19, 20, 21, 22]
    assert tokens[25:99].tolist() == [25, 26, 27, 28, 29]
    with pytest.raises(FileNotFoundError):
        tokens.copy_to(out, 0)


@pytest.mark.parametrize(("position", "count"), [(-1, 2), (0, -1)])
def test_impossible_reads_are_refused(tmp_path: Path, position: int, count: int) -> None:
    with pytest.raises(ValueError, match=r"^token stream: cannot read"):
        BlockStream(sharded(tmp_path, [8]), 2, seed=0).read(position, count)


def test_every_lane_has_a_new_order_in_every_epoch(tmp_path: Path) -> None:
    stream = BlockStream(sharded(tmp_path, [400]), 10, seed=1)
    for lane in range(4):
        epochs = [stream.read(100 * lane + 400 * epoch, 400) for epoch in range(3)]
        assert len({tuple(epoch.tolist()) for epoch in epochs}) == 3
