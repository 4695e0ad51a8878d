"""Bring your own runs: a table of finished runs that were trained elsewhere, read whole or not at all.

Every bad row is listed with its line number and what is allowed, and then nothing is read. What a file does not say stays
None. The columns are documented in `COLUMNS`; other systems' records come through the same door by renaming their keys.
How a table's text is taken apart is `delimited`'s, and what in-run points may look like is `points`'s.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Literal

from reports.evidence.delimited import (
    LONGEST_CELL,
    MOST,
    BadValueError,
    Problem,
    RunImportError,
    choice,
    is_no_number,
    number,
    positive,
    read_rows,
    read_text,
    whole,
    word,
)
from reports.evidence.points import InRunPoints, points_as_table, read_points
from reports.evidence.runs import (
    BASELINE,
    DECAY_NOT_STATED,
    EMPTY_CURVE,
    FinishedRun,
    Parameters,
    RunCurve,
    strangest_loss,
    trunk_name,
)
from reports.evidence.units import BITS, NATS, UNITS, LossUnit, know_nothing
from trainers.contract.errors import InputError
from trainers.contract.record import MOST_LOSS, PURPOSES
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
"""What a table is expected to say; of these, `NEEDED` must be there."""
NEEDED = ("scale", "method", "total_steps", "final_loss")

OPTIONAL_COLUMNS: dict[str, str] = {
    "run": "name of the run, needed where a second file has its in-run points",
    "learning_rate": "peak learning rate",
    "device": "device type; only runs on the same one are compared",
    "params": "parameters of the model; otherwise read from the scale's name where that is a size",
    "stage": f"{', '.join(PURPOSES)}; `confirmation` where the column is missing",
    "decayed": "yes or no: did the learning rate decay to its end; taken as yes, and said so, where missing",
    "outcome": "finished, stopped, diverged or failed; runs that did not finish need no final loss",
    "parameters": "further parameters of the method, such as `heads=2 pieces=4`",
    "flops": "model FLOPs of the whole run; 6 times parameters times positions where no row states any",
    "execution": "how it was run (compiled, eager, the version of a kernel); one arm run in two ways is warned of",
    "validation_set": "what the loss was measured on; only runs with the same one are compared",
    "learning_rate_unit": "`own` where the method's learning rate is not in the baseline's unit; else `shared`",
    "scores": "downstream tasks as `name=value name=value`: shown, never in a claim",
}

READING_COLUMNS: dict[str, str] = {
    "loss_unit": f"{', '.join(UNITS)}: what the losses are in; nats (per token) where missing",
    "bytes_per_token": "bytes of a mean token of the validation text; needed for bits per byte",
    "vocab_size": "entries of the tokenizer; a loss above its logarithm is warned of",
    "devices": "devices of a run whose log has only wall time",
}
"""What says how the others are to be read; not exported, where losses are nats."""

_YES, _NO = ("yes", "true", "1", "y"), ("no", "false", "0", "n")
OWN, SHARED = "own", "shared"
_LEARNING_RATE_UNITS = (SHARED, OWN)
_OUTCOMES = ("finished", "stopped", "diverged", "failed")
_SIZES = {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}


@dataclass(frozen=True, slots=True)
class RunTable:
    """What a table held, and what a reader should know of how it was read, one line each."""

    runs: tuple[FinishedRun, ...]
    remarks: tuple[str, ...]


def read_runs(
    path: Path,
    points: Path | None = None,
    columns: Mapping[str, str] | None = None,
    fixed: Mapping[str, str] | None = None,
) -> tuple[FinishedRun, ...]:
    """Read a table of finished runs, and optionally a second one with in-run points.

    `columns` maps our column names to those of the file; `fixed` are columns that are the same for all runs. Raises
    `RunImportError` listing bad rows, `InputError` for a file that is no text.
    """
    given = None
    if points is not None:
        given = (points.name, points_as_table(points.name, read_text(points), columns or {}))
    return runs_from_texts((path.name, read_text(path)), given, columns, fixed).runs


def runs_from_texts(
    runs: tuple[str, str],
    points: tuple[str, str] | None = None,
    columns: Mapping[str, str] | None = None,
    fixed: Mapping[str, str] | None = None,
) -> RunTable:
    """As `read_runs`, from (name, text) of tables that lie in no file."""
    known = (*COLUMNS, *OPTIONAL_COLUMNS, *READING_COLUMNS)
    theirs = {name: (columns or {}).get(name, name) for name in known}
    same = dict(fixed or {})
    found = read_rows(*runs, theirs, [name for name in NEEDED if name not in same])
    for name in same:
        if theirs[name] in found.header:
            raise InputError(f"--set {name}={same[name]}: {runs[0]} has a column {theirs[name]}")
    read = InRunPoints({}, [], 0)
    if points is not None:
        read = read_points(*points, columns or {})
    rows = [(line, {**fields, **same}) for line, fields in found.rows]
    _refuse_bits_alone([fields for _, fields in rows])
    try:
        made = runs_from_rows(
            rows,
            source=runs[0],
            curves=read.curves if points is None else _named_as_rows(runs[0], rows, points[0], read.curves),
            points_source=points[0] if points is not None else "",
            problems=[*found.problems, *read.problems],
        )
    except RunImportError as error:
        raise _of_all_rows(error, same) from None
    remarks = [_absent_columns(runs[0], found.header, theirs, same), _strange_unit(runs[0], made)]
    if points is not None and read.left_out:
        many = "s" * (read.left_out != 1)
        remarks.append(f"{points[0]}: {read.left_out:,} point{many} without a finite step and loss left out")
    return RunTable(made, tuple(remark for remark in remarks if remark))


def _of_all_rows(error: RunImportError, fixed: Mapping[str, str]) -> InputError:
    """The same in one line where it is the value for all rows that is wrong."""
    for name, value in fixed.items():
        for problem in error.problems:
            if problem.message.startswith(f"{name}: "):
                return InputError(f"--set {name}={value[:LONGEST_CELL]}: {problem.message.removeprefix(f'{name}: ')}")
    return error


def _refuse_bits_alone(rows: Iterable[Mapping[str, str]]) -> None:
    """One line where losses are in bits per byte and no row says how many bytes a token has, instead of one a row."""
    said = [(_lower(fields, "loss_unit") == BITS, bool(_lower(fields, "bytes_per_token"))) for fields in rows]
    if any(bits for bits, _ in said) and not any(known for _, known in said):
        raise InputError(
            f"loss_unit={BITS}: only with the bytes of a mean token do they become nats per token; give --bytes-per-token"
        )


def _lower(fields: Mapping[str, str], name: str) -> str:
    return fields.get(name, "").strip().lower()


def _named_as_rows(
    source: str,
    rows: Sequence[tuple[int, Mapping[str, str]]],
    points_source: str,
    curves: Mapping[str, tuple[int, RunCurve]],
) -> Mapping[str, tuple[int, RunCurve]]:
    """Points by the run names of the table: those that name no run but their file's are of a table's only row, whatever it is
    called. Raises `RunImportError` where the table has no names to be found by."""
    names = [fields.get("run", "").strip() for _, fields in rows]
    stem = PurePath(points_source).stem
    if len(rows) == 1 and set(curves) == {stem}:
        return {names[0]: curves[stem]}
    if curves and rows and not any(names):
        many = "s" * (len(curves) > 1)
        message = (
            f"no column run, by which the points of {len(curves)} run{many} in {points_source} are told apart; name it "
            "with --map run=COLUMN, or give --set run=NAME to a table of one run"
        )
        raise RunImportError([Problem(source, 1, message)])
    return curves


def _absent_columns(source: str, header: Iterable[str], theirs: Mapping[str, str], fixed: Mapping[str, str]) -> str:
    """Which of `COLUMNS` a table lacks, so that a misspelt one is noticed."""
    names = set(header)
    absent = [name for name in COLUMNS if theirs[name] not in names and name not in fixed]
    if not absent:
        return ""
    unread = [name for name in header if name and name not in theirs.values()]
    beside = f"; not read: {', '.join(unread[:10])}" if unread else ""
    return f"{source}: no column {', '.join(absent)}, which stays unknown{beside}"


def _strange_unit(source: str, runs: Iterable[FinishedRun]) -> str:
    """A word of warning where losses can hardly be of the unit that they were read in."""
    run = strangest_loss(runs)
    if run is None:
        return ""
    return (
        f"{source}: read as {run.loss_unit.words}, a final loss is {run.final_loss:.4g} nats, above ln V = "
        f"{know_nothing(run.vocab_size):.4g} of a model that knows nothing; --unit says what losses are in"
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
    rows, problems = list(rows), list(problems)
    stated_flops = any(fields.get("flops", "").strip() for _, fields in rows)
    runs: list[FinishedRun] = []
    first_line: dict[tuple[object, ...], int] = {}
    names: dict[str, int] = {}
    unused = dict(curves or {})
    for line, fields in rows:
        try:
            name = fields.get("run", "").strip()
            run = _run(fields, name or f"{source}:{line}")
            # Beside stated FLOPs they would be counted in two ways, which a ratio of two arms would show as a speedup.
            run = run if stated_flops else replace(run, flops=_counted_flops(run))
            if name in unused:
                run = replace(run, curve=_curve_of(run, *unused.pop(name)))
        except BadValueError as error:
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
    for name, (line, _) in unused.items():
        after = ", which its file is named after," if name == PurePath(points_source).stem else ""
        problems.append(Problem(points_source, line, f"run: {name!r}{after} is not in {source}"))
    if not runs and not problems:
        problems.append(Problem(source, 1, "no runs below the header"))
    if problems:
        raise RunImportError(sorted(problems, key=lambda problem: (problem.source != source, problem.line)))
    return tuple(runs)


def _curve_of(run: FinishedRun, line: int, points: RunCurve) -> RunCurve:
    """A run's points in nats. Hours and FLOPs that they lack are taken as equal for every step: they only place a line."""
    losses = points.losses.copy()
    for index, loss in enumerate(points.losses):
        losses[index] = run.loss_unit.nats(loss)
        if not 0 < losses[index] <= MOST_LOSS:
            raise BadValueError(f"its points, from line {line}: a loss of {loss:g} is not of {run.loss_unit.words}")
    share = points.steps / run.total_steps
    hours, flops = points.gpu_hours, points.flops
    return replace(
        points,
        losses=losses,
        gpu_hours=hours if hours is not None or run.gpu_hours is None else share * run.gpu_hours,
        flops=flops if flops is not None or run.flops is None else share * run.flops,
    )


