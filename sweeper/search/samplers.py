"""The bridge to Optuna: where one of its samplers would look next, given the trials of one budget.

The study lives in memory and is built from the history each time: the ledger is the truth, and a study that was kept
would have to be reconciled with it. Samplers see every axis in its own unit (log2 of bag size and learning rate), as a
continuous range; putting the answer on the grid is left to the caller.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sweeper.search.domain import Domain
from sweeper.search.surface import Observation

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler


def _sampler(name: str, seed: int) -> BaseSampler:
    from optuna.samplers import GPSampler, TPESampler

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "experimental" says nothing about results here
        return TPESampler(seed=seed, multivariate=True) if name == "tpe" else GPSampler(seed=seed)


def _space(domain: Domain) -> dict[str, BaseDistribution]:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    space: dict[str, BaseDistribution] = {}
    for axis in domain.axes:
        if len(axis.values) == 1:
            continue
        coordinates = [axis.coordinate(value) for value in axis.values]
        if axis.spacing == "category":
            space[axis.name] = CategoricalDistribution(coordinates)
        else:
            space[axis.name] = FloatDistribution(coordinates[0], coordinates[-1])
    return space


def suggest(
    domain: Domain, sampler: str, told: Sequence[Observation], pending: Sequence[int], seed: int
) -> dict[str, float]:
    """Wanted coordinate of every axis that has a choice. `sampler` is `tpe` or `gp`; unfinished trials are no evidence,
    pending ones are known to be running."""
    import optuna
    from optuna.trial import TrialState, create_trial

    space = _space(domain)
    if not space:
        return {}
    points = domain.points

    def trial(cell: int, state: TrialState, loss: float | None) -> Any:
        given = dict(points[cell])
        place = {name: domain.axis(name).coordinate(given[name]) for name in space}
        return create_trial(params=place, distributions=space, value=loss, state=state)

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        # Built anew each time: a study that was kept would be a second truth beside the ledger.
        study = optuna.create_study(sampler=_sampler(sampler, seed), direction="minimize")
        for one in told:
            state = TrialState.FAIL if one.loss is None else TrialState.COMPLETE
            study.add_trial(trial(one.cell, state, one.loss))
        for cell in pending:
            # Running trials keep a sampler from asking for the same place twice.
            study.add_trial(trial(cell, TrialState.RUNNING, None))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            asked = study.ask(space)
        return {name: float(value) for name, value in asked.params.items()}
    finally:
        optuna.logging.set_verbosity(before)
