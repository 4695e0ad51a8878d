"""Superposition up to the boundary, then next-token recovery; arXiv 2605.06546. `superposition` is shared with an ablation."""

from __future__ import annotations

from trainers.contract.schedule import Phase, superposition_phases
from trainers.contract.spec import TrialSpec
from trainers.methods.parameters import bag_weighting, boundary_of

LABEL = "TST"
WORDS = (
    "Token-Superposition Training (arXiv 2605.06546): bags of s averaged tokens predict the next bag, then normal "
    "training. The latent sequence length and the batch stay the same in both phases, so that a step costs the "
    "same FLOPs; the superposition phase reads s times the data instead."
)
PARAMETERS: tuple[str, ...] = ("bag_size", "bag_weighting", "step_ratio")


def _phases(spec: TrialSpec) -> tuple[Phase, Phase]:
    return superposition_phases(spec.schedule.total_steps, boundary_of(spec), spec.bag_size, bag_weighting(spec))


def superposition(spec: TrialSpec) -> Phase:
    """The first phase, up to the boundary. Raises `ValueError` for a bag below one token, a ratio outside [0, 1] or an
    unknown weighting."""
    return _phases(spec)[0]


def phases(spec: TrialSpec) -> tuple[Phase, ...]:
    """Superposition, then next-token recovery from the same weights and moments."""
    return _phases(spec)
