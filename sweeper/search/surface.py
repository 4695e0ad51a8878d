"""The search's own model: final loss over one arm's grid, with an error for every cell. It recommends; it is not asked
what to try next (see `acquisition`).

A Gaussian process that says in its prior what any tuning curve looks like: a bowl (every axis has a middle that is
better than its ends, where exactly is open) plus a Matern 5/2 remainder with a length per axis. Scale, lengths and
seed noise are not fitted but averaged over, weighted by how well they explain what was seen: a handful of trials is too
few to fit them, and one formula covers three learning rates on two seeds (shrunken cell means) as well as a map of a
hundred cells. Bad trials need not be fitted exactly: their error bar grows with their distance from the best one, so
that a cliff at one end does not bend the valley. Trials of one seed share part of its luck. Values of other budgets or
scales never enter; their best *point* may, as the place where the bowl is expected.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from sweeper.search.domain import Axis, Domain, Parameters, Recommendation

Floats = NDArray[np.float64]
Cells = NDArray[np.intp]

NUM_DRAWS = 192
NUM_KEPT = 32
"""Draws of the hyperparameters that are weighed, and how many picks among them, by weight, predict."""

NUM_REMEMBERED = 128
"""Cells of a grid up to which the prior's covariance is kept as a whole."""

SLACK = 0.1
"""Error bar of a trial as a fraction of how much worse than the best one it was."""

OFFSET_DEVIATION = 1.0
"""Prior deviation, in nats, of the whole surface's level from the best loss seen."""


@dataclass(frozen=True, slots=True)
class Observation:
    """`cell` indexes `domain.points`; `loss` in nats at the end of a finished run, None where the run did not finish."""

    cell: int
    seed: int
    loss: float | None


@dataclass(frozen=True, slots=True)
class Prior:
    """Draws of the hyperparameters, `[draw]` or `[draw, axis]`. Nats for `bowl`, `rest` and `noise`."""

    bowl: Floats
    rest: Floats
    noise: Floats
    seed_share: Floats
    lengths: Floats


@lru_cache(maxsize=16)
def _prior(num_axes: int) -> Prior:
    """Log-normal draws, evenly spread by a Sobol sequence, the same ones in every process.

    Medians: half a range away from the optimum costs 0.03 nats (a factor 3.3 either way), the remainder is a third of
    that, a remainder's length is half a range, and two seeds differ by 0.0015 nats (public runs: 0.0010 to 0.0013 at
    124M parameters; tiny models are noisier, so a factor 3.3 either way).
    """
    from scipy.special import ndtri
    from scipy.stats import qmc

    sequence = qmc.Sobol(4 + num_axes, scramble=True, rng=np.random.default_rng(20260506)).random(256)[:NUM_DRAWS]
    normal = ndtri(np.clip(sequence, 1e-6, 1 - 1e-6))
    bowl = 0.03 * np.exp(1.2 * normal[:, 0])
    return Prior(
        bowl=bowl,
        rest=bowl * 0.3 * np.exp(0.7 * normal[:, 1]),
        noise=0.0015 * np.exp(1.2 * normal[:, 2]),
        seed_share=0.8 * sequence[:, 3],
        lengths=np.exp(0.6 * normal[:, 4:]),
    )


@dataclass(frozen=True)
class Layout:
    """The grid in the model's units: `places_PA` from -1 to 1 along each numeric axis, `categories_PC` as indices."""

    places_PA: Floats
    categories_PC: Floats
    centre_A: Floats

    @property
    def prior(self) -> Prior:
        """Of a surface with so many numeric axes."""
        return _prior(self.places_PA.shape[1])

    @cached_property
    def distance(self) -> Floats:
        """Squared distance `[cell]` from the centre: the bowl of the prior's mean."""
        squared_P: Floats = ((self.places_PA - self.centre_A) ** 2).sum(1)
        return squared_P

    @cached_property
    def _everywhere(self) -> Floats:
        everything = np.arange(len(self.places_PA))
        return _covariance(self.prior, np.arange(NUM_DRAWS), self, everything, everything)

    def covariance(self, draws: Cells, rows: Cells, columns: Cells) -> Floats:
        """Prior covariance `[draw, row, column]` of the surface between two lists of cells, without noise."""
        if len(self.places_PA) > NUM_REMEMBERED:
            return _covariance(self.prior, draws, self, rows, columns)
        # A search asks for parts of one matrix again and again.
        return self._everywhere[np.ix_(draws, rows, columns)]


def _place(axis: Axis, value: float) -> float:
    low, high = axis.coordinate(axis.values[0]), axis.coordinate(axis.values[-1])
    return 2 * (value - low) / (high - low) - 1


