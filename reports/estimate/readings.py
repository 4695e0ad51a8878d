"""What one method cell says against the baseline's ladder: a speedup, a bound, a loss gap, a matched pair, a curve.

Applies the vectorised estimators to the cells of one scale. Which cell counts, and which words follow, is `speedup`'s.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.special import fdtrc

from reports.estimate.intervals import CONFIDENCE, add_variances, t_quantile
from reports.estimate.inversion import LogSpeedup, ends_above, invert_ladder, ladder_curves, log_speedup
from reports.estimate.noise import Noise, Sampling
from reports.estimate.observations import Observations
from reports.estimate.verdict import (
    Clock,
    LadderCurve,
    LossErrors,
    LossGap,
    MatchedPair,
    NotReached,
    Reached,
    Speedup,
    SpeedupCurve,
)
from reports.evidence.clock import PooledStepTime, PoolKey, clock_shares
from reports.evidence.runs import FinishedRun, FloatArray
from reports.evidence.study import Cell

LIMIT = math.log(1e6)
DISTINCT_COST = 1e-3
"""Budgets closer than this are no steps of a ladder."""

SAME_COST = 0.02
"""Two costs within this fraction count as equal."""

ROUNDING = 1e-12
"""A part of a run's hours below this is what rounding left."""


@dataclass(frozen=True, slots=True, eq=False)
class Ladder:
    """The baseline's (or a method's) cells with their costs on one clock, ascending. `means_KN` averages runs."""

    cells: tuple[Cell, ...]
    cost: FloatArray
    loss: FloatArray
    counts: FloatArray
    means_KN: FloatArray

    @property
    def monotone(self) -> bool:
        """Whether every larger budget ends at a lower mean loss."""
        return bool((np.diff(self.loss) < 0).all())


def make_ladder(observations: Observations, cells: Sequence[Cell], clock: Clock) -> Ladder | None:
    """The cells on a clock; None where there are none, a cell does not know its cost, or two budgets cost the same."""
    priced = [(cost, cell) for cell in cells if (cost := cell.cost(clock)) is not None]
    if not priced or len(priced) < len(cells):
        return None
    priced.sort(key=lambda item: item[0])
    if any(second < first * (1 + DISTINCT_COST) for (first, _), (second, _) in pairwise(priced)):
        return None
    ordered = tuple(cell for _, cell in priced)
    return Ladder(
        cells=ordered,
        cost=np.array([cost for cost, _ in priced]),
        loss=np.array([cell.mean_loss for cell in ordered]),
        counts=np.array([cell.num_seeds for cell in ordered], dtype=np.float64),
        means_KN=observations.means(ordered),
    )


@dataclass(frozen=True, slots=True)
class ClockError:
    """Variance of `ln(baseline hours / method hours)` from step times, its degrees of freedom, and whether a part of
    it is assumed."""

    variance: float
    degrees_of_freedom: float
    assumed: bool


NO_CLOCK_ERROR = ClockError(0.0, math.inf, False)


def clock_error(baseline: FinishedRun, method: FinishedRun, pools: Mapping[PoolKey, PooledStepTime]) -> ClockError:
    """How far the pooled step times can tilt the comparison. A phase that both arms share cancels in so far as both
    spend the same part of their time in it."""
    first, second = clock_shares(baseline, pools), clock_shares(method, pools)
    # d ln(hours) / d ln(step time) is the part of the hours in that phase. What both arms spend alike moves both alike.
    return _error_of({key: first.get(key, 0.0) - second.get(key, 0.0) for key in first | second}, pools)


def own_clock_error(run: FinishedRun, pools: Mapping[PoolKey, PooledStepTime]) -> ClockError:
    """The same for `ln(hours)` of one arm."""
    return _error_of(clock_shares(run, pools), pools)


def _error_of(weights: Mapping[PoolKey, float], pools: Mapping[PoolKey, PooledStepTime]) -> ClockError:
    terms: list[tuple[float, float]] = []
    assumed = False
    # A pool that is priced against another one moves with it: between two arms that other one's own error then cancels.
    moved = defaultdict(float, weights)
    for key, weight in weights.items():
        if key in pools and (reference := pools[key].reference) is not None:
            moved[reference] += weight
    for key, weight in moved.items():
        pool = pools.get(key)
        if pool is None or abs(weight) < ROUNDING:
            continue
        term = (weight * pool.log_standard_error) ** 2
        if term > 0:
            # An assumed error has no degrees of freedom to lose; that it is assumed is flagged.
            terms.append((term, math.inf if pool.assumed else pool.num_runs - 1))
            assumed = assumed or pool.assumed
    if not terms:
        return NO_CLOCK_ERROR
    variance, freedom = add_variances(*terms)
    return ClockError(float(variance), float(freedom), assumed)


