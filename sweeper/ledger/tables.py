"""Runs that were trained elsewhere, as tables: a CSV file, logs or somebody's MLflow experiment, and the runs in a table.

Everything is read and checked before the ledger is touched, so that a bad row leaves it as it was. A table is kept as it
came, what is none as the table that was made of it, and read again for every report. Importing under the same name again
replaces what was imported (the earlier tables stay attached to the sweep's run in MLflow); the same table again changes
nothing. What a row may hold is decided in `reports.evidence.importing`.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from reports.evidence.delimited import RunImportError, is_no_number, read_text
from reports.evidence.importing import COLUMNS, OPTIONAL_COLUMNS, READING_COLUMNS, RunTable, runs_from_texts
from reports.evidence.logs import Log, logs_as_tables
from reports.evidence.points import POINT_COLUMNS, points_as_table
from reports.evidence.runs import BASELINE, FinishedRun
from sweeper.ledger.entries import ForeignRun
from trainers.contract.errors import InputError, first_lines, given

if TYPE_CHECKING:
    from sweeper.ledger.imports import ImportedTables, ImportedText, ImportLedger

IMPORTABLE = (*COLUMNS, *OPTIONAL_COLUMNS, *READING_COLUMNS)
"""Columns of a run, which can be mapped and fixed."""
MAPPABLE = tuple(dict.fromkeys((*IMPORTABLE, *POINT_COLUMNS)))
NEEDED = ("scale", "method", "total_steps")
"""Columns without which no row can be read."""
_OUTCOMES = {"FINISHED": "finished", "FAILED": "failed"}


@dataclass(frozen=True, slots=True)
class Experiment:
    """Somebody's runs in MLflow: where, which of them, and how our columns are found.

    `columns` maps our column names to their parameter, metric or tag keys (a prefix `params.`, `metrics.` or `tags.`
    picks one where a key is several of them); `fixed` are values that hold for all runs. Columns that are not named are
    looked up under our own name.
    """

    uri: str
    name: str
    columns: Mapping[str, str]
    fixed: Mapping[str, str]
    filter: str = ""


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import did: all runs of the table, how many rows were new in the ledger, what the report says, and what a
    reader should know of how the table was read."""

    runs: tuple[FinishedRun, ...]
    written: int
    headline: str
    report: Path
    remarks: tuple[str, ...] = ()


def pairs_of(option: str, texts: Sequence[str], allowed: Sequence[str] = IMPORTABLE) -> dict[str, str]:
    """`column=value` texts of an option as a mapping. Raises `InputError` for a bad one or an unknown column."""
    pairs: dict[str, str] = {}
    for text in texts:
        column, equals, value = text.partition("=")
        if not equals or not value.strip():
            raise InputError(f"{option}: {text!r} is not COLUMN=VALUE")
        if column.strip() not in allowed:
            raise InputError(f"{option}: {column.strip()!r} is not a column; there are {', '.join(allowed)}")
        if column.strip() in pairs:
            raise InputError(f"{option}: {column.strip()} is given twice")
        pairs[column.strip()] = value.strip()
    return pairs


def tables_of_files(
    runs: Path, points: Path | None, columns: Mapping[str, str], fixed: Mapping[str, str] | None = None
) -> ImportedTables:
    """Files as they are, a folder of logs as tables of its runs and points. `fixed` are columns that all runs share.

    Points may be a file of any form that is read, or a folder with one for each run. Raises `InputError`.
    """
    from sweeper.ledger.imports import ImportedTables, ImportedText

    strange = [name for name in columns if name not in IMPORTABLE]
    if strange and points is None:
        raise InputError(f"--map {strange[0]}={columns[strange[0]]}: is a column of points; give them with --points")
    same = dict(fixed or {})
    devices = _devices(same)
    shared = (tuple(sorted(columns.items())), tuple(sorted(same.items())))
    if runs.is_dir():
        if points is not None or columns:
            raise InputError(f"{runs}: logs have their points in them, and no columns; leave --points and --map")
        logs = _logs(runs)
        if devices is None:
            raise InputError(f"{runs}: logs tell their wall time; say on how many devices, as --set devices=8")
        if "scale" not in same:
            raise InputError(f"{runs}: logs do not tell the size of their model; say it, as --set scale=124M")
        made = logs_as_tables(logs, devices)
        folder = runs.resolve().name
        table, curves = (
            ImportedText(f"{folder}{end}.csv", text) for end, text in zip(("", "-points"), made, strict=True)
        )
        return ImportedTables(table, curves, *shared)
    with given(runs):
        table = ImportedText(runs.name, read_text(runs))
    return ImportedTables(table, _points(points, columns, devices) if points is not None else None, *shared)


