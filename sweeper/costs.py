"""What a step costs on this machine before it has run: from what the ledger measured, else from a stated guess.

The guess is for planning only; a report never uses it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from trainers.flops import flops_per_position
from trainers.record import RunRecord
from trainers.spec import TrialSpec

ASSUMED_CPU_FLOPS = 2.4e10
"""Useful FLOP/s of one CPU core on small models, float32, eager: measured at nano on a Zen 4 core."""
ASSUMED_GPU_FLOPS = 0.4 * 989e12
"""Useful FLOP/s of one GPU: 40 % of an H200's dense bf16 peak."""


@dataclass(frozen=True, slots=True)
class StepCost:
    """Seconds a step of each (scale, positions a step) on `device`; `flops_per_second` where nothing was measured."""

    measured: dict[tuple[str, int], float]
    flops_per_second: float
    source: str

    def seconds(self, spec: TrialSpec) -> float:
        """Seconds of one step of `spec`; superposition steps cost what ordinary ones cost (equal FLOPs)."""
        known = self.measured.get((spec.scale, spec.tokens_per_step))
        if known is not None:
            return known
        return flops_per_position(spec.shape, spec.context) * spec.tokens_per_step / self.flops_per_second


def step_cost(records: Iterable[RunRecord], device: str, on_gpu: bool) -> StepCost:
    """Medians of what the records measured on `device`, and the guess for the rest."""
    seen: dict[tuple[str, int], list[float]] = {}
    for record in records:
        if record.provenance.device == device:
            times = [phase.median_step_seconds for phase in record.timing.phases]
            seen.setdefault((record.spec.scale, record.spec.tokens_per_step), []).extend(times)
    measured = {key: median(times) for key, times in seen.items() if times}
    guess = ASSUMED_GPU_FLOPS if on_gpu else ASSUMED_CPU_FLOPS
    said = f"assumed {guess / 1e12:,.3g} TFLOP/s" if on_gpu else f"assumed {guess / 1e9:,.3g} GFLOP/s"
    source = "measured here by earlier runs" if measured else said
    return StepCost(measured, guess, source)
