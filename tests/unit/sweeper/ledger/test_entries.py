"""What a reviewer sees of a trial: names, columns that line up, points at common steps, within MLflow's limits."""

from __future__ import annotations

import json

import pytest
from hypothesis import given

from sweeper.ledger.entries import (
    MAX_POINTS,
    SPEC_TAG,
    metric_points,
    parameters,
    result_tags,
    run_name,
    run_status,
    thinned,
    trial_tags,
)
from tests.support.strategies import record_of, run_records, spec_of
from trainers.contract.record import Diverged, Failed, Finished, Outcome, RunRecord, Stopped
from trainers.contract.spec import spec_from_dict


def test_run_name_of_the_method() -> None:
    name = run_name(spec_of("tst", seed=1000), "confirmation")
    assert name == "nano TST s=3 r=0.2 lr=2.8e-03 · 4,000 steps · seed 1000 · confirmation"


def test_run_name_of_the_baseline_has_no_bag() -> None:
    assert run_name(spec_of(), "noise_floor") == "nano Baseline lr=2.8e-03 · 4,000 steps · seed 0 · noise floor"


def test_run_name_says_a_weighting_that_is_not_the_usual_one() -> None:
    assert "s=8 r=0.2 bag_weighting=power_law" in run_name(
        spec_of("tst", bag_size=8, bag_weighting="power_law"), "tuning"
    )


def test_columns_line_up_across_methods() -> None:
    baseline, method = parameters(spec_of()), parameters(spec_of("tst"))
    assert set(baseline) == set(method)
    assert (baseline["bag_size"], baseline["step_ratio"]) == ("1", "0")
    assert (method["bag_size"], method["step_ratio"], method["learning_rate"]) == ("3", "0.2", "0.0028")


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        (Finished(2.7), "FINISHED"),
        (Stopped(10, "asked to"), "KILLED"),
        (Diverged(10, "loss is not finite"), "FAILED"),
        (Failed("out of memory"), "FAILED"),
    ],
)
def test_every_outcome_has_a_status_and_says_why(outcome: Outcome, status: str) -> None:
    record = record_of(spec_of(), outcome=outcome)
    assert run_status(record) == status
    assert result_tags(record).get("reason") == getattr(outcome, "reason", None)


@given(run_records(max_points=1_200))
def test_points_share_their_steps_and_stay_within_limits(record: RunRecord) -> None:
    points = metric_points(record, run_started=0)
    curves = ("validation_loss", "gpu_hours", "tokens", "flops")
    steps = {key: [point.step for point in points if point.key == key] for key in curves}
    assert all(steps[key] == steps["validation_loss"] for key in curves)
    assert len(steps["validation_loss"]) <= MAX_POINTS
    assert len({point.key for point in points}) <= 7
    assert all(point.timestamp >= 0 for point in points)
    assert len({(point.key, point.step) for point in points}) == len(points)


@given(run_records(max_points=1_200))
def test_thinning_keeps_the_ends_and_the_order(record: RunRecord) -> None:
    kept = thinned(record.curve.points, MAX_POINTS)
    chosen = set(kept)
    assert list(kept) == [point for point in record.curve.points if point in chosen]
    if record.curve.points:
        assert (kept[0], kept[-1]) == (record.curve.points[0], record.curve.points[-1])


def test_gpu_hours_count_every_device() -> None:
    record = record_of(spec_of(), devices=8, step_seconds=0.5)
    last = [point for point in metric_points(record, 0) if point.key == "gpu_hours"][-1]
    assert last.value == pytest.approx(record.timing.gpu_hours)
    assert last.value == pytest.approx(8 * 4_000 * 0.5 / 3_600)


@given(run_records())
def test_tags_carry_the_spec_within_mlflows_limit(record: RunRecord) -> None:
    tags = {**trial_tags(record.spec, record.purpose, 7), **result_tags(record)}
    assert spec_from_dict(json.loads(tags[SPEC_TAG])) == record.spec
    assert all(len(value) <= 5_000 for value in tags.values())


def test_both_costs_of_a_trial_stand_beside_its_loss() -> None:
    record = record_of(spec_of(), devices=2)
    found = {point.key: point for point in metric_points(record, 0) if point.step == 0}
    assert found["standalone_gpu_hours"].value == record.timing.billed_gpu_hours
    assert found["incurred_gpu_hours"].value == record.timing.incurred_gpu_hours
