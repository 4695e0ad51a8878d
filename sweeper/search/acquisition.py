"""Which fan of trials teaches most about where the best cell is, for what it costs.

The knowledge gradient (Frazier, Powell and Dayanik 2009): how much lower the surface's smallest mean is expected to be
once the trials are in. It values a trial by what would be recommended after it, which is what a search is for, so that
repeats of a noisy cell, cheap cells beside an optimum and unseen corners are weighed on one scale. Integrals over unknown
losses use fixed nodes: the same history gives the same choice.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sweeper.search.domain import Domain
from sweeper.search.sharing import added_steps, trunk_fraction
from sweeper.search.surface import SLACK, Surface

Floats = NDArray[np.float64]

TRIAL_PRICE = 0.25
"""Added to each trial's compute, in runs, when fans are weighed: trials are counted too, equally for both arms."""

ADVANTAGE = 1.3
"""One more trial must multiply the fan's gain per cost by this: a trial that is asked later is chosen with more knowledge."""

NUM_CONSIDERED = 256
"""Cells of the lowest confidence bound that are weighed on a larger grid."""


@lru_cache(maxsize=4)
def _nodes(num_trials: int) -> Floats:
    """Standard normal nodes `[64, trial]`."""
    from scipy.special import ndtri
    from scipy.stats import qmc

    points = qmc.Sobol(num_trials, scramble=True, rng=np.random.default_rng(7)).random(64)
    nodes: Floats = ndtri(np.clip(points, 1e-6, 1 - 1e-6))
    return nodes


def _informed(covariance_CC: Floats, noise_C: Floats, cell: int) -> tuple[Floats, Floats]:
    """How all means move per unit of surprise at `cell`, and the covariance after seeing it."""
    move_C = covariance_CC[cell] / np.sqrt(max(float(covariance_CC[cell, cell]), 0.0) + noise_C[cell] ** 2)
    return move_C, covariance_CC - np.outer(move_C, move_C)


def _single_gains(mean_C: Floats, covariance_CC: Floats, noise_C: Floats) -> Floats:
    """Knowledge gradient `[cell]` of one trial at each cell, by a sum over surprises of -5 to 5 deviations.

    A thousandth of the expected improvement is added: late in a search no single trial can change the recommendation,
    and then trials still go where the optimum may be.
    """
    from scipy.special import ndtr

    nodes_Z = np.linspace(-5, 5, 26)
    # Fixed nodes, not samples: the choice must be the same when a sweep goes on after a stop.
    density_Z = np.exp(-0.5 * nodes_Z**2)
    variance_C = np.maximum(np.diagonal(covariance_CC), 1e-12)
    moves_CC = covariance_CC / np.sqrt(variance_C + noise_C**2)[:, None]
    after_C = np.zeros(len(mean_C))
    for node, weight in zip(nodes_Z, density_Z / density_Z.sum(), strict=True):
        after_C += weight * (mean_C + node * moves_CC).min(1)
    lead_C = (mean_C.min() - mean_C) / np.sqrt(variance_C)
    improvement_C = np.sqrt(variance_C) * (np.exp(-0.5 * lead_C**2) / np.sqrt(2 * np.pi) + lead_C * ndtr(lead_C))
    gains: Floats = np.maximum(mean_C.min() - after_C, 0.0) + 1e-3 * np.maximum(improvement_C, 0.0)
    return gains


