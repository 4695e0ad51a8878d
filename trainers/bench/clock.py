"""Time by turns: variants that are to be compared run one after the other, round after round, in one process.

On a machine whose speed wanders, two medians taken minutes apart differ by more than the variants do; two neighbours of a
round hardly. Ratios are therefore formed within each round, on a CPU from the processor time that this process used, so
that whoever else is on the machine does not enter them. On a GPU the time between two device events is taken.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median, quantiles

import torch

from trainers.training.devices import synchronise


@dataclass(frozen=True, slots=True)
class Pace:
    """`rounds` of `block` timed calls a variant, each block after `settle` untimed ones; `warm_up` untimed before all.

    Rounds go on until `seconds` have passed or there are `most_rounds`: short steps are timed more often. A captured step
    is captured again whenever the phase changes, so there blocks are long and settle first.
    """

    rounds: int
    block: int
    warm_up: int
    settle: int
    most_rounds: int
    seconds: float

    @property
    def calls(self) -> int:
        """Most calls of one variant, timed or not."""
        return self.warm_up + self.most_rounds * (self.settle + self.block)


def pace_of(device: torch.device, steps: int) -> Pace:
    """On a CPU turns of single steps, up to eight times as many where they are short; on a GPU blocks of steps, before
    each of which a captured step may settle."""
    if device.type == "cuda":
        return Pace(rounds=3, block=-(-steps // 3), warm_up=0, settle=5, most_rounds=3, seconds=0.0)
    return Pace(rounds=steps, block=1, warm_up=2, settle=0, most_rounds=8 * steps, seconds=0.5 * steps)


@dataclass(frozen=True, slots=True)
class Block:
    """Neighbouring calls: how long each took, and the seconds that a ratio is formed of."""

    seconds: tuple[float, ...]
    compared: float


@dataclass(slots=True)
class Turns:
    """The blocks of one variant, one a round."""

    blocks: list[Block] = field(default_factory=list)

    @property
    def values(self) -> list[float]:
        """Seconds of every timed call."""
        return [value for block in self.blocks for value in block.seconds]

    @property
    def seconds(self) -> float:
        """Median over all calls."""
        return median(self.values)

    @property
    def spread(self) -> float:
        """Interquartile range over the median; 0 for a single call."""
        if len(self.values) < 2:
            return 0.0
        low, _, high = quantiles(self.values, n=4)
        return (high - low) / self.seconds


def paired_ratio(turns: Turns, against: Turns) -> float:
    """Median over the rounds of the ratio within a round."""
    return median(mine.compared / other.compared for mine, other in zip(turns.blocks, against.blocks, strict=True))


def time_calls(
    call: Callable[[], object], count: int, device: torch.device, stream: torch.cuda.Stream | None = None
) -> Block:
    """Time `count` calls, one by one. `stream` is where a GPU does their work, the current one by default."""
    if device.type != "cuda":
        seconds = []
        used = time.process_time()
        for _ in range(count):
            began = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - began)
        return Block(tuple(seconds), time.process_time() - used)
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]  # type: ignore[no-untyped-call]
    for index, mark in enumerate(marks):
        if index:
            call()
        mark.record(stream or torch.cuda.current_stream(device))
    synchronise(device)
    took = [before.elapsed_time(after) / 1e3 for before, after in pairwise(marks)]
    return Block(tuple(took), median(took))


def take_turns(
    variants: Sequence[Callable[[], object]],
    pace: Pace,
    device: torch.device,
    streams: Sequence[torch.cuda.Stream | None] = (),
) -> list[Turns]:
    """Time all variants by turns, each round in an order of its own. In the order of `variants`.

    A fixed order, even one that starts elsewhere each round, gives every variant the same neighbour, whose caches and freed
    memory it finds: that alone moved ratios of millisecond calls by a tenth.
    """
    for variant in variants:
        for _ in range(pace.warm_up):
            variant()
    synchronise(device)
    turns = [Turns() for _ in variants]
    began = time.perf_counter()
    for index in range(pace.most_rounds):
        if index >= pace.rounds and time.perf_counter() - began > pace.seconds:
            break
        order = list(range(len(variants)))
        random.Random(index).shuffle(order)
        for chosen in order:
            for _ in range(pace.settle):
                variants[chosen]()
            turns[chosen].blocks.append(
                time_calls(variants[chosen], pace.block, device, streams[chosen] if streams else None)
            )
    return turns
