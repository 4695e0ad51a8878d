"""TST whose optimizer forgets at the boundary: moments and step counts at zero, weights kept. An ablation."""

from __future__ import annotations

from dataclasses import replace

from trainers.contract.schedule import Phase
from trainers.contract.spec import TrialSpec
from trainers.methods.parameters import next_token
from trainers.methods.tst import PARAMETERS as PARAMETERS
from trainers.methods.tst import superposition

LABEL = "TST with fresh moments"
WORDS = (
    "The ablation of TST whose optimizer starts anew at the boundary: moments and step counts are set to zero, the "
    "weights stay, and the learning rate warms up no second time. Tells what the moments of the superposition phase are "
    "worth to the recovery; others report a loss of 0.09 nats. Up to the boundary it is TST, so that both share their "
    "superposition phase."
)


def phases(spec: TrialSpec) -> tuple[Phase, ...]:
    """As TST; a run without a superposition phase has nothing to forget. Raises `ValueError` as TST does."""
    first = superposition(spec)
    return first, replace(next_token(spec, first.end), fresh_moments=first.end > 0)
