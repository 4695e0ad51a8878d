"""Sequences cut into `pieces` up to the boundary, whole ones from there; positions, data and its order are the baseline's."""

from __future__ import annotations

from trainers.contract.schedule import Phase
from trainers.contract.spec import TrialSpec
from trainers.methods.parameters import boundary_of, divisor, next_token

LABEL = "Length warm-up"
WORDS = (
    "Sequence-length warm-up: the same tokens a step in k times as many sequences of a k-th of the length, then "
    "normal. Short sequences make attention cheaper and give positions less to look back on; the number of "
    "positions a step, the data and its order stay the baseline's."
)
PARAMETERS: tuple[str, ...] = ("pieces", "step_ratio")


def phases(spec: TrialSpec) -> tuple[Phase, ...]:
    """Short sequences up to the boundary, whole ones from there.

    Raises `ValueError` for a number of pieces that does not divide the context or a ratio outside [0, 1].
    """
    pieces, boundary = divisor(spec, "pieces"), boundary_of(spec)
    return Phase(f"1/{pieces} length", 0, boundary, pieces=pieces), next_token(spec, boundary)
