"""Trials that are compared run on one kind of GPU: where a cluster has two it has to be chosen, and stages keep to it."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sweeper.executors.cluster import AUTH_MODE, TOKEN, Cluster, attach
from sweeper.executors.ray_tune import RayExecutor
from tests.conformance.sweep_of import RAY_WARNINGS
from tests.conformance.test_ranks_on_ray import Ladder
from tests.integration.test_cluster import real_cluster, short
from tests.support.tiny_training import train_tiny
from trainers.contract.errors import InputError
from trainers.contract.stage import StageJob, StagePoint, StageResult

__all__ = ["short"]
pytestmark = RAY_WARNINGS
MIXED = Cluster(4, {"H100": 8.0, "H200": 16.0}, 3)


def test_a_kind_is_counted_alone_and_has_to_be_chosen_where_there_are_several() -> None:
    assert MIXED.gpus == 24
    assert MIXED.usable_gpus("H200") == 16
    with pytest.raises(InputError, match=r"several kinds: H100 \(8 GPUs\), H200 \(16 GPUs\)"):
        MIXED.usable_gpus(None)
    with pytest.raises(InputError, match="'B200' is on no node; there are: H100"):
        MIXED.usable_gpus("B200")


@pytest.mark.parametrize("gpus", [{}, {"": 8.0}, {"H200": 8.0}])
def test_where_there_is_one_kind_nothing_need_be_chosen(gpus: dict[str, float]) -> None:
    one = Cluster(4, gpus, 1)
    assert one.usable_gpus(None) == sum(gpus.values())
    assert one.only_kind == ("H200" if "H200" in gpus else None)
    assert MIXED.only_kind is None


def train_and_say_where(job: StageJob, on_point: Callable[[StagePoint], None]) -> StageResult:
    import ray

    (Path(job.store) / f"where-{job.node}").write_text(ray.get_runtime_context().get_node_id())
    return train_tiny(job, on_point)


@pytest.fixture
def cluster(short: Path) -> Iterator[Cluster]:
    # The process's own token, where an earlier test has one: Ray reads it once.
    os.environ.update({AUTH_MODE: "token", TOKEN: os.environ.get(TOKEN) or secrets.token_hex(32)})
    with real_cluster(short, 2, ["H100", "H200"], **{AUTH_MODE: "token", TOKEN: os.environ[TOKEN]}) as address:
        joined = Cluster(0, {}, 0)
        while joined.nodes < 2:
            with attach(address) as joined:
                if joined.nodes == 2:
                    yield joined


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["H100", "H200"])
def test_every_stage_runs_on_the_chosen_kind(kind: str, cluster: Cluster, tmp_path: Path) -> None:
    import ray

    assert cluster.gpus_of == {"H100": 1.0, "H200": 1.0}
    (mine,) = [node["NodeID"] for node in ray.nodes() if f"accelerator_type:{kind}" in node["Resources"]]
    store = tmp_path / "stages"
    store.mkdir()
    ladder = Ladder(store, 1)
    RayExecutor(tmp_path / "ray", gpus=1, accelerator=kind).run(ladder, train_and_say_where, lambda: None)
    assert not ladder.failures
    assert [file.read_text() for file in sorted(store.glob("where-*"))] == [mine] * 3
