"""What a trial costs when it leaves a trunk that others train too. Plain arithmetic in full-budget equivalents.

The exact tree of segments is `lineage`'s; choosing what to try next only needs to know which trials are cheap together.
"""

from __future__ import annotations

from collections.abc import Iterable

from sweeper.search.domain import Domain, Parameters, Proposal, Scalar

Trunk = tuple[Parameters, int]
"""What trials must have in common to share their first phase: parameters without the fan axis, and the seed."""


def trunk_of(domain: Domain, proposal: Proposal) -> Trunk:
    """Trials of equal trunk share training up to the earlier of their boundaries, whatever their budgets."""
    shared = tuple((name, value) for name, value in proposal.parameters if name != domain.fan_axis)
    return shared, proposal.seed


def trunk_fraction(domain: Domain, parameters: Parameters) -> float:
    """Fraction of a trial that lies on its trunk: the fan axis where it is a ratio in [0, 1], else nothing."""
    value: Scalar = dict(parameters).get(domain.fan_axis or "", 0.0)
    return float(value) if not isinstance(value, str) and 0 <= value <= 1 else 0.0


def added_steps(own: float, total: float, trunk: float) -> float:
    """Steps that one more trial adds: what its part `own` on the trunk goes beyond `trunk`, and all behind it."""
    return max(0.0, own - trunk) + total - own


def shared_cost(domain: Domain, proposals: Iterable[Proposal]) -> float:
    """Cost of the trials together, in runs of the largest rung, every trunk trained once."""
    longest: dict[Trunk, float] = {}
    steps = 0.0
    for proposal in proposals:
        trunk, own = trunk_of(domain, proposal), trunk_fraction(domain, proposal.parameters) * proposal.total_steps
        steps += added_steps(own, proposal.total_steps, longest.get(trunk, 0.0))
        longest[trunk] = max(longest.get(trunk, 0.0), own)
    return steps / domain.rungs[-1]


def alone_cost(domain: Domain, proposals: Iterable[Proposal]) -> float:
    """Cost of the trials when each is trained from its own start, in runs of the largest rung."""
    return sum(proposal.total_steps for proposal in proposals) / domain.rungs[-1]
