"""The command of a foreign trial: its placeholders, their values, and the file that tells a trainer everything.

A command is a list of words; `{name}` inside a word is replaced by a value, `{{name}}` stands for `{name}`. No shell ever
sees it. Which commands a file may have is checked elsewhere, by what is said here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
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

_PLACEHOLDER = re.compile(r"(\{\{[A-Za-z_][\w.]*\}\})|\{([A-Za-z_][\w.]*)\}")


def placeholders(command: Iterable[str]) -> list[tuple[int, str]]:
    """Every placeholder of a command with the index of its word."""
    return [
        (index, match[2])
        for index, word in enumerate(command)
        for match in _PLACEHOLDER.finditer(word)
        if match[2] is not None
    ]


def spoken(value: Scalar) -> str:
    """A value as a command line has it; a number reads back as the same number."""
    return repr(value) if isinstance(value, float) else str(value)


def fill(word: str, values: Mapping[str, Scalar]) -> str:
    """A word with its placeholders replaced. Raises `KeyError` for one without a value."""
    return _PLACEHOLDER.sub(lambda match: match[1][1:-1] if match[1] else spoken(values[match[2]]), word)


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
