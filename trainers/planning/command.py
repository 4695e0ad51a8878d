"""The command of a foreign trial: its placeholders, their values, and the file that tells a trainer everything.

A command is a list of words; `{name}` inside a word is replaced by a value, `{{` and `}}` stand for braces, and nothing else
has any. The same holds for the values of its environment. No shell ever sees it. Which commands a file may have is checked
elsewhere, by what is said here.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

from trainers.contract.schedule import boundary_step
from trainers.contract.spec import ForeignSpec, Scalar
from trainers.methods import LEARNING_RATE, PARAMETER_TABLE

TRIAL, OUT, PYTHON = "trial", "out", "python"
"""Placeholders whose values are this machine's: the trial's file, its folder, the interpreter that runs the sweep."""
BOUNDARY = "boundary_step"
ALWAYS: tuple[str, ...] = ("total_steps", "seed", "method", "scale", BOUNDARY, TRIAL, OUT, PYTHON)
"""Placeholders of every trial, beside the method's axes and `scale.KEY`."""
NEUTRAL: dict[str, Scalar] = {
    name: row.absent for name, row in PARAMETER_TABLE.items() if row.absent is not None and row.column
}
"""Parameters that have a value in a method without them: one command can serve the baseline, too."""
USED_THROUGH: dict[str, tuple[str, ...]] = {"step_ratio": ("step_ratio", BOUNDARY)}
"""Placeholders that carry an axis; elsewhere it is the one of its name."""

_BRACES = re.compile(r"(\{\{|\}\})|\{([^{}]*)\}|[{}]")
"""A doubled brace, a placeholder, or a brace that stands alone."""


def placeholders(word: str) -> list[str]:
    """What stands between the braces of each placeholder of a word, whatever it is. A brace that stands alone is one of that
    name, which no value has."""
    return [match[0] if match[2] is None else match[2] for match in _BRACES.finditer(word) if match[1] is None]


def spoken(value: Scalar) -> str:
    """A value as a command line has it; a number reads back as the same number."""
    return repr(value) if isinstance(value, float) else str(value)


def fill(word: str, values: Mapping[str, Scalar]) -> str:
    """A word with its placeholders replaced; what has no value stays as it stands, which no file that was checked has."""

    def replaced(match: re.Match[str]) -> str:
        if match[1]:
            return match[1][0]
        return spoken(values[match[2]]) if match[2] in values else match[0]

    return _BRACES.sub(replaced, word)


def boundary_of(spec: ForeignSpec) -> int:
    """First step after the first phase, 0 without one."""
    return boundary_step(spec.step_ratio, spec.schedule.total_steps)


def values_of_trial(spec: ForeignSpec) -> dict[str, Scalar]:
    """The value of every placeholder but those of a machine."""
    return {
        **NEUTRAL,
        **dict(spec.parameters),
        LEARNING_RATE: spec.schedule.learning_rate,
        "total_steps": spec.schedule.total_steps,
        "seed": spec.seed,
        "method": spec.method,
        "scale": spec.scale,
        **{f"scale.{name}": value for name, value in spec.scale_values},
        BOUNDARY: boundary_of(spec),
    }


def command_line(spec: ForeignSpec, machine: Mapping[str, str]) -> list[str]:
    """The words to run; `machine` has `trial`, `out` and `python`."""
    values = {**values_of_trial(spec), **machine}
    return [fill(word, values) for word in spec.command]


def reads_file(spec: ForeignSpec) -> bool:
    """Whether the command is handed the trial's file."""
    return any(TRIAL in placeholders(word) for word in (*spec.command, *(value for _, value in spec.environment)))


def environment(spec: ForeignSpec, machine: Mapping[str, str]) -> dict[str, str]:
    """The variables that the file gives the command."""
    values = {**values_of_trial(spec), **machine}
    return {name: fill(value, values) for name, value in spec.environment}


def shell_line(spec: ForeignSpec, machine: Mapping[str, str]) -> str:
    """Variables and command as somebody would type them."""
    given = [f"{name}={shlex.quote(value)}" for name, value in environment(spec, machine).items()]
    return " ".join([*given, shlex.join(command_line(spec, machine))])


def trial_to_dict(spec: ForeignSpec, out: str, *, resumes: bool) -> dict[str, Any]:
    """What the file behind `SWEEPER_TRIAL` holds: every value by its placeholder's name, and the same grouped. `resumes`
    says that an earlier attempt may have left something in `out`."""
    return {
        "trial": spec.spec_id,
        "scale": spec.scale,
        "scale_values": dict(spec.scale_values),
        "method": spec.method,
        "parameters": {**dict(spec.parameters), LEARNING_RATE: spec.schedule.learning_rate},
        BOUNDARY: boundary_of(spec),
        "total_steps": spec.schedule.total_steps,
        "seed": spec.seed,
        "out": out,
        "resumes": resumes,
    }
