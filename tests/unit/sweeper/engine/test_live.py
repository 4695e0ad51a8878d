"""An eye on the workers: hours of open stages, points while they train, silence, a full disk. Nothing is trained."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from sweeper.engine.live import MOST_POINTS, SILENT_GAPS, STARTING, LiveSweep
from sweeper.engine.sweep import Idle
from sweeper.engine.view import not_done, view_of
from tests.support.tiny_sweep import Desk, Workers, result_of, space_of
from trainers.contract.spec import TrialSpec
from trainers.contract.stage import StageJob
from trainers.planning.life import StageLife, first_sign, life_file, lives_in, write_life

LIMIT = 600.0


@dataclass
class Points:
    """What the ledger was told."""

    said: list[tuple[str, int, float, int, float, float]] = field(default_factory=list)

    def point(self, spec: TrialSpec, step: int, loss: float, tokens: int, flops: float, device_seconds: float) -> None:
        self.said.append((spec.spec_id, step, loss, tokens, flops, device_seconds))


class Clock:
    """Seconds that pass when they are told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Bench:
    """A sweep with a worker's signs in a folder."""

    folder: Path
    desk: Desk = field(default_factory=Desk)
    clock: Clock = field(default_factory=Clock)
    points: Points = field(default_factory=Points)

    def open(self, max_hours: float | None = None) -> LiveSweep:
        sweep = self.desk.open(max_hours=max_hours)
        return LiveSweep(sweep, self.points, self.folder, LIMIT, self.clock)

    def job(self, live: LiveSweep) -> StageJob:
        job = live.next_job()
        assert isinstance(job, StageJob)
        return replace(job, store=str(self.folder))

    def sign(self, job: StageJob, **changes: object) -> StageLife:
        life = replace(first_sign(job), watched=True, **changes)  # type: ignore[arg-type]
        write_life(self.folder, life)
        return life

    def later(self, live: LiveSweep, seconds: float) -> None:
        self.clock.now += seconds
        live.look()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_worker_is_named_once_after_its_silence(bench: Bench) -> None:
    live = bench.open()
    job = bench.job(live)
    bench.sign(job, gap_seconds=1.0, step=1)
    bench.later(live, 3)
    assert [life.node for life in live.running] == [job.node]
    bench.later(live, LIMIT - 1)
    assert live.stalled() == []
    bench.sign(job, gap_seconds=1.0, step=2)
    bench.later(live, 3)
    bench.later(live, LIMIT - 1)
    assert live.stalled() == []
    bench.later(live, 3)
    ((life, silence),) = live.stalled()
    assert life.step == 2
    assert LIMIT < silence < LIMIT + 10
    assert live.stalled() == []


def test_a_slow_worker_and_one_that_compiles_have_more_time(bench: Bench) -> None:
    live = bench.open()
    slow, starting = bench.job(live), bench.job(live)
    bench.sign(slow, gap_seconds=LIMIT / 2)
    bench.sign(starting)
    bench.later(live, 3)
    bench.later(live, STARTING * LIMIT + 1)
    assert [life.node for life, _ in live.stalled()] == [starting.node]
    bench.later(live, SILENT_GAPS * LIMIT / 2)
    assert slow.node in {life.node for life, _ in live.stalled()}


@pytest.mark.parametrize("changes", [{"watched": False}, {"running": False}])
def test_who_gives_no_signs_by_trade_is_not_ended(bench: Bench, changes: dict[str, bool]) -> None:
    """Another trainer's worker watches its command itself; one that has ended is no worker."""
    live = bench.open()
    write_life(bench.folder, replace(first_sign(bench.job(live)), **changes))  # type: ignore[arg-type]
    bench.later(live, 3)
    bench.later(live, 100 * LIMIT)
    assert live.stalled() == []


def test_the_clock_of_the_machine_may_step(bench: Bench) -> None:
    """A sign counts when it changes: its own moment may lie years back or ahead."""
    live = bench.open()
    job = bench.job(live)
    bench.sign(job, gap_seconds=1.0, at=0.0)
    bench.later(live, 3)
    bench.sign(job, gap_seconds=1.0, at=4e9)
    bench.later(live, LIMIT - 5)
    assert live.stalled() == []


