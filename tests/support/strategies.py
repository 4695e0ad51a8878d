"""Specs and records for tests: two plain builders of realistic ones, and Hypothesis strategies over everything valid.

The builders keep the physics right (tokens, FLOPs and the clock follow from the schedule), so that what is tested on
them is what a sweep would produce. The strategies vary every field that a ledger or a report has to carry.
"""

from __future__ import annotations

import math

from hypothesis import strategies as st

from trainers.contract.flops import flops_per_position
from trainers.contract.record import (
    PURPOSES,
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
    outcome_name,
)
from trainers.contract.scales import SCALES
from trainers.contract.schedule import data_position, phase_at
from trainers.contract.spec import Optimizer, Scalar, Schedule, TrialSpec
from trainers.methods import phases_of
from trainers.methods.parameters import WEIGHTINGS

SMALL_SCALES = ("nano", "micro", "mini")

PROVENANCE = Provenance(
    git_commit="0123456789abcdef0123456789abcdef01234567",
    git_dirty=False,
    device="Imaginary CPU 9000",
    device_kind="cpu",
    execution="eager",
    versions=(("python", "3.11.9"), ("torch", "2.13.0")),
    started_at="2026-05-04T12:00:00+00:00",
)


def spec_of(
    method: str = "baseline",
    *,
    scale: str = "nano",
    seed: int = 0,
    total_steps: int = 4_000,
    learning_rate: float = 2.8e-3,
    bag_size: int = 3,
    step_ratio: float = 0.2,
    bag_weighting: str = "uniform",
    warmup_steps: int = 200,
    decay_steps: int | None = None,
    corpus: str = "c0ffee",
) -> TrialSpec:
    """A quickstart-like trial. The bag's parameters are ignored by the baseline, which has none."""
    parameters: tuple[tuple[str, Scalar], ...] = ()
    if method == "tst":
        parameters = (("bag_size", bag_size), ("bag_weighting", bag_weighting), ("step_ratio", step_ratio))
    decay = total_steps // 5 if decay_steps is None else decay_steps
    return TrialSpec(
        scale=scale,
        shape=SCALES[scale].shape,
        method=method,
        parameters=parameters,
        corpus_fingerprint=corpus,
        tokenizer_fingerprint="deadbeef",
        context=64,
        tokens_per_step=512,
        validation_tokens=65_536,
        schedule=Schedule(total_steps, min(warmup_steps, total_steps - decay), decay, learning_rate),
        optimizer=Optimizer(),
        precision="fp32",
        seed=seed,
    )


def curve_of(spec: TrialSpec, num_points: int, final_loss: float, step_seconds: float, last_step: int) -> LossCurve:
    """A falling curve that ends at `final_loss` on `last_step`, with the clocks that the schedule implies."""
    phases = phases_of(spec)
    flops_per_step = flops_per_position(spec.shape, spec.context) * spec.tokens_per_step
    steps = sorted({max(1, round(last_step * index / num_points)) for index in range(1, num_points + 1)})
    return LossCurve(
        tuple(
            EvalPoint(
                step=step,
                tokens=data_position(phases, spec.tokens_per_step, step),
                flops=flops_per_step * step,
                seconds=step * step_seconds,
                loss=final_loss + 2.0 * (math.sqrt(last_step / step) - 1.0),
                phase=phase_at(phases, step - 1).name,
            )
            for step in steps
        )
    )


