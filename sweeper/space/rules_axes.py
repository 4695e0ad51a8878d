"""What the axes of the arms may not say: names, types, ranges, sizes, and tuning that is not equal.

A bag fits when it is a whole number from 1 to 64 and no longer than the context: a longer one would average more text
into one position than the recovery phase ever sees in one sequence. The same holds for whatever else a method counts
(heads, pieces, the tokens of a patch), and the method may ask for more. How often a run reads a corpus over again is no
error; `plan` counts it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice

from sweeper.space.errors import choose_from, closest, shown
from sweeper.space.findings import Draft, DraftArm, Finding
from sweeper.space.schema import Axis, Grid, IntegerRange, LogUniformRange, Scalar, UniformRange
from sweeper.space.trials import LEARNING_RATE, PARAMETER_KINDS
from sweeper.space.yaml_lines import Location
from trainers.contract.spec import ModelShape, Optimizer, Schedule, TrialSpec
from trainers.methods import BASELINE, METHODS, phases_of

LARGEST_COUNT = 64
"""Of tokens in a bag, and of anything else that a method counts."""
LAST_SEARCH_SEED = 99
MOST_VALUES = 1_000
MOST_POINTS = 100_000
"""Of one arm's grid: every strategy holds the grid in memory."""


def axes_allowed(draft: Draft) -> Iterator[Finding]:
    """Axes that a method does not know, and axes that it lacks."""
    for arm in _known(draft):
        allowed = _parameters(arm)
        place = ("methods", arm.name, "axes")
        unknown = [axis for axis in arm.axis_names if axis not in allowed]
        for axis in unknown:
            yield Finding((*place, axis), f"unknown axis of {arm.name}; {choose_from(axis, allowed)}")
        misspelt = {closest(axis, allowed) for axis in unknown}
        for axis in allowed:
            if axis not in arm.axis_names and axis not in misspelt:
                yield Finding(place, f"missing; {arm.name} needs a constant or an axis for it", key=axis)


def values_possible(draft: Draft) -> Iterator[Finding]:
    """Axes in a wrong order or too long, and values that the parameter cannot take."""
    for arm in _known(draft):
        sizes = [_size(axis) or 1 for axis in arm.axes.values()]
        for name, axis in arm.axes.items():
            if name in _parameters(arm):
                yield from _axis_findings(arm, name, axis, draft.space.context)
        if math.prod(sizes) > MOST_POINTS and max(sizes) <= MOST_VALUES:
            yield Finding(
                ("methods", arm.name, "axes"), f"{math.prod(sizes):,} combinations; at most {MOST_POINTS:,} are allowed"
            )


def equal_learning_rates(draft: Draft) -> Iterator[Finding]:
    """A speedup over a baseline that was tuned over other learning rates is none."""
    baseline = next((arm for arm in draft.arms if arm.name == BASELINE), None)
    if baseline is None or LEARNING_RATE not in baseline.axes:
        return
    expected = baseline.axes[LEARNING_RATE]
    for arm in _known(draft):
        given = arm.axes.get(LEARNING_RATE, expected)
        if _spread(given) != _spread(expected):
            yield Finding(
                ("methods", arm.name, "axes", LEARNING_RATE),
                f"{_axis_shown(given)} is not the baseline's {_axis_shown(expected)}; "
                "arms are tuned over equal learning rates",
            )


def trials_possible(draft: Draft) -> Iterator[Finding]:
    """More trials than an arm has points and search seeds. The grid sampler stops by itself."""
    space = draft.space
    if space.search.sampler == "grid":
        return
    num_seeds = len(space.seeds.tuning) + LAST_SEARCH_SEED - max(space.seeds.tuning)
    for arm in _known(draft):
        sizes = [_size(axis) for axis in arm.axes.values()]
        points = math.prod(size for size in sizes if size is not None)
        complete = len(arm.axes) == len(arm.axis_names) and None not in sizes
        if complete and space.search.trials_per_arm > points * num_seeds:
            yield Finding(
                ("search", "trials_per_arm"),
                f"{space.search.trials_per_arm} is more than {arm.name}'s {points} points times {num_seeds} search seeds",
            )


def _known(draft: Draft) -> Iterator[DraftArm]:
    return (arm for arm in draft.arms if arm.name in METHODS)


def _parameters(arm: DraftArm) -> list[str]:
    return sorted((*METHODS[arm.name].parameters, LEARNING_RATE))


def _axis_findings(arm: DraftArm, name: str, axis: Axis | Scalar, context: int) -> Iterator[Finding]:
    """Objections to one axis: to its form, else to its values."""
    place = ("methods", arm.name, "axes", name)
    form = list(_form(place, axis))
    kind = PARAMETER_KINDS.get(name)
    if kind is not None and kind.type is not float and isinstance(axis, UniformRange | LogUniformRange):
        form.append(Finding(place, f"a range of real numbers, but it is {kind.words}; use integers or grid"))
    yield from form
    if not form:
        found = list(_objections(arm.name, name, _extremes(place, axis), context))
        yield from found or islice(_objections(arm.name, name, _between(place, axis), context), 1)


def _objections(
    method: str, parameter: str, values: Iterator[tuple[Location, Scalar]], context: int
) -> Iterator[Finding]:
    for location, value in values:
        objection = _objection(method, parameter, value, context)
        if objection is not None:
            yield Finding(location, objection)


