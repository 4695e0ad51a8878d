"""Were both arms tuned alike, and did the search stop at the edge of its space?

A method that was given more trials, a longer budget or other learning rates wins by luck: that is said in the headline.
Where a method rescales its learning rate, so that its unit is its own, the values cannot be equal: there the number of
octaves that were searched has to be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from reports.evidence.runs import BASELINE
from reports.evidence.study import StudyArm, SweepContext
from trainers.contract.spec import Scalar
from trainers.methods import SAME_OCTAVES


@dataclass(frozen=True, slots=True)
class TuningComparison:
    """`equal` is None where the tuning was not recorded; `difference` says in words what is unequal (empty: nothing)."""

    equal: bool | None
    difference: str


def compare_tuning(baseline: StudyArm | None, method: StudyArm, context: SweepContext) -> TuningComparison:
    """Same number of trials, same learning rates, same budgets for both arms? Not known where one of them is missing.

    Of learning rates in different units only the octaves are compared.
    """
    if baseline is None or baseline.num_trials is None or method.num_trials is None:
        return TuningComparison(None, "")
    differences: list[str] = []
    if baseline.num_trials != method.num_trials:
        other = "the baseline" if baseline.method == BASELINE else baseline.method
        differences.append(f"{method.num_trials} trials of the method against {baseline.num_trials} of {other}")
    rates = [_learning_rates(arm, context) for arm in (baseline, method)]
    if own_unit(baseline) or own_unit(method):
        octaves = [_octaves(values) for values in rates]
        if abs(octaves[0] - octaves[1]) > SAME_OCTAVES:
            differences.append(f"learning rates over {octaves[1]:.2g} against {octaves[0]:.2g} octaves")
    elif rates[0] != rates[1]:
        differences.append(f"learning rates {_rates_apart(rates[1], rates[0])}")
    budgets = [sorted({run.total_steps for run in arm.search}) for arm in (baseline, method)]
    # An arm with one setting has no search, and no budget for it: the number of trials says that already.
    if budgets[0] != budgets[1] and all(budgets):
        differences.append(f"at {_steps(budgets[1])} against {_steps(budgets[0])} steps")
    return TuningComparison(not differences, "; ".join(differences))


def own_unit(arm: StudyArm) -> bool:
    """Whether the arm's runs say that their learning rate is in a unit of the method's own."""
    return any(run.own_learning_rate for run in (*arm.search, *(run for cell in arm.cells for run in cell.runs)))


def _octaves(rates: tuple[float, ...]) -> float:
    return math.log2(rates[-1] / rates[0]) if rates else 0.0


def _learning_rates(arm: StudyArm, context: SweepContext) -> tuple[float, ...]:
    """The searched learning rates where the search space is known, otherwise the smallest and largest that were seen."""
    axis = context.axes.get(arm.method, {}).get("learning_rate")
    if axis:
        return tuple(float(value) for value in axis)
    seen = sorted({run.learning_rate for run in arm.search if run.learning_rate is not None})
    # An adaptive search visits other rates in each arm; only the ends can be compared. One rate is both ends, as in a
    # file that gives a constant.
    return tuple(dict.fromkeys((seen[0], seen[-1]))) if seen else ()


def _rates_apart(first: tuple[float, ...], second: tuple[float, ...]) -> str:
    """Both ranges, or all values where the ranges are equal, with as many digits as tell them apart."""
    forms: tuple[Callable[[tuple[float, ...]], str], ...] = (
        _range,
        lambda rates: _listed(f"{rate:g}" for rate in rates),
        lambda rates: _listed(map(repr, rates)),
    )
    pairs = [(form(first), form(second)) for form in forms]
    return " against ".join(next((pair for pair in pairs if pair[0] != pair[1]), pairs[-1]))


def _range(rates: tuple[float, ...]) -> str:
    return f"{rates[0]:g} to {rates[-1]:g}" if len(rates) > 1 else _listed(f"{rate:g}" for rate in rates)


def _listed(rates: Iterable[str]) -> str:
    return ", ".join(rates) or "not recorded"


def _steps(budgets: list[int]) -> str:
    return ", ".join(f"{budget:,}" for budget in budgets)


@dataclass(frozen=True, slots=True)
class Edge:
    """A chosen value at an end of its searched range: `side` is `smallest` or `largest`."""

    name: str
    value: float
    side: str


def edges(arm: StudyArm, axes: Mapping[str, tuple[Scalar, ...]]) -> tuple[Edge, ...]:
    """The axes on whose edge the arm's configuration lies: a better value may lie beyond.

    Axes of one value, and values that are words, have no edge. A learning rate that was probed at length has the edges of
    its probes.
    """
    if arm.configuration is None:
        return ()
    chosen: dict[str, Scalar | None] = dict(arm.configuration.parameters)
    chosen["learning_rate"] = arm.configuration.learning_rate
    found: list[Edge] = []
    probed = {run.learning_rate for run in arm.probes if run.learning_rate is not None}
    for name, tuned in axes.items():
        values = tuple(probed) if probed and name == "learning_rate" else tuned
        value = chosen.get(name)
        numbers = sorted(float(item) for item in values if isinstance(item, int | float))
        if len(numbers) < 2 or not isinstance(value, int | float):
            continue
        # A file's number and a trial's may differ in the last digit.
        if value <= numbers[0] * (1 + 1e-9):
            found.append(Edge(name, value, "smallest"))
        elif value >= numbers[-1] * (1 - 1e-9):
            found.append(Edge(name, value, "largest"))
    return tuple(found)