def record_of(
    spec: TrialSpec,
    *,
    purpose: str = "confirmation",
    final_loss: float = 2.7,
    num_points: int = 20,
    step_seconds: float = 0.0125,
    outcome: Outcome | None = None,
    provenance: Provenance = PROVENANCE,
    corpus_tokens: int = 6_000_000,
    devices: int = 1,
) -> RunRecord:
    """A finished run of `spec`, or one that ended with `outcome` at that outcome's step (half-way for a failure)."""
    total = spec.schedule.total_steps
    match outcome:
        case Stopped(step=step) | Diverged(step=step):
            last_step = max(1, min(step, total))
        case Failed():
            last_step = max(1, total // 2)
        case _:
            last_step = total
    curve = curve_of(spec, num_points, final_loss, step_seconds, last_step) if num_points else LossCurve(())
    phases = tuple(
        PhaseTiming(phase.name, phase.bag_size, min(phase.end, last_step) - phase.start, step_seconds)
        for phase in phases_of(spec)
        if phase.start < last_step
    )
    seconds = last_step * step_seconds
    return RunRecord(
        spec=spec,
        purpose=purpose,
        outcome=Finished(final_loss) if outcome is None else outcome,
        curve=curve,
        timing=Timing(phases, devices=devices, billed_seconds=1.2 * seconds + 3.0, incurred_seconds=0.9 * seconds),
        provenance=provenance,
        corpus_tokens=corpus_tokens,
    )


_words = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1, max_size=30)
_hex = st.text("0123456789abcdef", min_size=8, max_size=40)


@st.composite
def trial_specs(draw: st.DrawFn) -> TrialSpec:
    """Any trial of a small scale that the methods accept, with learning rates and ratios of any spelling."""
    total_steps = draw(st.integers(1, 50_000))
    decay_steps = draw(st.integers(0, total_steps))
    return spec_of(
        draw(st.sampled_from(("baseline", "tst"))),
        scale=draw(st.sampled_from(SMALL_SCALES)),
        seed=draw(st.integers(0, 2_000)),
        total_steps=total_steps,
        learning_rate=draw(st.floats(1e-6, 1.0, allow_nan=False)),
        bag_size=draw(st.integers(1, 32)),
        step_ratio=draw(st.floats(0.0, 1.0, allow_nan=False)),
        bag_weighting=draw(st.sampled_from(WEIGHTINGS)),
        warmup_steps=draw(st.integers(0, total_steps - decay_steps)),
        decay_steps=decay_steps,
        corpus=draw(_hex),
    )


def outcomes(total_steps: int, final_loss: float) -> st.SearchStrategy[Outcome]:
    """Each way in which a run can end; reasons are free text, as error messages are."""
    steps = st.integers(1, total_steps)
    return st.one_of(
        st.just(Finished(final_loss)),
        st.builds(Stopped, steps, _words),
        st.builds(Diverged, steps, _words),
        st.builds(Failed, _words),
    )


provenances: st.SearchStrategy[Provenance] = st.builds(
    Provenance,
    git_commit=st.one_of(_hex, st.just("unknown")),
    git_dirty=st.booleans(),
    device=_words,
    device_kind=st.sampled_from(("cpu", "cuda")),
    execution=st.sampled_from(("eager", "compiled", "captured")),
    versions=st.dictionaries(st.sampled_from(("python", "torch", "ray", "mlflow")), _words).map(
        lambda versions: tuple(sorted(versions.items()))
    ),
    started_at=st.datetimes().map(lambda moment: moment.isoformat()),
)


@st.composite
def run_records(draw: st.DrawFn, specs: st.SearchStrategy[TrialSpec] | None = None, max_points: int = 30) -> RunRecord:
    """Any record of a trial from `specs` (default `trial_specs()`): every outcome and purpose, curves empty to long."""
    spec = draw(trial_specs() if specs is None else specs)
    final_loss = draw(st.floats(0.1, 20.0, allow_nan=False))
    outcome = draw(outcomes(spec.schedule.total_steps, final_loss))
    has_curve = outcome_name(outcome) == "finished"
    return record_of(
        spec,
        purpose=draw(st.sampled_from(PURPOSES)),
        final_loss=final_loss,
        num_points=draw(st.integers(1 if has_curve else 0, max_points)),
        step_seconds=draw(st.floats(1e-5, 100.0, allow_nan=False)),
        outcome=outcome,
        provenance=draw(provenances),
        corpus_tokens=draw(st.integers(0, 10**12)),
        devices=draw(st.integers(1, 64)),
    )
