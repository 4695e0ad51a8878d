"""The sweep as a state machine: what is trained, in which order, once, and what happens when something goes wrong."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest

from sweeper.engine.states import final_nodes
from sweeper.engine.sweep import MAX_DAMAGES, Idle
from tests.support.tiny_sweep import Desk, Workers, loss_of, result_of, space_of
from tests.support.tiny_training import tiny_spec
from trainers.contract.record import Diverged, Failed, Finished, RunRecord, Stopped
from trainers.contract.schedule import boundary_step, phase_at
from trainers.contract.stage import StageJob, StageResult
from trainers.methods import phases_of
from trainers.planning.lineage import path_of
from trainers.planning.stages import StageBook
from trainers.planning.store import MemoryStore

WHOLE = 4 + 4 + 3 * 2 + 1 * 2
"""Trials of `space_of()`: two arms of four, three baseline budgets and one of the method on two seeds."""


def finished_desk(**changes: object) -> Desk:
    desk = Desk(space_of(**changes))
    Workers().run(desk.open())
    return desk


def by_arm(desk: Desk, purpose: str) -> Counter[tuple[str, str]]:
    return Counter((r.spec.scale, r.spec.method) for r in desk.ledger.written.values() if r.purpose == purpose)


def test_a_sweep_tunes_both_arms_alike_and_confirms_the_winners_on_fresh_seeds() -> None:
    desk = finished_desk()
    assert by_arm(desk, "tuning") == {("nano", "baseline"): 4, ("nano", "tst"): 4}
    confirmed = [r.spec for r in desk.ledger.written.values() if r.purpose == "confirmation"]
    assert {(s.method, s.schedule.total_steps, s.seed) for s in confirmed} == {
        *(("baseline", steps, seed) for steps in (8, 12, 16) for seed in (1000, 1001)),
        *(("tst", 8, seed) for seed in (1000, 1001)),
    }
    assert {s.schedule.learning_rate for s in confirmed} == {0.004}
    assert {(s.bag_size, s.step_ratio) for s in confirmed if s.method == "tst"} == {(2, 0.5)}
    assert all(isinstance(r.outcome, Finished) for r in desk.ledger.written.values())
    assert not desk.ledger.pending()


def test_records_are_those_of_trials_trained_alone() -> None:
    for record in finished_desk().ledger.written.values():
        spec, total = record.spec, record.spec.schedule.total_steps
        boundary = boundary_step(spec.step_ratio, total)
        steps = sorted({*range(4, total, 4), total} | ({boundary} - {0}))
        assert [point.step for point in record.curve.points] == steps
        assert record.final_loss == loss_of(spec, total)
        assert record.timing.step_seconds == pytest.approx(0.5 * total)
        assert record.timing.billed_seconds == pytest.approx(0.5 * total)
        assert record.tokens == 32 * (boundary * spec.bag_size + total - boundary)


def test_what_was_spent_is_booked_once() -> None:
    desk, workers = Desk(), Workers()
    sweep = desk.open()
    workers.run(sweep)
    trained = sum(0.5 * (job.end - job.start) for job in workers.jobs)
    incurred = sum(record.timing.incurred_seconds for record in desk.ledger.written.values())
    alone = sum(record.timing.billed_seconds for record in desk.ledger.written.values())
    assert incurred == pytest.approx(trained)
    assert trained < alone
    assert sweep.spent_hours == pytest.approx(trained / 3600) == pytest.approx(sum(sweep.arm_hours.values()))
    assert sum(sweep.arm_steps.values()) == sum(job.end - job.start for job in workers.jobs)


def test_the_baseline_ladder_is_one_trunk_a_seed() -> None:
    desk, workers = Desk(), Workers()
    workers.run(desk.open())
    ladder = [job for job in workers.jobs if job.spec.seed == 1000 and job.spec.method == "baseline"]
    assert sum(job.end - job.start for job in ladder) == 12 + 2 + 3 + 4  # a trunk to 12, and decays of 2, 3 and 4


LEARNING = {"sampler": "surface", "trials_per_arm": 8, "fan": 2, "warm_start": True}


def noisy(job: StageJob) -> StageResult:
    """Losses with the luck of a seed and a cell, so that what a search knows decides what it asks."""
    made = result_of(job)
    luck = random.Random(job.spec.spec_id).gauss(0, 0.01)
    return replace(made, points=tuple(replace(point, loss=point.loss + luck) for point in made.points))


@pytest.mark.parametrize("sampler", ["surface", "tpe"])
@pytest.mark.parametrize("workers", [2, 7])
@pytest.mark.parametrize("seed", range(3))
def test_a_search_asks_for_the_same_trials_whoever_is_quick_and_however_it_is_killed(
    sampler: str, workers: int, seed: int
) -> None:
    space = space_of(search={**LEARNING, "sampler": sampler})
    alone, disturbed = Desk(space), Desk(space)
    Workers(judge=noisy).run(alone.open())
    order = random.Random(seed)
    while not Workers(workers, order, judge=noisy).run(disturbed.open(), order.randrange(1, 9)):
        pass
    assert disturbed.summary == alone.summary


@pytest.mark.parametrize("workers", [1, 2, 7])
@pytest.mark.parametrize("seed", range(4))
def test_any_number_of_workers_in_any_order_give_the_same_records(workers: int, seed: int) -> None:
    desk, pool = Desk(), Workers(workers, random.Random(seed))
    pool.run(desk.open())
    assert desk.summary == finished_desk().summary
    assert set(pool.trained.values()) == {1}


@pytest.mark.parametrize("stages", range(0, 24, 2))
def test_a_killed_driver_loses_what_ran_and_nothing_else(stages: int) -> None:
    desk, workers = Desk(), Workers(3, random.Random(stages))
    assert not workers.run(desk.open(), stages)
    finished_before = set(desk.ledger.written)
    written_before = dict(desk.ledger.written)
    assert workers.run(desk.open())
    assert desk.summary == finished_desk().summary
    assert all(desk.ledger.written[spec_id] is written_before[spec_id] for spec_id in finished_before)
    assert max(workers.trained.values()) == 1


def test_a_finished_sweep_trains_nothing_when_it_is_run_again() -> None:
    desk = finished_desk()
    assert desk.open().next_job() is Idle.OVER


@pytest.mark.parametrize("stages", range(0, 22))
def test_a_stage_that_ended_after_its_driver_was_killed_counts(stages: int) -> None:
    """The worker outlives the driver by seconds: the result is in the store, and no record is in the ledger."""
    desk, workers = Desk(), Workers(2, random.Random(stages))
    workers.run(desk.open(), stages)
    for job in workers.held:
        desk.store.add(result_of(job))
        workers.trained[job.node] += 1
    assert workers.run(desk.open())
    assert desk.summary == finished_desk().summary
    assert set(workers.trained.values()) == {1}


def test_a_failed_stage_fails_its_trials_and_the_rest_goes_on() -> None:
    desk = Desk()

    def judge(job: StageJob) -> StageResult | str:
        return "OSError: no memory" if job.spec.bag_size == 3 else result_of(job)

    Workers(2, judge=judge).run(desk.open())
    failed = [r for r in desk.ledger.written.values() if isinstance(r.outcome, Failed)]
    assert {(r.spec.bag_size, r.outcome) for r in failed} == {(3, Failed("OSError: no memory"))}
    assert len(failed) == 2
    assert len(desk.ledger.written) == WHOLE
    assert by_arm(desk, "confirmation") == {("nano", "baseline"): 6, ("nano", "tst"): 2}


def test_failed_trials_are_tried_again_by_the_next_run() -> None:
    desk = Desk()
    Workers(judge=lambda job: "no memory" if job.spec.bag_size == 3 else result_of(job)).run(desk.open())
    sweep, workers = desk.open(), Workers()
    assert {spec.bag_size for spec, _ in desk.ledger.pending()} == {3}
    workers.run(sweep)
    assert {job.spec.bag_size for job in workers.jobs} == {3}
    assert desk.summary == finished_desk().summary


def test_a_failure_half_way_keeps_the_curve_up_to_there() -> None:
    desk = Desk()

    def judge(job: StageJob) -> StageResult | str:
        recovers = phase_at(phases_of(job.spec), job.start).name == "next-token"
        return "gone" if job.spec.method == "tst" and recovers else result_of(job)

    Workers(judge=judge).run(desk.open())
    failed = [r for r in desk.ledger.written.values() if isinstance(r.outcome, Failed)]
    assert {r.curve.points[-1].step for r in failed} == {2, 4}
    assert all(r.curve.points[-1].step == boundary_step(r.spec.step_ratio, 8) for r in failed)
    assert all(r.timing.step_seconds == 0.5 * r.curve.points[-1].step for r in failed)


def diverge_above(rate: float) -> Workers:
    def judge(job: StageJob) -> StageResult | str:
        bad = job.spec.schedule.learning_rate > rate and job.end > 4
        return result_of(job, Diverged(job.start + 1, "validation loss is nan") if bad else None)

    return Workers(2, judge=judge)


def test_a_diverged_trunk_ends_all_its_trials_and_loses_the_search() -> None:
    desk = Desk(space_of(methods={"baseline": space_of().methods["baseline"]}))
    diverge_above(0.003).run(desk.open())
    outcomes = {r.spec.schedule.learning_rate: type(r.outcome) for r in desk.ledger.written.values()}
    assert outcomes == {0.002: Finished, 0.004: Diverged}
    assert by_arm(desk, "confirmation") == {("nano", "baseline"): 6}
    assert all(r.final_loss is None for r in desk.ledger.written.values() if r.spec.schedule.learning_rate == 0.004)


def test_an_arm_of_which_every_trial_diverged_ends_and_the_other_is_confirmed() -> None:
    desk = Desk()
    sweep = desk.open()
    workers = Workers(judge=lambda job: result_of(job, Diverged(job.end, "nan") if job.spec.method == "tst" else None))
    assert workers.run(sweep)
    assert sweep.latest == "nano tst: every trial diverged"
    assert by_arm(desk, "tuning") == {("nano", "baseline"): 4, ("nano", "tst"): 4}
    assert by_arm(desk, "confirmation") == {("nano", "baseline"): 6}
    assert desk.open().next_job() is Idle.OVER


def test_a_stopped_stage_ends_the_run_and_goes_on_in_the_next() -> None:
    desk = Desk()
    sweep = desk.open()
    first, second = sweep.next_job(), sweep.next_job()
    assert isinstance(first, StageJob)
    assert isinstance(second, StageJob)
    sweep.finish(replace(result_of(first), outcome=Stopped(1, "stop requested")))
    assert sweep.stopping == "stop requested"
    assert sweep.next_job() is Idle.WAIT
    sweep.finish(result_of(second))
    assert sweep.next_job() is Idle.OVER
    workers = Workers()
    workers.run(desk.open())
    assert first.node in workers.trained
    assert second.node not in workers.trained
    assert desk.summary == finished_desk().summary


def test_no_stage_starts_once_the_hours_are_spent() -> None:
    desk, workers, whole = Desk(), Workers(2), Workers()
    whole.run(Desk().open())
    limit = 0.5 * sum(0.5 * (job.end - job.start) for job in whole.jobs) / 3600
    sweep = desk.open(max_hours=limit)
    workers.run(sweep)
    assert sweep.stopping is not None
    assert "device-hours are spent" in sweep.stopping
    longest = max(job.end - job.start for job in whole.jobs)
    assert limit <= sweep.spent_hours <= limit + 2 * 0.5 * longest / 3600
    assert 0 < len(desk.ledger.written) < WHOLE
    assert desk.open(max_hours=sweep.spent_hours / 2).next_job() is Idle.OVER
    workers.run(desk.open())
    assert desk.summary == finished_desk().summary
    assert max(workers.trained.values()) == 1


def test_a_damaged_parent_is_trained_again_and_nothing_else() -> None:
    desk = Desk()
    sweep = desk.open()
    damaged: set[str] = set()
    trained: Counter[str] = Counter()
    while isinstance(job := sweep.next_job(), StageJob):
        if job.parent is not None and job.parent not in damaged and len(damaged) < 3:
            damaged.add(job.parent)
            sweep.lose_parent(job)
            continue
        trained[job.node] += 1
        sweep.finish(result_of(job))
    assert desk.summary == finished_desk().summary
    assert {node for node, count in trained.items() if count > 1} == damaged
    assert len(damaged) == 3


def test_a_state_that_is_always_damaged_fails_its_trials_and_not_the_sweep() -> None:
    desk = Desk()
    sweep = desk.open()
    broken: str | None = None
    trained: Counter[str] = Counter()
    while isinstance(job := sweep.next_job(), StageJob):
        broken = broken or job.parent
        if job.parent is not None and job.parent == broken:
            sweep.lose_parent(job)
            continue
        trained[job.node] += 1
        sweep.finish(result_of(job))
    assert broken is not None
    assert 1 < trained[broken] <= MAX_DAMAGES + 1
    failed = [r.outcome for r in desk.ledger.written.values() if isinstance(r.outcome, Failed)]
    assert failed
    assert all("was damaged 4 times; check the disk" in outcome.reason for outcome in failed)
    assert len(failed) < len(desk.ledger.written)


def test_scales_are_climbed_one_after_the_other() -> None:
    desk, workers = Desk(space_of(scales=("nano", "micro"))), Workers(3)
    workers.run(desk.open())
    scales = [job.spec.scale for job in workers.jobs]
    assert scales == sorted(scales, key=("nano", "micro").index)
    assert len(desk.ledger.written) == 2 * WHOLE
    assert by_arm(desk, "tuning") == {(scale, m): 4 for scale in ("nano", "micro") for m in ("baseline", "tst")}


@pytest.mark.parametrize("stages", [3, 25, 30, 40])
def test_a_climb_goes_on_at_the_scale_that_it_had_reached(stages: int) -> None:
    desk, workers = Desk(space_of(scales=("nano", "micro"))), Workers(2)
    workers.run(desk.open(), stages)
    workers.run(desk.open())
    assert len(desk.ledger.written) == 2 * WHOLE
    assert max(workers.trained.values()) == 1


def test_one_confirmation_seed_brings_a_noise_floor_of_the_cheapest_baseline() -> None:
    desk = finished_desk(seeds={"tuning": (0, 1), "confirmation": (1000,)})
    floor = [r.spec for r in desk.ledger.written.values() if r.purpose == "noise_floor"]
    assert {(s.method, s.schedule.total_steps, s.seed) for s in floor} == {
        ("baseline", 8, seed) for seed in (1001, 1002, 1003, 1004)
    }


def test_extra_trials_after_the_end_train_only_what_is_new() -> None:
    desk = finished_desk()
    more = space_of(
        methods={
            **{name: method.model_dump() for name, method in desk.space.methods.items()},
            "baseline": {
                "budgets": {"tuning": 8, "confirmation": (8, 12, 16, 24)},
                "axes": {"learning_rate": {"grid": (0.002, 0.004)}},
            },
        }
    )
    workers = Workers()
    workers.run(replace(desk, space=more).open())
    new = {r.spec.schedule.total_steps for r in desk.ledger.written.values() if r.spec.schedule.total_steps > 16}
    assert new == {24}
    assert {job.spec.schedule.total_steps for job in workers.jobs} == {24}


def test_of_a_sweep_that_is_over_the_confirmed_weights_are_left_and_nothing_else() -> None:
    desk = finished_desk()
    confirmed = [record for record in desk.ledger.records() if record.purpose == "confirmation"]
    assert desk.store.states().keys() == final_nodes(confirmed)
    assert len(desk.store.states()) == len(confirmed) > 0
    before = desk.store.states()
    more = space_of(seeds={"tuning": (0, 1), "confirmation": (1000, 1001, 1002)})
    workers = Workers()
    workers.run(replace(desk, space=more).open())
    assert workers.jobs
    assert before.keys() < desk.store.states().keys(), "what was kept stays when the sweep goes on"
    finals = [job for job in workers.jobs if job.keep_weights]
    assert {job.spec.seed for job in finals} == {1002}
    assert not any(job.keep_state for job in finals)


def test_a_state_that_is_being_written_is_not_swept_out() -> None:
    store = MemoryStore()
    book = StageBook(store)
    book.add([path_of(tiny_spec("baseline", decay_steps=0), "eager")])
    (segment,) = book.ready()
    book.start(segment)
    store.kept.add(segment.node)  # its worker is about to finish
    book.sweep_out(0.0)
    assert store.has_state(segment.node)
    book.abandon(segment.node)
    book.sweep_out(0.0)
    assert not store.has_state(segment.node)


def test_long_chains_start_first() -> None:
    desk = Desk(space_of(methods={"baseline": space_of().methods["baseline"].model_dump()}))
    sweep = desk.open()
    workers = Workers()
    while not sweep.arms[0].winner:
        job = sweep.next_job()
        assert isinstance(job, StageJob)
        workers.jobs.append(job)
        sweep.finish(result_of(job))
    trunks = sweep.book.ready()
    assert [segment.remaining for segment in trunks] == sorted((s.remaining for s in trunks), reverse=True)
    assert trunks[0].remaining == 16


def test_provenance_names_every_device_that_a_trial_saw() -> None:
    desk = Desk()
    sweep = desk.open()
    count = 0
    while isinstance(job := sweep.next_job(), StageJob):
        count += 1
        sweep.finish(replace(result_of(job), device=f"device {count % 2}"))
    devices = {r.provenance.device for r in desk.ledger.written.values()}
    assert "device 1 + device 0" in devices or "device 0 + device 1" in devices


def test_a_path_is_the_one_that_the_records_went() -> None:
    """The node that a trial ends at has the result that its record holds."""
    desk = finished_desk()
    record: RunRecord
    for record in desk.ledger.written.values():
        path = path_of(record.spec, "eager")
        result = desk.store.result(path.node(path.end))
        assert result is not None
        assert result.points[-1].loss == record.final_loss
