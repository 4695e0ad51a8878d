"""In-run losses in the forms that trainers leave behind, each turned into one table: run, step, loss and perhaps clocks.

Read are that table itself, a chart exported from W&B (a column a run), a W&B history as CSV, as JSON lines or as a JSON
array, and logs with lines like `step:1375/1375 val_loss:3.2779 train_time:80000ms`. Points are drawn and never enter a
number: one without a finite step and loss is left out and counted, where a final loss of that kind is a divergence.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np

from reports.evidence.delimited import (
    MOST,
    BadValueError,
    Problem,
    RunImportError,
    header_of,
    is_no_number,
    number,
    read_rows,
    word,
)
from reports.evidence.logs import LogPoint, log_points
from reports.evidence.runs import RunCurve

POINT_COLUMNS: tuple[str, ...] = ("run", "step", "loss")
OPTIONAL_POINT_COLUMNS: tuple[str, ...] = ("gpu_hours", "tokens", "flops")

_STEP_KEYS = ("step", "_step", "global_step", "train/global_step", "trainer/global_step")
_LOSS_KEYS = (
    "val/loss",
    "val_loss",
    "valid/loss",
    "validation/loss",
    "validation_loss",
    "eval/loss",
    "eval_loss",
    "loss",
)
"""What others call them in a history, the likeliest first; a validation loss before one that may be of training."""
_RUN_KEYS = ("run", "run_name", "_run")
_KEYS: Mapping[str, Sequence[str]] = {"step": _STEP_KEYS, "loss": _LOSS_KEYS, "run": _RUN_KEYS}
_BOUNDS = ("__MIN", "__MAX")
_JSON_ARRAY = re.compile(r"\s*\[\s*[{\]]")
"""Not any bracket begins an array: a log's first line may begin with a time in brackets."""
_BEFORE_ENTRY = re.compile(r"\s*[\[,]\s*")
Row = tuple[int, list[str]]
"""Line that it comes from; run, step, loss, device-hours and perhaps other costs as text, empty where not known."""


@dataclass(frozen=True, slots=True)
class InRunPoints:
    """Points by run name, with the line that names each first; rows that are wrong; how many rows were left out."""

    curves: dict[str, tuple[int, RunCurve]]
    problems: list[Problem]
    left_out: int


def points_as_table(source: str, text: str, columns: Mapping[str, str], devices: float | None = None) -> str:
    """A text in any of the forms as our table of points; that table itself stays as it is.

    `columns` maps `step`, `loss` and `run` to the text's own names. A log is of the run that its file is named after, and
    so is what names no run; `devices` turn a log's wall time into device-hours. Raises `RunImportError`.
    """
    stem = PurePath(source).stem
    if text.lstrip().startswith("{"):
        return _table(source, _of_history(source, _json_lines(source, text), columns))
    if _JSON_ARRAY.match(text):
        return _table(source, _of_history(source, _json_array(source, text), columns))
    header = header_of(text, [*(key for keys in _KEYS.values() for key in keys), "Step", *columns.values()])
    if not header:
        return text
    theirs = _theirs(header, columns)
    if "step" in theirs and "loss" in theirs:
        return text if _is_ours(header, theirs, columns) else _of_table(source, text, theirs)
    if "loss" not in header and any(" - " in name for name in header[1:]):
        if header[0].lower() not in _STEP_KEYS:
            raise RunImportError([Problem(source, 1, f"is a chart over {header[0]!r}; export it over Step")])
        return _table(source, _of_chart(source, text, header))
    if "step" not in header and (found := log_points(text)):
        return _table(source, _of_log(stem, found, devices))
    return text


def _theirs(header: Sequence[str], columns: Mapping[str, str]) -> dict[str, str]:
    """Our columns that a header has, with its own names for them: the named ones, else those that others use."""
    named = {name: (*(() if name not in columns else (columns[name],)), *keys) for name, keys in _KEYS.items()}
    named |= {name: (columns.get(name, name), name) for name in OPTIONAL_POINT_COLUMNS}
    found = {name: next((key for key in keys if key in header), None) for name, keys in named.items()}
    return {name: key for name, key in found.items() if key is not None}


