"""One phase with `heads` heads; arXiv 2404.19737. The heads' own blocks are built by `trainers.model.decoder`."""

from __future__ import annotations

from trainers.contract.schedule import NEXT_TOKEN, Phase
from trainers.contract.spec import TrialSpec
from trainers.methods.parameters import positive

LABEL = "Multi-token prediction"
WORDS = (
    "Multi-token prediction (arXiv 2404.19737): n heads, each asked for the token at its own distance. Each head "
    "beyond the ordinary one is a last block of its own on the shared blocks before the last; norm and "
    "unembedding are shared. The loss is the mean of the heads' losses. Evaluation knows the ordinary head alone."
)
PARAMETERS: tuple[str, ...] = ("heads",)


def phases(spec: TrialSpec) -> tuple[Phase, ...]:
    """One phase with all heads. Raises `ValueError` for fewer heads than one."""
    heads = positive(spec, "heads")
    name = NEXT_TOKEN if heads == 1 else f"{heads} heads"
    return (Phase(name, 0, spec.schedule.total_steps, target_size=heads, heads=heads),)
