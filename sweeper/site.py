"""Where and how the stages of a sweep run: nothing here is part of any trial's identity."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from trainers.flops import count_parameters
from trainers.methods import phases_of
from trainers.schedule import number_of_heads
from trainers.spec import TrialSpec
from trainers.stack_stage import STACKED, can_stack


@dataclass(frozen=True, slots=True)
class Site:
    """Where and how stages run: run arguments, no part of any trial's identity.

    `devices_per_trial` below 1 is the share of a GPU that several trials use. `stacks` are the scales whose stages run
    several in one step, with the most of them; `workers` run at once, and stages are spread over them.
    """

    store: str
    stop_file: str
    execution: str
    devices_per_trial: float = 1
    on_gpu: bool = False
    checkpoint_seconds: float = 30.0
    micro_sequences: int | None = None
    checkpoint_activations: bool = False
    disk_bytes: float = math.inf
    stacks: Mapping[str, int] = field(default_factory=dict)
    workers: int = 1

    def execution_of(self, spec: TrialSpec) -> str:
        """The form of a trial's step. Where a scale is stacked, a stage without a companion is a stack of one."""
        return STACKED if spec.scale in self.stacks and can_stack(spec) else self.execution


STATE_BYTES = 12
"""Per parameter in a checkpoint: weight and two moments, float32."""


def state_bytes(spec: TrialSpec) -> int:
    """Size of a trial's state on disk."""
    return STATE_BYTES * count_parameters(spec.shape, number_of_heads(phases_of(spec))).total
