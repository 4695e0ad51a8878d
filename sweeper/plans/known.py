"""What a plan may know of an earlier run of its sweep."""

from __future__ import annotations

from pathlib import Path

from sweeper.ledger.location import LedgerError
from sweeper.ledger.mlflow_ledger import Ledger
from trainers.contract.record import RunRecord


def known_records(results: Path, name: str, tracking_uri: str | None) -> list[RunRecord]:
    """The records of a sweep, for whoever can do without: none where there is no such sweep or its ledger cannot be read."""
    try:
        with Ledger.open(results, name, tracking_uri, create=False) as ledger:
            return ledger.records()
    except LedgerError:
        return []
