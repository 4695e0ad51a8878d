"""A sweep as its ledger and its lock know it: counts, the driver, and why trials ended badly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from reports.evidence.runs import FinishedRun, run_from_record
from sweeper.ledger.entries import run_name
from sweeper.ledger.imports import ImportLedger
from sweeper.ledger.tables import imported_runs
from sweeper.lock import Driver, current_driver
from trainers.contract.record import Diverged, Failed, Stopped


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
    with ImportLedger.open(results, name, tracking_uri, create=False) as ledger:
        about = ledger.about()
        if about.origin == "imported":
            runs = imported_runs(ledger)
            reasons = [f"{run.run_id}: {run.outcome}, {run.reason}" for run in runs if run.outcome != "finished"]
            return SweepStatus(name, about.question, None, _arms(runs, ()), tuple(reasons), ())
        records, pending, damaged = ledger.records(), ledger.pending(), ledger.damaged()
    open_arms = [(spec.scale, spec.method) for spec, _ in pending]
    reasons = [
        f"{run_name(record.spec, record.purpose)}: {record.outcome.reason}"
        for record in records
        if isinstance(record.outcome, Diverged | Failed | Stopped)
    ]
    driver = current_driver(results / name)
    arms = _arms([run_from_record(record) for record in records], open_arms)
    return SweepStatus(name, about.question, driver, arms, tuple(reasons), tuple(damaged))


def _arms(runs: Sequence[FinishedRun], open_arms: Sequence[tuple[str, str]]) -> tuple[ArmStatus, ...]:
    """One entry an arm, in the order in which the arms first appear; hours are what was paid where that is known."""
    found = []
    for scale, method in dict.fromkeys([*((run.scale, run.method) for run in runs), *open_arms]):
        mine = [run for run in runs if (run.scale, run.method) == (scale, method)]
        ends = Counter(run.outcome for run in mine)
        paid = [run.gpu_hours if run.incurred_gpu_hours is None else run.incurred_gpu_hours for run in mine]
        confirmed = [run.final_loss for run in mine if run.purpose == "confirmation" and run.final_loss is not None]
        found.append(
            ArmStatus(
                scale,
                method,
                finished=ends["finished"],
                diverged=ends["diverged"],
                failed=ends["failed"] + ends["stopped"],
                open=open_arms.count((scale, method)),
                hours=sum(hours for hours in paid if hours is not None),
                best_confirmed=min(confirmed, default=None),
            )
        )
    return tuple(found)
