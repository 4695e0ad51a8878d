"""From a target loss to what the baseline would have paid for it, with the variance that seeds put on the answer.

One function for every number of budgets: three or more by a fitted power law, two by interpolation over a range of
asymptotes, one not at all. Vectorised over R replicates; K baseline cells, N runs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from reports.estimate.intervals import CONFIDENCE, add_variances, t_quantile
from reports.estimate.ladder import PowerLaw, fit_power_law, two_budget_range
from reports.estimate.noise import Noise, PriorNoise, TextVariance
from reports.evidence.runs import FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class Inversion:
    """`log_cost` `[R]`: ln of the baseline's cost at the target, NaN where its curve never gets there.

    `weights_RK`: gradient of the curve's loss there with respect to the cell means; `slope_R`: dL / d ln C there
    (NaN where it is not negative); `systematic_R`: half-width on `ln C` from the unknown asymptote, 0 from three budgets on;
    `inside_R`: the target lies between the best and the worst cell mean.
    """

    log_cost: FloatArray
    weights: FloatArray
    slope: FloatArray
    systematic: FloatArray
    inside: np.ndarray
    curves: tuple[PowerLaw, ...]


def invert_ladder(cost_K: FloatArray, loss_RK: FloatArray, counts_K: FloatArray, target_R: FloatArray) -> Inversion:
    """Read the baseline's ladder at the target. `cost_K` ascending; two budgets or more. One ladder `[1, K]` may be
    read at many targets.

    Raises `ValueError` for a single budget, which has no curve.
    """
    if len(cost_K) < 2:
        raise ValueError("one budget has no curve to read; only the loss gap exists")
    # The measured means bracket the target, not the fitted curve: a fit may overshoot its own ends.
    inside = (target_R <= loss_RK.max(-1)) & (target_R >= loss_RK.min(-1))
    curves = ladder_curves(cost_K, loss_RK, counts_K)
    # Two budgets give two curves, between which the truth lies: their middle is the estimate, half their distance is
    # no error of chance, and is added to the interval as it is.
    readings = [_read(curve, target_R) for curve in curves]
    logs = np.stack([reading[0] for reading in readings])
    return Inversion(
        log_cost=logs.mean(0),
        weights=np.mean([reading[1] for reading in readings], axis=0),
        # A flat or rising curve has no cost to read; as NaN it cannot pass for a very wide interval.
        slope=np.mean([np.where(reading[2] < 0, reading[2], np.nan) for reading in readings], axis=0),
        systematic=(logs.max(0) - logs.min(0)) / 2,
        inside=inside,
        curves=curves,
    )


def ladder_curves(cost_K: FloatArray, loss_RK: FloatArray, counts_K: FloatArray) -> tuple[PowerLaw, ...]:
    """The curve through a ladder: one fit from three budgets on, the two extremes through two."""
    if len(cost_K) == 2:
        return two_budget_range(cost_K, loss_RK, counts_K)
    return (fit_power_law(cost_K, loss_RK, counts_K),)


def _read(curve: PowerLaw, target_R: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """ln cost, weights and slope of one curve at the target; the latter two at the reference where it is not reached."""
    cost = curve.cost_at(target_R)
    safe = np.where(np.isfinite(cost), cost, curve.reference)
    return np.log(cost), curve.weights_at(safe), curve.slope_at(safe)


def mean_matrix(cell_of_run: np.ndarray, num_cells: int) -> FloatArray:
    """`[cells, N]` matrix that turns final losses into cell means; a negative cell number leaves a run out."""
    member = cell_of_run[None, :] == np.arange(num_cells)[:, None]
    result: FloatArray = member / np.maximum(member.sum(1, keepdims=True), 1)
    return result


@dataclass(frozen=True, slots=True, eq=False)
class LogSpeedup:
    """`ln S`, its standard error, degrees of freedom and 95 % interval, each `[R]`; `seed_nats` and `sampling_nats` are the
    errors that seeds and the validation text put on the difference between target and ladder, in nats."""

    value: FloatArray
    standard_error: FloatArray
    freedom: FloatArray
    low: FloatArray
    high: FloatArray
    inversion: Inversion
    seed_nats: FloatArray
    sampling_nats: FloatArray


def log_speedup(
    loss_RN: FloatArray,
    *,
    baseline_KN: FloatArray,
    method_1N: FloatArray,
    cost_K: FloatArray,
    method_cost: float,
    noise: Noise | PriorNoise | None,
    sampling: TextVariance | None = None,
    clock_variance: FloatArray | float = 0.0,
    clock_freedom: FloatArray | float = np.inf,
) -> LogSpeedup:
    """`ln S` at the method's mean loss by the delta method.

    `loss_RN` final losses of all runs; `baseline_KN` and `method_1N` turn them into cell means (see `mean_matrix`).
    Without `noise` the error and the interval are NaN; without `sampling` the validation text adds nothing to them.
    `clock_variance` is that of the logarithm of the two arms' relative step time.
    """
    counts_K = (baseline_KN > 0).sum(1).astype(np.float64)
    target_R = (loss_RN @ method_1N.T)[:, 0]
    inversion = invert_ladder(cost_K, loss_RN @ baseline_KN.T, counts_K, target_R)
    # Delta method: the target is itself a mean of noisy losses, so ln S moves with every run of either arm. A shared
    # trunk then enters once, with the sign of its net effect.
    gradient_RN = (method_1N - inversion.weights @ baseline_KN) / inversion.slope[:, None]
    if noise is not None:
        variance, freedom = noise.variance_of(gradient_RN)
    else:
        variance = np.full(len(loss_RN), np.nan)
        freedom = np.full(len(loss_RN), np.inf)
    # On the logarithm the interval is symmetric and cannot reach below zero. A percentile bootstrap over three seeds,
    # the usual alternative, covers 76 to 82 % where it says 95 %.
    value = inversion.log_cost - np.log(method_cost)
    text_variance = 0.0 if sampling is None else sampling.variance_of(gradient_RN)
    total, freedom = add_variances((variance, freedom), (clock_variance, clock_freedom), (text_variance, np.inf))
    error = np.sqrt(total)
    half = t_quantile((1 + CONFIDENCE) / 2, freedom) * error + inversion.systematic
    slope = np.abs(inversion.slope)
    return LogSpeedup(
        value,
        error,
        freedom,
        value - half,
        value + half,
        inversion,
        seed_nats=np.sqrt(variance) * slope,
        sampling_nats=np.sqrt(text_variance) * slope,
    )


def ends_above(
    loss_RN: FloatArray,
    first_1N: FloatArray,
    second_1N: FloatArray,
    noise: Noise | PriorNoise,
    sampling: TextVariance | None = None,
) -> np.ndarray:
    """One-sided t-test `[R]`: is the first mean above the second, with a 5 % chance of saying so wrongly at equality?"""
    gradient_RN = np.broadcast_to(first_1N - second_1N, loss_RN.shape)
    variance, freedom = noise.variance_of(gradient_RN)
    if sampling is not None:
        variance, freedom = add_variances((variance, freedom), (sampling.variance_of(gradient_RN), np.inf))
    gap = np.einsum("rn,rn->r", loss_RN, gradient_RN)
    above: np.ndarray = gap > t_quantile(CONFIDENCE, freedom) * np.sqrt(variance)
    return above
