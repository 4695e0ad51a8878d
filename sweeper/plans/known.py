"""What a plan may know of an earlier run of its sweep."""

from __future__ import annotations

from pathlib import Path

from sweeper.ledger.location import NoSweepError
from sweeper.ledger.mlflow_ledger import Ledger
from trainers.contract.record import RunRecord


def known_records(results: Path, name: str, tracking_uri: str | None) -> list[RunRecord]:
    """The records of a sweep; none where there is no such sweep yet. Raises `LedgerError` for a ledger that cannot be read: the
    run would be refused for it."""
    try:
        with Ledger.open(results, name, tracking_uri, create=False) as ledger:
            return ledger.records()
    except NoSweepError:
        return []
