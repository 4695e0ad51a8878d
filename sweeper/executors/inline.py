"""What an executor is, and the one that runs in this process.

An executor takes stages from a source, has them trained, and brings what happened back. The inline executor is for
debugging and tests, and the twin that the distributed one is held against: same sweep, same records.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from sweeper.engine.sweep import Idle
from trainers.contract.record import reason_of
from trainers.contract.stage import ParentLostError, PointCost, StageJob, StagePoint, StageResult

MAX_FAILURES = 2
"""How often a stage is tried again after a crash of program or machine; it goes on from its last checkpoint."""


class StageSource(Protocol):
    """The sweep as executors see it."""

    def next_job(self) -> StageJob | Idle:
        """A stage to train, or why there is none now."""
        ...

    def finish(self, result: StageResult) -> None:
        """A stage ended: trained, diverged or stopped."""
        ...

    def fail(self, node: str, reason: str) -> None:
        """A stage failed for good."""
        ...

    def give_back(self, node: str) -> None:
        """A stage's worker is gone through no fault of the stage: another one may have it."""
        ...

    def lose_parent(self, job: StageJob) -> None:
        """A stage could not start, because its parent's state is damaged."""
        ...

    def point(self, node: str, step: int, loss: float, cost: PointCost | None = None) -> None:
        """A stage has evaluated; `cost` is as in `StagePoint`."""
        ...


Train = Callable[[StageJob, Callable[[StagePoint], None]], StageResult]
"""Trains one stage wherever it is called; reports evaluations on the way."""


class Executor(Protocol):
    """Drives a source to its end (or to its stop)."""

    def run(self, source: StageSource, train: Train, watch: Callable[[], None]) -> None:
        """Returns when the source is over. `watch` is called often, to redraw the screen."""
        ...


@dataclass(frozen=True, slots=True)
class InlineExecutor:
    """One stage after the other in this process."""

    max_failures: int = MAX_FAILURES

    def run(self, source: StageSource, train: Train, watch: Callable[[], None]) -> None:
        """See `Executor`."""
        while isinstance(job := source.next_job(), StageJob):
            self._run_one(source, train, watch, job)
            watch()
        assert job is Idle.OVER, "nothing runs in this process, and still the sweep waits"

    def _run_one(self, source: StageSource, train: Train, watch: Callable[[], None], job: StageJob) -> None:
        def on_point(point: StagePoint) -> None:
            source.point(job.node, point.step, point.loss, point.cost)
            watch()

        # A second attempt goes on from the last checkpoint of the first, so that what is repeated is one interval at
        # most.
        for attempt in range(self.max_failures + 1):
            try:
                result = train(job, on_point)
            except ParentLostError:
                source.lose_parent(job)
                return
            except Exception as error:  # any failure of a stage is an outcome of its trials, never the sweep's end
                if attempt == self.max_failures:
                    source.fail(job.node, reason_of(error))
            else:
                source.finish(result)
                return
