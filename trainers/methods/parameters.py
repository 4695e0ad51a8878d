"""How methods read their parameters from a spec, and the phase that most of them end in. Messages name the value."""

from __future__ import annotations

from trainers.contract.schedule import NEXT_TOKEN, Phase, boundary_step
from trainers.contract.spec import TrialSpec

WEIGHTINGS: tuple[str, ...] = ("uniform", "power_law", "exponential", "first_token")


def positive(spec: TrialSpec, name: str) -> int:
    """The parameter `name`. Raises `ValueError` below one."""
    value = int(spec.parameter(name, 1))
    if value < 1:
        raise ValueError(f"{name}: {value} is not a positive integer")
    return value


def divisor(spec: TrialSpec, name: str) -> int:
    """The parameter `name`, a positive number that divides the context. Raises `ValueError` for another."""
    value = positive(spec, name)
    if spec.context % value:
        raise ValueError(f"{name}: {value} does not divide the context of {spec.context}")
    return value


def bag_weighting(spec: TrialSpec) -> str:
    """The weighting of a bag's targets. Raises `ValueError` for an unknown one."""
    weighting = str(spec.parameter("bag_weighting", "uniform"))
    if weighting not in WEIGHTINGS:
        raise ValueError(f"bag_weighting: {weighting!r} is not one of {', '.join(WEIGHTINGS)}")
    return weighting


def boundary_of(spec: TrialSpec) -> int:
    """First step after the first phase. Raises `ValueError` for a step ratio outside [0, 1]."""
    return boundary_step(spec.step_ratio, spec.schedule.total_steps)


def next_token(spec: TrialSpec, start: int, fresh: tuple[str, ...] = ()) -> Phase:
    """Ordinary training from `start` to the end, with the parameters in `fresh` drawn anew."""
    return Phase(NEXT_TOKEN, start, spec.schedule.total_steps, fresh=fresh)