def test_signs_of_an_earlier_driver_are_no_workers_and_their_hours_count(bench: Bench) -> None:
    first = bench.open()
    job = bench.job(first)
    bench.sign(job, seconds=1800.0)
    again = bench.open()
    assert [life.running for life in lives_in(bench.folder)] == [False]
    assert again.sweep.open_hours == 0.5
    assert again.running == []
    assert view_of(again.sweep).hours_spent == 0.5
    done = bench.job(again)
    assert done.node == job.node
    again.finish(replace(result_of(done), billed_seconds=3600.0))
    assert again.sweep.open_hours == 0.0
    assert view_of(again.sweep).hours_spent == 1.0
    # Killed between the result and the end of its signs.
    bench.sign(job, seconds=1800.0)
    assert bench.open().sweep.open_hours == 0.0
    assert not life_file(bench.folder, job.node).exists()


def test_a_budget_counts_what_has_no_record_yet_and_a_larger_one_goes_on(bench: Bench) -> None:
    """A stage that several trials share has ended, none of its trials has, and the driver is killed: what was spent stays."""
    live = bench.open()
    shared = next(job for job in iter(lambda: bench.job(live), None) if job.end < job.spec.schedule.total_steps)
    live.finish(replace(result_of(shared), billed_seconds=3600.0))
    assert not bench.desk.ledger.written
    assert bench.open().sweep.spent_hours == 1.0
    stopped = bench.open(max_hours=1.0)
    assert stopped.next_job() is Idle.OVER
    assert stopped.sweep.stopping == "1 of at most 1 device-hours are spent"
    assert not_done(view_of(stopped.sweep)) == "not done: 10 of nano baseline, 6 of nano tst"
    running = bench.open(max_hours=1.5)
    job = bench.job(running)
    bench.sign(job, seconds=1900.0)
    bench.later(running, 3)
    assert running.sweep.stopping is not None
    assert running.next_job() is Idle.WAIT
    life_file(bench.folder, job.node).unlink()
    Workers().run(bench.desk.open(max_hours=100.0))
    spent = sum(record.timing.incurred_gpu_hours for record in bench.desk.ledger.records())
    assert bench.open().sweep.spent_hours == pytest.approx(spent)


def test_points_of_a_trial_are_those_of_its_record(bench: Bench) -> None:
    live = bench.open()
    while isinstance(found := live.next_job(), StageJob):
        job = replace(found, store=str(bench.folder))
        bench.sign(job, step_seconds=0.5)
        result = result_of(job)
        for point in result.points:
            live.point(job.node, point.step, point.loss)
        live.finish(result)
    records = bench.desk.ledger.records()
    held = {
        (r.spec.spec_id, p.step, p.loss, p.tokens, p.flops, p.seconds * r.timing.devices)
        for r in records
        for p in r.curve.points
    }
    assert bench.points.said
    assert set(bench.points.said) <= held
    assert len(set(bench.points.said)) == len(bench.points.said)
    totals = {record.spec.spec_id: record.spec.schedule.total_steps for record in records}
    assert all(step < totals[spec_id] for spec_id, step, *_ in bench.points.said)


def test_a_trial_of_many_points_sends_a_part_of_them(tmp_path: Path) -> None:
    space = space_of(evaluate_every=1, methods=space_of().model_dump()["methods"])
    long = space.model_copy(
        update={
            "methods": {
                name: method.model_copy(update={"budgets": method.budgets.model_copy(update={"tuning": 5_000})})
                for name, method in space.methods.items()
            }
        }
    )
    bench = Bench(tmp_path, Desk(long))
    live = bench.open()
    job = bench.job(live)
    for step in range(job.start + 1, job.end + 1):
        live.point(job.node, step, 3.0)
    assert MOST_POINTS / 2 < len(bench.points.said) <= MOST_POINTS + 5


@pytest.mark.parametrize("number", [28, 122])
def test_a_full_disk_ends_the_sweep_and_no_trial(bench: Bench, number: int) -> None:
    live = bench.open()
    job = bench.job(live)
    live.fail(job.node, f"OSError: [Errno {number}] No space left on device: 'state'")
    assert live.next_job() is Idle.OVER
    assert live.sweep.stopping is not None
    assert "make room there" in live.sweep.stopping
    assert not bench.desk.ledger.written
    workers = Workers()
    workers.run(bench.desk.open())
    assert job.node in workers.trained


def test_another_failure_is_its_trials_alone(bench: Bench) -> None:
    live = bench.open()
    live.fail(bench.job(live).node, "OutOfMemoryError: CUDA out of memory")
    assert live.sweep.stopping is None
    assert bench.desk.ledger.written
    assert isinstance(live.next_job(), StageJob)


def test_somebody_came_once_anything_is_heard(bench: Bench) -> None:
    live = bench.open()
    assert live.waiting_since is None
    job = bench.job(live)
    bench.later(live, 100)
    assert (live.came, live.waiting_since) == (False, 0.0)
    bench.sign(job)
    bench.later(live, 3)
    assert live.came