def _errors(result: LogSpeedup, sampling: Sampling | None) -> LossErrors | None:
    """None where the scatter of seeds is unknown, or the ladder has no slope at the target."""
    seeds = float(result.seed_nats[0])
    if not math.isfinite(seeds):
        return None
    return LossErrors(seeds, None if sampling is None else float(result.sampling_nats[0]))


@dataclass(frozen=True, slots=True)
class Reading:
    """`S` of one method cell on one clock. `upper_bound`: see `ScaleVerdict`; the rest describes the fit that was read."""

    speedup: Speedup | None = None
    upper_bound: float | None = None
    below_asymptote: bool = False
    at_bound: bool = False
    errors: LossErrors | None = None


def read_speedup(
    observations: Observations, baseline: Ladder, cell: Cell, method_cost: float, clock_error: ClockError
) -> Reading:
    """Invert the baseline's ladder at the cell's mean loss, or say what is known where that is not possible."""
    if len(baseline.cost) < 2:
        return Reading()
    result = log_speedup(
        observations.losses[None, :],
        baseline_KN=baseline.means_KN,
        method_1N=observations.means([cell]),
        cost_K=baseline.cost,
        method_cost=method_cost,
        noise=observations.noise,
        sampling=observations.sampling,
        clock_variance=clock_error.variance,
        clock_freedom=clock_error.degrees_of_freedom,
    )
    curve = result.inversion.curves[0]
    exponent = float(curve.exponent[0]) if len(baseline.cost) > 2 else None
    value, target = float(result.value[0]), cell.mean_loss
    inside, beyond = bool(result.inversion.inside[0]), target < baseline.loss.min()
    # Beyond the ladder only a curve with an asymptote may be continued; one that bends the other way would promise
    # losses below any bound.
    trusted = exponent is not None and exponent > 0 and math.isfinite(value)
    below = beyond and exponent is not None and exponent > 0 and not math.isfinite(value)
    at_bound = exponent is not None and (bool(curve.at_bound[0]) or exponent <= 0)
    reached = _reached(result, extrapolated=not inside) if math.isfinite(value) and (inside or trusted) else None
    errors = _errors(result, observations.sampling)
    if inside:
        return Reading(reached, None, below, at_bound, errors)
    if beyond:
        bound, ends_above = _not_reached_bound(observations, baseline, cell, method_cost)
        projected = _exp(value) if trusted else None
        # Not reached is the test's word, not the fit's. A target just below the best mean, which the test cannot tell
        # from it, is a reading outside the ladder; one that it can tell has a bound, and no estimate at all.
        speedup: Speedup = NotReached(bound, projected) if ends_above is not False or reached is None else reached
        return Reading(speedup, None, below, at_bound, errors)
    upper = _already_passed_bound(observations, baseline, cell, method_cost)
    return Reading(reached, upper, below, at_bound, errors)


def _reached(result: LogSpeedup, *, extrapolated: bool) -> Reached:
    error = float(result.standard_error[0])
    known = math.isfinite(error)
    return Reached(
        speedup=_exp(result.value[0]),
        interval=(_exp(result.low[0]), _exp(result.high[0])) if known else None,
        log_standard_error=error if known else None,
        degrees_of_freedom=float(result.freedom[0]) if known else None,
        extrapolated=extrapolated,
        systematic=float(result.inversion.systematic[0]),
    )


def _exp(logarithm: float) -> float:
    """The exponential, held within a millionfold: wider than that no interval says anything."""
    return math.exp(min(max(float(logarithm), -LIMIT), LIMIT))


def loss_difference(
    observations: Observations, first_1N: FloatArray, second_1N: FloatArray
) -> tuple[float, float, float]:
    """Difference of two means (first minus second, nats), its standard error (NaN: unknown) and degrees of freedom."""
    gradient = first_1N - second_1N
    text = observations.sampling_variance(gradient)
    variance, freedom = add_variances(observations.variance(gradient), (text, np.inf))
    return float((gradient @ observations.losses)[0]), math.sqrt(variance[0]), float(freedom[0])


def _not_reached_bound(
    observations: Observations, baseline: Ladder, cell: Cell, method_cost: float
) -> tuple[float | None, bool | None]:
    """The lower bound of S, and whether the largest budget ends above the target (None: no deviation to test with).

    Where the largest budget cannot be told from the target, the bound comes from the smaller ones, tested upwards until
    one cannot be told either: a fixed order keeps the chance of a wrong bound at 5 % however many budgets there are.
    """
    loss_1N, noise = observations.losses[None, :], observations.noise
    if noise is None:
        return None, None
    method_1N = observations.means([cell])
    above = [
        bool(ends_above(loss_1N, baseline.means_KN[number : number + 1], method_1N, noise, observations.sampling)[0])
        for number in range(len(baseline.cost))
    ]
    # Only budgets below the first that cannot be told: a later one that can would be a second chance at the same 5 %.
    excluded = len(above) if above[-1] else above.index(False)
    return (float(baseline.cost[excluded - 1]) / method_cost if excluded else None), above[-1]