def _run(fields: Mapping[str, str], run_id: str) -> FinishedRun:
    """One row as a run, still without its points. Raises `BadValueError` for the first cell that is wrong."""
    scale, method = word(fields, "scale"), word(fields, "method").lower()
    total = whole(fields, "total_steps", "a positive whole number", 1)
    if total is None:
        raise BadValueError("total_steps: empty; it is needed")
    parameters = _parameters(fields, method)
    seed = whole(fields, "seed", "a whole number from 0 up", 0)
    rate = positive(fields, "learning_rate")
    unit = _loss_unit(fields)
    outcome, loss = _outcome(fields, unit)
    stated = fields.get("decayed", "").strip()
    decayed = choice(fields, "decayed", _YES + _NO, "yes") in _YES
    params = positive(fields, "params") or size_from_name(scale)
    bag_size, ratio = int(dict(parameters).get("bag_size", 1)), float(dict(parameters).get("step_ratio", 0.0))
    return FinishedRun(
        run_id=run_id,
        scale=scale,
        method=method,
        parameters=parameters,
        purpose=choice(fields, "stage", PURPOSES, "confirmation"),
        total_steps=total,
        decayed=decayed and outcome == "finished",
        outcome=outcome,
        reason="" if outcome == "finished" else "as stated in the file",
        trunk=trunk_name(scale, method, rate, bag_size, seed, run_id),
        learning_rate=rate,
        seed=seed,
        boundary_step=boundary_step(ratio, total),
        final_loss=loss,
        gpu_hours=positive(fields, "gpu_hours"),
        flops=positive(fields, "flops"),
        tokens=positive(fields, "tokens"),
        params=params,
        device=fields.get("device", "").strip() or None,
        num_devices=positive(fields, "devices") or 1,
        validation=fields.get("validation_set", "").strip() or None,
        curve=EMPTY_CURVE,
        notes=() if stated else (DECAY_NOT_STATED,),
        execution=fields.get("execution", "").strip() or None,
        own_learning_rate=choice(fields, "learning_rate_unit", _LEARNING_RATE_UNITS, SHARED) == OWN,
        loss_unit=unit,
        vocab_size=whole(fields, "vocab_size", "a whole number from 2 up", 2),
        scores=_scores(fields),
    )


