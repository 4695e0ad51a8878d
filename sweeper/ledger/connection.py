"""An MLflow client that is quiet, patient and tells in one line what is wrong; how to get and to release one."""

from __future__ import annotations

import gc
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sweeper.ledger.entries import ForeignRun
from sweeper.ledger.location import (
    LedgerError,
    first_line,
    log_in,
    one_at_a_time,
    refuse_unreachable,
    sqlite_file,
    sqlite_uri,
)

LOCKED_SECONDS = 600.0
"""How long another writer of an SQLite ledger is waited for. MLflow itself waits twenty seconds a call."""
_logger = logging.getLogger("sweeper.ledger")


def connect(uri: str) -> Any:
    """An MLflow client that reports nothing home and leaves the process's own tracking URI alone.

    Raises `LedgerError` in one line where nobody answers, or the ledger cannot be opened.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    uri = log_in(uri)
    refuse_unreachable(uri)
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("mlflow.store").setLevel(
        logging.CRITICAL
    )  # what it raises is told in one line, and not as a page, too
    database = sqlite_file(uri)
    with one_line(uri), one_at_a_time(uri):
        if database is not None and not database.exists():
            _make(database)
        return _Patient(_patiently(lambda: _client(uri)))


def _client(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _make(database: Path) -> None:
    """A new ledger under another name first: killed between two of its tables, it would be refused for ever."""
    database.parent.mkdir(parents=True, exist_ok=True)
    new = database.with_name(f"{database.name}.new")
    new.unlink(missing_ok=True)
    release(_client(sqlite_uri(new)))
    new.replace(database)


class _Patient:
    """The client, whose calls wait while another program writes into the same SQLite file."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._client, name)
        if not callable(found):
            return found
        return lambda *args, **named: _patiently(lambda: found(*args, **named))


def _patiently(call: Callable[[], Any]) -> Any:
    """Its result. A locked database wrote nothing, so that the call can be made again."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import OperationalError

    deadline, told = time.monotonic() + LOCKED_SECONDS, False
    while True:
        try:
            return call()
        except (MlflowException, OperationalError) as error:
            if "database is locked" not in str(error) or time.monotonic() > deadline:
                raise
        if not told:
            _logger.warning("the ledger is locked by another program; waiting up to %.0f minutes", LOCKED_SECONDS / 60)
            told = True
        time.sleep(0.2)


@contextmanager
def one_line(where: str) -> Iterator[None]:
    """What MLflow or its database raise becomes a `LedgerError` of one line that begins with `where`."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError) as error:
        raise LedgerError(f"{where}: {first_line(error)}") from error


def release(client: Any) -> None:
    """Close pooled database connections; MLflow has no public way to."""
    engine = getattr(getattr(getattr(client, "_tracking_client", None), "store", None), "engine", None)
    if engine is not None:
        engine.dispose()


def pages(page: Any) -> Iterator[Any]:
    """All that `page(token)` gives, page after page."""
    token = None
    while True:
        found = page(token)
        yield from found
        token = found.token
        if not token:
            return


def runs_of_experiment(uri: str, experiment: str, filter_string: str = "") -> list[ForeignRun]:
    """The runs that others logged under `experiment`, the oldest first. Raises `LedgerError` in one line."""
    client = connect(uri)
    with one_line(uri):
        found = client.get_experiment_by_name(experiment)
        if found is None:
            names = [one.name for one in pages(lambda token: client.search_experiments(page_token=token))]
            raise LedgerError(f"{experiment}: no experiment of that name in {uri}; it holds: {', '.join(names)}")
        identity = [found.experiment_id]
        runs = list(pages(lambda token: client.search_runs(identity, filter_string, page_token=token)))
    release(client)
    return [
        ForeignRun(run.info.run_id, run.info.run_name or "", run.info.status, run.data.params, run.data.metrics, run.data.tags)
        for run in sorted(runs, key=lambda run: (run.info.start_time, run.info.run_id))
    ]  # fmt: skip


@contextmanager
def uncollected() -> Iterator[None]:
    """Without Python's collector of cycles: of ten thousand runs MLflow makes close to a million objects, and looking through
    them again and again takes as long as making them."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
