"""How a sweep stands, as a value that another terminal or machine can read: counts of trials, stages that run, what failed.

A driver writes it into the sweep's folder every few seconds, and the workers' signs of life lie beside it, so that it can be
read while the sweep runs and after its driver died, without a ledger that may be slow or away.
"""

from __future__ import annotations

import json
import socket
import time
from collections import Counter
from collections.abc import Container, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from sweeper.engine.live import LiveSweep
from sweeper.engine.view import view_of
from sweeper.ledger.entries import run_name
from trainers.contract.errors import InputError
from trainers.contract.reading import json_value, value_of
from trainers.contract.record import Diverged, Failed, RunRecord, Stopped, outcome_name
from trainers.contract.spec import AnySpec
from trainers.contract.writing import write_atomically
from trainers.planning.life import StageLife

FILE = "status.json"
WRITE_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class ArmStatus:
    """Trials of one arm by how they ended; `open` were asked for and have not ended. `of_earlier_files` are those that an
    earlier state of the file asked for, in no other count. Hours are device-hours that were paid for all of them."""

    scale: str
    method: str
    finished: int
    diverged: int
    failed: int
    open: int
    hours: float
    best_confirmed: float | None
    of_earlier_files: int = 0


@dataclass(frozen=True, slots=True)
class Failure:
    """A trial that ended badly: its name, `diverged`, `failed` or `stopped`, and why."""

    trial: str
    outcome: str
    reason: str


@dataclass(frozen=True, slots=True)
class SweepStatus:
    """`at` is when this was known, in seconds since 1970 by the clock of `host`, which drives or drove the sweep.

    `clock` is GPU-hours or CPU-hours; `hours_left` is an estimate of what is still to be paid, on `workers` devices at once.
    `stopping` says why the sweep stops or stopped early, `damaged` are records that cannot be read. Stages are filled in by
    whoever reads it.
    """

    name: str
    question: str
    arms: tuple[ArmStatus, ...]
    failures: tuple[Failure, ...] = ()
    damaged: tuple[str, ...] = ()
    clock: str = "device-hours"
    hours_spent: float = 0.0
    hours_left: float | None = None
    devices: float = 1.0
    latest: str = ""
    stopping: str | None = None
    complete: bool = False
    host: str = ""
    at: float = 0.0
    stages: tuple[StageLife, ...] = ()


def arms_of(
    records: Sequence[RunRecord], pending: Iterable[AnySpec], earlier: Container[str] = ()
) -> tuple[ArmStatus, ...]:
    """One entry an arm, in the order in which the arms first appear. `earlier` are spec ids of an earlier state of the file."""
    mine: dict[tuple[str, str], list[RunRecord]] = {}
    for record in records:
        mine.setdefault((record.spec.scale, record.spec.method), []).append(record)
    waiting = Counter((spec.scale, spec.method) for spec in pending)
    return tuple(_arm(arm, mine.get(arm, []), waiting[arm], earlier) for arm in dict.fromkeys([*mine, *waiting]))


def _arm(arm: tuple[str, str], every: Sequence[RunRecord], waiting: int, earlier: Container[str]) -> ArmStatus:
    records = [record for record in every if record.spec.spec_id not in earlier]
    ends = Counter(outcome_name(record.outcome) for record in records)
    confirmed = [r.final_loss for r in records if r.purpose == "confirmation" and r.final_loss is not None]
    return ArmStatus(
        *arm,
        finished=ends["finished"],
        diverged=ends["diverged"],
        failed=ends["failed"] + ends["stopped"],
        open=waiting,
        hours=sum(record.timing.incurred_gpu_hours for record in every),
        best_confirmed=min(confirmed, default=None),
        of_earlier_files=len(every) - len(records),
    )


def failures_of(records: Iterable[RunRecord]) -> tuple[Failure, ...]:
    """The trials that ended badly, the last one first."""
    return tuple(
        Failure(run_name(record.spec, record.purpose), outcome_name(record.outcome), record.outcome.reason)
        for record in reversed(list(records))
        if isinstance(record.outcome, Diverged | Failed | Stopped)
    )


def status_of_sweep(live: LiveSweep, question: str, complete: bool) -> SweepStatus:
    """The status of a sweep that this process drives."""
    sweep = live.sweep
    view = view_of(sweep)
    records = list(sweep.finished.values())
    return SweepStatus(
        name=view.name,
        question=question,
        arms=arms_of(records, (path.spec for path in sweep.book.paths.values()), sweep.of_earlier_files),
        failures=failures_of(records),
        clock=view.clock,
        hours_spent=view.hours_spent,
        hours_left=view.hours_left,
        devices=max(1.0, sum(life.devices for life in live.running)),
        latest=sweep.latest,
        stopping=sweep.stopping,
        complete=complete,
        host=socket.gethostname(),
        at=time.time(),
    )


class StatusFile:
    """Writes the status of a sweep into its folder, every few seconds at most."""

    def __init__(self, live: LiveSweep, folder: Path) -> None:
        self._live, self._folder, self._written = live, folder, 0.0

    def write(self, *, complete: bool = False, now: bool = False) -> None:
        """Where the last one is some seconds old, or `now`. A disk without room keeps the old one."""
        if not now and time.monotonic() - self._written < WRITE_SECONDS:
            return
        self._written = time.monotonic()
        status = status_of_sweep(self._live, self._live.sweep.space.question, complete)
        with suppress(OSError):
            write_atomically(self._folder / FILE, json.dumps(asdict(status), allow_nan=False))


def read_status(folder: Path) -> SweepStatus | None:
    """What the last driver of the sweep in `folder` wrote, None where none has or it cannot be read."""
    try:
        return value_of(SweepStatus, json_value((folder / FILE).read_bytes()), "a sweep's status")
    except (OSError, InputError, TypeError):
        return None


def with_stages(status: SweepStatus, lives: Iterable[StageLife]) -> SweepStatus:
    """The status with the stages that workers have signed for."""
    return replace(status, stages=tuple(lives))