def _already_passed_bound(observations: Observations, baseline: Ladder, cell: Cell, method_cost: float) -> float | None:
    """`S <` this (95 %): the baseline's cheapest budget ends below the target; None where the test cannot tell."""
    loss_1N, noise = observations.losses[None, :], observations.noise
    first, second = observations.means([cell]), baseline.means_KN[:1]
    if noise is None or not ends_above(loss_1N, first, second, noise, observations.sampling)[0]:
        return None
    return float(baseline.cost[0]) / method_cost


def loss_gap(observations: Observations, baseline: Ladder, cell: Cell, method_cost: float) -> LossGap:
    """Baseline minus method at equal cost; at the nearest budget where the ladder does not hold that cost."""
    low, high = baseline.cost[0] * (1 - SAME_COST), baseline.cost[-1] * (1 + SAME_COST)
    nearest = int(np.abs(np.log(baseline.cost / method_cost)).argmin())
    # A measured budget at the same cost needs no curve. With three or more the fit is still taken, since it also uses
    # the neighbours' seeds.
    same = abs(baseline.cost[nearest] / method_cost - 1) <= SAME_COST
    between = len(baseline.cost) > 1 and low <= method_cost <= high
    if between and not (same and len(baseline.cost) == 2):
        curves = ladder_curves(baseline.cost, baseline.loss[None, :], baseline.counts)
        at = np.array([method_cost])
        weights_1K = np.mean([curve.weights_at(at) for curve in curves], axis=0)
        fitted = float(np.mean([curve.loss_at(at)[0] for curve in curves]))
    else:
        weights_1K = np.eye(len(baseline.cost))[nearest : nearest + 1]
        fitted = float(baseline.loss[nearest])
    gap = fitted - cell.mean_loss
    _, error, freedom = loss_difference(observations, weights_1K @ baseline.means_KN, observations.means([cell]))
    half = float(t_quantile((1 + CONFIDENCE) / 2, freedom)) * error
    return LossGap(
        gap=gap,
        interval=(gap - half, gap + half) if math.isfinite(half) else None,
        equal_cost=bool(same or between),
        cost_ratio=1.0 if same or between else float(baseline.cost[nearest] / method_cost),
    )


def matched_pair(baseline: Sequence[Cell], cell: Cell, clock: Clock) -> MatchedPair | None:
    """The baseline cell whose mean final loss is closest to the method cell's, and the ratio of their costs."""
    priced = [other for other in baseline if other.cost(clock) is not None]
    cost = cell.cost(clock)
    if not priced or cost is None:
        return None
    other = min(priced, key=lambda candidate: abs(candidate.mean_loss - cell.mean_loss))
    other_cost = other.cost(clock)
    assert other_cost is not None
    return MatchedPair(
        speedup=other_cost / cost,
        baseline_hours=other.gpu_hours,
        method_hours=cell.gpu_hours,
        baseline_loss=other.mean_loss,
        method_loss=cell.mean_loss,
        baseline_steps=other.total_steps,
        method_steps=cell.total_steps,
        data_multiplier=cell.tokens / other.tokens if cell.tokens and other.tokens else None,
        flops_ratio=other.flops / cell.flops if cell.flops and other.flops else None,
    )


def pchip_speedup(baseline: Ladder, target: float, method_cost: float) -> float | None:
    """S by monotone interpolation of ln cost over the loss; None outside the ladder or where it is not monotone."""
    if len(baseline.cost) < 3 or not baseline.monotone or not baseline.loss[-1] <= target <= baseline.loss[0]:
        return None
    from scipy.interpolate import PchipInterpolator

    # It must ascend; costs as logarithms, so that the answer does not depend on the unit of the clock.
    log_cost = PchipInterpolator(baseline.loss[::-1], np.log(baseline.cost[::-1]))(target)
    return math.exp(float(log_cost)) / method_cost


