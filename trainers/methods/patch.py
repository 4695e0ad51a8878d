"""Patches up to the boundary, single tokens from there; arXiv 2407.12665. Positions and FLOPs shrink, data does not."""

from __future__ import annotations

from trainers.contract.schedule import Phase
from trainers.contract.spec import TrialSpec
from trainers.methods.parameters import boundary_of, divisor, next_token

LABEL = "Patch-level training"
WORDS = (
    "Patch-level training (arXiv 2407.12665): TST's sibling that saves FLOPs where TST reads more data. A "
    "sequence of L tokens becomes L/s positions of s averaged tokens, each of which predicts all tokens of the "
    "next patch with the ordinary head. A step reads what an ordinary step reads, for about 1/s of its FLOPs."
)
PARAMETERS: tuple[str, ...] = ("patch_size", "step_ratio")


def phases(spec: TrialSpec) -> tuple[Phase, ...]:
    """Patches up to the boundary, single tokens from there.

    Raises `ValueError` for a patch size that does not divide the context or a ratio outside [0, 1].
    """
    size, boundary = divisor(spec, "patch_size"), boundary_of(spec)
    first = Phase("patches", 0, boundary, bag_size=size, target_size=size, position_divisor=size)
    return first, next_token(spec, boundary)
