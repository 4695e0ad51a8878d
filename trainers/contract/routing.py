"""How a mixture of experts spread the positions of a step over its experts: numbers, a summary, and how it moved.

Standard library only, as records are. Who counts is `moe`'s; here a load is what fraction of a layer's assignments each
of its experts got.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

LOAD_DIGITS = 6
"""Decimals of a stored load: a step of the published size makes 67 million assignments a layer, whose noise is larger."""


@dataclass(frozen=True, slots=True)
class RoutingPoint:
    """The routing of the one optimizer step that a validation point follows, a value a layer.

    `max_over_mean` is the busiest expert's load over the mean load (1: even), `entropy` that of the load over `log E`
    (1: even, 0: one expert has all), `dropped` the assignments that no expert computed. `load` `[layers][experts]` is
    kept around changes of the phase and empty elsewhere.
    """

    max_over_mean: tuple[float, ...]
    entropy: tuple[float, ...]
    dropped: int
    load: tuple[tuple[float, ...], ...] = ()

    def __post_init__(self) -> None:
        if not all(math.isfinite(value) for value in (*self.max_over_mean, *self.entropy)):
            raise ValueError("RoutingPoint: a ratio or an entropy is not a finite number")


@dataclass(frozen=True, slots=True)
class RoutingShift:
    """How the load moved at a change of the phase: `distance` as `load_shift` has it, from just before the boundary at
    `boundary` to `step`."""

    boundary: int
    step: int
    distance: float


def summarise(counts: Sequence[Sequence[int]], dropped: int, *, keep_load: bool) -> RoutingPoint:
    """From the assignments of each layer's experts; a layer that saw nothing counts as even."""
    loads = [_shares(layer) for layer in counts]
    return RoutingPoint(
        max_over_mean=tuple(round(max(load) * len(load), LOAD_DIGITS) for load in loads),
        entropy=tuple(round(_evenness(load), LOAD_DIGITS) for load in loads),
        dropped=dropped,
        load=tuple(tuple(round(share, LOAD_DIGITS) for share in load) for load in loads) if keep_load else (),
    )


def _shares(counts: Sequence[int]) -> list[float]:
    total = sum(counts)
    return [count / total for count in counts] if total else [1 / len(counts)] * len(counts)


def _evenness(load: Sequence[float]) -> float:
    if len(load) == 1:
        return 1.0
    return -math.fsum(share * math.log(share) for share in load if share > 0) / math.log(len(load))


def load_shift(before: RoutingPoint, after: RoutingPoint) -> float:
    """Total variation distance between two loads, averaged over the layers: the share of the assignments that moved.

    Raises `ValueError` where a load was not kept or the layers do not match.
    """
    if not before.load or len(before.load) != len(after.load):
        raise ValueError("load_shift: both points must hold the loads of the same layers")
    distances = [
        math.fsum(abs(a - b) for a, b in zip(first, second, strict=True)) / 2
        for first, second in zip(before.load, after.load, strict=True)
    ]
    return math.fsum(distances) / len(distances)
