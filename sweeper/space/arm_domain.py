"""From a method's axes in the search-space file to the domain that its search moves in."""

from __future__ import annotations

from sweeper.search import Axis, Domain, integers, log_uniform, uniform
from sweeper.search.rungs import rung_sizes
from sweeper.space.schema import Grid, IntegerRange, LogUniformRange, Method, Scalar, UniformRange

FAN_AXIS = "step_ratio"
"""Trials that differ in nothing else share their first phase; each leaves it at its own boundary."""
UNIFORM_CELLS = 8
"""Cells of a uniform range that gives no step."""
LOG_AXES = ("learning_rate", "bag_size", "heads", "patch_size", "pieces")


def axis_of(name: str, given: Grid | IntegerRange | UniformRange | LogUniformRange) -> Axis:
    """The grid of one axis. Words are categories; learning rates and whatever counts are equally spaced in their logarithm."""
    match given:
        case IntegerRange(integers=(low, high)):
            return integers(name, low, high)
        case UniformRange(uniform=(low, high), step=step):
            if low == high:
                return Axis(name, (low,))
            return uniform(name, low, high, step or (high - low) / UNIFORM_CELLS)
        case LogUniformRange(log_uniform=(low, high), per_octave=per_octave):
            return log_uniform(name, low, high, per_octave)
        case Grid(grid=values):
            if any(isinstance(value, str) for value in values):
                return Axis(name, values, "category")
            return Axis(name, values, "log" if name in LOG_AXES else "linear")


def domain_of(method: Method, seeds: tuple[int, ...]) -> Domain:
    """What an arm's tuning may try. A method whose axes are all constants has one point."""
    axes: list[Axis] = []
    constants: list[tuple[str, Scalar]] = []
    for name, given in sorted(method.axes.items()):
        if isinstance(given, int | float | str):
            constants.append((name, given))
        else:
            axes.append(axis_of(name, given))
    if not axes:
        name, value = constants.pop()
        axes = [Axis(name, (value,), "category")]
    fan_axis = next((axis.name for axis in axes if axis.name == FAN_AXIS and len(axis.values) > 1), None)
    return Domain(tuple(axes), method.budgets.rungs, tuple(constants), seeds, fan_axis)


def grid_trials(domain: Domain, trials: int) -> int:
    """Trials of a grid search that may have `trials` at most: every cell once with every seed, and of several rungs at
    the lowest one, with the part of it that halving runs again."""
    most = len(domain.points) * len(domain.seeds)
    while trials > most and rung_sizes(len(domain.rungs), trials)[0] > most:
        trials -= 1
    return trials
