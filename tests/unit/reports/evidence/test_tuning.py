"""Equal tuning where a method's learning rate has a unit of its own: equal trials and equal octaves, not equal values."""

from __future__ import annotations

from dataclasses import replace

import pytest

from reports.evidence.runs import FinishedRun
from reports.evidence.tuning import TuningComparison, compare_tuning
from reports.summary import summarize
from tests.support.finished_runs import ladder, make_study, tuning

BASELINE_RATES = (1e-3, 2e-3, 4e-3)


def method(rates: tuple[float, ...], *, own: bool) -> list[FinishedRun]:
    return [replace(run, own_learning_rate=own) for run in tuning("tst", rates)]


def compared(trials: list[FinishedRun]) -> TuningComparison:
    study = make_study([*tuning("baseline", BASELINE_RATES), *trials, *ladder(), *ladder("tst", (4_000,), speedup=1.3)])
    (scale,) = study.scales
    return compare_tuning(scale.baseline, scale.methods[0], study.context)


def test_the_same_octaves_in_another_unit_are_equal() -> None:
    rates = (0.011, 0.022, 0.044)
    assert compared(method(rates, own=False)) == TuningComparison(
        False, "learning rates 0.011 to 0.044 against 0.001 to 0.004"
    )
    assert compared(method(rates, own=True)) == TuningComparison(True, "")


@pytest.mark.parametrize(
    ("rates", "difference"),
    [
        ((0.01, 0.02, 0.08), "learning rates over 3 against 2 octaves"),
        ((0.01, 0.04), "2 trials of the method against 3 of the baseline"),
    ],
)
def test_other_octaves_or_another_number_of_trials_are_not(rates: tuple[float, ...], difference: str) -> None:
    assert compared(method(rates, own=True)) == TuningComparison(False, difference)


def test_the_check_says_what_was_equal() -> None:
    trials = method((0.01, 0.02, 0.04), own=True)
    study = make_study([*tuning("baseline"), *trials, *ladder(), *ladder("tst", (4_000,), speedup=1.3)])
    (found,) = (check for check in summarize(study).checks if check.name == "Equal tuning")
    assert (found.status, found.number) == ("pass", "3 each")
    assert found.sentence.endswith("a learning rate in a unit of its own, equal octaves.")
