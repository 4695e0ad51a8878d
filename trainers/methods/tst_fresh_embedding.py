"""TST whose `FRESH` parameters, named as the decoder names them, are drawn anew at the boundary: an ablation."""

from __future__ import annotations

from trainers.contract.schedule import Phase
from trainers.contract.spec import TrialSpec
from trainers.methods.parameters import next_token
from trainers.methods.tst import PARAMETERS as PARAMETERS
from trainers.methods.tst import superposition

LABEL = "TST with fresh embeddings"
WORDS = (
    "The ablation of TST that forgets its vocabulary: embedding and LM head are drawn anew at the boundary. Tells "
    "what the superposition phase teaches the blocks from what it teaches the embeddings; published at 3B, where "
    "it ends above the baseline. Up to the boundary it is TST, so that both share their superposition phase."
)
FRESH: tuple[str, ...] = ("embedding.weight", "head.weight")


def phases(spec: TrialSpec) -> tuple[Phase, ...]:
    """As TST; a run without a superposition phase has nothing to forget. Raises `ValueError` as TST does."""
    first = superposition(spec)
    return first, next_token(spec, first.end, FRESH if first.end else ())
