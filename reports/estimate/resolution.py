"""What a sweep can resolve: the smallest speedup that it would find in four cases of five, before or after it runs.

A difference that a sweep could not have seen must not be reported as absent. Pure: a plan calls this with its seeds and
budgets and an assumed seed deviation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reports.estimate.intervals import CONFIDENCE, t_quantile
from reports.estimate.inversion import invert_ladder, mean_matrix
from reports.estimate.noise import noise_design

POWER = 0.8
"""Probability with which the resolved speedup is found."""

PUBLIC_SLOPE = 0.16
"""Slope of the decayed loss, nats per e-fold of compute, the lower end of public ladders: the cautious one."""

_EXPONENT = 0.15
"""Bend of the assumed ladder; the answer hardly depends on it."""


def resolvable(log_standard_error: float, degrees_of_freedom: float, systematic: float = 0.0) -> float:
    """Smallest `S - 1` whose 95 % interval excludes 1 in four cases of five, from the standard error of `ln S`."""
    quantiles = t_quantile((1 + CONFIDENCE) / 2, degrees_of_freedom) + t_quantile(POWER, degrees_of_freedom)
    return math.expm1(min(float(quantiles) * log_standard_error + systematic, math.log(1e6)))


@dataclass(frozen=True, slots=True)
class Resolution:
    """`smallest_speedup` (1.18 means that 18 % would be found); None where the design cannot give an interval, and
    then `reason` says why. `log_standard_error` and `degrees_of_freedom` are those of `ln S`."""

    smallest_speedup: float | None
    log_standard_error: float | None
    degrees_of_freedom: float | None
    reason: str


def what_it_can_resolve(
    *,
    baseline_budgets: Sequence[float],
    method_budget: float,
    baseline_seeds: int,
    method_seeds: int,
    sigma: float,
    slope: float = PUBLIC_SLOPE,
    noise_floor_seeds: int = 0,
    trunk_share: float = 1.0,
) -> Resolution:
    """The smallest speedup that a planned sweep can resolve.

    `baseline_budgets` and `method_budget` in one unit of cost (steps, where steps cost the same). `sigma` is the assumed
    seed deviation of a final loss (nats), `slope` the fall of the decayed loss per e-fold of compute at the method's
    budget, `trunk_share` the part of the seed variance that branches of one baseline trunk have in common.
    Raises `ValueError` for a deviation or a slope that is not positive.
    """
    if not (sigma > 0 and slope > 0 and method_budget > 0):
        raise ValueError(f"sigma {sigma}, slope {slope} and method_budget {method_budget} must be positive")
    cost_K = np.array(sorted(baseline_budgets), dtype=np.float64)
    if len(cost_K) < 2 or baseline_seeds < 1 or method_seeds < 1:
        return Resolution(None, None, None, "a ladder of fewer than two baseline budgets gives a loss gap only")
    cells, trunks = _planned_runs(len(cost_K), baseline_seeds, method_seeds, noise_floor_seeds)
    design = noise_design(cells, trunks)
    if design.repeats == 0:
        return Resolution(None, None, None, "no cell has a second seed, so the seed deviation stays unknown")
    estimating = np.array([cell if trunk[0] != "floor" else -1 for cell, trunk in zip(cells, trunks, strict=True)])
    means = mean_matrix(estimating, len(cost_K) + 1)
    share = np.array([trunk_share])
    loss_K = slope / _EXPONENT * (cost_K / method_budget) ** -_EXPONENT
    counts_K = np.full(len(cost_K), float(baseline_seeds))
    smallest, error = 1.0, 0.0
    # The target moves with the speedup that is asked for, and the error with the target: a fixed point, found by an
    # iteration that is damped (the geometric mean of old and new) so that it cannot swing.
    for _ in range(30):
        target = slope / _EXPONENT * smallest**-_EXPONENT
        inversion = invert_ladder(cost_K, loss_K[None, :], counts_K, np.array([target]))
        # The same gradient as a report takes, so that plan and report cannot disagree about a design.
        gradient = (means[-1:] - inversion.weights @ means[:-1]) / inversion.slope[:, None]
        shared, alone = design.extremes(gradient)[0]
        error = sigma * math.sqrt(trunk_share * shared + (1 - trunk_share) * alone)
        freedom = (
            # As the report will: it can use both sums of squares only where the plan lets it tell trunks from
            # branches.
            design.freedom(design.coefficients(gradient), share) if design.separable else design.total_freedom(share)
        )[0]
        updated = 1 + resolvable(error, freedom, float(inversion.systematic[0]))
        smallest = math.sqrt(smallest * updated)
        if smallest * method_budget > cost_K[-1]:
            return Resolution(
                None,
                error,
                float(freedom),
                f"it could only resolve more than {cost_K[-1] / method_budget:.3g}x, where the baseline's ladder ends",
            )
    return Resolution(smallest, error, float(freedom), "")


def _planned_runs(
    num_budgets: int, baseline_seeds: int, method_seeds: int, noise_floor_seeds: int
) -> tuple[list[int], list[tuple[str, int]]]:
    """Cell and trunk of every run of the plan: one baseline trunk a seed, the method's cell last."""
    runs = [(budget, ("baseline", seed)) for budget in range(num_budgets) for seed in range(baseline_seeds)]
    runs += [(num_budgets, ("method", seed)) for seed in range(method_seeds)]
    runs += [(0, ("floor", seed)) for seed in range(noise_floor_seeds)]
    return [cell for cell, _ in runs], [trunk for _, trunk in runs]
