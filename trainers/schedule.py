"""The run as a function of the step: which phase, which learning rate, which data. Pure, without torch.

Sharing a prefix of training between trials is only sound because everything that differs between two steps is decided
here, from the spec and the step alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from trainers.spec import Schedule


@dataclass(frozen=True, slots=True)
class Phase:
    """Steps `[start, end)` trained with one objective.

    `bag_size` tokens are averaged into each latent position; each position predicts the next `target_size` tokens with
    the weights named by `weighting`. Both are 1 in ordinary next-token training.
    """

    name: str
    start: int
    end: int
    bag_size: int = 1
    target_size: int = 1
    weighting: str = "uniform"


def boundary_step(step_ratio: float, total_steps: int) -> int:
    """First step after the superposition phase: `floor(r*T + 0.5)`."""
    return math.floor(step_ratio * total_steps + 0.5)


def learning_rates(schedule: Schedule) -> np.ndarray:
    """The learning rate of every step, float32 `[total_steps]`: linear warm-up, constant, linear decay towards zero.

    Warm-up reaches the peak at step `warmup_steps - 1`; the decay's first step still has the peak, its last has
    `1/decay_steps` of it. One table, so that every executor and every resumed run multiplies by the same numbers.
    """
    step = np.arange(schedule.total_steps, dtype=np.float64)
    factor = np.ones_like(step)
    if schedule.warmup_steps:
        factor = np.minimum(factor, (step + 1) / schedule.warmup_steps)
    if schedule.decay_steps:
        factor = np.minimum(factor, (schedule.total_steps - step) / schedule.decay_steps)
    return (schedule.learning_rate * factor).astype(np.float32)


def phase_at(phases: tuple[Phase, ...], step: int) -> Phase:
    """The phase that trains `step`. Phases are contiguous from 0, in order, and none is empty."""
    for phase in phases:
        if phase.start <= step < phase.end:
            return phase
    raise IndexError(f"step {step} is outside the run's {phases[-1].end} steps")


def data_position(phases: tuple[Phase, ...], tokens_per_step: int, step: int) -> int:
    """Stream position of the first token of `step`, in data tokens: the closed form of counting what was read.

    For TST it is `B*L*(s*min(t, b) + max(t - b, 0))`; `step` may be the run's end, which gives the tokens of the run.
    """
    return sum(
        tokens_per_step * phase.bag_size * (min(step, phase.end) - phase.start)
        for phase in phases
        if step > phase.start
    )
