"""Runs that were trained elsewhere, as tables: a CSV file or somebody's MLflow experiment, and the runs that a table holds.

Everything is read and checked before the ledger is touched, so that a bad row leaves it as it was. The table is kept as
it came and read again for every report. Importing under the same name again replaces what was imported (the earlier
tables stay attached to the sweep's run in MLflow); the same table again changes nothing. What a row may hold is
decided in `reports.evidence.importing`.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reports.evidence.importing import COLUMNS, OPTIONAL_COLUMNS, RunImportError, runs_from_texts
from reports.evidence.runs import FinishedRun
from sweeper.ledger.entries import ForeignRun
from trainers.contract.errors import InputError, given

if TYPE_CHECKING:
    from sweeper.ledger.imports import ImportedTables, ImportLedger

IMPORTABLE = (*COLUMNS, *OPTIONAL_COLUMNS)
"""Column names that can be mapped."""
NEEDED = ("scale", "method", "total_steps")
"""Columns without which no row can be read."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
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
    """What an import did: all runs of the table, how many rows were new in the ledger, and what the report says."""

    runs: tuple[FinishedRun, ...]
    written: int
    headline: str
    report: Path


def check_name(name: str) -> None:
    """Raise `InputError` for a name that a folder, an address or an experiment could not bear."""
    if not _NAME.fullmatch(name) or name == "published":
        raise InputError(
            f"--name: {name!r} is not allowed; letters, digits, . _ - (at most 64), and not `published`, "
            "which is the published runs' own"
        )


def pairs_of(option: str, texts: Sequence[str]) -> dict[str, str]:
    """`column=value` texts of an option as a mapping. Raises `InputError` for a bad one or an unknown column."""
    pairs: dict[str, str] = {}
    for text in texts:
        column, equals, value = text.partition("=")
        if not equals or not value.strip():
            raise InputError(f"{option}: {text!r} is not COLUMN=VALUE")
        if column.strip() not in IMPORTABLE:
            raise InputError(f"{option}: {column.strip()!r} is not a column; there are {', '.join(IMPORTABLE)}")
        if column.strip() in pairs:
            raise InputError(f"{option}: {column.strip()} is given twice")
        pairs[column.strip()] = value.strip()
    return pairs


def tables_of_files(runs: Path, points: Path | None, columns: Mapping[str, str]) -> ImportedTables:
    """CSV files as they are. Raises `InputError` where one cannot be read as text."""
    from sweeper.ledger.imports import ImportedTables

    return ImportedTables(
        _read_text(runs), _read_text(points) if points is not None else None, tuple(sorted(columns.items()))
    )


def _read_text(path: Path) -> Any:
    from sweeper.ledger.imports import ImportedText

    try:
        with given(path):
            return ImportedText(path.name, path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not a CSV file in UTF-8 (byte {error.start})") from error


def tables_of_experiment(experiment: Experiment) -> ImportedTables:
    """Somebody's MLflow runs as a table of ours. Raises `LedgerError` or `InputError` where that cannot be done."""
    from sweeper.ledger.imports import ImportedTables, ImportedText
    from sweeper.ledger.mlflow_ledger import runs_of_experiment

    found = runs_of_experiment(experiment.uri, experiment.name, experiment.filter)
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
        raise InputError(
            "\n".join(f"{experiment.name}, run {names[one.line - 2]}: {one.message}" for one in error.problems)
        ) from None
    return tables


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


def runs_of(tables: ImportedTables) -> tuple[FinishedRun, ...]:
    """Read a table of runs. Raises `RunImportError` with every bad row."""
    points = None if tables.points is None else (tables.points.name, tables.points.text)
    try:
        return runs_from_texts((tables.runs.name, tables.runs.text), points, dict(tables.columns))
    except csv.Error as error:
        raise InputError(f"{tables.runs.name}: is not a CSV file: {error}") from error


def imported_runs(ledger: ImportLedger) -> tuple[FinishedRun, ...]:
    """The runs of an imported sweep, read again from the tables that the ledger keeps.

    Raises `LedgerError` where those are gone.
    """
    return runs_of(ledger.tables())
