"""A record from the stages of a trial: as if trained alone, and refused where the stages do not fit together."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from tests.support.strategies import PROVENANCE
from tests.support.tiny_training import SHAPE, tiny_spec
from trainers.contract.flops import flops_per_position
from trainers.contract.record import (
    Diverged,
    Failed,
    Finished,
    PhaseTiming,
    RunRecord,
    Stopped,
    TextScore,
    record_from_dict,
    record_to_dict,
)
from trainers.contract.stage import StagePoint, StageResult
from trainers.methods import phases_of
from trainers.planning.assemble import assemble_record, is_evaluated

SPEC = tiny_spec(total_steps=12, decay_steps=4, step_ratio=0.4, bag_size=3)  # superposition to 5, decay from 8


def stage(start: int, end: int, losses: dict[int, float], seconds: float, **changes: Any) -> StageResult:
    phase = "superposition" if start < 5 else "next-token"
    result = StageResult(
        node=f"{start}-{end}",
        parent=None,
        start=start,
        end=end,
        outcome=None,
        points=tuple(StagePoint(step, loss, phase) for step, loss in losses.items()),
        timings=(PhaseTiming(phase, 3 if start < 5 else 1, end - start, seconds),),
        busy_seconds=0.0,
        billed_seconds=10.0,
        skipped_steps=0,
        booked_by="another trial",
        device="cpu",
        execution="eager",
        devices=2,
    )
    return replace(result, **changes)


WAY = [
    stage(0, 3, {3: 3.9}, 1.0),  # another trial's boundary
    stage(3, 5, {4: 3.6, 5: 3.5}, 2.0, booked_by=SPEC.spec_id),
    stage(5, 8, {8: 3.0}, 4.0),
    stage(8, 12, {12: 2.5}, 4.0, booked_by=SPEC.spec_id),
]


def assemble(way: list[StageResult], **changes: Any) -> RunRecord:
    arguments: dict[str, Any] = {"devices": 2, "corpus_tokens": 1_500, "evaluate_every": 4}
    return assemble_record(SPEC, "tuning", way, PROVENANCE, **{**arguments, **changes})


def test_points_are_those_of_a_run_of_its_own_with_counts_by_arithmetic() -> None:
    step_flops = flops_per_position(SHAPE, 8) * 16
    curve = assemble(WAY).curve.points
    assert [(p.step, p.tokens, p.flops, p.loss, p.phase) for p in curve] == [
        (4, 16 * 12, step_flops * 4, 3.6, "superposition"),
        (5, 16 * 15, step_flops * 5, 3.5, "superposition"),
        (8, 16 * 18, step_flops * 8, 3.0, "next-token"),
        (12, 16 * 22, step_flops * 12, 2.5, "next-token"),
    ]
    # three steps of one second and two of two: one clock for the phase
    assert [p.seconds for p in curve] == pytest.approx([4 * 7 / 5, 7.0, 19.0, 35.0])


def test_the_clock_is_steps_times_step_time_and_costs_are_kept_apart() -> None:
    timing = assemble(WAY).timing
    assert [(t.phase, t.bag_size, t.steps) for t in timing.phases] == [("superposition", 3, 5), ("next-token", 1, 7)]
    assert timing.step_seconds == pytest.approx(35.0)
    assert (timing.billed_seconds, timing.incurred_seconds, timing.devices) == (40.0, 20.0, 2)


def test_a_finished_record_ends_at_its_last_loss() -> None:
    record = assemble(WAY)
    assert record.outcome == Finished(2.5)
    assert (record.purpose, record.provenance, record.corpus_tokens) == ("tuning", PROVENANCE, 1_500)


@pytest.mark.parametrize("outcome", [Diverged(7, "nan"), Stopped(6, "asked")])
def test_a_way_that_broke_off_ends_with_its_outcome(outcome: Diverged | Stopped) -> None:
    record = assemble([*WAY[:2], stage(5, 8, {}, 4.0, outcome=outcome)])
    assert record.outcome == outcome
    assert record.final_loss is None
    assert [point.step for point in record.curve.points] == [4, 5]


def test_a_failure_is_named_whatever_was_trained() -> None:
    assert assemble(WAY[:2], failure="no memory").outcome == Failed("no memory")
    empty = assemble([], failure="no memory")
    assert (empty.outcome, empty.curve.points, empty.timing.step_seconds) == (Failed("no memory"), (), 0)


@pytest.mark.parametrize("way", [WAY[1:], [WAY[0], WAY[2]], [*WAY[:2], WAY[1]]])
def test_stages_that_do_not_follow_one_another_are_refused(way: list[StageResult]) -> None:
    with pytest.raises(ValueError, match="a stage starts at step"):
        assemble(way)


@pytest.mark.parametrize("way", [[], WAY[:3]])
def test_a_way_that_ends_short_for_no_reason_is_refused(way: list[StageResult]) -> None:
    with pytest.raises(ValueError, match="its stages end before step 12"):
        assemble(way)


def test_where_a_run_alone_evaluates() -> None:
    phases = phases_of(SPEC)
    assert [step for step in range(1, 13) if is_evaluated(step, phases, 12, 4)] == [4, 5, 8, 12]
    assert [step for step in range(1, 13) if is_evaluated(step, phases, 12, 0)] == [5, 12]


def test_a_stage_on_other_devices_keeps_its_device_seconds() -> None:
    """On one device, on two, on four: the clock is that of the two that the record is made out for."""
    mixed = [replace(WAY[0], devices=1), *WAY[1:3], replace(WAY[3], devices=4)]
    timing = assemble(mixed).timing
    device_seconds = 3 * 1.0 * 1 + 2 * 2.0 * 2 + 3 * 4.0 * 2 + 4 * 4.0 * 4
    assert timing.devices == 2
    assert timing.step_seconds * 2 == pytest.approx(device_seconds)
    assert timing.billed_seconds * 2 == pytest.approx(10.0 * (1 + 2 + 2 + 4))
    assert timing.incurred_seconds * 2 == pytest.approx(10.0 * (2 + 4))


def test_a_record_says_what_its_clock_counts() -> None:
    first, *others = WAY
    timed = [replace(part, clock="processor") for part in others]
    assert assemble(WAY).timing.clock == "wall"
    assert assemble([replace(first, clock="processor"), *timed]).timing.clock == "processor"
    assert assemble([first, *timed]).timing.clock == "wall + processor"


def test_the_final_loss_is_the_score_on_all_of_the_text() -> None:
    score = TextScore(tokens=2_048, loss=2.4, piece_tokens=1_024, pieces=(2.3, 2.5))
    *before, last = WAY
    record = assemble([*before, replace(last, points=(StagePoint(12, 2.5, "next-token", score=score),))])
    assert (record.final_loss, record.curve.points[-1].loss, record.score) == (2.4, 2.4, score)
    assert record_from_dict(json.loads(json.dumps(record_to_dict(record)))) == record
    assert "score" not in record_to_dict(assemble(WAY))
