"""What another trainer's steps cost, as far as anybody has measured it: earlier trials, else a dry run, else a stated guess."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median

from sweeper.foreign.trainer import ForeignTrainer
from trainers.contract.record import RunRecord
from trainers.contract.schedule import Phase
from trainers.contract.spec import AnySpec, ForeignSpec

GUESS_SECONDS = 1.0
Arm = tuple[str, str]
"""Scale and method."""


@dataclass(frozen=True, slots=True)
class DryTimes:
    """Seconds a step that a dry run measured, and those that are no more than a bound: the start-up is in them."""

    seconds: Mapping[Arm, float] = field(default_factory=dict)
    at_most: Mapping[Arm, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CommandCost:
    """Seconds a step of each arm; an arm that nobody has seen costs what the scale's others do, else those of any scale."""

    trainer: ForeignTrainer
    measured: Mapping[Arm, float]
    source: str

    def seconds(self, spec: AnySpec, phase: Phase) -> float:
        """Seconds of one step of a trial."""
        near = [(spec.scale, spec.method)], [key for key in self.measured if key[0] == spec.scale], list(self.measured)
        for keys in near:
            known = [self.measured[key] for key in keys if key in self.measured]
            if known:
                return median(known)
        return GUESS_SECONDS

    def counts(self, spec: AnySpec) -> tuple[int, float]:
        """Data tokens and model FLOPs of a whole run, 0 for what the file does not say."""
        assert isinstance(spec, ForeignSpec)
        end = spec.schedule.total_steps
        return self.trainer.tokens_at(spec, end), self.trainer.flops_at(end)


def command_cost(trainer: ForeignTrainer, records: Iterable[RunRecord], devices: float, dry: DryTimes) -> CommandCost:
    """From the records of trials on as many devices, else from a `dry` run, whose bounds count where there is nothing else."""
    seen: defaultdict[Arm, list[float]] = defaultdict(list)
    for record in records:
        if record.timing.devices == devices and record.final_loss is not None:
            steps = sum(phase.steps for phase in record.timing.phases)
            if steps:
                seen[record.spec.scale, record.spec.method].append(record.timing.step_seconds / steps)
    measured: Mapping[Arm, float] = {**dry.seconds, **{arm: median(values) for arm, values in seen.items()}}
    if seen:
        source = "measured here by earlier runs" + (", else by a dry run" if dry.seconds else "")
    elif dry.seconds:
        source = "measured by a dry run"
    elif dry.at_most:
        measured = dry.at_most
        source = f"at most {max(measured.values()):.2g} s a step by a dry run, start-up included"
    else:
        source = f"assumed {GUESS_SECONDS:g} s a step; `sweeper run FILE --dry` measures one"
    return CommandCost(trainer, measured, source)
