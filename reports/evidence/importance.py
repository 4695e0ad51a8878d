"""Which axis of a search mattered: Optuna's functional ANOVA over an arm's trials.

Hutter, Hoos and Leyton-Brown (2014): a random forest is fitted to the losses, and an axis's importance is the part of the
forest's variance that the axis explains alone, whatever the others are. A forest of few trials fits their noise, too.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from trainers.contract.spec import Scalar
from trainers.methods import PARAMETER_TABLE

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Trial = tuple[Mapping[str, Scalar], float]
"""Values of the axes, and the final loss in nats."""


def importances(trials: Sequence[Trial]) -> dict[str, float]:
    """Part of the variance of the fitted losses, 0 to 1, that each axis explains alone; none where there is no telling.

    Axes are those that all trials have, with more than one value. Of a single axis, and of losses that are all equal,
    there is nothing to tell; nor where an axis has as many values as there are trials, which explains all by chance.
    """
    names = set.intersection(*(set(values) for values, _ in trials)) if trials else set()
    axes = {name: {values[name] for values, _ in trials} for name in sorted(names)}
    axes = {name: values for name, values in axes.items() if len(values) > 1}
    by_chance = any(len(values) == len(trials) for values in axes.values())
    if len(axes) < 2 or by_chance or len({loss for _, loss in trials}) == 1:
        return {}
    import optuna
    from optuna.importance import FanovaImportanceEvaluator

    ranges = {name: _range(name, values) for name, values in axes.items()}
    logging.getLogger("optuna.storages").setLevel(logging.WARNING)  # else a line for the study
    study = optuna.create_study()
    for values, loss in trials:
        given = {name: values[name] for name in ranges}
        study.add_trial(optuna.trial.create_trial(params=given, distributions=ranges, value=loss))
    # As fractions of the variance; `get_param_importances` scales them to a sum of one.
    found = FanovaImportanceEvaluator(seed=0).evaluate(study)
    return {name: float(found[name]) for name in axes}


def _range(name: str, values: set[Scalar]) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    numbers = [float(value) for value in values if not isinstance(value, str)]
    if len(numbers) < len(values):
        return CategoricalDistribution(sorted(values, key=str))
    row = PARAMETER_TABLE.get(name)
    log = row is not None and row.spacing == "log" and min(numbers) > 0
    return FloatDistribution(min(numbers), max(numbers), log=log)
