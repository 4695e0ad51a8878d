"""Across model scales: the geometric mean, and `ln S` against `ln N` for a size that was not trained.

Only measured speedups enter: what was not reached, or projected, is named as left out and never averaged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reports.estimate.intervals import CONFIDENCE, add_variances, t_quantile
from reports.estimate.verdict import Reached, ScaleVerdict
from reports.evidence.runs import FloatArray

MINIMUM_SCALES = 4
"""A line takes two degrees of freedom; fewer than two left give no prediction interval of any use."""


@dataclass(frozen=True, slots=True)
class Aggregate:
    """Geometric mean of the reached speedups of one method over `scales`; `left_out` were not reached (or projected)
    and are never averaged. The interval combines the scales' own standard errors (None where one is missing)."""

    method: str
    speedup: float
    interval: tuple[float, float] | None
    scales: tuple[str, ...]
    left_out: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class SizeTrend:
    """`ln S = intercept + slope * ln N` over four scales or more. Arrays `[samples]` with the 95 % prediction band.

    `at_target` is (S, low, high) at `target_params`, None without a target.
    """

    method: str
    slope: float
    slope_interval: tuple[float, float]
    params: FloatArray
    speedup: FloatArray
    low: FloatArray
    high: FloatArray
    target_params: float | None
    at_target: tuple[float, float, float] | None


def measured(verdict: ScaleVerdict) -> Reached | None:
    """The speedup of a verdict if it was measured: reached, and inside the ladder."""
    speedup = verdict.speedup
    return speedup if isinstance(speedup, Reached) and not speedup.extrapolated else None


def geometric_mean(verdicts: Sequence[ScaleVerdict], method: str) -> Aggregate | None:
    """The geometric mean over the scales of one method; None below two measured scales."""
    own = [verdict for verdict in verdicts if verdict.method == method]
    reached = [(verdict, speedup) for verdict in own if (speedup := measured(verdict)) is not None]
    if len(reached) < 2:
        return None
    # A ratio's mean is taken on logarithms: 2x at one scale and 0.5x at the next is no gain at all.
    logs = np.log([speedup.speedup for _, speedup in reached])
    return Aggregate(
        method=method,
        speedup=math.exp(float(logs.mean())),
        interval=_mean_interval([speedup for _, speedup in reached]),
        scales=tuple(verdict.scale for verdict, _ in reached),
        left_out=tuple(verdict.scale for verdict in own if measured(verdict) is None),
    )


def _mean_interval(reached: Sequence[Reached]) -> tuple[float, float] | None:
    """Scales are independent: variances add over the square of their number, degrees of freedom by Satterthwaite."""
    count = len(reached)
    parts: list[tuple[float, float]] = []
    for speedup in reached:
        if speedup.log_standard_error is None or speedup.degrees_of_freedom is None:
            return None
        parts.append(((speedup.log_standard_error / count) ** 2, speedup.degrees_of_freedom))
    center = sum(math.log(speedup.speedup) for speedup in reached) / count
    variance, freedom = add_variances(*parts)
    half = float(t_quantile((1 + CONFIDENCE) / 2, freedom)) * math.sqrt(variance)
    half += sum(speedup.systematic for speedup in reached) / count
    return math.exp(center - half), math.exp(center + half)


def size_trend(
    verdicts: Sequence[ScaleVerdict], method: str, target_params: float | None = None, num_samples: int = 50
) -> SizeTrend | None:
    """Fit `ln S` against `ln N` by least squares; None below four measured scales of known size.

    The band is the prediction interval of a further size (its own scatter included), from the residuals of the line
    with `scales - 2` degrees of freedom, and never narrower than the scales' own mean standard error.
    """
    points = [
        (math.log(verdict.params), speedup)
        for verdict in verdicts
        if verdict.method == method and verdict.params and (speedup := measured(verdict)) is not None
    ]
    if len({round(x, 9) for x, _ in points}) < MINIMUM_SCALES:
        return None
    x, y = np.array([point[0] for point in points]), np.log([point[1].speedup for point in points])
    freedom = len(x) - 2
    center = x.mean()
    squares = float(((x - center) ** 2).sum())
    slope = float(((x - center) * (y - y.mean())).sum() / squares)
    residual = y - y.mean() - slope * (x - center)
    own = [point[1].log_standard_error or 0.0 for point in points]
    # With two degrees of freedom four points can lie on a line by luck; the scales' own errors are a floor.
    deviation = max(math.sqrt(float((residual**2).sum()) / freedom), math.sqrt(float(np.mean(np.square(own)))))
    quantile = float(t_quantile((1 + CONFIDENCE) / 2, freedom))

    def predict(at: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        value = y.mean() + slope * (at - center)
        # The leading 1 is the scatter of the new scale itself: a band for the line alone would be too narrow for a
        # claim about one model.
        half = quantile * deviation * np.sqrt(1 + 1 / len(x) + (at - center) ** 2 / squares)
        return np.exp(value), np.exp(value - half), np.exp(value + half)

    ends = [float(x.min()), float(x.max())] + ([math.log(target_params)] if target_params else [])
    grid = np.linspace(min(ends), max(ends), num_samples)
    curve, low, high = predict(grid)
    at_target = None
    if target_params:
        found = predict(np.array([math.log(target_params)]))
        at_target = (float(found[0][0]), float(found[1][0]), float(found[2][0]))
    half_slope = quantile * deviation / math.sqrt(squares)
    return SizeTrend(
        method=method,
        slope=slope,
        slope_interval=(slope - half_slope, slope + half_slope),
        params=np.exp(grid),
        speedup=curve,
        low=low,
        high=high,
        target_params=target_params,
        at_target=at_target,
    )