def choose_fan(
    domain: Domain,
    surface: Surface,
    *,
    fan: int,
    pending: Sequence[int],
    families: Mapping[Hashable, Sequence[int]],
    first: int | None = None,
) -> tuple[int, ...]:
    """Cells of the next fan, the most telling first; at most `fan`, all of one family.

    `families` are the cells on offer, by what a fan must have in common. `pending` cells count as measured, with a loss that
    is not known yet, so that no second trial is asked to learn the same. `first`, where given, is already chosen.
    Gain per cost decides which fan, and how many trials it has.
    """
    offered = _considered(surface, [cell for members in families.values() for cell in members])
    # All on one matrix, since what is learned at one cell moves the means of the others.
    cells = sorted({*offered, *pending, *(() if first is None else (first,))})
    position = {cell: index for index, cell in enumerate(cells)}
    mean_C, covariance_CC = surface.mean_P[cells], surface.covariance(cells)
    # As in the fit: what is read far up a wall says little about the valley, so that it is worth little to ask for.
    noise_C = np.hypot(surface.noise, SLACK * (mean_C - mean_C.min()))
    for cell in pending:
        # What a running trial will say is unknown, but that it will speak is not: the variance shrinks, the mean
        # stays.
        _, covariance_CC = _informed(covariance_CC, noise_C, position[cell])
    gains_C = _single_gains(mean_C, covariance_CC, noise_C)
    ratios = [trunk_fraction(domain, domain.points[cell]) for cell in cells]
    best_fan: tuple[float, tuple[int, ...]] = (-1.0, ())
    for family in families.values():
        members = [position[cell] for cell in family if cell in position]
        if not members or (first is not None and first not in family):
            continue
        # A fan grows from its most telling trial, one mate at a time: a family has too many subsets to weigh them
        # all.
        start = max(members, key=lambda index: gains_C[index]) if first is None else position[first]
        found = _grow(
            mean_C,
            covariance_CC,
            noise_C=noise_C,
            gain=float(gains_C[start]),
            first=start,
            members=members,
            ratios=ratios,
            fan=fan,
        )
        best_fan = max(best_fan, found, key=lambda candidate: candidate[0])
    return tuple(cells[index] for index in best_fan[1])


def _considered(surface: Surface, cells: Sequence[int]) -> Sequence[int]:
    if len(cells) <= NUM_CONSIDERED:
        return cells
    bound_P = surface.mean_P - 2 * surface.deviations()
    return sorted(cells, key=lambda cell: (bound_P[cell], cell))[:NUM_CONSIDERED]


def _grow(
    mean_C: Floats,
    covariance_CC: Floats,
    *,
    noise_C: Floats,
    gain: float,
    first: int,
    members: Sequence[int],
    ratios: Sequence[float],
    fan: int,
) -> tuple[float, tuple[int, ...]]:
    """Add to `first` the member of its family that raises gain per cost most, until none does or the fan is full.

    `members` and `first` index the rows of `mean_C`; `ratios` are the parts of a run that lie on its trunk. Returns the gain
    per cost and the chosen rows.
    """
    chosen, cost, trunk = [first], 1.0 + TRIAL_PRICE, ratios[first]
    move_C, left_CC = _informed(covariance_CC, noise_C, first)
    nodes_ZF = _nodes(fan)
    after_ZC = mean_C + nodes_ZF[:, :1] * move_C
    # The gains of one trial come from a fine sum, those of several from 64 nodes: the ratio at the first trial puts
    # both on one scale.
    unit = gain / max(float(mean_C.min() - after_ZC.min(1).mean()), 1e-12)
    while len(chosen) < fan:
        best: tuple[float, int, float, float] | None = None
        for other in members:
            if other in chosen:
                continue
            move_C, _ = _informed(left_CC, noise_C, other)
            larger_gain = unit * float(
                mean_C.min() - (after_ZC + nodes_ZF[:, len(chosen), None] * move_C).min(1).mean()
            )
            # A mate with an earlier boundary adds only its own second phase; a later one lengthens the trunk.
            larger_cost = cost + added_steps(ratios[other], 1.0, trunk) + TRIAL_PRICE
            if best is None or larger_gain / larger_cost > best[0]:
                best = larger_gain / larger_cost, other, larger_gain, larger_cost
        # More trials at once are chosen on the same knowledge, so a slightly better ratio is no reason to give up an
        # answer in between.
        if best is None or best[0] < ADVANTAGE * gain / cost:
            break
        _, other, gain, cost = best
        move_C, left_CC = _informed(left_CC, noise_C, other)
        after_ZC = after_ZC + nodes_ZF[:, len(chosen), None] * move_C
        chosen.append(other)
        trunk = max(trunk, ratios[other])
    return gain / cost, tuple(chosen)
