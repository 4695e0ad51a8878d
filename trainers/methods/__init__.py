"""The methods that can be compared: a method is its phases, in one file, and a line in one table.

Nothing outside this folder knows a method by name, except the word `baseline` for the arm all others are held against.
Without torch: planning and lineage read phases where nothing is trained.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

from trainers.contract.schedule import NEXT_TOKEN, Phase
from trainers.contract.spec import Spec, TrialSpec
from trainers.methods import (
    baseline,
    input_superposition,
    length_warmup,
    multi_token,
    output_superposition,
    patch,
    tst,
    tst_fresh_embedding,
    tst_fresh_moments,
)
from trainers.methods.facts import TRAINERS_OWN, facts_of
from trainers.methods.parameters import (
    LEARNING_RATE,
    PARAMETER_COLUMNS,
    PARAMETER_TABLE,
    SAME_OCTAVES,
    Parameter,
    describe_parameters,
    parameter_of,
    symbol_of,
)

__all__ = [
    "BASELINE",
    "LEARNING_RATE",
    "METHODS",
    "PARAMETER_COLUMNS",
    "PARAMETER_TABLE",
    "SAME_OCTAVES",
    "TRAINERS_OWN",
    "Method",
    "Parameter",
    "describe_parameters",
    "facts_of",
    "parameter_of",
    "phases_of",
    "symbol_of",
]

BASELINE = "baseline"


@dataclass(frozen=True, slots=True)
class Method:
    """`label` names it for people and `words` say on the page what it does; `parameters` are the names that a spec of this
    method must have, and may have."""

    name: str
    label: str
    words: str
    parameters: tuple[str, ...]
    phases: Callable[[TrialSpec], tuple[Phase, ...]]


def _method(module: ModuleType) -> Method:
    """A method is named by its file."""
    name = module.__name__.rpartition(".")[2]
    assert set(module.PARAMETERS) <= PARAMETER_TABLE.keys(), f"{name} has a parameter without a row in the table"
    return Method(name, module.LABEL, module.WORDS, module.PARAMETERS, module.phases)


_FILES = (
    baseline,
    tst,
    input_superposition,
    output_superposition,
    tst_fresh_embedding,
    patch,
    multi_token,
    length_warmup,
    tst_fresh_moments,
)
METHODS: dict[str, Method] = {method.name: method for method in map(_method, _FILES)}


def phases_of(spec: Spec) -> tuple[Phase, ...]:
    """The phases of a run, contiguous over `[0, total_steps)`, none empty. Raises `ValueError` naming a bad parameter.

    A run of another trainer is one phase, named by what sets the cost of its steps.
    """
    if not isinstance(spec, TrialSpec):
        named = NEXT_TOKEN if spec.method == BASELINE else spec.method
        words = " ".join(word for word in (named, describe_parameters(spec.parameters)) if word)
        return (Phase(words, 0, spec.schedule.total_steps),)
    method = METHODS.get(spec.method)
    if method is None:
        raise ValueError(f"method: {spec.method!r} is not one of {', '.join(METHODS)}")
    given = {name for name, _ in spec.parameters}
    if given != set(method.parameters):
        raise ValueError(f"method {spec.method}: parameters {sorted(given)} given, {sorted(method.parameters)} needed")
    return tuple(phase for phase in method.phases(spec) if phase.end > phase.start)
