"""TST's output without its input, an ablation: `bag_size` one, `target_size` tokens out."""

from __future__ import annotations

from trainers.contract.schedule import Phase
from trainers.contract.spec import TrialSpec
from trainers.methods.parameters import bag_weighting, boundary_of, next_token, positive

LABEL = "Output superposition"
WORDS = "The ablation of TST with its output alone: single tokens in, the bag of the next s tokens as the target."
PARAMETERS: tuple[str, ...] = ("bag_size", "bag_weighting", "step_ratio")


def phases(spec: TrialSpec) -> tuple[Phase, ...]:
    """Bagged targets up to the boundary, next-token recovery from there; the data of a step is the baseline's.

    Raises `ValueError` for a bag below one token, a ratio outside [0, 1] or an unknown weighting.
    """
    boundary, targets = boundary_of(spec), positive(spec, "bag_size")
    first = Phase(f"{targets} targets", 0, boundary, target_size=targets, weighting=bag_weighting(spec))
    return first, next_token(spec, boundary)
