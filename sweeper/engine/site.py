"""Where and how the stages of a sweep run: nothing here is part of any trial's identity."""

from __future__ import annotations

import math
from dataclasses import dataclass

from trainers.contract.flops import count_parameters
from trainers.contract.schedule import number_of_heads
from trainers.contract.spec import AnySpec, ForeignSpec
from trainers.methods import phases_of


@dataclass(frozen=True, slots=True)
class Site:
    """Where and how stages run: run arguments, no part of any trial's identity.

    `devices_per_trial` below 1 is the share of a GPU that several trials use.
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


STATE_BYTES, WEIGHT_BYTES = 12, 4
"""Per parameter in a checkpoint: weight and two moments, float32; and of the weights alone."""


def state_bytes(spec: AnySpec) -> int:
    """Size of a trial's state on disk; what another trainer leaves there is its own affair."""
    return STATE_BYTES * _parameters(spec)


def weights_bytes(spec: AnySpec) -> int:
    """Size of a trial's weights on disk."""
    return WEIGHT_BYTES * _parameters(spec)


def _parameters(spec: AnySpec) -> int:
    if isinstance(spec, ForeignSpec):
        return 0
    return count_parameters(spec.shape, number_of_heads(phases_of(spec))).total
