"""The parameters of the methods: one table of what the tool knows of each, and how a method reads its own from a spec.

Search, ledger, dashboard, import and report take names, formats and spacings from the table, so that a parameter of a new
name is a row here and nothing elsewhere. A name from elsewhere has no row: it stands as it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from trainers.contract.schedule import NEXT_TOKEN, Phase, boundary_step
from trainers.contract.spec import Scalar, TrialSpec

LEARNING_RATE = "learning_rate"
SAME_OCTAVES = 0.1
"""Octaves by which two searched ranges of learning rates may differ: they are often given with two digits."""
"""Searched like a parameter of every method, and kept in the spec's schedule."""
WEIGHTINGS: tuple[str, ...] = ("uniform", "power_law", "exponential", "first_token")

_TYPE_WORDS = {int: "a whole number", float: "a number", str: "a word"}


@dataclass(frozen=True, slots=True)
class Parameter:
    """What is known of a parameter, whichever method has it.

    `words` are for people, `symbol` stands for the name in short (the name itself where it is empty). `spacing` says in
    which unit neighbouring values are equally far apart. `example` is a value that every method accepts in every context.
    `changes_flops` says whether a step's FLOPs depend on it, so that the tokens of a run do not tell its FLOPs.
    `unsaid` is a value that short names leave out. `absent` stands in the column of a run whose method has no such
    parameter; without it the column is empty there. `column` is what an imported table's column of this name holds; a
    parameter without one is written in the column `parameters`.
    """

    type: type[int] | type[float] | type[str]
    words: str
    spacing: Literal["linear", "log", "category"]
    example: Scalar
    changes_flops: bool = True
    symbol: str = ""
    unsaid: Scalar | None = None
    absent: Scalar | None = None
    column: str = ""

    @property
    def type_words(self) -> str:
        """Its type as messages name it: `a whole number`."""
        return _TYPE_WORDS[self.type]

    def holds(self, value: Scalar) -> bool:
        """Whether `value` can be given without changing what it says."""
        if self.type is float:
            return isinstance(value, int | float)
        return isinstance(value, self.type)


PARAMETER_TABLE: dict[str, Parameter] = {
    LEARNING_RATE: Parameter(float, "peak learning rate", "log", example=1e-3, changes_flops=False),
    "bag_size": Parameter(
        int, "bag size s", "log", example=2, changes_flops=False, symbol="s", absent=1,
        column="tokens per latent position in the first phase; 1 or empty for the baseline",
    ),
    "patch_size": Parameter(int, "patch size s", "log", example=1),
    "pieces": Parameter(int, "pieces of a sequence", "log", example=1),
    "heads": Parameter(int, "prediction heads", "log", example=2),
    "step_ratio": Parameter(
        float, "step ratio r", "linear", example=0.5, changes_flops=False, symbol="r", absent=0.0,
        column="fraction of the steps in the first phase; 0 or empty for the baseline",
    ),
    "bag_weighting": Parameter(
        str, "weighting of the bag", "category", example="uniform", changes_flops=False, unsaid="uniform", absent="none"
    ),
}  # fmt: skip
"""By name, in the order of the page's slices."""

PARAMETER_COLUMNS: tuple[str, ...] = tuple(name for name, row in PARAMETER_TABLE.items() if row.column)
"""Parameters with a column of their own in tables of runs."""


def parameter_of(name: str) -> Parameter:
    """The row of a parameter; of a name from elsewhere, what can be said of any."""
    return PARAMETER_TABLE.get(name) or Parameter(str, name.replace("_", " "), "category", example="")


def symbol_of(name: str) -> str:
    """A parameter's name in short: `s`."""
    return parameter_of(name).symbol or name


def describe_parameters(parameters: Iterable[tuple[str, Scalar]], digits: int = 6) -> str:
    """Short words for people, numbers to so many significant digits: `s=6 r=0.3`; empty without parameters."""
    return " ".join(
        f"{symbol_of(name)}={value:.{digits}g}" if isinstance(value, float) else f"{symbol_of(name)}={value}"
        for name, value in parameters
        if value != parameter_of(name).unsaid
    )


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


def next_token(spec: TrialSpec, start: int, fresh: tuple[str, ...] = (), *, fresh_moments: bool = False) -> Phase:
    """Ordinary training from `start` to the end, with the parameters in `fresh` drawn anew, or the optimizer's moments."""
    return Phase(NEXT_TOKEN, start, spec.schedule.total_steps, fresh=fresh, fresh_moments=fresh_moments)
