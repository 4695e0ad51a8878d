"""Invented sweeps for the report's layout: power-law ladders with seed noise and the phase boundary's jump.

Nothing here was trained. The numbers only have the shape of real ones, so that every kind of page can be looked at.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from reports.evidence.runs import run_from_record
from reports.evidence.study import Study, StudyKind, SweepContext, build_study
from tests.support.strategies import PROVENANCE, spec_of
from trainers.contract.flops import flops_per_position
from trainers.contract.record import (
    Diverged,
    EvalPoint,
    Failed,
    Finished,
    LossCurve,
    Outcome,
    PhaseTiming,
    RunRecord,
    Stopped,
    Timing,
)
from trainers.contract.schedule import data_position, phase_at
from trainers.contract.spec import Scalar, TrialSpec
from trainers.methods import phases_of

LEARNING_RATES = (1e-3, 2e-3, 4e-3)
CORPUS_TOKENS = 6_000_000


@dataclass(frozen=True, slots=True)
class Invented:
    """One invented scale: its truth (`speedup`, `sigma` in nats), how it was searched and how confirmed."""

    scale: str = "nano"
    speedup: float = 1.3
    sigma: float = 0.006
    floor: float = 1.9
    height: float = 1.45
    exponent: float = 0.35
    seeds: int = 3
    baseline_budgets: tuple[int, ...] = (4_000, 6_000, 9_000, 14_000)
    method_budgets: tuple[int, ...] = (4_000, 6_000)
    bag_sizes: tuple[int, ...] = (2, 3, 4, 6)
    step_ratios: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4)
    tuning_steps: int = 2_500
    step_seconds: float = 0.0131
    eval_points: int = 60
    methods: tuple[str, ...] = ("baseline", "tst")
    always_diverges: bool = False
    device: str = "Imaginary CPU 9000"
    devices: int = 1


def final_loss(truth: Invented, spec: TrialSpec, noise: random.Random) -> float:
    """The invented truth: a power law in steps; the method's steps count `speedup` times at its best (s, r)."""
    steps = float(spec.schedule.total_steps)
    penalty = 0.02 * math.log2(spec.schedule.learning_rate / 2e-3) ** 2
    if spec.method != "baseline":
        steps *= truth.speedup
        penalty += 0.015 * math.log2(spec.bag_size / 3) ** 2 + 1.1 * (spec.step_ratio - 0.25) ** 2
    scaling = math.exp(-truth.exponent * math.log(steps / 1_000))
    return truth.floor + truth.height * scaling + penalty + noise.gauss(0, truth.sigma)


def curve_of(truth: Invented, spec: TrialSpec, end_loss: float) -> LossCurve:
    """Evaluations along one run: slow fall, a jump at the phase boundary, and the drop of the decay at the end."""
    phases = phases_of(spec)
    total = spec.schedule.total_steps
    per_position = flops_per_position(spec.shape, spec.context)
    boundary = phases[0].end if len(phases) > 1 else 0
    start = spec.schedule.decay_start
    points = []
    for index in range(1, truth.eval_points + 1):
        step = max(1, round(total * index / truth.eval_points))
        undecayed = end_loss + 0.09 + 0.9 * ((step / total) ** -0.45 - 1) * 0.5
        decayed = 0.09 * max(0.0, step - start) / max(total - start, 1)
        superposed = 1.3 if step <= boundary else 1.2 * math.exp(-(step - boundary) / (0.05 * total))
        loss = undecayed - decayed + (superposed if boundary else 0.0) * (step < total)
        points.append(
            EvalPoint(
                step=step,
                tokens=data_position(phases, spec.tokens_per_step, step),
                flops=step * spec.tokens_per_step * per_position,
                seconds=step * truth.step_seconds,
                loss=end_loss if step == total else loss,
                phase=phase_at(phases, step - 1).name,
            )
        )
    return LossCurve(tuple(points))


def record_of(truth: Invented, spec: TrialSpec, purpose: str, noise: random.Random, order: int = 0) -> RunRecord:
    """One invented run to its end, or diverged where the truth says that all do."""
    end_loss = final_loss(truth, spec, noise)
    outcome: Outcome = Finished(end_loss)
    curve = curve_of(truth, spec, end_loss)
    if truth.always_diverges:
        outcome, curve = Diverged(300, "loss is not finite"), LossCurve(())
    timing = Timing(
        phases=tuple(
            PhaseTiming(phase.name, phase.bag_size, phase.end - phase.start, truth.step_seconds * noise.gauss(1, 0.004))
            for phase in phases_of(spec)
        ),
        devices=truth.devices,
        billed_seconds=spec.schedule.total_steps * truth.step_seconds * 1.08 + 6,
        incurred_seconds=spec.schedule.total_steps * truth.step_seconds * (0.75 if purpose == "tuning" else 0.9),
    )
    moment = f"2026-05-04T{12 + order // 60:02d}:{order % 60:02d}:00+00:00"
    provenance = replace(PROVENANCE, device=truth.device, started_at=moment)
    return RunRecord(spec, purpose, outcome, curve, timing, provenance, CORPUS_TOKENS)