def _counted_flops(run: FinishedRun) -> float | None:
    """6 times parameters times positions; None where they are not known, or where a position costs something else."""
    if run.tokens is None or run.params is None or any(parameter_of(name).changes_flops for name, _ in run.parameters):
        return None
    boundary = run.boundary_step or 0
    positions = run.tokens * run.total_steps / (boundary * run.bag_size + run.total_steps - boundary)
    return 6 * run.params * positions


def _parameters(fields: Mapping[str, str], method: str) -> Parameters:
    """The method's parameters, sorted by name; a baseline may not have any."""
    bag_size = whole(fields, "bag_size", "a whole number from 1 up", 1)
    ratio = number(fields, "step_ratio", "in [0, 1]", lambda value: 0 <= value <= 1)
    if method == BASELINE:
        if (bag_size or 1) > 1:
            raise BadValueError(f"bag_size: {bag_size} for the baseline, which has 1")
        if ratio:
            raise BadValueError(f"step_ratio: {ratio:g} for the baseline, which has 0")
        if _further(fields):
            raise BadValueError(f"parameters: {fields['parameters']!r} for the baseline, which has none")
        return ()
    named = (("bag_size", bag_size), ("step_ratio", ratio), *_further(fields))
    return tuple(sorted((name, value) for name, value in named if value is not None))