def _is_ours(header: Sequence[str], theirs: Mapping[str, str], columns: Mapping[str, str]) -> bool:
    """Whether `read_points` finds the columns by itself."""
    return all(name in theirs and theirs[name] in (name, columns.get(name)) for name in POINT_COLUMNS)


def _of_table(source: str, text: str, theirs: Mapping[str, str]) -> str:
    """A table without a run, or with another tool's names. Rows without a loss are of training, and are passed over."""
    found = read_rows(source, text, theirs, ["step", "loss"])
    if found.problems:
        raise RunImportError(found.problems)
    costs = ["gpu_hours", *(name for name in OPTIONAL_POINT_COLUMNS if name in theirs and name != "gpu_hours")]
    stem = PurePath(source).stem
    rows = (
        (line, [fields.get("run", stem), fields["step"], fields["loss"], *(fields.get(name, "") for name in costs)])
        for line, fields in found.rows
        if fields["step"].strip() and fields["loss"].strip()
    )
    return _table(source, rows, costs)


def _table(source: str, rows: Iterator[Row], costs: Sequence[str] = ("gpu_hours",)) -> str:
    """Our table of points. Raises `RunImportError` by the lines of `source`, which the table's own would not name."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow((*POINT_COLUMNS, *costs))
    problems: list[Problem] = []
    for line, cells in rows:
        fields = dict(zip(("step", "loss", *costs), cells[1:], strict=True))
        problems += [Problem(source, line, wrong) for name in fields if (wrong := _wrong(fields, name))]
        writer.writerow(cells)
    if problems:
        raise RunImportError(problems)
    return stream.getvalue()


def _wrong(fields: Mapping[str, str], name: str) -> str:
    """What is wrong with a cell of a point, in words; empty where nothing is. NaN and infinities are left out later."""
    try:
        if not is_no_number(fields[name].strip()):
            _loss(fields) if name == "loss" else _from_zero(fields, name)
    except BadValueError as error:
        return str(error)
    return ""


def _of_chart(source: str, text: str, header: Sequence[str]) -> Iterator[Row]:
    """A chart of W&B: steps, then `RUN - METRIC` and its smallest and largest value of a run. A run has blank cells."""
    runs = {name: name.rpartition(" - ") for name in header[1:] if name and not name.endswith(_BOUNDS)}
    metrics = sorted({metric for _, _, metric in runs.values()})
    if len(metrics) > 1:
        message = f"holds {len(metrics)} metrics, {', '.join(metrics)}; export a chart of the validation loss alone"
        raise RunImportError([Problem(source, 1, message)])
    found = read_rows(source, text, {name: name for name in (header[0], *runs)}, [header[0]])
    if found.problems:
        raise RunImportError(found.problems)
    for line, fields in found.rows:
        for name, (run, _, _) in runs.items():
            if fields[name].strip():
                yield line, [run, fields[header[0]], fields[name], ""]


Entries = list[tuple[int, Mapping[str, Any]]]
"""Objects of a history, each with its line."""


def _json_lines(source: str, text: str) -> Entries:
    lines: Entries = []
    problems: list[Problem] = []
    for line, written in enumerate(text.splitlines(), 1):
        if not written.strip():
            continue
        try:
            value = json.loads(written)
        except (ValueError, RecursionError) as error:
            problems.append(Problem(source, line, f"is not JSON: {error}"))
            continue
        if isinstance(value, dict):
            lines.append((line, value))
        else:
            problems.append(Problem(source, line, "is not a JSON object"))
    if problems:
        raise RunImportError(problems)
    return lines


def _json_array(source: str, text: str) -> Entries:
    """Objects of one array, each with the line on which it begins."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RunImportError([Problem(source, 1, f"is not JSON: {error}")]) from error
    decoder, found = json.JSONDecoder(), Entries()
    at, line, end = 0, 1, 0
    for value in values:
        # What stands before it is sound by now: white space, and the bracket or the comma.
        at = _BEFORE_ENTRY.match(text, end).end()  # type: ignore[union-attr]
        line += text.count("\n", end, at)
        if not isinstance(value, dict):
            raise RunImportError([Problem(source, line, "is not a JSON object")])
        found.append((line, value))
        _, end = decoder.raw_decode(text, at)
        line += text.count("\n", at, end)
    return found