def _size(axis: Axis | Scalar) -> int | None:
    """Number of values, 1 for a constant; None where a strategy decides it."""
    match axis:
        case Grid():
            return len(axis.grid)
        case IntegerRange():
            return axis.integers[1] - axis.integers[0] + 1
        case UniformRange():
            if axis.step is None:
                return None
            return _floor((axis.uniform[1] - axis.uniform[0]) / axis.step) + 1
        case LogUniformRange():
            return _floor((math.log2(axis.log_uniform[1]) - math.log2(axis.log_uniform[0])) * axis.per_octave) + 1
        case _:
            return 1


def _floor(value: float) -> int:
    return math.floor(value + 1e-9) if math.isfinite(value) else 2**63


def _form(place: Location, axis: Axis | Scalar) -> Iterator[Finding]:
    """Objections to an axis as such, whatever its parameter is."""
    size = _size(axis)
    if size is not None and size > MOST_VALUES:
        yield Finding(place, f"{size:,} values; at most {MOST_VALUES:,} are allowed")
    if not isinstance(axis, Grid):
        return
    words = [value for value in axis.grid if isinstance(value, str)]
    if words and len(words) < len(axis.grid):
        yield Finding((*place, "grid"), f"{shown(axis.grid)} mixes numbers and words")
        return
    for index in range(1, len(axis.grid)):
        value, before = axis.grid[index], axis.grid[index - 1]
        if value in axis.grid[:index]:
            yield Finding((*place, "grid", index), f"{shown(value)} is given twice")
        elif not isinstance(value, str) and not isinstance(before, str) and value < before:
            yield Finding((*place, "grid", index), f"{shown(value)} stands after {shown(before)}; numbers increase")


def _extremes(place: Location, axis: Axis | Scalar) -> Iterator[tuple[Location, Scalar]]:
    """The values to look at: all of a grid, both ends of a range."""
    match axis:
        case Grid():
            yield from (((*place, "grid", index), value) for index, value in enumerate(axis.grid))
        case IntegerRange():
            yield from (((*place, "integers", index), value) for index, value in enumerate(axis.integers))
        case UniformRange():
            yield from (((*place, "uniform", index), value) for index, value in enumerate(axis.uniform))
        case LogUniformRange():
            yield from (((*place, "log_uniform", index), value) for index, value in enumerate(axis.log_uniform))
        case _:
            yield place, axis


def _between(place: Location, axis: Axis | Scalar) -> Iterator[tuple[Location, Scalar]]:
    """The values of a range of whole numbers that are not its ends: divisors of the context have gaps."""
    if isinstance(axis, IntegerRange):
        yield from (((*place, "integers"), value) for value in range(axis.integers[0] + 1, axis.integers[1]))


def _objection(method: str, parameter: str, value: Scalar, context: int) -> str | None:
    """Why `value` cannot be the method's parameter, or None."""
    kind = PARAMETER_KINDS.get(parameter)
    if kind is not None and not kind.holds(value):
        return f"{shown(value)} is not {kind.words}"
    if parameter == LEARNING_RATE:
        positive = not isinstance(value, str) and value > 0
        return None if positive else f"{shown(value)} is not a positive number"
    limit = min(LARGEST_COUNT, context)
    if kind is not None and isinstance(value, int) and kind.type is int and not 1 <= value <= limit:
        reason = " (the context)" if limit < LARGEST_COUNT else ""
        return f"{value} is not a whole number from 1 to {limit}{reason}"
    try:
        _try(method, parameter, value, context)
    except ValueError as error:
        return str(error).split(": ", 1)[-1]
    return None


def _try(method: str, parameter: str, value: Scalar, context: int) -> None:
    """Raise the method's own `ValueError` for a value of one parameter, the others being harmless."""
    parameters: dict[str, Scalar] = {
        name: PARAMETER_KINDS[name].example for name in METHODS[method].parameters if name in PARAMETER_KINDS
    }
    parameters[parameter] = value
    spec = TrialSpec(
        scale="",
        shape=ModelShape(1, 2, 1, 1, 2, 2, 257),
        method=method,
        parameters=tuple(parameters.items()),
        corpus_fingerprint="",
        tokenizer_fingerprint="",
        context=context,
        tokens_per_step=context,
        validation_tokens=context,
        schedule=Schedule(1_000, 100, 100, 1e-3),
        optimizer=Optimizer(),
        precision="fp32",
        seed=0,
    )
    if set(parameters) == set(METHODS[method].parameters):
        phases_of(spec)


def _spread(axis: Axis | Scalar) -> tuple[object, ...]:
    """Equal for axes that offer equal values."""
    match axis:
        case Grid():
            return ("grid", *axis.grid)
        case IntegerRange():
            return ("grid", *range(axis.integers[0], min(axis.integers[1], axis.integers[0] + MOST_VALUES) + 1))
        case UniformRange():
            return ("uniform", *axis.uniform, axis.step)
        case LogUniformRange():
            return ("log_uniform", *axis.log_uniform, axis.per_octave)
        case _:
            return ("grid", axis)


def _axis_shown(axis: Axis | Scalar) -> str:
    if isinstance(axis, int | float | str):
        return shown(axis)
    return shown(axis.model_dump(exclude_defaults=True), longest=90)
