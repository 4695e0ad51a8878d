"""What is known before the first trial: points, never values, since losses of two scales or corpora do not compare.

The optimum of the next smaller scale comes first, then the best finished trials of the same identity, and for a first
scale the valley that the method's authors report.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sweeper.search.domain import Axis, Domain, Parameters, Scalar

PUBLISHED_VALLEY: Mapping[str, tuple[float, float]] = {"bag_size": (4, 8), "step_ratio": (0.2, 0.4)}
"""Where arXiv 2605.06546 finds the best runs at 270M and 600M parameters, as low and high ends."""


def _closest(axis: Axis, wanted: Scalar) -> Scalar:
    if axis.spacing == "category" or isinstance(wanted, str):
        return wanted if wanted in axis.values else axis.values[0]
    if wanted <= 0 and axis.spacing == "log":
        return axis.values[0]
    return min(axis.values, key=lambda value: (abs(axis.coordinate(value) - axis.coordinate(wanted)), value))


def _middle(axis: Axis) -> Scalar:
    if axis.spacing == "category":
        return axis.values[0]
    low, high = axis.coordinate(axis.values[0]), axis.coordinate(axis.values[-1])
    return min(axis.values, key=lambda value: abs(axis.coordinate(value) - (low + high) / 2))


def nearest_point(domain: Domain, wanted: Parameters) -> Parameters:
    """The cell nearest to `wanted`; axes that it does not name are in their middle, other names are ignored."""
    given = dict(wanted)
    chosen = {
        axis.name: _closest(axis, given[axis.name]) if axis.name in given else _middle(axis) for axis in domain.axes
    }
    point = tuple(sorted({**chosen, **dict(domain.constants)}.items()))
    if point not in domain.absent:
        return point
    places = {axis.name: axis.coordinate(chosen[axis.name]) for axis in domain.axes}
    # Nine digits: which of two equally far cells wins must not depend on rounding.
    return min(domain.points, key=lambda other: (round(domain.distance(other, places), 9), repr(other)))


def published_valley(domain: Domain) -> tuple[Parameters, ...]:
    """The middle of the published valley, where this arm has its axes; nothing for other methods."""
    names = [axis.name for axis in domain.axes if axis.name in PUBLISHED_VALLEY]
    if not names:
        return ()
    middles: dict[str, Scalar] = {}
    for name in names:
        low, high = PUBLISHED_VALLEY[name]
        middles[name] = (low * high) ** 0.5 if domain.axis(name).spacing == "log" else (low + high) / 2
    return (nearest_point(domain, tuple(sorted(middles.items()))),)


def best_points(domain: Domain, finished: Iterable[tuple[Parameters, float]], limit: int = 3) -> tuple[Parameters, ...]:
    """Points of the `limit` best finished trials of one identity and budget, best first, each once."""
    ranked = sorted(finished, key=lambda pair: (pair[1], repr(pair[0])))
    return tuple(dict.fromkeys(nearest_point(domain, parameters) for parameters, _ in ranked))[:limit]


def starting_points(
    domain: Domain,
    *,
    smaller_scale: Parameters | None = None,
    finished: Iterable[tuple[Parameters, float]] = (),
) -> tuple[Parameters, ...]:
    """All that is known, best guess first: same identity, then the smaller scale's optimum, then the published valley."""
    # What was trained with the same identity is evidence about this very arm; another scale's optimum is a guess, and
    # the published valley is one about everybody's.
    points = best_points(domain, finished)
    if smaller_scale is not None:
        points += (nearest_point(domain, smaller_scale),)
    if not points:
        points = published_valley(domain)
    return tuple(dict.fromkeys(points))
