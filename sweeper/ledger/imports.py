"""A ledger of imported runs: the texts as they came, and one row a run for the dashboard.

The texts of every import stay attached to the sweep's own run under a key that is the hash of their content; one small
file says which import holds. Switching that file is the moment at which an import counts: cut short before it, the
earlier import still holds; after it, the same import again completes the rows. What the texts mean is `tables`'s.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import PurePosixPath
from typing import Any

from sweeper.ledger.about import SweepAbout
from sweeper.ledger.entries import IMPORT_TAG, IMPORTED_KIND, KIND_TAG, ROW_TAG, UNFINISHED_TAG, LedgerRow
from sweeper.ledger.location import LedgerError, first_line
from sweeper.ledger.mlflow_ledger import Ledger
from trainers.contract.errors import InputError
from trainers.contract.reading import json_value, value_of
from trainers.contract.record import RunRecord
from trainers.contract.spec import fingerprint

IMPORT_FILE = "import.json"
IMPORT_SCHEMA = 1
Watch = Callable[[int, int], None]
_FOLDER, _POINTS = "imports", "points"


@dataclass(frozen=True, slots=True)
class ImportedText:
    """A table as it came: the name of its file (no folder) and its whole text."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class ImportedTables:
    """One import: the runs, their in-run points (None without), what the file calls our columns, and columns that are the
    same for all runs."""

    runs: ImportedText
    points: ImportedText | None
    columns: tuple[tuple[str, str], ...] = ()
    fixed: tuple[tuple[str, str], ...] = ()

    @property
    def key(self) -> str:
        """Identity of the content. Without `fixed`, it is that of a version that did not know them."""
        content = asdict(self)
        return fingerprint(content if self.fixed else {name: content[name] for name in content if name != "fixed"})


@dataclass(frozen=True, slots=True)
class _Index:
    """Which import holds: its key, the names of its files, what they call our columns, and columns of one value."""

    schema: int
    key: str
    runs: str
    points: str | None
    columns: dict[str, str]
    fixed: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in (self.key, self.runs, self.points or self.runs):
            if not name or PurePosixPath(name).name != name:  # it is put behind the sweep's own folder
                raise ValueError(f"{name!r} is not the name of a file")


class ImportLedger(Ledger):
    """One sweep whose runs were trained elsewhere. Opened for reading, it takes a sweep of our own as well."""

    def store(
        self, about: SweepAbout, tables: ImportedTables, rows: Iterable[LedgerRow], watch: Watch | None = None
    ) -> int:
        """Make `tables` what this sweep is, in place of what was imported before; returns the rows that were written.

        `watch` is called after each row with how many are written and how many there are to write. The same tables again
        write nothing but rows that are missing. Raises `LedgerError` when the name is taken by a sweep of our own.
        """
        self.begin(about)
        parent = self._require_parent()
        key = tables.key
        self._store(parent, f"{_FOLDER}/{key}/{tables.runs.name}", tables.runs.text)
        if tables.points is not None:
            self._store(parent, f"{_FOLDER}/{key}/{_POINTS}/{tables.points.name}", tables.points.text)
        there, spent = self._rows(key)
        new = [row for row in rows if row.row not in there]
        points = tables.points.name if tables.points else None
        index = asdict(_Index(IMPORT_SCHEMA, key, tables.runs.name, points, dict(tables.columns), dict(tables.fixed)))
        if not tables.fixed:
            del index["fixed"]
        # From here on the new import holds. Cut off before it, the earlier one does; cut off after it, the same
        # command again completes the rows.
        self._store(parent, IMPORT_FILE, json.dumps(index, indent=1, allow_nan=False))
        for run_id in spent:
            self._client.delete_run(run_id)
        for done, row in enumerate(new, 1):
            self._write_row(row, parent)
            if watch is not None:
                watch(done, len(new))
        return len(new)

    def store_records(self, about: SweepAbout, records: Sequence[RunRecord], source: str) -> None:
        """Write the records of the file `source`; the sweep is marked as cut short until the last one is there."""
        self.begin(about)
        self._tag(self._require_parent(), {UNFINISHED_TAG: f"{source} ({len(records)} records)"})
        for record in records:
            self.write(record)
        self._client.delete_tag(self._require_parent(), UNFINISHED_TAG)

    def damaged(self) -> list[str]:
        """See `Ledger.damaged`; also one line for an import of records that was cut short."""
        file = self._client.get_run(self._require_parent()).data.tags.get(UNFINISHED_TAG)
        cut = [f"{self.name}: the import of {file} was cut short; the same import completes it"] if file else []
        return cut + super().damaged()

    def tables(self) -> ImportedTables:
        """The import that holds. Raises `LedgerError` when it cannot be read."""
        run = self._client.get_run(self._require_parent()).info

        def text(name: str, folder: str = "") -> str:
            return self._load(run.run_id, run.artifact_uri, folder + name)

        try:
            index = value_of(_Index, json_value(text(IMPORT_FILE)), "the index of an import")
            if index.schema != IMPORT_SCHEMA:
                raise InputError(f"import schema {index.schema} is not {IMPORT_SCHEMA}")
            folder, points = f"{_FOLDER}/{index.key}/", index.points
            return ImportedTables(
                ImportedText(index.runs, text(index.runs, folder)),
                ImportedText(points, text(points, f"{folder}{_POINTS}/")) if points else None,
                tuple(sorted(index.columns.items())),
                tuple(sorted(index.fixed.items())),
            )
        except (OSError, UnicodeError, InputError) as error:
            raise LedgerError(f"{self.name}: the imported tables cannot be read: {first_line(error)}") from error

    def row_links(self) -> Mapping[str, str]:
        """Each imported run's row in MLflow's interface by run id, from its fragment on."""
        there, _ = self._rows(self.tables().key)
        return {row: f"#/experiments/{self.experiment_id}/runs/{run_id}" for row, run_id in there.items()}

    def _rows(self, key: str) -> tuple[dict[str, str], list[str]]:
        """Complete rows of import `key` as row -> MLflow run, and the runs of all others."""
        there: dict[str, str] = {}
        spent: list[str] = []
        for run in self._search(f"tags.`{KIND_TAG}` = '{IMPORTED_KIND}'"):
            tags: Mapping[str, Any] = run.data.tags
            if tags.get(IMPORT_TAG) == key and run.info.status not in ("RUNNING", "SCHEDULED"):
                there[tags.get(ROW_TAG, "")] = run.info.run_id
            else:
                spent.append(run.info.run_id)
        return there, spent

    def _write_row(self, row: LedgerRow, parent: str) -> None:
        tags = {**row.tags, "mlflow.parentRunId": parent}
        run = self._client.create_run(self.experiment_id, tags=tags, run_name=row.name)
        self._batch(run.info.run_id, metrics=row.metrics, params=row.parameters)
        self._client.set_terminated(run.info.run_id, row.status)
