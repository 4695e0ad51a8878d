"""The baseline ladder as a curve: `L(C) = E + A * C^-a` through the mean final losses of its budgets.

Variable projection: for a given exponent the other two parameters are linear least squares, so only `a` is searched.
Everything is vectorised over `R` replicates, so that the simulation of coverage tests the very code that reports use.

Legend: R replicates, K budgets (cells), u = ln(C / reference). Internally the curve is
`L = level - drop * (1 - exp(-a u)) / a`, which stays well-conditioned down to `a = 0` (a straight line in `ln C`);
then `E = level - drop / a` and `A * reference^-a = drop / a`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from reports.evidence.runs import FloatArray

EXPONENT_BOUNDS = (-0.5, 2.0)
"""Exponents that the search allows. Steeper than two no published ladder is. Below nothing there is no asymptote and the
curve bends the wrong way; noise makes short ladders look so, and cutting the search at zero would bias the reading
between the budgets by up to a quarter of its standard error. Such fits are flagged and never extrapolated."""

_TINY = 1e-9
_GRID_SIZE = 60
_GOLDEN = (np.sqrt(5.0) - 1.0) / 2.0
_GOLDEN_STEPS = 45


@dataclass(frozen=True, slots=True, eq=False)
class PowerLaw:
    """`R` fitted ladders. `level`, `drop`, `exponent` `[R]`, `at_bound` bool `[R]`; `log_cost` `[K]` is relative to
    `ln reference`; `counts` `[K]` are the weights of the cells."""

    level: FloatArray
    drop: FloatArray
    exponent: FloatArray
    at_bound: np.ndarray
    reference: float
    log_cost: FloatArray
    counts: FloatArray

    @property
    def asymptote(self) -> FloatArray:
        """`E` `[R]`, nats; above every loss, and no asymptote, where the exponent is not positive."""
        return self.level - self.drop / self.exponent

    @property
    def amplitude(self) -> FloatArray:
        """`A` `[R]`, for cost in the units that were fitted."""
        return self.drop / self.exponent * self.reference**self.exponent

    def loss_at(self, cost: FloatArray | float) -> FloatArray:
        """Fitted loss at `cost`, broadcast against `[R]`."""
        return self.level - self.drop * _bend(np.log(cost / self.reference), self.exponent)

    def slope_at(self, cost: FloatArray | float) -> FloatArray:
        """dL / d ln C at `cost`; negative where more compute helps."""
        return -self.drop * np.exp(-self.exponent * np.log(cost / self.reference))

    def cost_at(self, target: FloatArray) -> FloatArray:
        """Cost at which the curve reaches `target` `[R]`; NaN where it never does (below the asymptote, or flat)."""
        with np.errstate(divide="ignore", invalid="ignore"):
            reduction = -self.exponent * (self.level - target) / self.drop
            log_cost = np.where((reduction > -1) & (self.drop > 0), -np.log1p(reduction) / self.exponent, np.nan)
            result: FloatArray = self.reference * np.exp(log_cost)
        return result

    def weights_at(self, cost: FloatArray) -> FloatArray:
        """Gradient of the fitted loss at `cost` `[R]` (any number of costs for a single ladder) with respect to the cell
        means, `[R, K]`; rows sum to one.

        The exponent counts as free even where the search ended on its bound: a variance that pretends to know it
        is too small.
        """
        at = np.log(cost / self.reference)
        # Least squares are linear in the cell means to first order: the gradient of the fitted loss is d(t) (J'WJ)^-1
        # J'W, with J the Jacobian at the budgets and d(t) the one at `cost`.
        jacobian_RKP = self._jacobian(self.log_cost[None, :])
        weighted_RKP = jacobian_RKP * self.counts[None, :, None]
        normal_RPP = np.einsum("rkp,rkq->rpq", weighted_RKP, jacobian_RKP)
        if len(self.counts) < 3:  # the exponent is given, not fitted
            normal_RPP[:, 2, :], normal_RPP[:, :, 2] = 0.0, 0.0
            normal_RPP[:, 2, 2] = 1.0
        direction_RP = self._jacobian(at[:, None])[:, 0, :]
        solved_RP = np.linalg.solve(normal_RPP, direction_RP[..., None])[..., 0]
        weights: FloatArray = np.einsum("rp,rkp->rk", solved_RP, weighted_RKP)
        return weights

    def _jacobian(self, u: FloatArray) -> FloatArray:
        """d loss / d (level, drop, exponent / -drop) at `u` `[R or 1, points]`: `[R, points, 3]`."""
        exponent = self.exponent[:, None]
        bend = _bend(u, exponent)
        decay = np.exp(-exponent * u)
        straight = np.abs(exponent) < 1e-4  # where the difference below would cancel
        curvature = np.where(straight, -(u**2) / 2, (u * decay - bend) / exponent)
        by_exponent = curvature if len(self.counts) > 2 else np.zeros_like(curvature)
        return np.stack([np.broadcast_to(1.0, curvature.shape), -bend, by_exponent], axis=-1)


def _bend(u: FloatArray, exponent: FloatArray | float) -> FloatArray:
    """`(1 - exp(-a u)) / a`, which tends to `u` as the exponent goes to nothing."""
    result: FloatArray = -np.expm1(-exponent * u) / exponent
    return result


def _linear_part(
    loss_RK: FloatArray, bend_RK: FloatArray, counts: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Weighted least squares of the loss on the bent cost: level, drop and residual sum of squares, each `[R]` (or `[R, G]`
    for G bends at once)."""
    share = counts / counts.sum()
    bend_mean = (bend_RK * share).sum(-1)
    loss_mean = (loss_RK * share).sum(-1)
    bend_c = bend_RK - bend_mean[..., None]
    loss_c = loss_RK - loss_mean[..., None]
    drop = -(share * bend_c * loss_c).sum(-1) / (share * bend_c**2).sum(-1)
    residual = loss_c + drop[..., None] * bend_c
    return loss_mean + drop * bend_mean, drop, (counts * residual**2).sum(-1)


