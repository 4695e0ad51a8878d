"""Records as JSON Lines: how they travel from a machine without a ledger, and lie beside a published report.

A record is one line, written at once and flushed to disk; a line that was cut short by a crash is dropped when the file is
opened again. Where a trial has several lines (it failed, and was tried again), the last one counts. Standard library only.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from trainers.contract.errors import InputError, first_lines, given
from trainers.contract.reading import json_value
from trainers.contract.record import RunRecord, record_from_dict, record_to_dict

Value = TypeVar("Value")
RECORDS_FILE = "records.jsonl"


class BadLinesError(InputError):
    """A file with lines that cannot be used; `problems` has one sentence each, with file and line number. As text it is
    the first of them."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__(first_lines(problems))
        self.problems = tuple(problems)


def read_lines(path: Path, parse: Callable[[int, Any], Value]) -> list[Value]:
    """`parse(line number, JSON value)` of every line that is not blank; raises `BadLinesError` with all that fail, and
    `UserError` for a file that cannot be opened.

    `parse` raises `ValueError` for what it cannot use.
    """
    found, problems = [], []
    try:
        with given(path):
            lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise BadLinesError([f"{path.name}: is not UTF-8 text (byte {error.start})"]) from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            found.append(parse(number, json_value(line)))
        except ValueError as error:
            problems.append(f"{path.name}:{number}: {' '.join(str(error).split())}")
    if problems:
        raise BadLinesError(problems)
    return found


def read_records(path: Path) -> tuple[RunRecord, ...]:
    """The records of a file, one a trial, in the order in which trials first appear.

    Raises `BadLinesError` with every line that is no record of this version.
    """

    last: dict[str, RunRecord] = {}
    for record in read_lines(path, lambda number, value: record_from_dict(value)):
        last[record.spec.spec_id] = record
    return tuple(last.values())


def records_to_text(records: Iterable[RunRecord]) -> str:
    """The text that `read_records` reads."""
    return "".join(json.dumps(record_to_dict(record), allow_nan=False) + "\n" for record in records)


class RecordsFile:
    """A file of records that one process appends to. Use it as a context manager; `records` is what it held before.

    Raises `BadLinesError` for a file of something else, `UserError` where it cannot be opened or another process writes to it.
    """

    def __init__(self, path: Path) -> None:
        with given(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._drop_cut_line()
            self.records = read_records(path)
        except BlockingIOError:
            self._file.close()
            raise InputError(f"{path}: another process writes its records there") from None
        except BaseException:
            self._file.close()
            raise

    def _drop_cut_line(self) -> None:
        self._file.seek(0)
        content = self._file.read()
        if content and not content.endswith(b"\n"):
            self._file.truncate(content.rfind(b"\n") + 1)

    def write(self, record: RunRecord) -> None:
        """Append a record; it is on the disk when this returns."""
        self._file.write(records_to_text([record]).encode())
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