def _further(fields: Mapping[str, str]) -> Parameters:
    """The method's other parameters: whole numbers, numbers or words. Raises `BadValueError` for anything else."""
    found: dict[str, Scalar] = {}
    for pair in fields.get("parameters", "").split():
        name, equals, value = pair.partition("=")
        if not (name.isidentifier() and equals and value) or name in found or name in PARAMETER_COLUMNS:
            raise BadValueError(f"parameters: {pair!r} is not NAME=VALUE with a name of its own")
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


def _scores(fields: Mapping[str, str]) -> tuple[tuple[str, float], ...]:
    """Downstream scores by task. Raises `BadValueError` for what is no `name=value`."""
    found: dict[str, float] = {}
    for score in fields.get("scores", "").split():
        name, _, text = score.rpartition("=")
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not name or name in found or not math.isfinite(value):
            raise BadValueError(f"scores: {score!r} is not NAME=VALUE with a name of its own")
        found[name] = value
    return tuple(found.items())


def _loss_unit(fields: Mapping[str, str]) -> LossUnit:
    unit = LossUnit(choice(fields, "loss_unit", UNITS, NATS), positive(fields, "bytes_per_token"))
    if unit.name == BITS and unit.bytes_per_token is None:
        raise BadValueError("bytes_per_token: empty; only with it bits per byte become nats per token")
    return unit


def _outcome(
    fields: Mapping[str, str], unit: LossUnit
) -> tuple[Literal["finished", "stopped", "diverged", "failed"], float | None]:
    """How the run ended, and its final loss in nats if it finished. A loss that is no number is a divergence, never a score."""
    text = fields.get("final_loss", "").strip()
    stated = choice(fields, "outcome", _OUTCOMES, "finished")
    match stated:
        case "stopped" | "diverged" | "failed":
            return stated, None
    if is_no_number(text):
        return "diverged", None
    if not text:
        raise BadValueError("final_loss: empty; a run that did not finish says so with outcome or nan")
    if unit.name == NATS:
        return "finished", positive(fields, "final_loss")
    given = number(fields, "final_loss", "a positive number", lambda value: value > 0, MOST)
    assert given is not None
    loss = unit.nats(given)
    if not 0 < loss <= MOST_LOSS:
        raise BadValueError(f"final_loss: {given:g} is not of {unit.words}")
    return "finished", loss


def size_from_name(scale: str) -> float | None:
    """Parameters that a scale's name states (`270M`, `3b`, `10B-A1B`: the total); None where it states none."""
    found = re.match(r"^(\d+(?:\.\d+)?)([kmbt])(?![a-z0-9])", scale.lower())
    size = float(found.group(1)) * _SIZES[found.group(2)] if found else 0.0
    return size if 0 < size <= MOST else None
