"""What a step costs on this machine before it has run: from what the ledger measured, else from a stated guess.

The guess is for planning only; a report never uses it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from trainers.flops import flops_per_step
from trainers.methods import phases_of
from trainers.record import RunRecord
from trainers.schedule import Phase
from trainers.spec import TrialSpec

ASSUMED_CPU_FLOPS = 2.4e10
"""Useful FLOP/s of one CPU core on small models, float32, eager: measured at nano on a Zen 4 core."""
ASSUMED_GPU_FLOPS = 0.4 * 989e12
"""Useful FLOP/s of one GPU: 40 % of an H200's dense bf16 peak."""


@dataclass(frozen=True, slots=True)
class StepCost:
    """Useful FLOP/s of each (scale, positions a step) on `device`; `flops_per_second` where nothing was measured.

    By FLOPs, because a phase that no trial has reached yet costs what its steps compute.
    """

    measured: dict[tuple[str, int], float]
    flops_per_second: float
    source: str

    def seconds(self, spec: TrialSpec, phase: Phase) -> float:
        """Seconds of one step of a phase of `spec`."""
        rate = self.measured.get((spec.scale, spec.tokens_per_step), self.flops_per_second)
        return flops_per_step(spec, phase) / rate

    def run_seconds(self, spec: TrialSpec) -> float:
        """Seconds of all steps of `spec`, trained by itself."""
        return sum((phase.end - phase.start) * self.seconds(spec, phase) for phase in phases_of(spec))


def step_cost(records: Iterable[RunRecord], device: str, on_gpu: bool) -> StepCost:
    """Medians of what the records measured on `device`, and the guess for the rest."""
    seen: dict[tuple[str, int], list[float]] = {}
    for record in records:
        if record.provenance.device == device:
            spec = record.spec
            phases = {phase.name: phase for phase in phases_of(spec)}
            rates = [
                flops_per_step(spec, phases[timing.phase]) / timing.median_step_seconds
                for timing in record.timing.phases
                if timing.phase in phases and timing.median_step_seconds > 0
            ]
            seen.setdefault((spec.scale, spec.tokens_per_step), []).extend(rates)
    measured = {key: median(rates) for key, rates in seen.items() if rates}
    guess = ASSUMED_GPU_FLOPS if on_gpu else ASSUMED_CPU_FLOPS
    said = f"assumed {guess / 1e12:,.3g} TFLOP/s" if on_gpu else f"assumed {guess / 1e9:,.3g} GFLOP/s"
    source = "measured here by earlier runs" if measured else said
    return StepCost(measured, guess, source)