def _devices(fixed: Mapping[str, str]) -> float | None:
    """The devices that were given for all runs. Raises `InputError` for what is no number of them."""
    text = fixed.get("devices")
    if text is None:
        return None
    if is_no_number(text) or not re.fullmatch(r"[0-9.]+", text) or not float(text) > 0:
        raise InputError(f"--set devices={text}: is not a positive number")
    return float(text)


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))


def _logs(folder: Path) -> list[Log]:
    """The logs in a folder: one folder a method, one file a run; the baseline's runs first."""
    with given(folder):
        methods = sorted(
            (below for below in folder.iterdir() if below.is_dir() and not below.name.startswith(".")),
            key=lambda below: (below.name.lower() != BASELINE, below.name),
        )
        logs = [
            Log(below.name, f"{below.name}/{file.stem}", read_text(file)) for below in methods for file in _files(below)
        ]
    if not logs:
        raise InputError(f"{folder}: no logs; they lie in a folder for each method, as {folder.name}/baseline/1.log")
    return logs


def _points(path: Path, columns: Mapping[str, str], devices: float | None) -> ImportedText:
    """In-run points of a file, or of a folder with a file for each run, which is named after it."""
    from sweeper.ledger.imports import ImportedText

    with given(path):
        if not path.is_dir():
            return ImportedText(path.name, points_as_table(path.name, read_text(path), columns, devices))
        tables = [points_as_table(file.name, read_text(file), columns, devices) for file in _files(path)]
    parts = [table.partition("\n") for table in tables]
    headers = {header for header, _, _ in parts}
    if len(headers) != 1:
        raise InputError(f"{path}: its files have {len(headers)} forms of points; one form a folder")
    text = "\n".join([*headers, *(rows.rstrip("\n") for _, _, rows in parts), ""])
    return ImportedText(f"{path.resolve().name}.csv", text)


def tables_of_experiment(experiment: Experiment) -> tuple[ImportedTables, tuple[str, ...]]:
    """Somebody's MLflow runs as a table of ours, and what of them was left out.

    Raises `LedgerError` or `InputError` where that cannot be done.
    """
    from sweeper.ledger.connection import runs_of_experiment
    from sweeper.ledger.imports import ImportedTables, ImportedText

    everything = runs_of_experiment(experiment.uri, experiment.name, experiment.filter)
    found = _without_parents(everything, experiment)
    if not found:
        raise InputError(f"{experiment.name}: no runs{' that match --filter' if experiment.filter else ''}")
    known = {key for run in found for key in _keys(run)}
    for column, key in experiment.columns.items():
        if key not in known:
            names = sorted({key for run in found for key in (*run.parameters, *run.metrics, *_own_tags(run))})
            raise InputError(f"--map {column}={key}: no run of {experiment.name} has it; there are {', '.join(names)}")
    for column in NEEDED:
        if column not in experiment.columns and column not in experiment.fixed and column not in known:
            raise InputError(
                f"{column}: no run of {experiment.name} has a parameter, metric or tag of that name; "
                f"name theirs with --map {column}=KEY, or give --set {column}=VALUE"
            )
    stream = io.StringIO()
    # Made into a table of ours and read as one: an experiment and a CSV file then have one set of rules and messages.
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(IMPORTABLE)
    names = _distinct_names(found)
    for name, run in zip(names, found, strict=True):
        fields = {**_fields(run, experiment), "run": name}
        writer.writerow([" ".join(fields[column].split()) for column in IMPORTABLE])
    file = re.sub(r"[^A-Za-z0-9._-]+", "-", experiment.name).strip("-.") or "experiment"
    tables = ImportedTables(ImportedText(f"{file}.csv", stream.getvalue()), None)
    try:
        runs_of(tables)
    except RunImportError as error:
        # Nobody has seen the lines of that table: the runs' names stand in for them.
        lines = [f"{experiment.name}, run {names[one.line - 2]}: {one.message}" for one in error.problems]
        raise InputError(first_lines(lines)) from None
    left_out = len(everything) - len(found)
    if not left_out:
        return tables, ()
    many = "runs left out that stand" if left_out > 1 else "run left out that stands"
    return tables, (f"{experiment.name}: {left_out} {many} above others and trained nothing",)