def _of_history(source: str, lines: Entries, columns: Mapping[str, str]) -> Iterator[Row]:
    """A history: entries without a loss are of training, and are passed over."""
    problems: list[Problem] = []
    keys = {key for _, value in lines for key in value}
    chosen = {
        name: next((key for key in ([columns[name]] if name in columns else names) if key in keys), None)
        for name, names in _KEYS.items()
    }
    step, loss, run = (chosen[name] for name in ("step", "loss", "run"))
    for name in ("step", "loss"):
        if chosen[name] is None and lines:
            message = f"no key for {name}; name it with --map {name}=KEY, there are {', '.join(sorted(keys)[:20])}"
            problems.append(Problem(source, lines[0][0], message))
    if problems:
        raise RunImportError(problems)
    assert step is not None
    assert loss is not None
    stem = PurePath(source).stem
    for line, value in lines:
        # A history has a line for every step that logged anything, most of them without a validation.
        if value.get(loss) is not None and value.get(step) is not None:
            yield line, [str(value.get(run, stem)) if run else stem, _said(value[step]), _said(value[loss]), ""]


def _said(value: object) -> str:
    return repr(value) if isinstance(value, float) else str(value)


def _of_log(run: str, points: Sequence[LogPoint], devices: float | None) -> Iterator[Row]:
    for point in points:
        yield point.line, [run, str(point.step), point.loss, point.hours(devices)]


def read_points(source: str, text: str, columns: Mapping[str, str]) -> InRunPoints:
    """Points of our table by run name. `columns` maps `step` and `loss` to the table's own names."""
    names = (*POINT_COLUMNS, *OPTIONAL_POINT_COLUMNS)
    header = header_of(text, names)
    theirs = {name: columns[name] if columns.get(name) in header else name for name in names}
    table = read_rows(source, text, theirs, POINT_COLUMNS)
    found: dict[str, list[tuple[float, ...]]] = {}
    lines: dict[str, int] = {}
    problems = list(table.problems)
    extras = tuple(name for name in OPTIONAL_POINT_COLUMNS if theirs[name] in table.header)
    left_out = 0
    for line, fields in table.rows:
        try:
            name = word(fields, "run")
            lines.setdefault(name, line)
            given = [fields[column].strip() for column in ("step", "loss")]
            if not all(given) or any(map(is_no_number, given)):
                left_out += 1
                continue
            values = [_from_zero(fields, "step"), _loss(fields), *(_from_zero(fields, column) for column in extras)]
        except BadValueError as error:
            problems.append(Problem(source, line, str(error)))
            continue
        found.setdefault(name, []).append(tuple(math.nan if value is None else value for value in values))
    curves = {name: (lines[name], _points_to_curve(points, extras)) for name, points in found.items()}
    return InRunPoints(curves, problems, left_out)


def _from_zero(fields: Mapping[str, str], name: str) -> float | None:
    if is_no_number(fields[name].strip()):
        return None
    return number(fields, name, "a number from 0 up", lambda value: value >= 0)


def _loss(fields: Mapping[str, str]) -> float | None:
    # Of any unit: what is no loss of the run's own is found when the point meets its run.
    return number(fields, "loss", "a positive number", lambda value: value > 0, MOST)


def _points_to_curve(points: list[tuple[float, ...]], extras: tuple[str, ...]) -> RunCurve:
    """Points in order of their step, one a step; a clock with gaps is left out."""
    table = np.array(sorted({point[0]: point for point in points}.values()), dtype=np.float64)
    clocks = {name: table[:, 2 + index] for index, name in enumerate(extras) if np.isfinite(table[:, 2 + index]).all()}
    return RunCurve(
        steps=table[:, 0],
        losses=table[:, 1],
        gpu_hours=clocks.get("gpu_hours"),
        tokens=clocks.get("tokens"),
        flops=clocks.get("flops"),
    )
