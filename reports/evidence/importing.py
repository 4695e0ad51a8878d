"""Bring your own runs: a CSV of finished runs that were trained elsewhere, read whole or not at all.

Every bad row is listed with its line number and what is allowed, and then nothing is read. What a file does not say stays
None. The columns are documented in `COLUMNS`; other systems' records come through the same door by renaming their keys.
"""

from __future__ import annotations

import csv
import io
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from reports.evidence.runs import BASELINE, DECAY_NOT_STATED, EMPTY_CURVE, FinishedRun, Parameters, RunCurve, trunk_name
from trainers.contract.errors import InputError
from trainers.contract.record import MOST_FLOPS, MOST_LOSS, PURPOSES
from trainers.contract.schedule import boundary_step
from trainers.contract.spec import Scalar
from trainers.methods import PARAMETER_COLUMNS, PARAMETER_TABLE, parameter_of

COLUMNS: dict[str, str] = {
    "scale": "name of the model size (270M, 3b, ...)",
    "method": "`baseline` or the method's name",
    "seed": "seed of the run; empty if unknown",
    "total_steps": "optimizer steps of the whole run",
    **{name: PARAMETER_TABLE[name].column for name in PARAMETER_COLUMNS},
    "gpu_hours": "device-hours of the training steps alone; empty if unknown",
    "tokens": "data tokens read; empty if unknown",
    "final_loss": "next-token loss on the validation set after the last step; `nan` for a run that diverged",
}
"""Columns that must be there."""

OPTIONAL_COLUMNS: dict[str, str] = {
    "run": "name of the run, needed where a second file has its in-run points",
    "learning_rate": "peak learning rate",
    "device": "device type; only runs on the same one are compared",
    "params": "parameters of the model; otherwise read from the scale's name where that is a size",
    "stage": f"{', '.join(PURPOSES)}; `confirmation` where the column is missing",
    "decayed": "yes or no: did the learning rate decay to its end; taken as yes, and said so, where missing",
    "outcome": "finished, stopped, diverged or failed; runs that did not finish need no final loss",
    "parameters": "further parameters of the method, such as `heads=2 pieces=4`",
}

POINT_COLUMNS: tuple[str, ...] = ("run", "step", "loss")
OPTIONAL_POINT_COLUMNS: tuple[str, ...] = ("gpu_hours", "tokens", "flops")

