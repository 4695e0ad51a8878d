"""One run as the report sees it, whoever trained it.

Our own records, a CSV of runs trained elsewhere and the published tables all become a `FinishedRun`; what a source
lacks is None, never a guess. Whether a run may enter a claim is decided in `study`, not here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from reports.evidence.units import LossUnit, know_nothing
from trainers.contract.record import (
    WALL,
    Diverged,
    Failed,
    Finished,
    LossCurve,
    Outcome,
    PhaseTiming,
    RunRecord,
    Stopped,
    outcome_name,
)
from trainers.contract.schedule import boundary_step
from trainers.contract.spec import Scalar
from trainers.methods import facts_of

BASELINE = "baseline"
"""The arm that every other method is compared with."""

DECAY_NOT_STATED = "whether the learning rate decayed is not stated"
"""Note on a run from elsewhere that is taken to be decayed."""

FloatArray = NDArray[np.float64]
OutcomeKind = Literal["finished", "stopped", "diverged", "failed"]
Parameters = tuple[tuple[str, Scalar], ...]


@dataclass(frozen=True, slots=True, eq=False)
class RunCurve:
    """In-run validation points, arrays of one length `[points]` in order of `steps`.

    `gpu_hours` is the run's own clock (device-hours), `tokens` data tokens, `losses` nats per token. Arrays that the
    source lacks are None. Nothing here is a final, decayed loss: in-run points never enter a claim.
    """

    steps: FloatArray
    losses: FloatArray
    gpu_hours: FloatArray | None = None
    flops: FloatArray | None = None
    tokens: FloatArray | None = None

    def __len__(self) -> int:
        return len(self.steps)


EMPTY_CURVE = RunCurve(np.zeros(0), np.zeros(0))
NATS_PER_TOKEN = LossUnit()


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """A run whose training is over, well or badly (the outcome says which).

    `parameters` are the method's own, sorted by name (bag_size, step_ratio, ...). `gpu_hours` is the run's own
    steady-state clock as if trained alone, `billed_gpu_hours` adds everything outside the clock, `incurred_gpu_hours`
    is what was paid after shared prefixes. `recipe` identifies model shape, optimizer, warm-up, decay and numerics;
    `validation` and `tokenizer` what the loss was measured on. `trunk` names the training prefix whose noise the run
    shares: branches of one trunk are one statistical unit. `boundary_step` is the first step after the method's first
    phase, 0 without one. `params` are those of the model that is evaluated, without heads that only train it.
    Of runs from elsewhere: `execution` in their own words, `own_learning_rate` where the learning rate is not in the
    baseline's unit, `loss_unit` in which their losses came (here all are nats per token), `vocab_size` of their
    tokenizer, `scores` of downstream tasks, which enter no claim. Of runs from here: `undecayed`, what its file would say for a
    schedule that ends decayed.
    """

    run_id: str
    scale: str
    method: str
    parameters: Parameters
    purpose: str
    total_steps: int
    decayed: bool
    outcome: OutcomeKind
    trunk: str
    reason: str = ""
    learning_rate: float | None = None
    seed: int | None = None
    boundary_step: int | None = None
    final_loss: float | None = None
    gpu_hours: float | None = None
    billed_gpu_hours: float | None = None
    incurred_gpu_hours: float | None = None
    flops: float | None = None
    tokens: float | None = None
    corpus_tokens: int | None = None
    params: float | None = None
    device: str | None = None
    device_kind: str | None = None
    num_devices: float = 1
    precision: str | None = None
    context: int | None = None
    tokens_per_step: int | None = None
    validation: str | None = None
    tokenizer: str | None = None
    undecayed: str = ""
    recipe: str | None = None
    phases: tuple[PhaseTiming, ...] = ()
    curve: RunCurve = EMPTY_CURVE
    notes: tuple[str, ...] = ()
    execution: str | None = None
    own_learning_rate: bool = False
    loss_unit: LossUnit = NATS_PER_TOKEN
    vocab_size: int | None = None
    scores: tuple[tuple[str, float], ...] = ()
    record: RunRecord | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for name in ("final_loss", "gpu_hours", "flops", "tokens", "params", "learning_rate"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise ValueError(f"run {self.run_id}: {name} is {value}; a run without a number has None")
        if (self.final_loss is not None) != (self.outcome == "finished"):
            raise ValueError(f"run {self.run_id}: outcome {self.outcome} with final loss {self.final_loss}")

    @property
    def bag_size(self) -> int:
        """Tokens per latent position in the first phase; 1 without bags."""
        return int(dict(self.parameters).get("bag_size", 1))

    @property
    def step_ratio(self) -> float:
        """Fraction of the steps in the method's first phase; 0 without one."""
        return float(dict(self.parameters).get("step_ratio", 0.0))

    @property
    def wall_time_only(self) -> bool:
        """Whether its hours are a total that somebody else took from a wall clock, which other work may have stretched."""
        return self.record is None and not self.phases and self.gpu_hours is not None

    @property
    def epochs(self) -> float | None:
        """Passes over the training text, where the size of the corpus is known."""
        if not self.corpus_tokens or self.tokens is None:
            return None
        return self.tokens / self.corpus_tokens


