"""A loss of the reader's own choice, read off every arm's ladder: what each arm pays to end there. And a budget of their own:
what a method may be expected to end at.

The estimator is the speedup's, applied to one ladder at a time. A loss that an arm's budgets do not hold is censored, never
continued to. A forecast is no claim: it takes the method to stay as far ahead of the baseline's ladder, in steps, as it was
where it was confirmed, and says how far beyond the ladder it is read.
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
from reports.evidence.study import Cell, ScaleStudy, Study, StudyArm

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


@dataclass(frozen=True, slots=True)
class Forecast:
    """At `total_steps`: the loss in nats with its 95 % interval (None where there is no deviation, or no ladder to read), and
    device-hours. `measured` says that runs of this budget are meant, `beyond` how many times the longest run of the ladder the
    reading lies at (below 1: inside)."""

    total_steps: int
    loss: float | None
    interval: tuple[float, float] | None
    hours: float | None
    measured: bool
    beyond: float


def forecast(scale: ScaleStudy, arm: StudyArm, total_steps: int) -> Forecast:
    """Of a confirmed `arm` of `scale`; its cells are not empty."""
    nearest = min(arm.cells, key=lambda cell: abs(math.log(cell.total_steps / total_steps)))
    hours = None if nearest.gpu_hours is None else nearest.gpu_hours / nearest.total_steps * total_steps
    ladder = () if scale.baseline is None else scale.baseline.cells
    if nearest.total_steps == total_steps:
        return Forecast(total_steps, nearest.mean_loss, _interval_of(scale, nearest), hours, measured=True, beyond=0.0)
    if len(ladder) < 3:
        return Forecast(total_steps, None, None, hours, measured=False, beyond=math.inf)
    return _read_ahead(scale, ladder, nearest, total_steps, hours)


def _interval_of(scale: ScaleStudy, cell: Cell) -> tuple[float, float] | None:
    seen = observe(scale)
    variance, freedom = seen.variance(seen.means([cell]))
    return _around(cell.mean_loss, float(variance[0]), float(freedom[0]))


def _around(middle: float, variance: float, freedom: float) -> tuple[float, float] | None:
    if not math.isfinite(variance):
        return None
    half = float(t_quantile(0.5 + CONFIDENCE / 2, np.array([freedom]))[0]) * math.sqrt(variance)
    return middle - half, middle + half


def _read_ahead(
    scale: ScaleStudy, ladder: tuple[Cell, ...], cell: Cell, total_steps: int, hours: float | None
) -> Forecast:
    seen = observe(scale)
    means = seen.means([*ladder, cell])
    losses = means @ seen.losses
    steps = np.array([float(one.total_steps) for one in ladder])
    counts = np.array([float(one.num_seeds) for one in ladder])
    reading = invert_ladder(steps, losses[None, :-1], counts, losses[None, -1])
    curve = reading.curves[0]
    ahead = math.exp(float(reading.log_cost[0])) / cell.total_steps
    at = np.array([ahead * total_steps])
    if not np.isfinite(at[0]) or not math.isfinite(float(reading.slope[0])):
        return Forecast(total_steps, None, None, hours, measured=False, beyond=math.inf)
    loss = float(curve.loss_at(at)[0])
    # How the forecast moves with each cell mean: by the curve there, and by how far ahead the method was read to be.
    moved = float(curve.slope_at(at)[0]) / float(reading.slope[0])
    gradient = np.append(curve.weights_at(at)[0] - moved * reading.weights[0], moved)
    variance, freedom = seen.variance((gradient @ means)[None, :])
    interval = _around(loss, float(variance[0]), float(freedom[0]))
    return Forecast(total_steps, loss, interval, hours, measured=False, beyond=float(at[0] / steps[-1]))
