"""Superposition up to the boundary, then next-token recovery; arXiv 2605.06546. `superposition` is shared with an ablation."""

from __future__ import annotations

from trainers.contract.schedule import Phase
from trainers.contract.spec import TrialSpec
from trainers.methods.parameters import bag_weighting, boundary_of, next_token, positive

LABEL = "TST"
WORDS = (
    "Token-Superposition Training (arXiv 2605.06546): bags of s averaged tokens predict the next bag, then normal "
    "training. The latent sequence length and the batch stay the same in both phases, so that a step costs the "
    "same FLOPs; the superposition phase reads s times the data instead."
)
PARAMETERS: tuple[str, ...] = ("bag_size", "bag_weighting", "step_ratio")


def superposition(spec: TrialSpec) -> Phase:
    """The first phase, up to the boundary. Raises `ValueError` for a bag below one token, a ratio outside [0, 1] or an
    unknown weighting."""
    bag, weighting = positive(spec, "bag_size"), bag_weighting(spec)
    return Phase("superposition", 0, boundary_of(spec), bag_size=bag, target_size=bag, weighting=weighting)


def phases(spec: TrialSpec) -> tuple[Phase, ...]:
    """Superposition, then next-token recovery from the same weights and moments."""
    first = superposition(spec)
    return first, next_token(spec, first.end)
