"""What a search space of another trainer may not say, although every single value has its type.

Above all its command: every placeholder needs a value in every arm, every axis a placeholder, and every seed another run.
The rules that both kinds of file share are `rules`'s.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

from sweeper.space.code_files import MOST_FILES, matching
from sweeper.space.errors import choose_from, closest, shown
from sweeper.space.foreign_schema import POINT_KEYS, VISIBLE, Metrics, TrainerSettings
from sweeper.space.rules import (
    Arms,
    Rules,
    axis_form,
    enough_points,
    equal_axes,
    few_points,
    free_name,
    fresh_seeds,
    increasing_budgets,
    refused_values,
    whole_gpus,
)
from sweeper.space.rules_text import Finding
from sweeper.space.schema import Resources, Scalar, Search, Seeds
from sweeper.space.yaml_lines import Location
from trainers.contract.spec import MOST_IN_A_BAG
from trainers.methods import BASELINE, LEARNING_RATE, PARAMETER_TABLE
from trainers.planning.command import ALWAYS, NEUTRAL, TRIAL, USED_THROUGH, placeholders

Scales = Mapping[str, Mapping[str, Scalar]]
NEEDED = ("total_steps", "seed")
"""Without them trials of two budgets, or of two seeds, would be the same run."""


def _methods(methods: Arms) -> Iterator[Finding]:
    if BASELINE not in methods:
        yield Finding(("methods", BASELINE), "missing; every other method is held against it")


def _axes(methods: Arms) -> Iterator[Finding]:
    """Axes in a wrong order or too long, and values that the parameter cannot take."""
    for name, arm in methods.items():
        place = ("methods", name, "axes")
        if LEARNING_RATE not in arm.axes:
            yield Finding((*place, LEARNING_RATE), f"missing; {name} needs a constant or an axis for it")
        for parameter, axis in arm.sound_axes.items():
            if parameter in ALWAYS:
                yield Finding((*place, parameter), "is a placeholder of every trial, and no axis")
                continue
            form = list(axis_form((*place, parameter), PARAMETER_TABLE.get(parameter), axis))
            yield from form or refused_values((*place, parameter), axis, partial(_objection, parameter))
        yield from few_points(place, arm)


def _objection(parameter: str, value: Scalar) -> str | None:
    row = PARAMETER_TABLE.get(parameter)
    if row is None:
        return None
    if not row.holds(value):
        return f"{shown(value)} is not {row.type_words}"
    if parameter == LEARNING_RATE and not (not isinstance(value, str) and value > 0):
        return f"{shown(value)} is not a positive number"
    if row.type is int and not isinstance(value, str) and value < 1:
        return f"{value} is not a positive whole number"
    if parameter == "bag_size" and not isinstance(value, str) and value > MOST_IN_A_BAG:
        return f"{value} is more than {MOST_IN_A_BAG:,}"
    if parameter == "step_ratio" and not isinstance(value, str) and not 0 <= value <= 1:
        return f"{value} is not in [0, 1]"
    return None


def _equal_tuning(methods: Arms) -> Iterator[Finding]:
    """What both an arm and the baseline are tuned in is tuned over the same values."""
    baseline = methods.get(BASELINE)
    for parameter in baseline.sound_axes if baseline is not None else ():
        yield from equal_axes(methods, parameter, "values of it")


def _points(methods: Arms, search: Search, seeds: Seeds) -> Iterator[Finding]:
    yield from enough_points(methods, search, seeds)


def _ranks(resources: Resources) -> Iterator[Finding]:
    if resources.ranks > 1:
        yield Finding(
            ("resources", "ranks"), f"{resources.ranks} is for the built-in trainer; a command starts its own"
        )


def _commands(trainer: TrainerSettings, methods: Arms, scales: Scales) -> Iterator[Finding]:
    # What the arms share is told about once, with the first arm that it does not fit.
    told: set[tuple[Location, str]] = set()
    shared = [(("trainer", "environment", name), word) for name, word in trainer.environment.items()]
    for name, arm in methods.items():
        place: Location = ("trainer", "command") if arm.command is None else ("methods", name, "command")
        command = arm.command or trainer.command
        if command is None:
            found: Iterable[tuple[Location, str, str]] = [
                (place, "", f"missing; {name} has no command of its own, write [python, train.py, ...]")
            ]
        else:
            words: list[tuple[Location, str]] = [((*place, index), word) for index, word in enumerate(command)]
            used = [(where, inner) for where, word in [*words, *shared] for inner in placeholders(word)]
            found = [*_program(place, command), *_objections(place, used, name, arm.axes, scales)]
        for location, word, message in found:
            if (location, word) not in told:
                told.add((location, word))
                yield Finding(location, message)


def _program(place: Location, command: tuple[str, ...]) -> Iterator[tuple[Location, str, str]]:
    if not command[0].strip():
        yield (*place, 0), "", f"{shown(command[0])} is no program; the first word is what is started"


def _objections(
    place: Location, used: list[tuple[Location, str]], name: str, axes: Mapping[str, object], scales: Scales
) -> Iterator[tuple[Location, str, str]]:
    """What is wrong with an arm's command and environment: where, about which word, in words.

    Every placeholder needs a value. What the command does not hand on could not differ: other values would be the same run.
    """
    words = {word for _, word in used}
    known = [*axes, *(other for other in NEUTRAL if other not in axes), *ALWAYS, "scale.KEY"]
    meant: set[str | None] = set()
    for location, word in used:
        if word in ("{", "}"):
            yield location, word, f"{word} stands alone; a brace that is text is doubled: {2 * word}"
        elif word.strip().startswith("scale."):
            key = word.strip().removeprefix("scale.")
            lacking = [scale for scale, values in scales.items() if word != f"scale.{key}" or key not in values]
            if lacking:
                near = closest(key, sorted({other for values in scales.values() for other in values}))
                asked = "" if near is None else f"did you mean {{scale.{near}}}? "
                yield location, word, f"{{{word}}} has no value at {', '.join(lacking)}; {asked}give it in scales"
        elif word not in (*known, LEARNING_RATE):
            # `{ seed }` and `{seed:.3f}` mean what they begin with; `{"a": 1}` means braces.
            begins = re.match(r"\s*([\w.-]*)", word)
            near = closest(begins[1] if begins else "", known)
            meant.add(near)
            asked = f"did you mean {{{near}}}? " if near else ""
            if begins is not None and begins[0] == word != "":
                said = f", and {name} has no axis of that name; {asked}allowed: {', '.join(known)}"
            else:
                said = f"; {asked}braces that are text are doubled: {{{{ and }}}}"
            yield location, word, f"{{{word}}} is no placeholder{said}"
    if TRIAL in words:
        return
    for word in NEEDED:
        if word not in words | meant:
            said = "is not in it: trials that differ in it would be the same run; a trainer that reads it in the trial's file"
            yield place, word, f"{{{word}}} {said} says so by {{{TRIAL}}}"
    for axis in axes:
        carriers = USED_THROUGH.get(axis, (axis,))
        if not (words | meant) & {*carriers} and axis not in ALWAYS:
            yield (
                ("methods", name, "axes", axis),
                axis,
                f"no command of {name} uses it; write {{{axis}}} where its value belongs",
            )


def _environment(trainer: TrainerSettings) -> Iterator[Finding]:
    for name in trainer.environment:
        place = ("trainer", "environment", name)
        if re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII) is None:
            yield Finding(place, f"{shown(name)} is no name of a variable: letters, digits and underscores")
        elif name.startswith("SWEEPER_") or name == VISIBLE:
            yield Finding(place, "is the trial's own, which the sweep sets; leave it out")


def _metrics(trainer: TrainerSettings) -> Iterator[Finding]:
    metrics: Metrics = trainer.metrics
    place = ("trainer", "metrics")
    given = [key for key in Metrics.model_fields if getattr(metrics, key) is not None]
    if len(given) != 1:
        yield Finding(place, f"{', '.join(given) or 'nothing'} given; one of points, log, tensorboard is needed")
    if metrics.points is not None:
        points = Path(metrics.points)
        # `{out}/points.jsonl` would be a file below a folder of that name.
        if points.is_absolute() or ".." in points.parts or not points.name or set("{}") & set(metrics.points):
            said = "is not a file in the trial's folder; write its name there, such as points.jsonl"
            yield Finding((*place, "points"), f"{shown(metrics.points)} {said}")
    if metrics.log is not None:
        yield from (Finding((*place, "log"), said) for said in _pattern(metrics.log))


def _pattern(pattern: str) -> Iterator[str]:
    """What is wrong with the regular expression for a log."""
    try:
        groups = re.compile(pattern).groupindex
    except (re.error, OverflowError, RecursionError) as error:
        yield f"{shown(pattern)} is no regular expression: {error}"
        return
    unknown = [group for group in groups if group not in POINT_KEYS]
    for group in unknown:
        yield f"{group} is no group of a point; {choose_from(group, POINT_KEYS)}"
    lacking = [group for group in ("step", "loss") if group not in groups]
    if lacking and not {closest(group, POINT_KEYS) for group in unknown} & {*lacking}:
        yield f"has no group {' and no '.join(lacking)}; write (?P<step>...) and (?P<loss>...)"


def _files(trainer: TrainerSettings, folder: Path) -> Iterator[Finding]:
    directory = folder / trainer.directory
    if not directory.is_dir():
        yield Finding(("trainer", "directory"), f"{shown(trainer.directory)} is no folder beside this file")
        return
    for index, pattern in enumerate(trainer.code):
        num_files = len(matching(directory, pattern))
        if num_files > MOST_FILES:
            yield Finding(("trainer", "code", index), f"{shown(pattern)} names more than {MOST_FILES:,} files")
        if not num_files:
            yield Finding(("trainer", "code", index), f"{shown(pattern)} matches no file in {trainer.directory}")


FOREIGN_RULES: Rules = (
    free_name,
    fresh_seeds,
    whole_gpus,
    _ranks,
    _methods,
    increasing_budgets,
    _axes,
    _equal_tuning,
    _points,
    _commands,
    _environment,
    _metrics,
    _files,
)
