"""TST's input without its output, an ablation: `bag_size` tokens in, `target_size` one."""

from __future__ import annotations

from trainers.contract.schedule import Phase
from trainers.contract.spec import TrialSpec
from trainers.methods.parameters import boundary_of, next_token, positive

LABEL = "Input superposition"
WORDS = (
    "The ablation of TST with its input alone: bags of s averaged tokens in, the one token that follows as the target."
)
PARAMETERS: tuple[str, ...] = ("bag_size", "step_ratio")


def phases(spec: TrialSpec) -> tuple[Phase, ...]:
    """Bagged input up to the boundary, next-token recovery from there; the first phase reads `s` times the data.

    Raises `ValueError` for a bag below one token or a ratio outside [0, 1].
    """
    boundary = boundary_of(spec)
    first = Phase("bagged input", 0, boundary, bag_size=positive(spec, "bag_size"))
    return first, next_token(spec, boundary)