def fit_power_law(cost: FloatArray, loss_RK: FloatArray, counts: FloatArray) -> PowerLaw:
    """Fit `K >= 3` budgets. `cost` `[K]` ascending, `loss_RK` cell means, `counts` `[K]` seeds in each cell.

    Raises `ValueError` below three budgets: an exponent cannot be seen in two.
    """
    if len(cost) < 3:
        raise ValueError(f"a ladder of {len(cost)} budgets has no exponent to fit; three are needed")
    reference = float(np.exp(np.log(cost).mean()))
    u = np.log(cost / reference)
    low, high = EXPONENT_BOUNDS
    # The squares need not have one minimum in `a`: a coarse grid finds the right valley, then golden sections find
    # its floor. Both are the same few operations for every replicate, so that ten thousand fits are one array.
    grid_G = np.linspace(low, high, _GRID_SIZE)
    bends_GK = _bend(u[None, :], grid_G[:, None])
    squares_RG = _linear_part(loss_RK[:, None, :], bends_GK[None, :, :], counts)[2]
    best = squares_RG.argmin(-1)
    left, right = grid_G[np.maximum(best - 1, 0)], grid_G[np.minimum(best + 1, _GRID_SIZE - 1)]

    def squares(exponent: FloatArray) -> FloatArray:
        return _linear_part(loss_RK, _bend(u[None, :], exponent[:, None]), counts)[2]

    inner_left, inner_right = right - _GOLDEN * (right - left), left + _GOLDEN * (right - left)
    value_left, value_right = squares(inner_left), squares(inner_right)
    for _ in range(_GOLDEN_STEPS):
        # Each step reuses one of the two inner points and keeps 0.618 of the bracket: 45 steps end below 1e-10, finer
        # than losses can tell.
        keep_left = value_left < value_right
        left, right = np.where(keep_left, left, inner_left), np.where(keep_left, inner_right, right)
        probe = np.where(keep_left, right - _GOLDEN * (right - left), left + _GOLDEN * (right - left))
        value = squares(probe)
        inner_left, inner_right = np.where(keep_left, probe, inner_right), np.where(keep_left, inner_left, probe)
        value_left, value_right = np.where(keep_left, value, value_right), np.where(keep_left, value_left, value)
    exponent = (left + right) / 2
    # The bend divides by the exponent; at zero the curve is a straight line in ln C, which this stands in for.
    exponent = np.where(np.abs(exponent) < _TINY, _TINY, exponent)
    # Golden sections stop a little short of an end of the range; what ended there was stopped by the bound.
    at_bound = (exponent < low + 0.01) | (exponent > high - 0.01)
    exponent = np.where(at_bound, np.where(exponent < (low + high) / 2, low, high), exponent)
    level, drop, _ = _linear_part(loss_RK, _bend(u[None, :], exponent[:, None]), counts)
    return PowerLaw(
        level=level,
        drop=drop,
        exponent=exponent,
        at_bound=at_bound,
        reference=reference,
        log_cost=u,
        counts=counts.astype(np.float64),
    )


def fixed_exponent(cost: FloatArray, loss_RK: FloatArray, counts: FloatArray, exponent: FloatArray) -> PowerLaw:
    """The least-squares curve with a given exponent `[R]`: exact through two budgets."""
    reference = float(np.exp(np.log(cost).mean()))
    u = np.log(cost / reference)
    level, drop, _ = _linear_part(loss_RK, _bend(u[None, :], exponent[:, None]), counts)
    return PowerLaw(
        level=level,
        drop=drop,
        exponent=exponent,
        at_bound=np.ones(len(level), dtype=bool),
        reference=reference,
        log_cost=u,
        counts=counts.astype(np.float64),
    )


def two_budget_range(cost: FloatArray, loss_RK: FloatArray, counts: FloatArray) -> tuple[PowerLaw, PowerLaw]:
    """The two extreme curves through two budgets: asymptote zero, and the asymptote at which the exponent is one.

    Interpolating in `ln(L - E0)` for any `E0` between them gives a cost between theirs.
    """
    # With asymptote zero the power law is a straight line in ln L over ln C, whose slope is the smallest exponent
    # that a loss without a negative asymptote can have. An exponent of one is the other end: steeper than any
    # published ladder of decayed runs.
    ratio = np.log(cost[1] / cost[0])
    with np.errstate(divide="ignore", invalid="ignore"):
        flattest = np.log(loss_RK[:, 0] / loss_RK[:, 1]) / ratio
    # Seed noise can put the larger budget on top; then the slope says nothing and both ends of the range are the
    # same.
    flattest = np.where(np.isfinite(flattest), np.clip(flattest, _TINY, 1.0), 1.0)
    return (
        fixed_exponent(cost, loss_RK, counts, flattest),
        fixed_exponent(cost, loss_RK, counts, np.ones(len(loss_RK))),
    )
