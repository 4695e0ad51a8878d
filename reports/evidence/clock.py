"""The GPU-hour clock, pooled: one step time per device, scale, phase and bag size, shared by every run that has it.

On shared cores a single run's step time can be off by more than the speedup in question; a pooled median cannot favour
one arm, because equal work gets an equal price. A machine also grows slower and faster by the minute, and arms train at
different minutes. So only the commonest phase has a price of its own; each other one is priced against it within the runs
that go through both, a moment apart. Runs from elsewhere often state hours only: then each keeps its own, and the spread
of hours per step says how sure the clock is.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from reports.evidence.runs import FinishedRun, FloatArray
from trainers.contract.spec import ForeignSpec

ASSUMED_LOG_ERROR = 0.02
"""Standard error of ln(step time) where a single run measured it: unknown, so stated and flagged."""

WHOLE_RUN = "whole run"
"""Phase name of a pool for runs that state their hours without phases."""

WHOLE_COMMAND = "timed by the whole command, start-up included"
"""Note of a run of another trainer that was brought to the one clock that all runs of its scale have."""

PoolKey = tuple[str, str, str, int]
"""Device, scale, phase, bag size."""


@dataclass(frozen=True, slots=True)
class PooledStepTime:
    """Step time of one (device, scale, phase, bag size), pooled over every run that has it.

    `seconds` is the median of the runs' medians; `log_deviation` the deviation of their logarithms (None from one
    run); `log_standard_error` that of the pooled value; `spread` the largest over the smallest run median.
    Where `reference` names another pool, `seconds` are that pool's times the geometric mean of the ratios within the
    `num_runs` runs that have both, and deviation and error are the ratio's.
    For runs without phases (`phase == "whole run"`) `seconds` are device-seconds a step and hours stay the run's own.
    """

    device: str
    scale: str
    phase: str
    bag_size: int
    seconds: float
    num_runs: int
    log_deviation: float | None
    log_standard_error: float
    spread: float
    reference: PoolKey | None = None

    @property
    def assumed(self) -> bool:
        """Whether the standard error is assumed, not measured."""
        return self.num_runs < 2


def _device(run: FinishedRun) -> str:
    return run.device or "not stated"


def _parts(run: FinishedRun) -> list[tuple[PoolKey, float, float]]:
    """(pool, steps, seconds a step) of every phase of a run; one pseudo-phase where only hours are known."""
    if run.phases:
        return [
            ((_device(run), run.scale, phase.phase, phase.bag_size), float(phase.steps), phase.median_step_seconds)
            for phase in run.phases
            if phase.steps > 0 and phase.median_step_seconds > 0
        ]
    if run.gpu_hours is None or run.total_steps <= 0 or run.gpu_hours <= 0:
        return []
    seconds = run.gpu_hours * 3600 / run.total_steps
    return [((_device(run), run.scale, WHOLE_RUN, run.bag_size), float(run.total_steps), seconds)]


def pool_step_times(runs: Sequence[FinishedRun]) -> dict[PoolKey, PooledStepTime]:
    """Pool the step times of finished runs. Values that agree to nine digits were measured once (a branch inherits the
    clock of its trunk, hours were computed from steps) and count once."""
    # The clock of a run that broke off may be that of a machine in trouble.
    clocks = [{key: seconds for key, _, seconds in _parts(run)} for run in runs if run.outcome == "finished"]
    keys = sorted({key for clock in clocks for key in clock})
    pools = {key: _pool(key, _distinct({clock[key] for clock in clocks if key in clock})) for key in keys}
    for key in keys:
        reference = max((other for other in keys if other[:2] == key[:2]), key=lambda other: pools[other].num_runs)
        both = [(clock[key], clock[reference]) for clock in clocks if key in clock and reference in clock]
        if key != reference and both:
            pools[key] = _against(pools[key], pools[reference], both)
    return pools


def _distinct(values: set[float]) -> FloatArray:
    """The values in ascending order, those that differ by rounding only taken as one."""
    ordered = np.array(sorted(values))
    distinct: FloatArray = ordered[np.concatenate([[True], np.diff(ordered) > 1e-9 * ordered[1:]])]
    return distinct


def _pool(key: PoolKey, seconds: FloatArray) -> PooledStepTime:
    count, (deviation, error) = len(seconds), _scatter(seconds)
    # A median scatters sqrt(pi / 2) times as much as a mean; that of two values is their mean.
    error *= math.sqrt(math.pi / 2) if count > 2 else 1.0
    return PooledStepTime(
        *key, float(np.median(seconds)), count, deviation, error, float(seconds.max() / seconds.min())
    )


def _against(pool: PooledStepTime, reference: PooledStepTime, both: Sequence[tuple[float, float]]) -> PooledStepTime:
    """The pool priced by its ratio to the reference `both` of whose step times a run has."""
    own = np.array([seconds for seconds, _ in both])
    other = np.array([seconds for _, seconds in both])
    # Branches of one trunk have its clock in common: one ratio, against the median of what they went on with.
    ratios = np.array([one / np.median(other[np.isclose(own, one, rtol=1e-9, atol=0)]) for one in _distinct(set(own))])
    deviation, error = _scatter(ratios)
    return replace(
        pool,
        # Few ratios of medians: their mean scatters less than their median would, and a wild one is bounded by its own run.
        seconds=reference.seconds * float(np.exp(np.log(ratios).mean())),
        num_runs=len(ratios),
        log_deviation=deviation,
        log_standard_error=error,
        reference=(reference.device, reference.scale, reference.phase, reference.bag_size),
    )


def _scatter(values: FloatArray) -> tuple[float | None, float]:
    """Deviation of the logarithms, None of one value, and the standard error of their mean."""
    if len(values) < 2:
        return None, ASSUMED_LOG_ERROR
    deviation = float(np.log(values).std(ddof=1))
    return deviation, deviation / math.sqrt(len(values))


def pooled_gpu_hours(run: FinishedRun, pools: Mapping[PoolKey, PooledStepTime]) -> float | None:
    """Device-hours of a run at pooled step times; the run's own where it knows no phases."""
    if not run.phases:
        return run.gpu_hours
    seconds = sum(phase.steps * _phase_seconds(run, phase.phase, phase.bag_size, pools) for phase in run.phases)
    return run.num_devices * seconds / 3600


