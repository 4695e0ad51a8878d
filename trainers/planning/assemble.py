"""From the stages that a trial went through to its record, as if it had been trained alone.

A record must not show which trials happened to share its prefix: points are those that a run of its own would have, the
clock is steps times median step time, and only `incurred_seconds` tells who paid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from trainers.contract.flops import flops_at
from trainers.contract.record import (
    WALL,
    Diverged,
    EvalPoint,
    Failed,
    Finished,
    LossCurve,
    Outcome,
    PhaseTiming,
    Provenance,
    RunRecord,
    Stopped,
    Timing,
)
from trainers.contract.schedule import Phase, data_position
from trainers.contract.spec import AnySpec, ForeignSpec, Spec
from trainers.contract.stage import PointCost, StagePoint, StageResult
from trainers.methods import phases_of


def is_evaluated(step: int, phases: tuple[Phase, ...], total_steps: int, evaluate_every: int) -> bool:
    """Whether a run trained alone evaluates after `step` steps: on its grid, at its phases' ends, at its own."""
    on_grid = evaluate_every > 0 and step % evaluate_every == 0
    return on_grid or step == total_steps or any(step == phase.end for phase in phases)


def on_devices(chain: Sequence[StageResult], devices: float) -> list[StageResult]:
    """The stages with the clock of `devices`: one that was trained on another number keeps its device-seconds."""
    return [
        replace(
            part,
            timings=tuple(replace(t, median_step_seconds=t.median_step_seconds * ratio) for t in part.timings),
            billed_seconds=part.billed_seconds * ratio,
            devices=devices,
        )
        for part in chain
        for ratio in (part.devices / devices,)
    ]


def phase_timings(chain: Sequence[StageResult]) -> tuple[PhaseTiming, ...]:
    """The clock of each phase over all stages; medians of one phase are averaged by their steps."""
    gathered: dict[tuple[str, int], list[PhaseTiming]] = {}
    for stage in chain:
        for timing in stage.timings:
            gathered.setdefault((timing.phase, timing.bag_size), []).append(timing)
    merged = []
    for (name, bag_size), parts in gathered.items():
        steps = sum(part.steps for part in parts)
        seconds = sum(part.steps * part.median_step_seconds for part in parts)
        merged.append(PhaseTiming(name, bag_size, steps, seconds / steps))
    return tuple(merged)


def _seconds_at(step: int, timings: tuple[PhaseTiming, ...]) -> float:
    seconds = 0.0
    for timing in timings:
        counted = min(step, timing.steps)
        seconds += counted * timing.median_step_seconds
        step -= counted
    return seconds


def assemble_record(
    spec: AnySpec,
    purpose: str,
    chain: Sequence[StageResult],
    provenance: Provenance,
    *,
    devices: float,
    corpus_tokens: int,
    evaluate_every: int,
    failure: str | None = None,
) -> RunRecord:
    """The record of `spec` from the stages on its way, first to last.

    The way may break off early: at a divergence (`chain[-1].outcome`), or by a `failure` of program or machine. Raises
    `ValueError` when the stages do not follow one another from step 0 or end short for no reason.
    """
    phases, total = phases_of(spec), spec.schedule.total_steps
    # Stages come from a disk that may have lost some: a gap here would be a curve with training missing, and no error.
    step = 0
    for part in chain:
        if part.start != step:
            raise ValueError(
                f"trial {spec.spec_id}: a stage starts at step {part.start}, the one before ended at {step}"
            )
        step = part.end
    chain = on_devices(chain, devices)
    timings = phase_timings(chain)
    points = tuple(
        _eval_point(total, point, point.cost or _counted(spec, phases, point.step, timings))
        for part in chain
        for point in part.points
        if point.cost is not None or is_evaluated(point.step, phases, total, evaluate_every)
    )
    return RunRecord(
        spec=spec,
        purpose=purpose,
        outcome=_outcome(spec, chain, points, failure),
        curve=LossCurve(points),
        timing=Timing(
            phases=timings,
            devices=devices,
            billed_seconds=sum(part.billed_seconds for part in chain),
            # Each stage is paid for once, by the trial that it is booked on; summed over trials this is what the sweep
            # spent.
            incurred_seconds=sum(part.billed_seconds for part in chain if part.booked_by == spec.spec_id),
            clock=" + ".join(dict.fromkeys(part.clock for part in chain)) or WALL,
        ),
        provenance=_with_attention(provenance, chain),
        corpus_tokens=corpus_tokens,
        score=next((point.score for part in chain for point in part.points if point.step == total), None),
    )


def _counted(spec: AnySpec, phases: tuple[Phase, ...], step: int, timings: tuple[PhaseTiming, ...]) -> PointCost:
    """What `step` steps cost by arithmetic. Of another trainer's steps only the clock is known."""
    seconds = _seconds_at(step, timings)
    if isinstance(spec, ForeignSpec):
        return PointCost(seconds)
    return PointCost(seconds, data_position(phases, spec.tokens_per_step, step), flops_at(spec, phases, step))


def _eval_point(total_steps: int, point: StagePoint, cost: PointCost) -> EvalPoint:
    return EvalPoint(
        step=point.step,
        tokens=cost.tokens,
        flops=cost.flops,
        seconds=cost.seconds,
        loss=point.loss if point.step < total_steps or point.score is None else point.score.loss,
        phase=point.phase,
        routing=point.routing,
    )


def _with_attention(provenance: Provenance, chain: Sequence[StageResult]) -> Provenance:
    """Which attention kernel trained the run stands beside the versions: it rounds in its own way."""
    kernels = " + ".join(dict.fromkeys(part.attention for part in chain if part.attention))
    if not kernels:
        return provenance
    return replace(provenance, versions=tuple(sorted({**dict(provenance.versions), "attention": kernels}.items())))


def _outcome(spec: Spec, chain: Sequence[StageResult], points: tuple[EvalPoint, ...], failure: str | None) -> Outcome:
    if failure is not None:
        return Failed(failure)
    last = chain[-1].outcome if chain else None
    if isinstance(last, Diverged | Stopped | Failed):
        return last
    if not points or points[-1].step != spec.schedule.total_steps:
        raise ValueError(f"trial {spec.spec_id}: its stages end before step {spec.schedule.total_steps}")
    return Finished(points[-1].loss)
