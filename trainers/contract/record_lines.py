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
from typing import Any, NoReturn, Self, TypeVar

from trainers.contract.errors import UserError
from trainers.contract.record import RunRecord, record_from_dict, record_to_dict

Value = TypeVar("Value")
RECORDS_FILE = "records.jsonl"


class BadLinesError(UserError, ValueError):
    """A file with lines that cannot be used; `problems` has one sentence each, with file and line number."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


def _refuse_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not a number that JSON has")


def read_lines(path: Path, parse: Callable[[int, Any], Value]) -> list[Value]:
    """`parse(line number, JSON value)` of every line that is not blank; raises `BadLinesError` with all that fail.

    `parse` raises `ValueError` for what it cannot use.
    """
    found, problems = [], []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise BadLinesError([f"{path.name}: is not UTF-8 text (byte {error.start})"]) from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            found.append(parse(number, json.loads(line, parse_constant=_refuse_constant)))
        except (ValueError, RecursionError) as error:
            problems.append(f"{path.name}:{number}: {' '.join(str(error).split())}")
    if problems:
        raise BadLinesError(problems)
    return found


def read_records(path: Path) -> tuple[RunRecord, ...]:
    """The records of a file, one a trial, in the order in which trials first appear.

    Raises `BadLinesError` with every line that is no record of this version.
    """

    def parse(number: int, value: Any) -> RunRecord:
        if not isinstance(value, dict):
            raise ValueError("not a run record: a line is one JSON object")
        try:
            return record_from_dict(value)
        except (AttributeError, TypeError) as error:
            raise ValueError(f"not a run record: {error}") from error

    last: dict[str, RunRecord] = {}
    for record in read_lines(path, parse):
        last[record.spec.spec_id] = record
    return tuple(last.values())


def records_to_text(records: Iterable[RunRecord]) -> str:
    """The text that `read_records` reads."""
    return "".join(json.dumps(record_to_dict(record), allow_nan=False) + "\n" for record in records)


class RecordsFile:
    """A file of records that one process appends to. Use it as a context manager; `records` is what it held before.

    Raises `BadLinesError` for a file of something else, `ValueError` where another process writes to it.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._drop_cut_line()
            self.records = read_records(path)
        except BlockingIOError:
            self._file.close()
            raise ValueError(f"{path}: another process writes its records there") from None
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
