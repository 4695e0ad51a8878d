"""Learning rates tried again at length: what is probed, at which rates, and which of them an arm's ladder takes.

The best learning rate falls as runs grow, and a baseline's longest run usually lies further beyond its tuning budget than
the method's, so that a rate which is carried over favours the method. Where any arm's largest budget is more than `FACTOR`
times its tuning budget, every arm is probed alike before it is confirmed: at its own largest budget, on a search seed, half
an octave to either side, and in the middle, since losses of different lengths do not compare.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from sweeper.search.domain import Parameters
from sweeper.space.foreign_schema import AnySpace
from sweeper.space.schema import AxisRange
from trainers.contract.record import RunRecord
from trainers.methods import LEARNING_RATE

PROBE = "probe"
NUM_RATES = 3
FACTOR = 4.0
HALF_OCTAVE = math.sqrt(2)
_SAME = 1.03
"""A grid's own neighbour is taken for half an octave where it is this near: 5.7e-3 and 8e-3 are rounded."""


def is_probed(space: AnySpace) -> bool:
    """Whether arms of this sweep are probed. A learning rate that the file fixes is the user's, and is left alone."""
    budgets = [method.budgets for method in space.methods.values()]
    far = any(max(given.confirmation) > FACTOR * given.rungs[-1] for given in budgets)
    rates = [method.axes[LEARNING_RATE] for method in space.methods.values()]
    tuned = all(isinstance(rate, AxisRange) and len(rate.values) > 1 for rate in rates)
    return space.search.probe and far and tuned


def num_probes(space: AnySpace, asked: int) -> int:
    """How many probes an arm has in the end, of which `asked` were asked for already."""
    return asked or (NUM_RATES if is_probed(space) else 0)


def probed_rates(centre: float, grid: Sequence[float]) -> tuple[float, float, float]:
    """Half an octave below `centre`, `centre`, half an octave above; values of `grid` where it has them."""

    def near(rate: float) -> float:
        same = [value for value in grid if 1 / _SAME < value / rate < _SAME]
        return same[0] if same else float(f"{rate:.3g}")

    return near(centre / HALF_OCTAVE), centre, near(centre * HALF_OCTAVE)


def rate_of(values: Parameters) -> float:
    """The learning rate among a trial's values."""
    return float(dict(values)[LEARNING_RATE])


def with_rate(values: Parameters, rate: float) -> Parameters:
    """The same values with another learning rate."""
    return tuple(sorted({**dict(values), LEARNING_RATE: rate}.items()))


def best_rate(probes: Iterable[RunRecord], centre: float) -> float:
    """The rate of the lowest final loss; `centre`, the tuned one, where it is as good as any or no probe finished."""
    ended = [
        (record.final_loss, rate != centre, rate)
        for record in probes
        if record.final_loss is not None and (rate := record.spec.schedule.learning_rate)
    ]
    return min(ended)[2] if ended else centre
