"""What one arm may try: axes as ordered grids, constants, rungs, seeds, and the axis that fans out from one trunk.

Every axis is a grid, because two trials can share a prefix of training only where their values are equal to the last
bit. Which points are tried, and in which order, is left to the strategies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from typing import Literal

Scalar = int | float | str
Parameters = tuple[tuple[str, Scalar], ...]
"""Names and values, sorted by name."""

LAST_SEARCH_SEED = 99
"""Search seeds lie in 0..99; confirmation seeds start far above, so that the two never meet."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One parameter's grid, in order. `spacing` says in which unit neighbouring values are equally far apart.

    Raises `ValueError` when the grid is empty, repeats a value, or is not increasing (categories excepted).
    """

    name: str
    values: tuple[Scalar, ...]
    spacing: Literal["linear", "log", "category"] = "linear"

    def __post_init__(self) -> None:
        if not self.values or len(set(self.values)) != len(self.values):
            raise ValueError(f"{self.name}: {list(self.values)} is empty or repeats a value; give each value once")
        if self.spacing == "category":
            return
        numbers = [value for value in self.values if not isinstance(value, str)]
        if len(numbers) != len(self.values) or sorted(numbers) != numbers:
            raise ValueError(f"{self.name}: {list(self.values)} is not an increasing list of numbers")
        if self.spacing == "log" and numbers[0] <= 0:
            raise ValueError(f"{self.name}: {numbers[0]} has no logarithm; a log axis holds positive numbers")

    def coordinate(self, value: Scalar) -> float:
        """Position of `value` in the axis's unit: the number, its log2, or a category's index."""
        if self.spacing == "category" or isinstance(value, str):
            return float(self.values.index(value))
        return math.log2(value) if self.spacing == "log" else float(value)

    def gap(self, value: Scalar, wanted: float) -> float:
        """Squared distance from `value` to the coordinate `wanted`, in ranges of the axis; 4 between two categories."""
        if self.spacing == "category":
            return 4.0 * (self.coordinate(value) != wanted)
        reach = self.coordinate(self.values[-1]) - self.coordinate(self.values[0])
        return ((self.coordinate(value) - wanted) / (reach or 1.0)) ** 2

    def on_edge(self, value: Scalar) -> bool:
        """Whether a better value may lie beyond the range that was searched."""
        return self.spacing != "category" and len(self.values) > 2 and value in (self.values[0], self.values[-1])


@dataclass(frozen=True, slots=True)
class Proposal:
    """One trial to run: its parameters (constants included), its rung as total optimizer steps, its seed."""

    parameters: Parameters
    total_steps: int
    seed: int

    def value(self, name: str) -> Scalar:
        """The parameter called `name`. Raises `KeyError` where there is none."""
        return dict(self.parameters)[name]


@dataclass(frozen=True, slots=True)
class Recommendation:
    """The best point by a model. `predicted` and `standard_error` in nats; `on_edge` names axes at an end of their range."""

    parameters: Parameters
    predicted: float
    standard_error: float
    on_edge: tuple[str, ...]


@lru_cache(maxsize=64)
def _points(axes: tuple[Axis, ...], constants: Parameters, absent: frozenset[Parameters]) -> tuple[Parameters, ...]:
    names = [axis.name for axis in axes]
    everything = (
        tuple(sorted((*zip(names, values, strict=True), *constants)))
        for values in product(*(axis.values for axis in axes))
    )
    return tuple(point for point in everything if point not in absent)


@dataclass(frozen=True, slots=True)
class Domain:
    """What one arm may try at one scale.

    `rungs` are total steps, ascending; the last is the budget that is tuned for, the earlier ones are complete shorter
    runs. `seeds` are used in order for repeats of a point (then the numbers above them, up to 99). Proposals of a fan
    differ in `fan_axis` only; None asks for single trials. `absent` points are never tried nor recommended: nobody could
    say how they end.
    """

    axes: tuple[Axis, ...]
    rungs: tuple[int, ...]
    constants: Parameters = ()
    seeds: tuple[int, ...] = (0,)
    fan_axis: str | None = None
    absent: frozenset[Parameters] = frozenset()

    def __post_init__(self) -> None:
        names = [axis.name for axis in self.axes] + [name for name, _ in self.constants]
        if not self.axes or len(set(names)) != len(names):
            raise ValueError(f"search space: {names} holds no axis or a name twice")
        if not self.rungs or list(self.rungs) != sorted(set(self.rungs)) or self.rungs[0] < 1:
            raise ValueError(f"rungs: {list(self.rungs)} are not increasing numbers of steps")
        if self.fan_axis is not None and self.fan_axis not in [axis.name for axis in self.axes]:
            raise ValueError(f"fan axis: {self.fan_axis!r} is not one of {', '.join(axis.name for axis in self.axes)}")
        if not self.points:
            raise ValueError(
                f"search space: none of the points of {', '.join(axis.name for axis in self.axes)} is left"
            )

    @property
    def points(self) -> tuple[Parameters, ...]:
        """Every cell of the grid but the absent ones, constants included, the last axis varying fastest."""
        return _points(self.axes, self.constants, self.absent)

    def only(self, offered: Callable[[Parameters], bool]) -> Domain:
        """The same space with the other points absent. Raises `ValueError` where none is left."""
        return replace(self, absent=self.absent | {point for point in self.points if not offered(point)})

    def axis(self, name: str) -> Axis:
        """The axis called `name`."""
        return next(axis for axis in self.axes if axis.name == name)

    def distance(self, point: Parameters, wanted: Mapping[str, float]) -> float:
        """How far `point` lies from `wanted` coordinates, squared, each axis in its own range; other axes do not count."""
        given = dict(point)
        return sum(axis.gap(given[axis.name], wanted[axis.name]) for axis in self.axes if axis.name in wanted)

    def refuse_outside(self, proposal: Proposal) -> None:
        """Raise `ValueError`, naming the value and the range, when a proposal is not a point of this space."""
        given = dict(proposal.parameters)
        expected = {axis.name for axis in self.axes} | {name for name, _ in self.constants}
        if set(given) != expected:
            raise ValueError(f"parameters: {sorted(given)} are not {sorted(expected)}")
        for axis in self.axes:
            if given[axis.name] not in axis.values:
                raise ValueError(f"{axis.name}: {given[axis.name]} is not one of {', '.join(map(str, axis.values))}")
        for name, value in self.constants:
            if given[name] != value:
                raise ValueError(f"{name}: {given[name]} is not the constant {value}")
        if proposal.parameters in self.absent:
            raise ValueError(f"parameters: {dict(proposal.parameters)} are not offered")
        if proposal.total_steps not in self.rungs:
            raise ValueError(f"total_steps: {proposal.total_steps} is not one of {', '.join(map(str, self.rungs))}")

    def seed_of_repeat(self, repeat: int) -> int:
        """Seed of the `repeat`-th trial of one point (from 0). Raises `ValueError` beyond the last search seed."""
        if repeat < len(self.seeds):
            return self.seeds[repeat]
        seed = max(self.seeds) + 1 + repeat - len(self.seeds)
        if seed > LAST_SEARCH_SEED:
            raise ValueError(f"seeds: {seed} is above the last search seed {LAST_SEARCH_SEED}; ask for fewer trials")
        return seed

    @property
    def most_repeats(self) -> int:
        """Trials of one point that there are search seeds for."""
        return len(self.seeds) + LAST_SEARCH_SEED - max(self.seeds)

    def edges(self, parameters: Parameters) -> tuple[str, ...]:
        """Names of the axes on which a point lies at an end of the range."""
        given = dict(parameters)
        return tuple(axis.name for axis in self.axes if axis.on_edge(given[axis.name]))
