"""Runs and studies with exact numbers for the tests of the estimators: nothing is trained and nothing is random.

A ladder follows `E + A * (steps / 1000)^-a`; the method's steps count `speedup` times. Seeds shift a whole trunk by the
offsets that are given, so every mean and variance can be worked out by hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from reports.evidence.runs import FinishedRun, trunk_name
from reports.evidence.study import Study, SweepContext, build_study
from trainers.contract.record import PhaseTiming

FLOOR, HEIGHT, EXPONENT = 2.0, 1.2, 0.3
STEP_SECONDS = 0.36  # 10,000 steps are one hour
OFFSETS = (-0.004, 0.0, 0.004)


def true_loss(steps: float) -> float:
    """The exact ladder of these tests."""
    return FLOOR + HEIGHT * (steps / 1_000) ** -EXPONENT


def make_run(method: str, steps: int, seed: int | None, loss: float | None, **changes: Any) -> FinishedRun:
    """A finished, decayed confirmation run on a CPU; `changes` overrides any field."""
    bag_size = 1 if method == "baseline" else 4
    ratio = 0.0 if method == "baseline" else 0.25
    boundary = round(ratio * steps)
    scale, rate, purpose = (
        changes.get("scale", "nano"),
        changes.get("learning_rate", 2e-3),
        changes.get("purpose", "confirmation"),
    )
    run_id = changes.pop("run_id", f"{scale}-{method}-{rate}-{steps}-{seed}-{purpose}")
    phases = tuple(
        PhaseTiming(name, size, count, STEP_SECONDS)
        for name, size, count in (("superposition", bag_size, boundary), ("next-token", 1, steps - boundary))
        if count
    )
    run = FinishedRun(
        run_id=run_id,
        scale=scale,
        method=method,
        parameters=() if method == "baseline" else (("bag_size", bag_size), ("step_ratio", ratio)),
        purpose=purpose,
        total_steps=steps,
        decayed=True,
        outcome="finished" if loss is not None else "diverged",
        trunk=trunk_name(scale, method, rate, bag_size, seed, run_id),
        learning_rate=rate,
        seed=seed,
        boundary_step=boundary,
        final_loss=loss,
        gpu_hours=steps * STEP_SECONDS / 3600,
        flops=1e9 * steps,
        tokens=512.0 * (boundary * bag_size + steps - boundary),
        corpus_tokens=10_000_000,
        params=1e5,
        device="a processor",
        device_kind="cpu",
        precision="fp32",
        context=64,
        tokens_per_step=512,
        validation="text/65536",
        tokenizer="bpe",
        recipe="recipe",
        phases=phases,
    )
    return replace(run, **changes)


def ladder(
    method: str = "baseline",
    budgets: Sequence[int] = (4_000, 6_000, 8_000),
    *,
    speedup: float = 1.0,
    offsets: Sequence[float] = OFFSETS,
    **changes: Any,
) -> list[FinishedRun]:
    """Confirmation runs of an arm: one trunk a seed (1000, 1001, ...), shifted as a whole by its offset."""
    return [
        make_run(method, steps, 1000 + number, true_loss(speedup * steps) + offset, **changes)
        for steps in budgets
        for number, offset in enumerate(offsets)
    ]


def tuning(method: str, rates: Sequence[float] = (1e-3, 2e-3, 4e-3), **changes: Any) -> list[FinishedRun]:
    """Tuning trials of an arm, one a learning rate, at 2,500 steps and search seed 0."""
    return [make_run(method, 2_500, 0, 3.0 + rate, learning_rate=rate, purpose="tuning", **changes) for rate in rates]


def make_study(runs: Sequence[FinishedRun], **context: Any) -> Study:
    """A study with a plain context."""
    return build_study(SweepContext(**{"name": "test", "question": "Is it faster?", **context}), runs)


def sweep(speedup: float = 1.3, *, method_budgets: Sequence[int] = (4_000,), **context: Any) -> Study:
    """A whole sweep: equal tuning, a ladder of three, three seeds, one method with a true speedup in steps."""
    runs = [*tuning("baseline"), *tuning("tst"), *ladder(), *ladder("tst", method_budgets, speedup=speedup)]
    return make_study(runs, **context)
