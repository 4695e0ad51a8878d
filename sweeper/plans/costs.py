"""What a step costs on this machine before it has run: from what the ledger measured, else from this device's bench, else
from a stated guess.

Bench and guess are for planning only; a report never uses them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median
from typing import Protocol

from trainers.bench.result import DeviceFigures
from trainers.contract.errors import UserError
from trainers.contract.flops import flops_at, flops_per_position, flops_per_step
from trainers.contract.record import MOST_SECONDS, RunRecord
from trainers.contract.schedule import Phase, data_position
from trainers.contract.spec import AnySpec, TrialSpec, own
from trainers.methods import phases_of

SECONDS_A_YEAR = 365.25 * 86_400
ASSUMED_CPU_FLOPS = 2.4e10
"""Useful FLOP/s of one CPU core on small models, float32, eager: measured at nano on a Zen 4 core."""
ASSUMED_GPU_FLOPS = 0.4 * 989e12
"""Useful FLOP/s of one GPU: 40 % of an H200's dense bf16 peak."""


class Costs(Protocol):
    """What trials cost, whoever trains them; `source` says in words where that is known from."""

    @property
    def source(self) -> str: ...

    def seconds(self, spec: AnySpec, phase: Phase) -> float:
        """Seconds of one step of a phase of `spec`."""
        ...

    def counts(self, spec: AnySpec) -> tuple[int, float]:
        """Data tokens and model FLOPs of a whole run, 0 for what is not known."""
        ...


def run_seconds(cost: Costs, spec: AnySpec) -> float:
    """Seconds of all steps of `spec`, trained by itself."""
    return sum((phase.end - phase.start) * cost.seconds(spec, phase) for phase in phases_of(spec))


def step_seconds(cost: Costs, spec: AnySpec, phase: Phase) -> float:
    """Seconds of one step of a run that can be recorded. Raises `UserError` for one that nobody would see the end of."""
    seconds, steps = cost.seconds(spec, phase), spec.schedule.total_steps
    if seconds * steps > MOST_SECONDS:
        raise UserError(
            f"budgets: {steps:,} steps of {spec.method} at {spec.scale} take {seconds * steps / SECONDS_A_YEAR:,.0f} years; "
            f"no run may take more than {MOST_SECONDS / SECONDS_A_YEAR:.0f}"
        )
    return seconds


@dataclass(frozen=True, slots=True)
class StepCost:
    """Useful FLOP/s of each (scale, positions a step) on `device`; where nothing was measured, `ranks`
    times the bench's, else `flops_per_second`.

    By FLOPs, because a phase that no trial has reached yet costs what its steps compute.
    """

    measured: dict[tuple[str, int], float]
    flops_per_second: float
    source: str
    bench: DeviceFigures | None = None
    ranks: float = 1

    def seconds(self, spec: AnySpec, phase: Phase) -> float:
        """See `Costs`."""
        spec = own(spec)
        rate = self.measured.get((spec.scale, spec.tokens_per_step))
        return flops_per_step(spec, phase) / (self._expected_rate(spec) if rate is None else rate)

    def counts(self, spec: AnySpec) -> tuple[int, float]:
        """See `Costs`."""
        phases, end = phases_of(spec), spec.schedule.total_steps
        return data_position(phases, own(spec).tokens_per_step, end), flops_at(own(spec), phases, end)

    def _expected_rate(self, spec: TrialSpec) -> float:
        """FLOP/s by the bench: its own at this scale, else that of the scale whose positions cost most nearly the same."""
        if self.bench is None:
            return self.flops_per_second
        wanted, sizes = flops_per_position(spec.shape, spec.context), self.bench.flops_per_position
        # Models of a like size keep a device about as busy; a tiny one's rate would be far too low for a large one.
        nearest = min(sizes, key=lambda name: (name != spec.scale, abs(math.log(sizes[name] / wanted))))
        return self.ranks * self.bench.flops_per_second[nearest]


def _source(measured: bool, bench: DeviceFigures | None, guess: str) -> str:
    """Where step times are from, in words; what is named first is used wherever it has the scale."""
    benched = ""
    if bench is not None:
        scales = ", ".join(bench.flops_per_second)
        benched = f"this device's bench of {bench.date[:10]} ({bench.form}; {scales})"
    if measured:
        return "measured here by earlier runs" + (f", else from {benched}" if benched else "")
    return f"from {benched}" if benched else guess


def step_cost(
    records: Iterable[RunRecord],
    device: str,
    on_gpu: bool,
    bench: DeviceFigures | None = None,
    devices: float = 1,
    ranks: float = 1,
) -> StepCost:
    """Medians of what the records measured on `devices` of the kind `device`; one device's `bench`, or the guess, for the rest.

    Bench and guess let `ranks` compute at their full rate, as if they had nothing to tell each other; below 1 it is the
    share that a trial has of a device, whose rate the trials there then have between them.
    """
    seen: dict[tuple[str, int], list[float]] = {}
    for record in records:
        if (record.provenance.device, record.timing.devices) == (device, devices):
            spec = own(record.spec)
            phases = {phase.name: phase for phase in phases_of(spec)}
            # FLOP/s rather than seconds: a rate measured in one phase then prices the phases that no trial has
            # reached.
            rates = [
                flops_per_step(spec, phases[timing.phase]) / timing.median_step_seconds
                for timing in record.timing.phases
                if timing.phase in phases and timing.median_step_seconds > 0
            ]
            seen.setdefault((spec.scale, spec.tokens_per_step), []).extend(rates)
    measured = {key: median(rates) for key, rates in seen.items() if rates}
    guess = ASSUMED_GPU_FLOPS if on_gpu else ASSUMED_CPU_FLOPS
    said = f"assumed {guess / 1e12:,.3g} TFLOP/s" if on_gpu else f"assumed {guess / 1e9:,.3g} GFLOP/s"
    return StepCost(measured, ranks * guess, _source(bool(measured), bench, said), bench, ranks)
