"""A loss of the reader's own choice, read off every arm's ladder: what each arm pays to end there.

The estimator is the speedup's, applied to one ladder at a time. A loss that an arm's budgets do not hold is censored, never
continued to.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from reports.estimate.intervals import CONFIDENCE, t_quantile
from reports.estimate.inversion import invert_ladder
from reports.estimate.observations import Observations, observe
from reports.estimate.readings import Ladder, make_ladder
from reports.estimate.verdict import COUNTED_CLOCKS, PAID_CLOCKS, Clock
from reports.evidence.study import ScaleStudy, Study, StudyArm

Outcome = Literal["reached", "not reached", "passed", "no curve"]


@dataclass(frozen=True, slots=True)
class TargetCost:
    """What one arm pays for the loss on `clock`, with a 95 % interval where seeds say how far it scatters.

    `not reached`: the arm's largest budget, `cost`, ends above the loss. `passed`: its smallest, `cost`, ends below. `no
    curve`: one budget, which says nothing about any other loss; `cost` is None.
    """

    scale: str
    method: str
    clock: Clock
    clock_label: str
    outcome: Outcome
    cost: float | None
    interval: tuple[float, float] | None = None


def costs_at(study: Study, loss: float) -> tuple[TargetCost, ...]:
    """One reading for every arm with confirmed runs, in the order of the study."""
    found = []
    for scale in study.scales:
        observations = observe(scale)
        found += [_read(scale, observations, arm, loss) for arm in scale.arms if arm.cells]
    return tuple(found)


def _read(scale: ScaleStudy, observations: Observations, arm: StudyArm, loss: float) -> TargetCost:
    clock, ladder = _ladder(observations, arm)
    label = COUNTED_CLOCKS.get(clock, scale.clock_label)

    def said(outcome: Outcome, cost: float | None, interval: tuple[float, float] | None = None) -> TargetCost:
        return TargetCost(scale.scale, arm.method, clock, label, outcome, cost, interval)

    if ladder is None or len(ladder.cost) < 2:
        return said("no curve", None)
    if loss < ladder.loss.min():
        return said("not reached", float(ladder.cost[-1]))
    if loss > ladder.loss.max():
        return said("passed", float(ladder.cost[0]))
    read = invert_ladder(ladder.cost, ladder.loss[None, :], ladder.counts, np.array([loss]))
    log_cost, slope = float(read.log_cost[0]), float(read.slope[0])
    if not math.isfinite(log_cost) or not math.isfinite(slope):
        return said("no curve", None)
    # The loss is the reader's and has no error; the ladder's cells do.
    gradient = -(read.weights @ ladder.means_KN) / slope
    variance, freedom = observations.variance(gradient)
    half = float(t_quantile((1 + CONFIDENCE) / 2, freedom)[0]) * math.sqrt(variance[0]) + float(read.systematic[0])
    known = math.isfinite(half)
    interval = (math.exp(log_cost - half), math.exp(log_cost + half)) if known else None
    return said("reached", math.exp(log_cost), interval)


def _ladder(observations: Observations, arm: StudyArm) -> tuple[Clock, Ladder | None]:
    """On the first clock that all of the arm's cells know."""
    for clock in PAID_CLOCKS:
        ladder = make_ladder(observations, arm.cells, clock)
        if ladder is not None:
            return clock, ladder
    return "steps", None
