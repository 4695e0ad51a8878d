"""Ordinary next-token training: the arm that every other method is held against."""

from __future__ import annotations

from trainers.methods.parameters import next_token
from trainers.schedule import Phase
from trainers.spec import TrialSpec

LABEL = "Baseline"
PARAMETERS: tuple[str, ...] = ()


def phases(spec: TrialSpec) -> tuple[Phase, ...]:
    """One phase from the first step to the last."""
    return (next_token(spec, 0),)
