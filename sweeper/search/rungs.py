"""Successive halving over budgets: a rung is a complete shorter run, with its own boundary and its own decay.

Losses are compared between ends of runs of one rung only. Most trials are spent on the lowest rung, the best of a
finished rung run again at the next one with the same seed, so that they go on from the trunk that they left. The number
of trials is fixed beforehand, equal for both arms.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from sweeper.search.domain import Domain
from sweeper.search.surface import Observation, Surface

KEPT_FRACTION = 1 / 3
"""Of a rung's trials, the part that the next rung runs."""


def rung_sizes(num_rungs: int, trials: int) -> tuple[int, ...]:
    """Trials of each rung, lowest first, each about a third of the one below, one at least; they add up to `trials`.

    With fewer trials than rungs the lowest rungs are left out: the budget that is tuned for comes first.
    """
    weights = [KEPT_FRACTION**rung for rung in range(num_rungs)]
    sizes = [0] * num_rungs
    left = trials
    # From the top: the budget that is tuned for gets its share even where rounding leaves none for the lowest.
    for rung in reversed(range(num_rungs)):
        if rung == 0:
            sizes[rung] = left
        else:
            sizes[rung] = min(left, max(1, round(trials * weights[rung] / sum(weights))))
        left -= sizes[rung]
    return tuple(sizes)


def ranking(surface: Surface) -> tuple[Observation, ...]:
    """Finished trials of one rung, best first by the model's mean of their cell, not by their own luck."""
    finished = [trial for trial in surface.told if trial.loss is not None]
    return tuple(
        sorted(finished, key=lambda trial: (round(float(surface.mean_P[trial.cell]), 9), trial.cell, trial.seed))
    )


def promoted_fan(
    domain: Domain,
    ranked: Sequence[Observation],
    asked: Collection[tuple[int, int]],
    fan: int,
    places: int,
) -> tuple[Observation, ...]:
    """Trials that go on together: the best one that has not yet, and others among the next `places` on its trunk.

    `asked` holds (cell, seed) of what already runs at the next rung; () when nothing is left to promote.
    """
    waiting = [trial for trial in ranked if (trial.cell, trial.seed) not in asked][:places]
    if not waiting:
        return ()

    def trunk(trial: Observation) -> object:
        shared = tuple(pair for pair in domain.points[trial.cell] if pair[0] != domain.fan_axis)
        return shared, trial.seed

    # The first one decides the trunk; its mates ride along at the price of their own second phases.
    limit = fan if domain.fan_axis is not None else 1
    return tuple(trial for trial in waiting if trunk(trial) == trunk(waiting[0]))[:limit]
