"""What a given loss costs: every arm's own ladder read at a reader's target, censored where the arm does not get there.

The same curves, seed noise and tests as a speedup's, on one clock for all arms of a scale. The target is a number that
the reader means on this validation text: it has no noise of its own, and neither has the text.
And the other way round, what a method may be expected to end at for a budget of the reader's own. A forecast is no claim: it
takes the method to stay as far ahead of the baseline's ladder, in steps, as it was where it was confirmed, and says how far
beyond the ladder it is read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from reports.estimate.intervals import CONFIDENCE, add_variances, t_quantile
from reports.estimate.inversion import Inversion, invert_ladder
from reports.estimate.observations import Observations, observe
from reports.estimate.readings import NO_CLOCK_ERROR, ClockError, Ladder, clock_error, make_ladder, own_clock_error
from reports.estimate.verdict import COUNTED_CLOCKS, PAID_CLOCKS, Clock, Reached, TargetReading, TargetWords
from reports.evidence.runs import BASELINE, FloatArray
from reports.evidence.study import Cell, ScaleStudy, Study, StudyArm


def read_targets(study: Study) -> tuple[TargetReading, ...]:
    """One reading for each arm of each scale, the baseline first; empty where the study has no target."""
    target = study.context.target_loss
    if target is None:
        return ()
    given = study.context.target_given
    return tuple(replace(reading, given=given) for scale in study.scales for reading in _read_scale(scale, target))


@dataclass(frozen=True, slots=True, eq=False)
class _Arm:
    """An arm on the scale's clock; `inversion` is None where it has no curve."""

    arm: StudyArm
    ladder: Ladder | None
    inversion: Inversion | None


def _read_scale(scale: ScaleStudy, target: float) -> list[TargetReading]:
    observations = observe(scale)
    clock = _clock(scale, observations)
    arms = []
    for arm in scale.arms:
        ladder = make_ladder(observations, arm.cells, clock)
        curve = None
        if ladder is not None and len(ladder.cost) > 1:
            curve = invert_ladder(ladder.cost, ladder.loss[None, :], ladder.counts, np.array([target]))
        arms.append(_Arm(arm, ladder, curve))
    baseline = arms[0] if scale.baseline is not None else None
    return [_read_arm(scale, observations, clock, target, one, baseline) for one in arms]


def _clock(scale: ScaleStudy, observations: Observations) -> Clock:
    """The first clock, in the order of what a reader pays, that every confirmed arm has; steps are always known."""
    confirmed = [arm for arm in scale.arms if arm.cells]
    for clock in PAID_CLOCKS:
        if all(make_ladder(observations, arm.cells, clock) is not None for arm in confirmed):
            return clock
    return "steps"