def lack_of_fit(observations: Observations, ladder: Ladder) -> float | None:
    """p-value of the power law against the scatter of branches; None below four budgets or without repeated seeds."""
    noise = observations.noise
    if len(ladder.cost) < 4 or not isinstance(noise, Noise):
        return None
    curve = ladder_curves(ladder.cost, ladder.loss[None, :], ladder.counts)[0]
    squares = float((ladder.counts * (ladder.loss - curve.loss_at(ladder.cost)) ** 2).sum())
    # The fit has absorbed what a trunk's branches have in common, a shift of the whole ladder: the misfit is measured
    # against the branches' own scatter. The bound keeps a share near one from making any misfit infinite.
    share = 0.0 if noise.trunk_share is None else min(float(noise.trunk_share[0]), 0.95)
    branch_variance = float(noise.total[0]) * (1 - share)
    if branch_variance <= 0:
        return None
    freedom = len(ladder.cost) - 3
    return float(fdtrc(freedom, float(noise.total_freedom()[0]), squares / freedom / branch_variance))


def ladder_curve(
    observations: Observations, ladder: Ladder, clock: Clock, method: str, reach: float, num_samples: int = 80
) -> LadderCurve | None:
    """Sample a ladder for drawing, from its smallest cost to `reach` (or its own largest, if that is more)."""
    if len(ladder.cost) < 2:
        return None
    # Two budgets are never continued: even between them its shape is open.
    end = max(reach, float(ladder.cost[-1])) if len(ladder.cost) > 2 else float(ladder.cost[-1])
    cost = np.geomspace(min(ladder.cost[0], reach) if len(ladder.cost) > 2 else ladder.cost[0], end, num_samples)
    curves = ladder_curves(ladder.cost, ladder.loss[None, :], ladder.counts)
    loss = np.mean([curve.loss_at(cost) for curve in curves], axis=0)
    weights = np.mean([curve.weights_at(cost) for curve in curves], axis=0)
    variance, freedom = observations.variance(weights @ ladder.means_KN)
    half = t_quantile((1 + CONFIDENCE) / 2, freedom) * np.sqrt(variance)
    # Zero for one fitted curve. Two budgets have two, and the truth may lie on either.
    half = half + np.ptp([curve.loss_at(cost) for curve in curves], axis=0) / 2
    known = bool(np.isfinite(half).all())
    fitted = len(ladder.cost) > 2
    exponent = float(curves[0].exponent[0])
    bends = fitted and exponent > 0
    return LadderCurve(
        method=method,
        clock=clock,
        asymptote=float(curves[0].asymptote[0]) if bends else None,
        amplitude=float(curves[0].amplitude[0]) if bends else None,
        exponent=exponent if fitted else None,
        at_bound=fitted and (bool(curves[0].at_bound[0]) or exponent <= 0),
        monotone=ladder.monotone,
        lack_of_fit_p=lack_of_fit(observations, ladder),
        cost=cost,
        loss=loss,
        low=loss - half if known else None,
        high=loss + half if known else None,
        measured=((cost >= ladder.cost[0] * (1 - 1e-9)) & (cost <= ladder.cost[-1] * (1 + 1e-9))).astype(np.float64),
    )


def speedup_curve(
    observations: Observations, baseline: Ladder, method: Ladder, clock_error: ClockError, num_samples: int = 60
) -> SpeedupCurve | None:
    """S at every target that both ladders hold; None where they do not overlap or an arm has one budget."""
    if len(baseline.cost) < 2 or len(method.cost) < 2:
        return None
    low = max(baseline.loss.min(), method.loss.min())
    high = min(baseline.loss.max(), method.loss.max())
    if not low < high:
        return None
    target = np.linspace(low, high, num_samples)
    sides = [invert_ladder(ladder.cost, ladder.loss[None, :], ladder.counts, target) for ladder in (baseline, method)]
    # Both ladders are noisy here. In one gradient the noise that they share, a seed's or a trunk's, cancels where it
    # does.
    gradient = -(sides[0].weights / sides[0].slope[:, None]) @ baseline.means_KN
    gradient += (sides[1].weights / sides[1].slope[:, None]) @ method.means_KN
    # Both ladders are read at one loss of one text: what the text does to that loss is the target's, and only what it
    # does to the two arms unlike each other moves the answer.
    weights = sides[0].weights @ baseline.means_KN
    text = observations.sampling_variance(gradient - gradient.sum(1, keepdims=True) * weights)
    clock = clock_error.variance, clock_error.degrees_of_freedom
    variance, freedom = add_variances(observations.variance(gradient), (text, np.inf), clock)
    half = t_quantile((1 + CONFIDENCE) / 2, freedom) * np.sqrt(variance)
    half = half + sides[0].systematic + sides[1].systematic
    value = sides[0].log_cost - sides[1].log_cost
    usable = np.isfinite(value)
    if not usable.any():
        return None
    known = bool(np.isfinite(half[usable]).all())
    return SpeedupCurve(
        target=target[usable],
        speedup=np.exp(value[usable]),
        low=np.exp(value[usable] - half[usable]) if known else None,
        high=np.exp(value[usable] + half[usable]) if known else None,
    )
