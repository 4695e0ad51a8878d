"""A reader's own target, read off every arm's ladder: exact on exact ladders, censored where an arm does not get there."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from reports.estimate.targets import read_targets
from reports.estimate.verdict import Reached, TargetReading, TargetWords
from reports.estimate.wording import target_sentence
from reports.evidence.runs import FinishedRun
from reports.summary import summarize, summary_to_json
from tests.support.finished_runs import STEP_SECONDS, ladder, make_study, true_loss

BUDGETS = (4_000, 6_000, 8_000)


def read(runs: list[FinishedRun], target: float) -> list[TargetReading]:
    return list(read_targets(make_study(runs, target_loss=target)))


def both(speedup: float = 1.3) -> list[FinishedRun]:
    return [*ladder(budgets=BUDGETS), *ladder("tst", BUDGETS, speedup=speedup)]


def hours(steps: float) -> float:
    return steps * STEP_SECONDS / 3600


def test_without_a_target_nothing_is_read() -> None:
    assert read_targets(make_study(both())) == ()


def test_each_arm_is_read_off_its_own_ladder_and_the_ratio_is_the_speedup() -> None:
    baseline, method = read(both(), true_loss(6_500))
    assert (baseline.method, method.method) == ("baseline", "tst")
    assert baseline.cost == pytest.approx(hours(6_500), rel=1e-4)
    assert method.cost == pytest.approx(hours(5_000), rel=1e-4)
    assert {baseline.words, method.words} == {TargetWords.REACHED}
    for reading in (baseline, method):
        assert reading.cost is not None
        assert reading.interval is not None
        assert reading.interval[0] < reading.cost < reading.interval[1]
    assert baseline.speedup is None
    assert isinstance(method.speedup, Reached)
    assert method.speedup.speedup == pytest.approx(1.3, rel=1e-4)
    assert target_sentence(method).startswith("TST gets to a loss of 2.68")
    assert " against the baseline" in target_sentence(method)


def test_a_clock_that_was_not_measured_twice_is_said_beside_the_cost_and_in_its_check() -> None:
    """Runs that state hours alone, in the same proportion to their steps, measured the clock once."""
    runs = [replace(run, phases=()) for run in both()]
    (baseline, _), (measured, _) = read(runs, true_loss(6_500)), read(_timed_twice(), true_loss(6_500))
    assert target_sentence(baseline).endswith("; the clock's own error is assumed to be 2 %")
    assert "assumed" not in target_sentence(measured)
    (found,) = (one for one in summarize(make_study(runs)).checks if one.name == "Step time stable")
    assert found.sentence == ("No step time was measured twice, so that the clock's own error is assumed to be 2 %.")
    (nothing,) = (one for one in summarize(make_study([])).checks if one.name == "Step time stable")
    assert nothing.sentence == "No step time was measured twice."


def _timed_twice() -> list[FinishedRun]:
    return [
        replace(run, phases=(), gpu_hours=(run.gpu_hours or 0.0) * (1 + 1e-3 * (number % 3)))
        for number, run in enumerate(both())
    ]


def test_a_target_that_was_given_in_another_unit_is_named_as_it_was_given() -> None:
    (baseline, _) = read_targets(make_study(both(), target_loss=true_loss(6_500), target_given="14.6 perplexity"))
    assert target_sentence(baseline).startswith("The baseline gets to a loss of 2.68")
    assert " (14.6 perplexity) in " in target_sentence(baseline)


def test_a_target_below_a_ladder_is_not_reached_and_has_a_bound() -> None:
    """The test tells the largest budget from the target: more than that, and no estimate, whatever the fit says."""
    baseline, method = read([*ladder(budgets=BUDGETS), *ladder("tst", BUDGETS, speedup=2.0)], true_loss(12_000))
    assert (baseline.words, baseline.cost, baseline.interval) == (TargetWords.NOT_REACHED, None, None)
    assert baseline.lower_bound == pytest.approx(hours(8_000))
    assert method.words is TargetWords.REACHED
    assert method.speedup is None, "no ratio to a cost that is not known"
    assert "does not get to" in target_sentence(baseline)


def test_a_target_that_no_test_tells_from_the_last_budget_is_projected() -> None:
    (baseline, _) = read(both(), true_loss(8_050))
    assert baseline.words is TargetWords.PROJECTED
    assert baseline.cost == pytest.approx(hours(8_050), rel=1e-3)


def test_a_target_above_a_ladder_has_an_upper_bound() -> None:
    baseline, _ = read(both(), true_loss(2_000))
    assert (baseline.words, baseline.cost) == (TargetWords.PASSED, None)
    assert baseline.upper_bound == pytest.approx(hours(4_000))


def test_one_budget_is_no_curve_and_says_so() -> None:
    _, method = read([*ladder(budgets=BUDGETS), *ladder("tst", (4_000,), speedup=1.3)], true_loss(6_500))
    assert (method.words, method.cost, method.speedup) == (TargetWords.ONE_BUDGET, None, None)
    assert method.lower_bound == pytest.approx(hours(4_000)), "its only budget ends above the target"
    assert "has one budget at nano, so no curve" in target_sentence(method)


def test_without_a_second_seed_there_is_a_reading_and_no_interval() -> None:
    runs = [replace(run, params=1e5) for run in [*ladder(offsets=(0.0,)), *ladder("tst", BUDGETS, offsets=(0.0,))]]
    baseline, method = read(runs, true_loss(6_500))
    assert (baseline.interval, method.words) == (None, TargetWords.REACHED)
    assert "without an interval" in target_sentence(baseline)
    (low, _) = read(runs, true_loss(12_000))
    assert (low.words, low.lower_bound) == (TargetWords.NOT_REACHED, None)


def test_arms_without_hours_are_read_on_a_clock_that_all_have() -> None:
    runs = [replace(run, gpu_hours=None, phases=()) if run.method == "tst" else run for run in both()]
    assert {reading.clock for reading in read(runs, true_loss(6_500))} == {"flops"}


def test_the_summary_holds_one_row_an_arm() -> None:
    found = summary_to_json(summarize(make_study(both(), target_loss=true_loss(6_500))))["target"]["arms"]
    assert [row["method"] for row in found] == ["baseline", "tst"]
    assert found[1]["speedup"] == pytest.approx(1.3, rel=1e-4)
    assert found[0]["speedup"] is None


def test_the_interval_of_a_cost_covers_it() -> None:
    """Trunks that shift as a whole, three seeds, the truth inside the ladder, a clock that counts: 95 % hold it."""
    noise = np.random.default_rng(7)
    held, tries = 0, 400
    for _ in range(tries):
        runs = ladder(offsets=tuple(noise.normal(0, 0.004, 3)), gpu_hours=None, phases=())
        (reading,) = read(runs, true_loss(6_500))
        if reading.words is not TargetWords.REACHED or reading.interval is None:
            tries -= 1
            continue
        held += reading.interval[0] <= 6_500e9 <= reading.interval[1]
    assert tries > 350
    assert abs(held / tries - 0.95) < 3 * math.sqrt(0.95 * 0.05 / tries) + 0.01