def _read_arm(
    scale: ScaleStudy, observations: Observations, clock: Clock, target: float, one: _Arm, baseline: _Arm | None
) -> TargetReading:
    label = COUNTED_CLOCKS.get(clock, scale.clock_label)
    reading = TargetReading(scale.scale, one.arm.method, clock, label, target, TargetWords.UNCONFIRMED)
    ladder, curve = one.ladder, one.inversion
    if ladder is None:
        return reading
    above, below = _apart(observations, ladder, target)
    # Upwards from the smallest budget until one cannot be told from the target: a fixed order keeps the chance of a wrong
    # bound at 5 % however many budgets there are.
    excluded = len(above) if above.all() else int(above.argmin())
    least = float(ladder.cost[excluded - 1]) if excluded else None
    most = float(ladder.cost[0]) if below[0] else None
    reading = replace(
        reading,
        budgets=len(ladder.cost),
        end_loss=float(ladder.loss[-1]),
        end_cost=float(ladder.cost[-1]),
    )
    if curve is None:
        return replace(reading, words=TargetWords.ONE_BUDGET, lower_bound=least, upper_bound=most)
    if target > ladder.loss.max():
        return replace(reading, words=TargetWords.PASSED, upper_bound=most)
    own_clock = own_clock_error(ladder.cells[0].runs[0], scale.pools) if clock == "gpu_hours" else NO_CLOCK_ERROR
    found = _log_cost(observations, [(ladder, curve, 1.0)], own_clock)
    if target < ladder.loss.min():
        # As for a speedup: not reached is the test's word, and only a curve with an asymptote may be continued.
        exponent = float(curve.curves[0].exponent[0])
        trusted = len(ladder.cost) > 2 and exponent > 0 and found is not None
        if observations.noise is None or above[-1] or not trusted or found is None:
            return replace(reading, words=TargetWords.NOT_REACHED, lower_bound=least)
        reading = replace(reading, words=TargetWords.PROJECTED, cost=found.speedup, interval=found.interval)
        return replace(reading, clock_assumed=own_clock.assumed)
    if found is None:
        return replace(reading, words=TargetWords.NOT_REACHED)
    speedup = (
        None if baseline is None or baseline is one else _speedup(scale, observations, clock, target, baseline, one)
    )
    return replace(
        reading,
        words=TargetWords.REACHED,
        cost=found.speedup,
        interval=found.interval,
        speedup=speedup,
        against=BASELINE if baseline is None else baseline.arm.method,
        clock_assumed=own_clock.assumed,
    )


def _apart(observations: Observations, ladder: Ladder, target: float) -> tuple[np.ndarray, np.ndarray]:
    """Which budgets end above and which below the target, by one-sided t-tests at 5 %; none without a seed deviation."""
    variance, freedom = observations.variance(ladder.means_KN)
    half = np.nan_to_num(t_quantile(CONFIDENCE, freedom) * np.sqrt(variance), nan=np.inf)
    return ladder.loss - target > half, target - ladder.loss > half


def _speedup(
    scale: ScaleStudy, observations: Observations, clock: Clock, target: float, baseline: _Arm, method: _Arm
) -> Reached | None:
    """What the baseline pays for the target over what the method pays, where both ladders hold it."""
    sides = [(one.ladder, one.inversion) for one in (baseline, method)]
    (first, first_curve), (second, second_curve) = sides
    if first is None or second is None or first_curve is None or second_curve is None:
        return None
    if not first.loss.min() <= target <= first.loss.max():
        return None
    error = NO_CLOCK_ERROR
    if clock == "gpu_hours":
        error = clock_error(first.cells[0].runs[0], second.cells[0].runs[0], scale.pools)
    return _log_cost(observations, [(first, first_curve, 1.0), (second, second_curve, -1.0)], error)


def _log_cost(
    observations: Observations, sides: list[tuple[Ladder, Inversion, float]], clock: ClockError
) -> Reached | None:
    """The product of the sides' costs at the target, each to the power of its sign: a cost, or a ratio of two. None where
    a curve is not read.

    In one gradient the noise that two ladders share, a seed's or a trunk's, cancels where it does.
    """
    value = sum(sign * float(curve.log_cost[0]) for _, curve, sign in sides)
    if not math.isfinite(value):
        return None
    terms = [-sign * (curve.weights / curve.slope[:, None]) @ ladder.means_KN for ladder, curve, sign in sides]
    gradient: FloatArray = np.sum(terms, axis=0)
    variance, own_freedom = observations.variance(gradient)
    total, freedom = (
        float(np.ravel(value)[0])
        for value in add_variances((variance, own_freedom), (clock.variance, clock.degrees_of_freedom))
    )
    systematic = sum(float(curve.systematic[0]) for _, curve, _ in sides)
    half = float(t_quantile((1 + CONFIDENCE) / 2, freedom)) * math.sqrt(total) + systematic
    known = math.isfinite(half)
    return Reached(
        speedup=math.exp(value),
        interval=(math.exp(value - half), math.exp(value + half)) if known else None,
        log_standard_error=math.sqrt(total) if known else None,
        degrees_of_freedom=freedom if known else None,
        systematic=systematic,
    )


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
