"""TST whose optimizer forgets its moments at the boundary, and whose weights stay: an ablation."""

from __future__ import annotations

from trainers.contract.schedule import Phase
from trainers.contract.spec import TrialSpec
from trainers.methods.parameters import next_token
from trainers.methods.tst import PARAMETERS as PARAMETERS
from trainers.methods.tst import superposition

LABEL = "TST with fresh moments"
WORDS = (
    "The ablation of TST that forgets its optimizer: at the boundary AdamW's moments and step counts are zero, and "
    "the weights stay. Tells what the first phase leaves in the weights from what it leaves in the optimizer. Up to "
    "the boundary it is TST, so that both share their superposition phase."
)


def phases(spec: TrialSpec) -> tuple[Phase, ...]:
    """As TST; a run without a superposition phase has nothing to forget. Raises `ValueError` as TST does."""
    first = superposition(spec)
    return first, next_token(spec, first.end, fresh_moments=first.end > 0)