_YES, _NO = ("yes", "true", "1", "y"), ("no", "false", "0", "n")
_OUTCOMES = ("finished", "stopped", "diverged", "failed")
_LEAST, _MOST = 1e-12, 1e18
_MOST_OF: Mapping[str, float] = {"loss": MOST_LOSS, "final_loss": MOST_LOSS, "flops": MOST_FLOPS, "bag_size": 1e6}
"""No run has a number outside these; beyond them a fit or a chart would overflow."""
_INFINITY_IN_SQL = repr(sys.float_info.max)
"""What MLflow's databases keep of an infinite loss."""
_SIZES = {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong in one line of a file (line 1 is the header)."""

    source: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.source}:{self.line}: {self.message}"


class RunImportError(InputError):
    """A file that cannot be imported: all its problems, one line each, in the order of the file."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class _BadValueError(ValueError):
    """One cell that does not hold what its column asks for."""


def read_runs(
    path: Path, points: Path | None = None, columns: Mapping[str, str] | None = None
) -> tuple[FinishedRun, ...]:
    """Read a CSV of finished runs, and optionally a second one with in-run points.

    `columns` maps our column names to those of the file. Raises `RunImportError` listing every bad row.
    """
    return runs_from_texts(_named_text(path), None if points is None else _named_text(points), columns)


def _named_text(path: Path) -> tuple[str, str]:
    # No translation of line ends: inside quotes they belong to the cell.
    with path.open(newline="", encoding="utf-8-sig") as stream:
        return path.name, stream.read()


def runs_from_texts(
    runs: tuple[str, str], points: tuple[str, str] | None = None, columns: Mapping[str, str] | None = None
) -> tuple[FinishedRun, ...]:
    """As `read_runs`, from (name, text) of tables that lie in no file."""
    rows, problems = _read_rows(*runs, columns or {}, tuple(COLUMNS))
    curves: dict[str, tuple[int, RunCurve]] = {}
    if points is not None:
        curves, more = _read_points(*points)
        problems += more
    return runs_from_rows(
        rows,
        source=runs[0],
        curves=curves,
        points_source=points[0] if points is not None else "",
        problems=problems,
    )


def runs_from_rows(
    rows: Iterable[tuple[int, Mapping[str, str]]],
    *,
    source: str,
    curves: Mapping[str, tuple[int, RunCurve]] | None = None,
    points_source: str = "",
    problems: Iterable[Problem] = (),
) -> tuple[FinishedRun, ...]:
    """Turn (line, fields) into runs; fields are strings under our column names.

    `curves`: in-run points by run name, with the line that names it first; `problems`: what was wrong before.
    Raises `RunImportError` with every problem.
    """
    problems = list(problems)
    runs: list[FinishedRun] = []
    first_line: dict[tuple[object, ...], int] = {}
    names: dict[str, int] = {}
    unused = dict(curves or {})
    for line, fields in rows:
        try:
            name = fields.get("run", "").strip()
            run = _run(fields, name or f"{source}:{line}", unused.pop(name, (0, EMPTY_CURVE))[1])
        except _BadValueError as error:
            problems.append(Problem(source, line, str(error)))
            continue
        key = (run.scale, run.method, run.parameters, run.learning_rate, run.seed, run.total_steps, run.purpose)
        if run.seed is not None and key in first_line:
            message = f"the same scale, method, parameters, learning rate, steps and seed as line {first_line[key]}"
            problems.append(Problem(source, line, message))
        first_line.setdefault(key, line)
        if name and name in names:
            problems.append(Problem(source, line, f"run: {name!r} is already the name of line {names[name]}"))
        names.setdefault(name, line)
        runs.append(run)
    problems += [
        Problem(points_source, line, f"run: {name!r} is not in {source}") for name, (line, _) in unused.items()
    ]
    if not runs and not problems:
        problems.append(Problem(source, 1, "no runs below the header"))
    if problems:
        raise RunImportError(sorted(problems, key=lambda problem: (problem.source != source, problem.line)))
    return tuple(runs)


def _read_rows(
    source: str, text: str, columns: Mapping[str, str], needed: tuple[str, ...]
) -> tuple[list[tuple[int, Mapping[str, str]]], list[Problem]]:
    """Rows with the line on which each begins, keys renamed to ours, and rows of the wrong length.

    Raises `RunImportError` for a bad header.
    """
    reader = csv.reader(io.StringIO(text, newline=""))
    header = [name.strip() for name in next(reader, [])]
    theirs = {name: columns.get(name, name) for name in (*needed, *OPTIONAL_COLUMNS, *OPTIONAL_POINT_COLUMNS)}
    missing = [theirs[name] for name in needed if theirs[name] not in header]
    if missing:
        message = f"missing column{'s' * (len(missing) > 1)} {', '.join(missing)}; needed are {', '.join(needed)}"
        raise RunImportError([Problem(source, 1, message)])
    rows: list[tuple[int, Mapping[str, str]]] = []
    problems: list[Problem] = []
    line = reader.line_num + 1
    for cells in reader:
        if any(cell.strip() for cell in cells):
            if len(cells) != len(header):
                problems.append(Problem(source, line, f"{len(cells)} cells, the header has {len(header)}"))
            else:
                given = dict(zip(header, cells, strict=True))
                rows.append((line, {ours: given[name] for ours, name in theirs.items() if name in given}))
        line = reader.line_num + 1
    return rows, problems


def _number(fields: Mapping[str, str], name: str, allowed: str, holds: Callable[[float], bool]) -> float | None:
    """A number that must hold a condition; None where the cell is empty."""
    text = fields.get(name, "").strip().replace("_", "")
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        raise _BadValueError(f"{name}: {text!r} is not {allowed}") from None
    if not math.isfinite(value) or not holds(value):
        raise _BadValueError(f"{name}: {text} is not {allowed}")
    most = _MOST_OF.get(name, _MOST)
    if value > most or 0 < value < _LEAST:
        raise _BadValueError(f"{name}: {text} is not {allowed} between {_LEAST:g} and {most:g}")
    return value


def _whole(fields: Mapping[str, str], name: str, allowed: str, least: int) -> int | None:
    value = _number(fields, name, allowed, lambda number: number >= least and number == int(number))
    return None if value is None else int(value)


def _choice(fields: Mapping[str, str], name: str, allowed: tuple[str, ...], default: str) -> str:
    text = fields.get(name, "").strip().lower() or default
    if text not in allowed:
        raise _BadValueError(f"{name}: {text!r} is not one of {', '.join(allowed)}")
    return text


def _word(fields: Mapping[str, str], name: str) -> str:
    text = fields.get(name, "").strip()
    if not text:
        raise _BadValueError(f"{name}: empty; it is needed")
    return text


def _positive(fields: Mapping[str, str], name: str) -> float | None:
    return _number(fields, name, "a positive number", lambda value: value > 0)


def _run(fields: Mapping[str, str], run_id: str, curve: RunCurve) -> FinishedRun:
    """One row as a run. Raises `_BadValueError` for the first cell that is wrong."""
    scale, method = _word(fields, "scale"), _word(fields, "method").lower()
    total = _whole(fields, "total_steps", "a positive whole number", 1)
    if total is None:
        raise _BadValueError("total_steps: empty; it is needed")
    parameters = _parameters(fields, method)
    seed = _whole(fields, "seed", "a whole number from 0 up", 0)
    rate = _positive(fields, "learning_rate")
    outcome, loss = _outcome(fields)
    stated = fields.get("decayed", "").strip()
    decayed = _choice(fields, "decayed", _YES + _NO, "yes") in _YES
    params = _positive(fields, "params") or size_from_name(scale)
    tokens = _positive(fields, "tokens")
    bag_size, ratio = int(dict(parameters).get("bag_size", 1)), float(dict(parameters).get("step_ratio", 0.0))
    boundary = boundary_step(ratio, total)
    equal = not any(parameter_of(name).changes_flops for name, _ in parameters)
    latent = tokens * total / (boundary * bag_size + total - boundary) if tokens is not None and equal else None
    return FinishedRun(
        run_id=run_id,
        scale=scale,
        method=method,
        parameters=parameters,
        purpose=_choice(fields, "stage", PURPOSES, "confirmation"),
        total_steps=total,
        decayed=decayed and outcome == "finished",
        outcome=outcome,
        reason="" if outcome == "finished" else "as stated in the file",
        trunk=trunk_name(scale, method, rate, bag_size, seed, run_id),
        learning_rate=rate,
        seed=seed,
        boundary_step=boundary,
        final_loss=loss,
        gpu_hours=_positive(fields, "gpu_hours"),
        flops=6 * params * latent if params and latent else None,
        tokens=tokens,
        params=params,
        device=fields.get("device", "").strip() or None,
        curve=curve,
        notes=() if stated else (DECAY_NOT_STATED,),
    )


def _parameters(fields: Mapping[str, str], method: str) -> Parameters:
    """The method's parameters, sorted by name; a baseline may not have any."""
    bag_size = _whole(fields, "bag_size", "a whole number from 1 up", 1)
    ratio = _number(fields, "step_ratio", "in [0, 1]", lambda value: 0 <= value <= 1)
    if method == BASELINE:
        if (bag_size or 1) > 1:
            raise _BadValueError(f"bag_size: {bag_size} for the baseline, which has 1")
        if ratio:
            raise _BadValueError(f"step_ratio: {ratio:g} for the baseline, which has 0")
        if _further(fields):
            raise _BadValueError(f"parameters: {fields['parameters']!r} for the baseline, which has none")
        return ()
    named = (("bag_size", bag_size), ("step_ratio", ratio), *_further(fields))
    return tuple(sorted((name, value) for name, value in named if value is not None))


def _further(fields: Mapping[str, str]) -> Parameters:
    """The method's other parameters: whole numbers, numbers or words. Raises `_BadValueError` for anything else."""
    found: dict[str, Scalar] = {}
    for word in fields.get("parameters", "").split():
        name, equals, value = word.partition("=")
        if not (name.isidentifier() and equals and value) or name in found or name in PARAMETER_COLUMNS:
            raise _BadValueError(f"parameters: {word!r} is not NAME=VALUE with a name of its own")
        found[name] = _scalar(value)
    return tuple(found.items())


def _scalar(text: str) -> Scalar:
    for kind in (int, float):
        try:
            value = kind(text)
        except ValueError:
            continue
        if math.isfinite(value):
            return value
    return text


def _outcome(
    fields: Mapping[str, str],
) -> tuple[Literal["finished", "stopped", "diverged", "failed"], float | None]:
    """How the run ended, and its final loss if it finished. A loss that is no number is a divergence, never a score."""
    text = fields.get("final_loss", "").strip().lower()
    stated = _choice(fields, "outcome", _OUTCOMES, "finished")
    match stated:
        case "stopped" | "diverged" | "failed":
            return stated, None
    if text in ("nan", "inf", "+inf", "-inf", "infinity", _INFINITY_IN_SQL):
        return "diverged", None
    if not text:
        raise _BadValueError("final_loss: empty; a run that did not finish says so with outcome or nan")
    return "finished", _positive(fields, "final_loss")


def size_from_name(scale: str) -> float | None:
    """Parameters that a scale's name states (`270M`, `3b`, `10B-A1B`: the total); None where it states none."""
    found = re.match(r"^(\d+(?:\.\d+)?)([kmbt])(?![a-z0-9])", scale.lower())
    size = float(found.group(1)) * _SIZES[found.group(2)] if found else 0.0
    return size if 0 < size <= _MOST else None


def _read_points(source: str, text: str) -> tuple[dict[str, tuple[int, RunCurve]], list[Problem]]:
    """In-run points by run name, with the first line of each, and every bad row."""
    found: dict[str, list[tuple[float, ...]]] = {}
    lines: dict[str, int] = {}
    extras: tuple[str, ...] = ()
    rows, problems = _read_rows(source, text, {}, POINT_COLUMNS)
    for line, fields in rows:
        extras = tuple(name for name in OPTIONAL_POINT_COLUMNS if name in fields)
        try:
            name = _word(fields, "run")
            lines.setdefault(name, line)
            values = [_positive(fields, column) for column in ("step", "loss", *extras)]
            if values[0] is None or values[1] is None:
                raise _BadValueError("step and loss: both are needed")
        except _BadValueError as error:
            problems.append(Problem(source, line, str(error)))
            continue
        found.setdefault(name, []).append(tuple(math.nan if value is None else value for value in values))
    return {name: (lines[name], _points_to_curve(points, extras)) for name, points in found.items()}, problems


def _points_to_curve(points: list[tuple[float, ...]], extras: tuple[str, ...]) -> RunCurve:
    """Points in order of their step, one a step; a clock with gaps is left out."""
    table = np.array(sorted({point[0]: point for point in points}.values()), dtype=np.float64)
    clocks = {
        name: table[:, 2 + number] for number, name in enumerate(extras) if np.isfinite(table[:, 2 + number]).all()
    }
    return RunCurve(
        steps=table[:, 0],
        losses=table[:, 1],
        gpu_hours=clocks.get("gpu_hours"),
        tokens=clocks.get("tokens"),
        flops=clocks.get("flops"),
    )
