"""The run as a function of the step: which phase, which data. Pure, and of the standard library alone.

Sharing a prefix of training between trials is only sound because everything that differs between two steps follows from the
spec and the step alone. Phases are made by `trainers.methods`; the learning rates of the steps stand in `trainers.step.optim`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

LATER = "later"
"""Key of the metadata of a field that a value did not always have: `field(default=..., metadata={LATER: True})`. At its
default it is left out of the canonical JSON, so that the ids of the trials that there are do not move."""

NEXT_TOKEN = "next-token"
"""Name of ordinary training, in whichever method it is a phase of."""


@dataclass(frozen=True, slots=True)
class Phase:
    """Steps `[start, end)` trained with one objective. Every default is that of ordinary next-token training.

    A sequence of a step has `context / position_divisor` latent positions and is cut into `pieces` that do not see each
    other. `bag_size` tokens are averaged into each position, which predicts the `target_size` tokens that follow: with one
    head all of them by the weights named by `weighting`; with as many `heads` as targets each head the token at its
    distance, the loss being the mean over the heads. The parameters named `fresh` are drawn anew, with their moments at
    zero, before the phase's first step; with `fresh_moments` the optimizer forgets all of its moments there, and the weights
    stay. The name tells phases apart whose steps cost differently at one bag size.
    """

    name: str
    start: int
    end: int
    bag_size: int = 1
    target_size: int = 1
    weighting: str = "uniform"
    position_divisor: int = 1
    pieces: int = 1
    heads: int = 1
    fresh: tuple[str, ...] = ()
    fresh_moments: bool = field(default=False, metadata={LATER: True})

    def __post_init__(self) -> None:
        assert self.heads in (1, self.target_size), "one head for all targets, or one for each"

    def positions(self, full: int) -> int:
        """Latent positions where an ordinary step has `full`: of a sequence for the context, of a step for its tokens."""
        return full // self.position_divisor

    def length(self, context: int) -> int:
        """Latent positions that see each other, where a sequence of an ordinary step has `context`."""
        return self.positions(context) // self.pieces


def steps_of(fraction: float, total_steps: int) -> int:
    """A fraction of a run as whole steps, halves rounded up: `floor(fraction*T + 0.5)`. Where a run's decay begins, too."""
    return math.floor(fraction * total_steps + 0.5)


def boundary_step(step_ratio: float, total_steps: int) -> int:
    """First step after the first phase: `floor(r*T + 0.5)`. Raises `ValueError` for a ratio outside [0, 1]."""
    if not 0.0 <= step_ratio <= 1.0:
        raise ValueError(f"step_ratio: {step_ratio} is not in [0, 1]")
    return steps_of(step_ratio, total_steps)


def number_of_heads(phases: tuple[Phase, ...]) -> int:
    """Output heads that a model needs for these phases, the ordinary one included."""
    return max(phase.heads for phase in phases)


def superposition_phases(
    total_steps: int, boundary: int, bag_size: int, weighting: str = "uniform"
) -> tuple[Phase, Phase]:
    """Bags of `bag_size` tokens that predict the next bag up to step `boundary`, then next-token training (arXiv 2605.06546).

    Either may be empty. Raises `ValueError` for a bag below one token or a boundary outside the run.
    """
    if bag_size < 1:
        raise ValueError(f"bag_size: {bag_size} is not a positive integer")
    if not 0 <= boundary <= total_steps:
        raise ValueError(f"boundary: {boundary} is not in [0, {total_steps}]")
    bags = Phase("superposition", 0, boundary, bag_size=bag_size, target_size=bag_size, weighting=weighting)
    return bags, Phase(NEXT_TOKEN, boundary, total_steps)


def phase_at(phases: tuple[Phase, ...], step: int) -> Phase:
    """The phase that trains `step`. Phases are contiguous from 0 and in order. Raises `IndexError` outside the run."""
    for phase in phases:
        if phase.start <= step < phase.end:
            return phase
    raise IndexError(f"step {step} is outside the run's {phases[-1].end} steps")


def data_position(phases: tuple[Phase, ...], tokens_per_step: int, step: int) -> int:
    """Stream position of the first token of `step`, in data tokens: the closed form of counting what was read.

    For TST it is `B*L*(s*min(t, b) + max(t - b, 0))`; `step` may be the run's end, which gives the tokens of the run.
    """
    return sum(
        phase.positions(tokens_per_step) * phase.bag_size * (min(step, phase.end) - phase.start)
        for phase in phases
        if step > phase.start
    )