def _phase_seconds(run: FinishedRun, phase: str, bag_size: int, pools: Mapping[PoolKey, PooledStepTime]) -> float:
    pool = pools.get((_device(run), run.scale, phase, bag_size))
    if pool is not None:
        return pool.seconds
    return next(p.median_step_seconds for p in run.phases if (p.phase, p.bag_size) == (phase, bag_size))


def pooled_curve_hours(run: FinishedRun, pools: Mapping[PoolKey, PooledStepTime]) -> FloatArray | None:
    """Pooled device-hours at every point of a run's curve `[points]`; the run's own clock without phases."""
    if not run.phases:
        return run.curve.gpu_hours
    hours = np.zeros(len(run.curve))
    start = 0.0
    for phase in run.phases:
        done = np.clip(run.curve.steps - start, 0, phase.steps)
        hours += done * _phase_seconds(run, phase.phase, phase.bag_size, pools) * run.num_devices / 3600
        start += phase.steps
    return hours


def clock_shares(run: FinishedRun, pools: Mapping[PoolKey, PooledStepTime]) -> dict[PoolKey, float]:
    """Which part of the run's hours each pool makes up; the parts sum to one. Empty where the clock is unknown."""
    parts = [(key, steps * (pools[key].seconds if key in pools else seconds)) for key, steps, seconds in _parts(run)]
    total = sum(value for _, value in parts)
    shares: dict[PoolKey, float] = defaultdict(float)
    for key, value in parts:
        shares[key] += value / total
    return dict(shares)


def on_one_clock(runs: Sequence[FinishedRun]) -> list[FinishedRun]:
    """The runs, those of another trainer with one clock a scale. Where some said enough for a clock of their steps and others
    did not (a short run has few points), all are timed by what their commands took: a clock leaves no loss out."""
    clocks: defaultdict[str, set[str]] = defaultdict(set)
    for run in runs:
        if run.outcome == "finished" and run.purpose == "confirmation" and (clock := _foreign_clock(run)) is not None:
            clocks[run.scale].add(clock)
    mixed = {scale for scale, found in clocks.items() if len(found) > 1}
    return [_by_the_whole_command(run) if run.scale in mixed else run for run in runs]


def clock_note(runs: Sequence[FinishedRun]) -> str:
    """One sentence on scales whose runs were brought to one clock; empty without one."""
    scales = ", ".join(dict.fromkeys(run.scale for run in runs if WHOLE_COMMAND in run.notes))
    return f"Hours at {scales} are {WHOLE_COMMAND}: its runs had different clocks." if scales else ""


def _foreign_clock(run: FinishedRun) -> str | None:
    record = run.record
    return record.timing.clock if record is not None and isinstance(record.spec, ForeignSpec) else None


def _by_the_whole_command(run: FinishedRun) -> FinishedRun:
    if _foreign_clock(run) is None or run.record is None or not run.gpu_hours or run.billed_gpu_hours is None:
        return run
    longer = run.billed_gpu_hours / run.gpu_hours
    hours = None if run.curve.gpu_hours is None else run.curve.gpu_hours * longer
    return replace(
        run,
        gpu_hours=run.billed_gpu_hours,
        device=f"{run.record.provenance.device}, {WHOLE_COMMAND}",
        phases=(),  # a short run has more start-up a step than a long one: no pooled step time is either's
        curve=replace(run.curve, gpu_hours=hours),
        notes=(*run.notes, WHOLE_COMMAND),
    )
