"""Importances of axes: what decides the loss has most of it, and nothing is said where nothing can be."""

from __future__ import annotations

from itertools import product

import pytest

from reports.evidence.importance import Trial, importances

GRID = [
    {"bag_size": bag, "step_ratio": ratio, "bag_weighting": word}
    for bag, ratio, word in product((2, 4, 8), (0.1, 0.2, 0.3), ("uniform", "power_law"))
]


def test_the_axis_that_decides_has_the_importance_whatever_its_type() -> None:
    by_number = importances([(values, float(values["bag_size"])) for values in GRID])
    assert by_number == pytest.approx({"bag_size": 1, "step_ratio": 0, "bag_weighting": 0}, abs=0.01)
    by_word = importances([(values, float(values["bag_weighting"] == "uniform")) for values in GRID])
    assert by_word == pytest.approx({"bag_size": 0, "step_ratio": 0, "bag_weighting": 1}, abs=0.01)


def test_what_axes_explain_only_together_is_nobodys() -> None:
    crossed: list[Trial] = [({"bag_size": a, "heads": b}, float(a != b)) for a in (1, 2) for b in (1, 2)] * 8
    assert max(importances(crossed).values()) < 0.1


def test_the_same_trials_give_the_same_numbers() -> None:
    trials = [(values, index * 7919 % 101 / 10) for index, values in enumerate(GRID)]
    assert importances(trials) == importances(trials)


@pytest.mark.parametrize(
    "trials",
    [
        [],
        [({"bag_size": 2, "heads": 1}, 3.0)],
        [({"bag_size": bag}, float(bag)) for bag in (2, 4, 4)],
        [({"bag_size": bag, "heads": 2}, float(bag)) for bag in (2, 4, 4)],
        [({"bag_size": bag, "heads": bag % 3}, float(bag)) for bag in (2, 4, 8)],
        [(values, 3.0) for values in GRID],
        [({"bag_size": 2}, 3.0), ({"heads": 2}, 2.0), ({"heads": 3}, 1.0)],
    ],
    ids=["none", "one", "a single axis", "one that varies", "each its own", "equal losses", "nothing in common"],
)
def test_where_there_is_no_telling_nothing_is_told(trials: list[Trial]) -> None:
    assert importances(trials) == {}