@lru_cache(maxsize=4)
def layout_of(domain: Domain, centre: Parameters | None = None) -> Layout:
    """Places of all cells. The bowl is expected at `centre`, which may lie off the grid, else in the middle."""
    numeric = [axis for axis in domain.axes if axis.spacing != "category" and len(axis.values) > 1]
    categories = [axis for axis in domain.axes if axis.spacing == "category" and len(axis.values) > 1]
    points = [dict(point) for point in domain.points]
    expected = dict(centre or ())
    return Layout(
        places_PA=np.array(
            [[_place(axis, axis.coordinate(point[axis.name])) for axis in numeric] for point in points], dtype=float
        ).reshape(len(points), len(numeric)),
        categories_PC=np.array(
            [[axis.coordinate(point[axis.name]) for axis in categories] for point in points], dtype=float
        ).reshape(len(points), len(categories)),
        centre_A=np.array(
            [_place(axis, axis.coordinate(expected[axis.name])) if axis.name in expected else 0.0 for axis in numeric]
        ),
    )


def _covariance(prior: Prior, draws: Cells, layout: Layout, rows: Cells, columns: Cells) -> Floats:
    x_RA, x_CA = layout.places_PA[rows] - layout.centre_A, layout.places_PA[columns] - layout.centre_A
    gaps_RCA = (x_RA[:, None, :] - x_CA[None, :, :]) ** 2
    differs_RC = (layout.categories_PC[rows][:, None, :] != layout.categories_PC[columns][None, :, :]).sum(-1)
    squared_DRC = 5 * np.einsum("rca,da->drc", gaps_RCA, prior.lengths[draws] ** -2.0)
    distance_DRC = np.sqrt(squared_DRC)
    matern_DRC = (1 + distance_DRC + squared_DRC / 3) * np.exp(-distance_DRC)
    alike_RC = 0.5**differs_RC
    products_RC = x_RA @ x_CA.T
    # Slopes move the bowl, curvatures stretch it, the product of two axes tilts it; 1 and 0.5 of the bowl's own height
    # are the deviations, so that the optimum may well lie halfway to an end. Equal categories share a level.
    shape_RC = products_RC + 0.25 * products_RC**2 + 0.25 * (differs_RC == 0)
    covariance: Floats = (
        prior.rest[draws, None, None] ** 2 * matern_DRC * alike_RC
        + prior.bowl[draws, None, None] ** 2 * shape_RC
        + OFFSET_DEVIATION**2
    )
    return covariance


