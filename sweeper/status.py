"""A sweep as its ledger and its lock know it: counts, the driver, and why trials ended badly."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sweeper.ledger import Ledger
from sweeper.ledger_entries import run_name
from sweeper.lock import Driver, current_driver
from trainers.record import Diverged, Failed, Stopped, outcome_name


@dataclass(frozen=True, slots=True)
class ArmStatus:
    """Trials of one arm by how they ended; `open` were asked for and have not ended."""

    scale: str
    method: str
    finished: int
    diverged: int
    failed: int
    open: int
    hours: float
    best_confirmed: float | None


@dataclass(frozen=True, slots=True)
class SweepStatus:
    """`reasons` name trials that ended badly, with why; `damaged` are records that cannot be read."""

    name: str
    question: str
    driver: Driver | None
    arms: tuple[ArmStatus, ...]
    reasons: tuple[str, ...]
    damaged: tuple[str, ...]


def status_of(results: Path, name: str, tracking_uri: str | None) -> SweepStatus:
    """Read the ledger. Raises `LedgerError` where there is no such sweep."""
    with Ledger.open(results, name, tracking_uri, create=False) as ledger:
        about, records, pending, damaged = ledger.about(), ledger.records(), ledger.pending(), ledger.damaged()
    keys = dict.fromkeys([(r.spec.scale, r.spec.method) for r in records] + [(s.scale, s.method) for s, _ in pending])
    arms, reasons = [], []
    for scale, method in keys:
        mine = [record for record in records if (record.spec.scale, record.spec.method) == (scale, method)]
        ends = [outcome_name(record.outcome) for record in mine]
        confirmed = [r.final_loss for r in mine if r.stage == "confirmation" and r.final_loss is not None]
        arms.append(
            ArmStatus(
                scale,
                method,
                ends.count("finished"),
                ends.count("diverged"),
                ends.count("failed") + ends.count("stopped"),
                sum((spec.scale, spec.method) == (scale, method) for spec, _ in pending),
                sum(record.timing.incurred_gpu_hours for record in mine),
                min(confirmed, default=None),
            )
        )
    for record in records:
        if isinstance(record.outcome, Diverged | Failed | Stopped):
            reasons.append(f"{run_name(record.spec, record.stage)}: {record.outcome.reason}")
    return SweepStatus(
        name, about.question, current_driver(results / name), tuple(arms), tuple(reasons), tuple(damaged)
    )
