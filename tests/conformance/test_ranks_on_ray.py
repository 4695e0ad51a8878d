"""A ladder whose stages have two ranks each, started by Ray Train inside trials of Tune, is the ladder of one rank."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from sweeper.engine.sweep import Idle
from sweeper.executors.inline import InlineExecutor
from sweeper.executors.ray_train import RankLostError, cause_of
from tests.support.counted_steps import counted, counting
from tests.support.tiny_training import job_of, tiny_spec, train_tiny
from trainers.contract.stage import ParentLostError, StageJob, StagePoint, StageResult, read_result

SPEC = tiny_spec("baseline", sequences=4, total_steps=16, decay_steps=4)
KILLED_AT = 6


@dataclass
class Ladder:
    """A trunk of eight steps, a run that decays from there, and one that goes on; handed out as their parents end."""

    store: Path
    devices: int
    todo: list[StageJob] = field(default_factory=list)
    results: dict[str, StageResult] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    seen: set[tuple[str, int]] = field(default_factory=set)
    running: int = 0

    def __post_init__(self) -> None:
        short = replace(SPEC, schedule=replace(SPEC.schedule, total_steps=12))
        options = {"evaluate_every": 2, "devices": self.devices, "checkpoint_seconds": 1e-9}
        self.todo = [
            job_of(SPEC, self.store, node="trunk", end=8, **options),
            job_of(short, self.store, node="short", parent="trunk", start=8, end=12, **options),
            job_of(SPEC, self.store, node="long", parent="trunk", start=8, end=16, **options),
        ]

    def next_job(self) -> StageJob | Idle:
        if self.todo and (self.todo[0].parent is None or self.todo[0].parent in self.results):
            self.running += 1
            return self.todo.pop(0)
        return Idle.WAIT if self.running else Idle.OVER

    def next_jobs(self) -> list[StageJob] | Idle:
        job = self.next_job()
        return [job] if isinstance(job, StageJob) else job

    def finish(self, result: StageResult) -> None:
        self.running -= 1
        self.results[result.node] = result

    def fail(self, node: str, reason: str) -> None:
        self.running -= 1
        self.failures.append(reason)

    def give_back(self, node: str) -> None:
        self.fail(node, "given back")

    def lose_parent(self, job: StageJob) -> None:
        self.fail(job.node, "lost")

    def point(self, node: str, step: int, loss: float, cost: object = None) -> None:
        self.seen.add((node, step))


def train_and_lose_a_rank_once(job: StageJob, on_point: Callable[[StagePoint], None]) -> StageResult:
    """The system kills the second rank in the middle of the trunk."""
    mark = Path(job.store) / "killed"

    def watched(point: StagePoint) -> None:
        on_point(point)
        if dist.get_rank() == 1 and point.step == KILLED_AT and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    return train_tiny(job, watched)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # Ray leaves sockets and files to the interpreter's end
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray 2.60 uses what it and its libraries deprecate
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_ladder_on_two_ranks_is_that_of_one_although_a_rank_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sweeper.executors.cluster import attach
    from sweeper.executors.ray_tune import RayExecutor

    for name, value in counting(tmp_path / "steps").items():
        monkeypatch.setenv(name, value)
    alone, ranks = Ladder(tmp_path / "alone", 1), Ladder(tmp_path / "ranks", 2)
    InlineExecutor().run(alone, train_tiny, lambda: None)
    with attach(None, num_cpus=2):
        executor = RayExecutor(tmp_path / "ray", cpus=2, workers=1, max_failures=1, ranks=2)
        executor.run(ranks, train_and_lose_a_rank_once, lambda: None)
    assert (tmp_path / "ranks" / "killed").exists()
    assert ranks.failures == []
    assert ranks.results.keys() == alone.results.keys() == {"trunk", "short", "long"}
    for node, result in ranks.results.items():
        other = alone.results[node]
        assert [(p.step, p.phase) for p in result.points] == [(p.step, p.phase) for p in other.points]
        assert {(node, point.step) for point in result.points} <= ranks.seen
        found, expected = ([point.loss for point in r.points] for r in (result, other))
        # Sums over ranks round in another order: a few units in the last place of losses of 4 nats.
        torch.testing.assert_close(found, expected, rtol=2e-6, atol=2e-6)
        assert [timing.steps for timing in result.timings] == [timing.steps for timing in other.timings]
        assert read_result(tmp_path / "ranks", node) == result
        assert result.devices == 2
    done = counted(tmp_path / "steps")
    again = done.trained - 2 * 20
    print(f"{again} steps of two ranks were trained again")
    assert 0 <= again <= 2 * KILLED_AT
    assert done.beyond == 0, "of each rank"


class WorkerHealthCheckFailedError(Exception):
    """Of the name by which Ray Train reports a dead process."""


GONE = WorkerHealthCheckFailedError("gone")
PEER = RuntimeError("Connection closed by peer")


@pytest.mark.parametrize(
    ("failures", "kind", "words"),
    [
        ({0: PEER, 1: GONE}, RankLostError, "the process of rank 1 died"),
        ({0: PEER, 1: MemoryError("out")}, MemoryError, "out"),
        ({0: ParentLostError("damaged"), 1: ParentLostError("damaged")}, ParentLostError, "damaged"),
        ({1: PEER}, RuntimeError, "Connection closed"),
        ({}, RankLostError, "the process of a rank died"),
    ],
)
def test_the_cause_of_a_failure_is_named_not_what_it_did_to_others(
    failures: dict[int, Exception], kind: type[Exception], words: str
) -> None:
    found = cause_of(failures)
    assert isinstance(found, kind)
    assert words in str(found)