def specs_of(truth: Invented) -> Iterator[tuple[TrialSpec, str]]:
    """Tuning trials of both arms in equal number, then the confirmation cells on fresh seeds."""
    for index, (bag_size, step_ratio) in enumerate((s, r) for s in truth.bag_sizes for r in truth.step_ratios):
        rate = LEARNING_RATES[index % len(LEARNING_RATES)]
        for method in truth.methods:
            yield (
                spec_of(
                    method,
                    scale=truth.scale,
                    seed=0 if method != "baseline" else index // len(LEARNING_RATES),
                    total_steps=truth.tuning_steps,
                    learning_rate=rate,
                    bag_size=bag_size,
                    step_ratio=step_ratio,
                ),
                "tuning",
            )
    for seed in range(1000, 1000 + truth.seeds):
        for method in truth.methods:
            for steps in truth.baseline_budgets if method == "baseline" else truth.method_budgets:
                spec = spec_of(
                    method,
                    scale=truth.scale,
                    seed=seed,
                    total_steps=steps,
                    learning_rate=2e-3,
                    bag_size=3,
                    step_ratio=0.2,
                )
                yield spec, "confirmation"


def records_of(*truths: Invented, seed: int = 0) -> list[RunRecord]:
    """All runs of an invented sweep over the given scales."""
    noise = random.Random(seed)
    records = []
    for truth in truths:
        for order, (spec, purpose) in enumerate(specs_of(truth)):
            records.append(record_of(truth, spec, purpose, noise, order))
    return records


def with_mishaps(records: list[RunRecord]) -> list[RunRecord]:
    """The same sweep where a few tuning trials ended badly, one with a reason that looks like markup."""
    hostile = 'RuntimeError: </script><script>document.title="broken"</script> & <b>"quoted"</b>'
    endings: tuple[Outcome, ...] = (Diverged(412, "loss is not finite"), Failed(hostile), Stopped(900, "by request"))
    tuning = [index for index, record in enumerate(records) if record.purpose == "tuning"]
    changed = list(records)
    for index, outcome in zip(tuning[1::5], endings, strict=False):
        changed[index] = replace(changed[index], outcome=outcome)
    return changed


def context_of(name: str, truths: tuple[Invented, ...], kind: StudyKind = "demo") -> SweepContext:
    """What an invented sweep would say about itself."""
    bags = tuple(sorted({value for truth in truths for value in truth.bag_sizes}))
    ratios = tuple(sorted({value for truth in truths for value in truth.step_ratios}))
    axes: dict[str, dict[str, tuple[Scalar, ...]]] = {
        "baseline": {"learning_rate": LEARNING_RATES},
        "tst": {"bag_size": bags, "learning_rate": LEARNING_RATES, "step_ratio": ratios},
    }
    return SweepContext(
        name=name,
        question="Is token superposition faster at this scale? (invented runs)",
        kind=kind,
        command=f"sweeper report {name}",
        created_at="2026-05-04T18:20:00+00:00",
        git_commit=PROVENANCE.git_commit,
        corpus_description="invented: no text was read",
        search_space_text="name: invented\nscales: [nano]\n",
        axes=axes,
        run_links={},
    )


VARIANTS: dict[str, tuple[Invented, ...]] = {
    "faster": (Invented(seeds=4),),
    "no-difference": (Invented(speedup=1.03, sigma=0.01, seeds=2),),
    "slower": (Invented(speedup=0.7, baseline_budgets=(2_000, 4_000, 6_000, 9_000)),),
    "not-reached": (Invented(speedup=3.5, baseline_budgets=(4_000, 6_000, 9_000)),),
    "single-seed": (Invented(seeds=1),),
    "one-budget": (Invented(baseline_budgets=(6_000,), method_budgets=(6_000,)),),
    "two-budgets": (Invented(baseline_budgets=(4_000, 9_000), method_budgets=(4_000,)),),
    "diverged-only": (Invented(always_diverges=True),),
    "baseline-only": (Invented(methods=("baseline",)),),
    "four-scales": (
        Invented("nano", speedup=1.15, seeds=3),
        Invented("micro", speedup=1.25, seeds=3, floor=1.8, step_seconds=0.02),
        Invented("mini", speedup=1.35, seeds=3, floor=1.6, step_seconds=0.05),
        Invented("1m", speedup=1.5, seeds=3, floor=1.4, step_seconds=0.11),
    ),
    "empty": (),
}
"""Every kind of page, by name."""


def invented_study(variant: str) -> Study:
    """The study of one of `VARIANTS`."""
    truths = VARIANTS[variant]
    runs = [run_from_record(record) for record in with_mishaps(records_of(*truths))]
    return build_study(context_of(f"invented-{variant}", truths), runs)


def many_runs(truth: Invented) -> Study:
    """The study of one invented scale of any size, without mishaps."""
    runs = [run_from_record(record) for record in records_of(truth)]
    return build_study(context_of("invented-large", (truth,)), runs)
