"""A ledger in memory, for sweeps that leave nothing behind: plans, replays, tests."""

from __future__ import annotations

from dataclasses import dataclass, field

from trainers.contract.record import RunRecord
from trainers.contract.spec import AnySpec


@dataclass
class MemoryLedger:
    """See `sweeper.engine.sweep.SweepLedger`. `asked` keeps the order in which trials were asked for."""

    asked: dict[str, tuple[AnySpec, str]] = field(default_factory=dict)
    written: dict[str, RunRecord] = field(default_factory=dict)

    def schedule(self, spec: AnySpec, purpose: str) -> None:
        """Note that a trial was asked for."""
        self.asked.setdefault(spec.spec_id, (spec, purpose))

    def started(self, spec: AnySpec) -> None:
        """Nothing is shown."""

    def reopen(self, spec: AnySpec) -> None:
        """Try a trial again."""
        self.written.pop(spec.spec_id, None)

    def write(self, record: RunRecord) -> None:
        """Keep the record."""
        self.schedule(record.spec, record.purpose)
        self.written[record.spec.spec_id] = record

    def records(self) -> list[RunRecord]:
        """In the order asked."""
        return [self.written[spec_id] for spec_id in self.asked if spec_id in self.written]

    def pending(self) -> list[tuple[AnySpec, str]]:
        """In the order asked."""
        return [trial for spec_id, trial in self.asked.items() if spec_id not in self.written]