def trunk_name(scale: str, method: str, learning_rate: float | None, bag_size: int, seed: int | None, run: str) -> str:
    """Which training prefix a run shares. A run without a seed is a trunk of its own."""
    if seed is None:
        return f"run {run}"
    return f"{scale} {method} lr={learning_rate} s={bag_size} seed={seed}"


def strangest_loss(runs: Iterable[FinishedRun]) -> FinishedRun | None:
    """The run from elsewhere whose final loss lies furthest above ln V, that of a model that knows nothing; None where none
    lies above it. Its losses may be perplexities, or of another unit than was said."""
    above = [
        (run.final_loss - know_nothing(run.vocab_size), run)
        for run in runs
        if run.record is None and run.final_loss is not None
    ]
    most, strangest = max(above, key=lambda found: found[0], default=(0.0, None))
    return strangest if most > 0 else None


def _outcome_reason(outcome: Outcome) -> str:
    match outcome:
        case Finished():
            return ""
        case Stopped(step, reason) | Diverged(step, reason):
            return f"{reason} (step {step})"
        case Failed(reason):
            return reason


def _curve(curve: LossCurve, devices: float) -> RunCurve:
    points = curve.points
    if not points:
        return EMPTY_CURVE
    return RunCurve(
        steps=np.array([point.step for point in points], dtype=np.float64),
        losses=np.array([point.loss for point in points], dtype=np.float64),
        gpu_hours=np.array([point.seconds for point in points], dtype=np.float64) * devices / 3600,
        flops=np.array([point.flops for point in points], dtype=np.float64) if points[-1].flops else None,
        tokens=np.array([point.tokens for point in points], dtype=np.float64) if points[-1].tokens else None,
    )


def run_from_record(record: RunRecord) -> FinishedRun:
    """A record of the ledger as the report sees it. Tokens and FLOPs that are 0 at its end were not counted."""
    facts = facts_of(record.spec)
    spec, timing, provenance = record.spec, record.timing, record.provenance
    finished = isinstance(record.outcome, Finished)
    points = record.curve.points
    kind = outcome_name(record.outcome)
    assert kind in ("finished", "stopped", "diverged", "failed")
    timed = timing.phases[0].steps if finished and len(timing.phases) > 1 else None
    boundary = boundary_step(spec.step_ratio, spec.schedule.total_steps)
    return FinishedRun(
        run_id=spec.spec_id,
        scale=spec.scale,
        method=spec.method,
        parameters=spec.parameters,
        purpose=record.purpose,
        total_steps=spec.schedule.total_steps,
        decayed=finished and facts.decayed,
        undecayed=facts.undecayed,
        outcome=kind,  # type: ignore[arg-type]
        trunk=trunk_name(spec.scale, spec.method, spec.schedule.learning_rate, spec.bag_size, spec.seed, spec.spec_id),
        reason=_outcome_reason(record.outcome),
        learning_rate=spec.schedule.learning_rate,
        seed=spec.seed,
        boundary_step=boundary if timed is None else timed,
        final_loss=record.final_loss,
        gpu_hours=timing.gpu_hours,
        billed_gpu_hours=timing.billed_gpu_hours,
        incurred_gpu_hours=timing.incurred_gpu_hours,
        flops=(points[-1].flops or None) if points else None,
        tokens=float(record.tokens) if record.tokens or not points else None,
        corpus_tokens=record.corpus_tokens,
        params=facts.params,
        # Hours of two clocks compare no better than those of two devices.
        device=provenance.device if timing.clock == WALL else f"{provenance.device}, {timing.clock} time",
        device_kind=provenance.device_kind,
        num_devices=timing.devices,
        precision=facts.precision,
        context=facts.context,
        tokens_per_step=facts.tokens_per_step,
        validation=facts.validation,
        tokenizer=facts.tokenizer,
        recipe=facts.recipe,
        phases=timing.phases,
        curve=_curve(record.curve, timing.devices),
        record=record,
    )
