"""What every arm pays for a loss of the reader's choice: by the same estimator, and censored where it was not measured."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from reports.estimate.targets import costs_at
from reports.evidence.study import Study
from reports.pages.report import render_page
from reports.summary import summarize, summary_to_json
from tests.support.finished_runs import ladder, make_study, sweep, true_loss


def two_ladders() -> Study:
    return make_study([*ladder(), *ladder("tst", (4_000, 5_000, 6_000), speedup=1.3)])


def test_a_loss_inside_both_ladders_is_read_off_each_of_them() -> None:
    loss = float(true_loss(6_000))
    baseline, method = costs_at(two_ladders(), loss)
    assert (baseline.method, baseline.outcome, method.method, method.outcome) == (
        "baseline",
        "reached",
        "tst",
        "reached",
    )
    assert baseline.cost is not None
    assert method.cost is not None
    assert baseline.cost / method.cost == pytest.approx(1.3, rel=0.02)
    assert baseline.interval is not None
    assert baseline.interval[0] < baseline.cost < baseline.interval[1]


def test_what_was_not_measured_is_censored() -> None:
    study = two_ladders()
    best, worst = 0.5, 50.0
    assert {cost.outcome for cost in costs_at(study, best)} == {"not reached"}
    assert {cost.outcome for cost in costs_at(study, worst)} == {"passed"}
    assert all(cost.interval is None for cost in costs_at(study, best) + costs_at(study, worst))
    largest = max(cost.cost or 0.0 for cost in costs_at(study, best) if cost.method == "baseline")
    assert largest == pytest.approx(max(cell.gpu_hours or 0.0 for cell in study.scales[0].arms[0].cells))


def test_one_budget_has_no_curve() -> None:
    assert [cost.outcome for cost in costs_at(sweep(), float(true_loss(5_000)))] == ["reached", "no curve"]


def test_page_and_numbers_have_the_target_that_was_asked_for_and_no_other() -> None:
    study = two_ladders()
    asked = replace(study, context=replace(study.context, target_loss=float(true_loss(6_000))))
    summary = summarize(asked)
    assert [arm["outcome"] for arm in summary_to_json(summary)["target"]["arms"]] == ["reached", "reached"]
    assert "What each arm pays to end at a loss of" in render_page(asked, summary)
    plain = summarize(study)
    assert json.loads(json.dumps(summary_to_json(plain)))["target"] is None
    assert "What each arm pays to end at a loss of" not in render_page(study, plain)
