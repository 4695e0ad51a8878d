"""The arm that every other method is held against: one phase of next-token training."""

from __future__ import annotations

from trainers.contract.schedule import Phase
from trainers.contract.spec import TrialSpec
from trainers.methods.parameters import next_token

LABEL = "Baseline"
WORDS = "Ordinary next-token training: the arm that every other method is held against."
PARAMETERS: tuple[str, ...] = ()


def phases(spec: TrialSpec) -> tuple[Phase, ...]:
    """One phase from the first step to the last."""
    return (next_token(spec, 0),)
