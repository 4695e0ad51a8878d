"""Where a ledger is: SQLite beside the results, or a server; and whether it is still there.

Everything about the place that can be known without MLflow, so that a wrong path or address is said at once.
"""

from __future__ import annotations

import sqlite3
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlparse

from trainers.contract.errors import UserError, given

DATABASE = "mlflow.db"
ARTIFACTS = "mlartifacts"
_ANSWER_SECONDS = 10
_SQLITE = "sqlite:///"


class LedgerError(UserError):
    """The ledger cannot be opened or read; the message is one line for the user."""


class NoSweepError(LedgerError):
    """There is no sweep of that name."""


def default_tracking_uri(results: Path) -> str:
    """SQLite beside the results."""
    return f"{_SQLITE}{results.absolute() / DATABASE}"


def is_server(uri: str) -> bool:
    """Whether artifacts are the server's to place; otherwise they lie in the results directory."""
    return urlparse(uri).scheme in ("http", "https") or uri.startswith("databricks")


@contextmanager
def one_at_a_time(uri: str) -> Iterator[None]:
    """Hold a lock beside an SQLite ledger while it is opened: MLflow makes its tables then, and two makers break it."""
    if not uri.startswith(_SQLITE):
        yield
        return
    import fcntl

    lock = Path(uri.removeprefix(_SQLITE)).with_suffix(".lock")
    with given(lock.parent):
        file = lock.open("w", encoding="utf-8")
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def writing_ahead(database: Path) -> Iterator[None]:
    """Let SQLite write many small commits quickly, for as long as this lasts: into a log that is flushed now and then.

    MLflow commits a run six times, and each waits for the disk. With a write-ahead log no commit waits; a power cut may
    lose the last of them, which the same import completes, but never damages the database. Connections that are opened
    meanwhile are of this kind. Afterwards the database is one plain file again, unless another process has it open; where
    the file system has no shared memory for the log, everything stays as it is.
    """
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    def connected(connection: object, _record: object) -> None:
        if isinstance(connection, sqlite3.Connection):
            with suppress(sqlite3.OperationalError):
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = NORMAL")

    event.listen(Engine, "connect", connected)
    try:
        yield
    finally:
        event.remove(Engine, "connect", connected)
        if database.exists():
            with closing(sqlite3.connect(database)) as connection, suppress(sqlite3.OperationalError):
                connection.execute("PRAGMA journal_mode = DELETE")


def refuse_unreachable(uri: str) -> None:
    """Raise `LedgerError` when nobody listens at a server's address; MLflow itself would retry for minutes."""
    if urlparse(uri).scheme not in ("http", "https"):
        return
    try:
        urllib.request.urlopen(uri.rstrip("/") + "/health", timeout=_ANSWER_SECONDS).close()
    # Any answer is an answer: servers behind a login refuse /health and still take runs.
    except urllib.error.HTTPError as answer:
        answer.close()
    except OSError as error:
        raise LedgerError(f"{uri}: no MLflow server answers there: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """What an error says, without the pages that follow."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def follow_moved_artifacts(results: Path, name: str, experiment_id: str, old: str) -> None:
    """Correct the artifact locations of a sweep whose results directory was moved or copied to another machine.

    MLflow stores them as absolute addresses, `old` among them. Nothing is done while `old` is where the results are.
    """
    here = results.absolute() / ARTIFACTS / name
    new = here.as_uri()
    if old == new or not here.is_dir():
        return
    moved = (
        "UPDATE runs SET artifact_uri = ? || substr(artifact_uri, ?) "
        "WHERE experiment_id = ? AND instr(artifact_uri, ?) = 1"
    )
    with closing(sqlite3.connect(results / DATABASE)) as database, database:
        database.execute(moved, (new, len(old) + 1, int(experiment_id), old + "/"))
        database.execute(
            "UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?", (new, int(experiment_id))
        )
