"""What a confirmed method may be expected to end at, and to cost, at a budget that nobody has trained yet.

The baseline's ladder gives the shape: the method is taken to stay as far ahead of it in steps as it was where it was confirmed.
A forecast, never a claim; it is said how far beyond the ladder it is read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from reports.estimate.intervals import CONFIDENCE, t_quantile
from reports.estimate.inversion import invert_ladder
from reports.estimate.observations import observe
from reports.evidence.study import Cell, ScaleStudy, StudyArm


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
    return _read(scale, ladder, nearest, total_steps, hours)


def _interval_of(scale: ScaleStudy, cell: Cell) -> tuple[float, float] | None:
    seen = observe(scale)
    variance, freedom = seen.variance(seen.means([cell]))
    return _around(cell.mean_loss, float(variance[0]), float(freedom[0]))


def _around(middle: float, variance: float, freedom: float) -> tuple[float, float] | None:
    if not math.isfinite(variance):
        return None
    half = float(t_quantile(0.5 + CONFIDENCE / 2, np.array([freedom]))[0]) * math.sqrt(variance)
    return middle - half, middle + half


def _read(scale: ScaleStudy, ladder: tuple[Cell, ...], cell: Cell, total_steps: int, hours: float | None) -> Forecast:
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
