"""Streamed corpora for any input: the computed order, the stream against its definition, manifests that others have touched."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.property.test_reading import damaged, read_or_refused
from tests.support.corpora import documents, local_request, write_parquet
from trainers.data.manifest import MANIFEST_FILE, read_manifest
from trainers.data.prepare import prepare
from trainers.data.shards import PreparedCorpus
from trainers.data.streamed.encoder import is_held_out
from trainers.data.streamed.order import BlockStream, Permutation, ShardedTokens
from trainers.data.streamed.state import PROGRESS_FILE, Progress, read_progress

SEEDS = st.one_of(st.integers(0, 3), st.integers(0, 2**64 - 1))


@given(count=st.integers(0, 400), seed=SEEDS, epoch=st.integers(0, 2**32))
def test_an_order_is_a_permutation(count: int, seed: int, epoch: int) -> None:
    assert sorted(map(Permutation(count, seed, epoch), range(count))) == list(range(count))


@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=5),
    block=st.integers(1, 20),
    seed=SEEDS,
    reads=st.lists(st.tuples(st.integers(0, 300), st.integers(0, 90)), min_size=1, max_size=5),
)
def test_a_read_is_what_the_definition_says_whatever_was_read_before(
    sizes: list[int], block: int, seed: int, reads: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder, total = tmp_path_factory.mktemp("shards"), sum(sizes)
    paths = [folder / str(index) for index in range(len(sizes))]
    ends = np.cumsum([0, *sizes])
    for path, start, end in zip(paths, ends[:-1], ends[1:], strict=True):
        np.arange(start, end, dtype="<u4").tofile(path)
    stream = BlockStream(ShardedTokens(paths, sizes, "<u4"), block, seed)
    written: list[int] = []
    for epoch in range(400 // total + 2):
        order = Permutation(total // block, seed, epoch)
        for index in range(total // block):
            written += range(order(index) * block, (order(index) + 1) * block)
        written += range(total // block * block, total)
    for position, count in reads:
        assert stream.read(position, count).tolist() == written[position : position + count]


@given(text=st.text(max_size=200), fraction=st.floats(0.001, 0.499))
def test_a_side_depends_on_the_normal_text_alone_and_only_grows(text: str, fraction: float) -> None:
    if is_held_out(text, fraction):
        assert is_held_out(text, min(0.499, fraction * 1.5))
    assert is_held_out(f"  {text}\n", fraction) == is_held_out(text, fraction)


@cache
def corpus() -> PreparedCorpus:
    folder = Path(mkdtemp(prefix="streamed-"))
    write_parquet(folder / "texts" / "a.parquet", documents()[:400])
    return prepare(local_request(folder / "texts"), folder / "cache")


@settings(max_examples=150)
@given(data=st.data())
def test_a_manifest_is_as_it_was_written_or_refused_in_one_line(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder, home = tmp_path_factory.mktemp("corpus"), corpus().directory
    for file in home.iterdir():
        if file.name != MANIFEST_FILE:
            (folder / file.name).symlink_to(file)
    plain = json.loads((home / MANIFEST_FILE).read_text())
    strange = damaged(data, plain)
    (folder / MANIFEST_FILE).write_text(json.dumps(strange))
    if read_or_refused(lambda: read_manifest(folder)) is not None:
        assert strange == plain


@settings(max_examples=100)
@given(content=st.binary(max_size=300) | st.just(b"[" * 5_000))
def test_any_bytes_are_no_manifest(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("corpus")
    (folder / MANIFEST_FILE).write_bytes(content)
    assert read_or_refused(lambda: read_manifest(folder)) is None


@settings(max_examples=150)
@given(data=st.data())
def test_strange_progress_is_gone_on_from_or_not(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("building")
    split = {"shards": [[3, "aa"]], "open_tokens": 2, "documents": 4}
    part = {"origin": "x", "unit": 1, "row": 2, "train": split, "validation": {}}
    for name in ("part0-train-00000.tokens", "part0-train-00001.tokens"):
        (folder / name).write_bytes(b"123456")
    strange = damaged(data, {"key": "key", "separator": 0, "parts": [part], "cut": False})
    (folder / PROGRESS_FILE).write_text(json.dumps(strange))
    found = read_progress(folder, "key", "<u2")
    assert found is None or isinstance(found, Progress)
