"""Trials of any method, from one value for each parameter's name: a new method is covered once its parameters are here."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.support.tiny_training import SHAPE, tiny_spec
from trainers.contract.spec import Scalar, TrialSpec
from trainers.methods import METHODS

TYPICAL: dict[str, Scalar] = {
    "bag_size": 3,
    "bag_weighting": "power_law",
    "heads": 3,
    "patch_size": 4,
    "pieces": 2,
    "step_ratio": 0.4,
}
"""A value at which the parameter does something, with a context of 8."""
NEUTRAL: dict[str, Scalar] = {"bag_size": 1, "heads": 1, "patch_size": 1, "pieces": 1}
"""Values at which nothing is bagged, cut or added."""

TWO_LAYERS = replace(SHAPE, num_layers=2)
"""With one layer a head has no block that it shares with another."""


def parameters_of(method: str, **changes: Scalar) -> tuple[tuple[str, Scalar], ...]:
    """Typical values of the method's own parameters; `changes` to those that it has count, others are left out."""
    values = {**TYPICAL, **changes}
    return tuple(sorted((name, values[name]) for name in METHODS[method].parameters))


def method_spec(method: str, parameters: dict[str, Scalar] | None = None, **changes: Any) -> TrialSpec:
    """A trial of milliseconds; `changes` as for `tiny_spec`."""
    return tiny_spec(
        method, **{"shape": TWO_LAYERS, "parameters": parameters_of(method, **(parameters or {})), **changes}
    )