@dataclass(frozen=True, slots=True)
class Surface:
    """The fitted model. `mean_P` in nats above `level`, one a cell of `domain.points`; `noise` is a seed's deviation."""

    domain: Domain
    level: float
    mean_P: Floats
    noise: float
    told: tuple[Observation, ...]
    _layout: Layout
    _weights_D: Floats
    _draws_D: NDArray[np.intp]
    _means_DP: Floats
    _factor_DNN: Floats

    def covariance(self, cells: Sequence[int]) -> Floats:
        """Posterior covariance `[cell, cell]` of the loss without seed noise, in nats squared."""
        chosen = np.asarray(cells, dtype=np.intp)
        prior_DCC = self._layout.covariance(self._draws_D, chosen, chosen)
        # The prior's covariance less what the trials explain, under each draw by itself.
        if self.told:
            seen = np.array([observation.cell for observation in self.told], dtype=np.intp)
            known_DNC = np.linalg.solve(self._factor_DNN, self._layout.covariance(self._draws_D, seen, chosen))
            prior_DCC = prior_DCC - known_DNC.transpose(0, 2, 1) @ known_DNC
        spread_DC = self._means_DP[:, chosen] - self.mean_P[chosen]
        # Law of total covariance: the draws disagree about the mean, and that is part of not knowing it.
        within: Floats = np.tensordot(self._weights_D, prior_DCC, 1)
        between: Floats = (self._weights_D[:, None] * spread_DC).T @ spread_DC
        return within + between

    def deviations(self) -> Floats:
        """Posterior standard deviation `[cell]`, in nats, of every cell's loss without seed noise."""
        blocks = np.array_split(np.arange(len(self.mean_P)), -(-len(self.mean_P) // 64))
        variance_P = np.concatenate([np.diagonal(self.covariance(list(block))) for block in blocks])
        deviation: Floats = np.sqrt(np.maximum(variance_P, 0.0))
        return deviation

    def best_cell(self) -> int:
        """Cell of the smallest mean, the first of equals. Cells that only ever failed come last."""
        finished = {observation.cell for observation in self.told if observation.loss is not None}
        failed = {observation.cell for observation in self.told} - finished
        allowed = [cell for cell in range(len(self.mean_P)) if cell not in failed]
        # Nine digits: means that differ by rounding alone are equal, and the first cell wins on every machine.
        return min(allowed or range(len(self.mean_P)), key=lambda cell: (round(float(self.mean_P[cell]), 9), cell))

    def recommend(self) -> Recommendation:
        """The best cell, what the model expects there, and how sure it is."""
        cell = self.best_cell()
        parameters = self.domain.points[cell]
        variance = float(self.covariance([cell])[0, 0])
        return Recommendation(
            parameters=parameters,
            predicted=self.level + float(self.mean_P[cell]),
            standard_error=max(variance, 0.0) ** 0.5,
            on_edge=self.domain.edges(parameters),
        )


def _heights(told: Sequence[Observation]) -> tuple[float, Floats]:
    """The best loss, and every trial's distance from it; a trial that did not finish counts as the worst one seen."""
    finished = [observation.loss for observation in told if observation.loss is not None]
    level = min(finished, default=0.0)
    worst = max(finished, default=0.0)
    return level, np.array([(worst if trial.loss is None else trial.loss) - level for trial in told], dtype=float)


def _picked(evidence_D: Floats) -> tuple[NDArray[np.intp], Floats]:
    """Draws that stand for all, in proportion to their likelihood, at even steps of its sum: the likeliest alone would
    be a choice by chance while there is little evidence."""
    share_D = np.exp(evidence_D - evidence_D.max()).cumsum()
    picks = np.searchsorted(share_D, (np.arange(NUM_KEPT) + 0.5) / NUM_KEPT * share_D[-1])
    draws_D, counts_D = np.unique(picks, return_counts=True)
    return draws_D, counts_D / NUM_KEPT


def _without_results(domain: Domain, layout: Layout) -> Surface:
    """The prior: the bowl alone, every draw as likely as another, so that a search asks for its first cell by the same
    rule as for its last."""
    prior = layout.prior
    draws_D, weights_D = _picked(np.zeros(NUM_DRAWS))
    means_DP = prior.bowl[draws_D, None] * layout.distance
    return Surface(
        domain=domain,
        level=0.0,
        mean_P=weights_D @ means_DP,
        noise=float(np.median(prior.noise)),
        told=(),
        _layout=layout,
        _weights_D=weights_D,
        _draws_D=draws_D,
        _means_DP=means_DP,
        _factor_DNN=np.empty(0),
    )


def fit_surface(domain: Domain, told: Sequence[Observation], centre: Parameters | None = None) -> Surface:
    """The model given `told`, in any order, all of one budget. Without a finished trial it is the prior."""
    layout = layout_of(domain, centre)
    prior, bowl_P = layout.prior, layout.distance
    everything, all_draws = np.arange(len(layout.places_PA)), np.arange(NUM_DRAWS)
    if all(observation.loss is None for observation in told):
        return _without_results(domain, layout)
    # Sums of floats depend on their order, and a resumed sweep is told in another one.
    told = tuple(sorted(told, key=lambda trial: (trial.cell, trial.seed, trial.loss is None, trial.loss or 0.0)))
    level, heights_N = _heights(told)
    seen = np.array([observation.cell for observation in told], dtype=np.intp)
    seeds = np.array([observation.seed for observation in told])
    same_seed_NN = (seeds[:, None] == seeds[None, :]).astype(float)
    # Trials of one seed share its luck in part, and that part says nothing about the cell.
    luck_DNN = prior.seed_share[:, None, None] * same_seed_NN + (1 - prior.seed_share)[:, None, None] * np.eye(
        len(told)
    )
    total_DNN = layout.covariance(all_draws, seen, seen)
    # The error bar grows with the height above the best: a cliff need not be fitted, and the valley keeps its shape.
    total_DNN += prior.noise[:, None, None] ** 2 * luck_DNN + np.diag((SLACK * heights_N) ** 2)
    factor_DNN: Floats = np.linalg.cholesky(total_DNN).astype(np.float64)
    rest_DN = heights_N - prior.bowl[:, None] * bowl_P[seen]
    whitened_DN = np.linalg.solve(factor_DNN, rest_DN[..., None])[..., 0]
    # Log likelihood but for the constant: the misfit, and the determinant's price for draws that could explain
    # anything.
    evidence_D = -0.5 * (whitened_DN**2).sum(1) - np.log(np.diagonal(factor_DNN, axis1=1, axis2=2)).sum(1)
    draws_D, weights_D = _picked(evidence_D)
    # Only the picked draws predict: this is the part whose cost grows with the grid.
    known_DNP = np.linalg.solve(factor_DNN[draws_D], layout.covariance(draws_D, seen, everything))
    means_DP = prior.bowl[draws_D, None] * bowl_P + np.einsum("dnp,dn->dp", known_DNP, whitened_DN[draws_D])
    return Surface(
        domain=domain,
        level=level,
        mean_P=weights_D @ means_DP,
        noise=float(np.sqrt(weights_D @ prior.noise[draws_D] ** 2)),
        told=told,
        _layout=layout,
        _weights_D=weights_D,
        _draws_D=draws_D,
        _means_DP=means_DP,
        _factor_DNN=factor_DNN[draws_D],
    )
