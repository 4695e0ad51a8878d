"""Token-Superposition Training (arXiv 2605.06546): bags of `s` averaged tokens predict the next bag, then normal training.

The latent sequence length and the batch stay the same in both phases, so that a step costs the same FLOPs; the
superposition phase reads `s` times the data instead.
"""

from __future__ import annotations

from trainers.schedule import Phase, boundary_step
from trainers.spec import TrialSpec

LABEL = "TST"
PARAMETERS: tuple[str, ...] = ("bag_size", "bag_weighting", "step_ratio")
WEIGHTINGS: tuple[str, ...] = ("uniform", "power_law", "exponential", "first_token")


def phases(spec: TrialSpec) -> tuple[Phase, ...]:
    """Superposition up to `boundary_step`, next-token recovery from there.

    Raises `ValueError` for a bag below one token, a ratio outside [0, 1] or an unknown weighting.
    """
    bag_size, step_ratio = spec.bag_size, spec.step_ratio
    weighting = str(spec.parameter("bag_weighting", "uniform"))
    if bag_size < 1:
        raise ValueError(f"bag_size: {bag_size} is not a positive integer")
    if not 0.0 <= step_ratio <= 1.0:
        raise ValueError(f"step_ratio: {step_ratio} is not in [0, 1]")
    if weighting not in WEIGHTINGS:
        raise ValueError(f"bag_weighting: {weighting!r} is not one of {', '.join(WEIGHTINGS)}")
    total = spec.schedule.total_steps
    boundary = boundary_step(step_ratio, total)
    return (
        Phase("superposition", 0, boundary, bag_size=bag_size, target_size=bag_size, weighting=weighting),
        Phase("next-token", boundary, total),
    )