def _without_parents(runs: Sequence[ForeignRun], experiment: Experiment) -> list[ForeignRun]:
    """The runs that trained something: a sweep in MLflow is often a run of its own above its trials, perhaps with the
    parameters that they share, and without a cell that every training has."""
    parents = {run.tags.get("mlflow.parentRunId") for run in runs}
    return [run for run in runs if run.run_id not in parents or _is_whole(_fields(run, experiment))]


def _is_whole(fields: Mapping[str, str]) -> bool:
    ended = fields["final_loss"] or fields["outcome"] != "finished"
    return bool(ended) and all(fields[column] for column in NEEDED)


def _own_tags(run: ForeignRun) -> dict[str, str]:
    return {key: value for key, value in run.tags.items() if not key.startswith("mlflow.")}


def _keys(run: ForeignRun) -> dict[str, str]:
    """Everything that a run logged as text, under its key and under its key with the prefix of its kind."""
    tags = _own_tags(run)
    metrics = {key: repr(value) for key, value in run.metrics.items()}
    found: dict[str, str] = {**tags, **metrics, **run.parameters}
    for prefix, values in (("params", run.parameters), ("metrics", metrics), ("tags", tags)):
        found |= {f"{prefix}.{key}": value for key, value in values.items()}
    return found


def _fields(run: ForeignRun, experiment: Experiment) -> dict[str, str]:
    """A run's cells. Its status is its outcome unless another key is named for it; what it lacks is empty."""
    keys = _keys(run)
    fields = {column: keys.get(experiment.columns.get(column, column), "") for column in IMPORTABLE}
    fields["outcome"] = fields["outcome"] or _OUTCOMES.get(run.status, "stopped")
    return {**fields, **experiment.fixed}


def _distinct_names(runs: Sequence[ForeignRun]) -> list[str]:
    counts = Counter(run.name for run in runs)
    return [
        run.name if run.name.strip() and counts[run.name] == 1 else f"{run.name} ({run.run_id[:8]})".strip()
        for run in runs
    ]


def table_of(tables: ImportedTables) -> RunTable:
    """Read a table of runs. Raises `RunImportError` with the bad rows."""
    points = None if tables.points is None else (tables.points.name, tables.points.text)
    return runs_from_texts((tables.runs.name, tables.runs.text), points, dict(tables.columns), dict(tables.fixed))


def runs_of(tables: ImportedTables) -> tuple[FinishedRun, ...]:
    """The runs of a table, as `table_of` reads them."""
    return table_of(tables).runs


def imported_runs(ledger: ImportLedger) -> tuple[FinishedRun, ...]:
    """The runs of an imported sweep, read again from the tables that the ledger keeps.

    Raises `LedgerError` where those are gone.
    """
    return runs_of(ledger.tables())
