"""A family of made-up loss tables on which searches are fitted and judged: two published tables are too few to choose by.

Every table follows from its half, kind and number. One half is for choosing a search's settings, the other is held back to
judge them; a setting that was chosen with an eye on the second half would need a third. Nothing here is about a method.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from sweeper.replay.loss_table import TOLERANCE, LossTable, benchmark_domain, truth_of
from sweeper.search.domain import Parameters

Floats = NDArray[np.float64]

HALVES: Mapping[str, int] = {"fitted": 1, "held-back": 2}
"""Of the family, with what their random numbers begin with."""
PER_KIND = 4
"""Tables of each kind in one half; every other one lacks cells."""
STEPS = 20_000
GRIDS = (
    (tuple(tenth / 10 for tenth in range(1, 10)), tuple(range(2, 13))),
    (tuple(tenth / 10 for tenth in range(1, 10)), (2, 3, 4, 6, 8, 12)),
    ((0.1, 0.2, 0.3, 0.4, 0.6, 0.8), tuple(range(2, 13))),
)
"""Step ratios and bag sizes: the published grid, and two coarser ones."""


@dataclass(frozen=True, slots=True)
class _Plane:
    """Coordinates of a grid from -1 to 1: `x` along log2 of the bag size, `y` along the step ratio, both `[ratio, bag]`."""

    x: Floats
    y: Floats


def _bowl(plane: _Plane, random: Generator, reach: float = 0.7, tilt: float = 0.3) -> Floats:
    """A paraboloid around a centre up to `reach` from the middle, its axes leaning by up to `tilt`."""
    (x, y), (a, b) = random.uniform(-reach, reach, 2), np.exp(0.5 * random.standard_normal(2))
    lean = random.uniform(-tilt, tilt) * 2 * np.sqrt(a * b)
    dx, dy = plane.x - x, plane.y - y
    bowl: Floats = a * dx**2 + b * dy**2 + lean * dx * dy
    return bowl


def _walls(plane: _Plane, random: Generator) -> Floats:
    """What published tables show: steep where bags are small, and where large bags last to the end."""
    small, late = random.uniform(0.2, 1.0), random.uniform(0.2, 3.0)
    walls: Floats = small * np.exp(-random.uniform(2, 5) * (plane.x + 1))
    walls += late * np.exp(random.uniform(3, 8) * (plane.y - 1)) * (1.3 + plane.x)
    return walls


def _smooth(plane: _Plane, random: Generator) -> Floats:
    return _bowl(plane, random) + _walls(plane, random)


def _tilted(plane: _Plane, random: Generator) -> Floats:
    """The best cell lies at an edge or near a corner."""
    return _bowl(plane, random, reach=1.5, tilt=0.6) + random.uniform(0, 1) * _walls(plane, random)


def _ridged(plane: _Plane, random: Generator) -> Floats:
    """A narrow valley across the axes, with a gentle fall along it."""
    angle, place = random.uniform(0, np.pi), random.uniform(-0.5, 0.5, 2)
    across = np.cos(angle) * plane.x + np.sin(angle) * plane.y - place[0]
    along = -np.sin(angle) * plane.x + np.cos(angle) * plane.y - place[1]
    ridged: Floats = random.uniform(2, 5) * across**2 + random.uniform(0.05, 0.4) * along**2
    return ridged


def _two_basins(plane: _Plane, random: Generator) -> Floats:
    """Two bowls; the one that is the less deep is wider, so that it is met first."""
    angle, sign = random.uniform(0, 2 * np.pi), np.array([1.0, -1.0])
    x, y = 0.6 * np.cos(angle) * sign, 0.6 * np.sin(angle) * sign
    narrow = random.uniform(2, 4) * ((plane.x - x[0]) ** 2 + (plane.y - y[0]) ** 2)
    wide = random.uniform(0.1, 0.4) + 0.8 * ((plane.x - x[1]) ** 2 + (plane.y - y[1]) ** 2)
    lower: Floats = np.minimum(narrow, wide)
    return lower


@dataclass(frozen=True, slots=True)
class _Kind:
    """`depth`: nats from the best cell to the median one (published: 0.015), `deviation`: nats between seeds, as lowest and
    highest of a log-uniform draw."""

    height: Callable[[_Plane, Generator], Floats]
    depth: tuple[float, float] = (0.006, 0.04)
    deviation: tuple[float, float] = (0.0005, 0.002)


KINDS: Mapping[str, _Kind] = {
    "smooth": _Kind(_smooth),
    "tilted": _Kind(_tilted),
    "ridged": _Kind(_ridged),
    "flat": _Kind(_smooth, depth=(0.001, 0.003)),
    "two-basin": _Kind(_two_basins),
    "noisy": _Kind(_smooth, deviation=(0.002, 0.02)),
}


def valleys(half: str) -> tuple[LossTable, ...]:
    """`PER_KIND` tables of every kind, all different. `half` is one of `HALVES`."""
    return tuple(_valley(half, kind, number) for kind in KINDS for number in range(PER_KIND))


def _valley(half: str, name: str, number: int) -> LossTable:
    """The first draw whose best cell, luck aside, is good by the rule of the races, too.

    The rule smooths a table: where a valley is too narrow for that, or too many cells are missing around its floor, it
    would call the right answer wrong.
    """
    random = np.random.default_rng([HALVES[half], list(KINDS).index(name), number])
    while True:
        table, best = _draw(random, name, number, f"{half} {number}")
        if truth_of(table, benchmark_domain(table)).smoothed_regret[best] <= TOLERANCE:
            return table


def _draw(random: Generator, name: str, number: int, title: str) -> tuple[LossTable, Parameters]:
    """A table, and its best cell before luck."""
    kind = KINDS[name]
    ratios, bags = GRIDS[0] if number < 2 else GRIDS[1 + number % 2]
    octaves = np.log2(np.array(bags, dtype=float))
    x = 2 * (octaves - octaves[0]) / (octaves[-1] - octaves[0]) - 1
    y = 2 * (np.array(ratios) - ratios[0]) / (ratios[-1] - ratios[0]) - 1
    plane = _Plane(*np.meshgrid(x, y))
    depth, deviation = (float(np.exp(random.uniform(*np.log(pair)))) for pair in (kind.depth, kind.deviation))
    height = kind.height(plane, random)
    height = depth * (height - height.min()) / (np.median(height) - height.min())
    # Every cell of a published table is one run, luck included: a table is as rough as its seeds, up to a limit.
    losses = 3 + height + min(deviation, 0.001) * random.standard_normal(height.shape)
    kept = random.uniform(size=height.shape) >= (random.uniform(0.05, 0.3) if number % 2 else 0.0)
    found = sorted(
        (float(height[i, j]), ratio, bag, round(float(losses[i, j]), 5))
        for i, ratio in enumerate(ratios)
        for j, bag in enumerate(bags)
        if kept[i, j]
    )
    table = LossTable(title, name, STEPS, "uniform", tuple(sorted(cell[1:] for cell in found)), deviation)
    _, ratio, bag, _ = found[0]
    return table, tuple(sorted((("bag_size", bag), ("bag_weighting", "uniform"), ("step_ratio", ratio))))
