"""Across scales: only what was measured is averaged, and a line needs four sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy.stats import linregress, t

from reports.estimate.scaling import geometric_mean, size_trend
from reports.estimate.speedup import judge
from reports.estimate.verdict import ScaleVerdict
from tests.support.finished_runs import OFFSETS, ladder, make_run, make_study, true_loss

SIZES = {"a": 1e5, "b": 1e6, "c": 1e7, "d": 1e8}


def verdicts(speedups: Sequence[float], offsets: Sequence[float] = OFFSETS) -> tuple[ScaleVerdict, ...]:
    runs = []
    for (scale, params), speedup in zip(SIZES.items(), speedups, strict=False):
        runs += ladder(scale=scale, params=params, offsets=offsets)
        runs += ladder("tst", (4_000,), speedup=speedup, scale=scale, params=params, offsets=offsets)
    return judge(make_study(runs))


def test_the_geometric_mean_and_its_interval() -> None:
    found = geometric_mean(verdicts((1.2, 1.5, 1.8)), "tst")
    assert found is not None
    assert found.speedup == pytest.approx((1.2 * 1.5 * 1.8) ** (1 / 3), rel=1e-4)
    assert found.interval is not None
    assert found.interval[0] * found.interval[1] == pytest.approx(found.speedup**2, rel=1e-6)
    assert found.scales == ("a", "b", "c")


def test_not_reached_and_projected_scales_are_left_out() -> None:
    found = geometric_mean(verdicts((1.2, 3.0, 1.8, 0.9)), "tst")
    assert found is not None
    assert found.scales == ("a", "c")
    assert found.left_out == ("b", "d")
    assert found.speedup == pytest.approx(math.sqrt(1.2 * 1.8), rel=1e-4)


def test_a_mean_needs_two_scales() -> None:
    assert geometric_mean(verdicts((1.2,)), "tst") is None
    assert geometric_mean(verdicts((1.2, 3.0)), "tst") is None


def test_a_trend_needs_four_scales() -> None:
    assert size_trend(verdicts((1.2, 1.3, 1.4)), "tst") is None
    assert size_trend(verdicts((1.2, 1.3, 1.4, 3.0)), "tst") is None


def test_the_prediction_interval_is_that_of_a_regression() -> None:
    speedups = (1.2, 1.5, 1.3, 1.7)
    trend = size_trend(verdicts(speedups), "tst", target_params=1e10)
    assert trend is not None
    x, y = np.log(list(SIZES.values())), np.log(speedups)
    line = linregress(x, y)
    assert trend.slope == pytest.approx(line.slope, rel=1e-3)
    residual = y - line.intercept - line.slope * x
    deviation = math.sqrt((residual**2).sum() / 2)
    target = math.log(1e10)
    half = t.ppf(0.975, 2) * deviation * math.sqrt(1 + 1 / 4 + (target - x.mean()) ** 2 / ((x - x.mean()) ** 2).sum())
    value = line.intercept + line.slope * target
    assert trend.at_target == pytest.approx((math.exp(value), math.exp(value - half), math.exp(value + half)), rel=1e-3)
    assert trend.params[-1] == pytest.approx(1e10)


def test_a_perfect_line_still_carries_the_scales_own_error() -> None:
    trend = size_trend(verdicts((1.2, 1.3, 1.3**2 / 1.2, 1.3**3 / 1.2**2)), "tst", target_params=3e7)
    assert trend is not None
    assert trend.at_target is not None
    assert trend.at_target[2] / trend.at_target[0] > 1.05


def test_one_measured_seed_gives_a_mean_without_an_interval() -> None:
    found = geometric_mean(verdicts((1.2, 1.5), offsets=(0.0,)), "tst")
    assert found is not None
    assert found.interval is None


def test_the_factory_s_ladder_is_a_power_law() -> None:
    assert make_run("baseline", 4_000, 1, true_loss(4_000)).final_loss == pytest.approx(2 + 1.2 * 4**-0.3)
