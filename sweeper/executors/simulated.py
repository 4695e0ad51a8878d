"""An executor that trains nothing: stages end after the time that they would take, with losses from a surface.

With it a plan is the course of a real sweep (the same searches, the same tree, the same confirmation), and a search can be
replayed against a table of published results. What it produces is labelled as simulated by whoever asks for it.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field

from sweeper.engine.sweep import Idle
from sweeper.executors.inline import StageSource, Train
from trainers.contract.record import PhaseTiming
from trainers.contract.schedule import Phase, phase_at
from trainers.contract.spec import AnySpec
from trainers.contract.stage import StageJob, StagePoint, StageResult
from trainers.methods import phases_of


def trains_nothing(job: StageJob, on_point: Callable[[StagePoint], None]) -> StageResult:
    """The trainer to hand to an executor that must not train."""
    raise AssertionError("a simulated sweep trains nothing")


Surface = Callable[[AnySpec], float]
"""Final loss of a trial, in nats; raises `ValueError` where it knows none, and the trial fails."""


@dataclass
class SimulatedExecutor:
    """`workers` workers in simulated time; `wall_seconds` is when the last of them was done."""

    surface: Surface
    step_seconds: Callable[[AnySpec, Phase], float]
    workers: int
    device: str = "simulated"
    wall_seconds: float = 0.0
    trained_steps: dict[str, int] = field(default_factory=dict)
    trained_seconds: dict[str, float] = field(default_factory=dict)

    def run(self, source: StageSource, train: Train, watch: Callable[[], None]) -> None:
        """See `Executor`; `train` is not called.

        Only the end of a run has a loss. Without a decay any stage may be one.
        """
        now, busy, count = 0.0, [], 0  # type: ignore[var-annotated]
        while True:
            job: StageJob | Idle = Idle.WAIT
            while len(busy) < self.workers and isinstance(job := source.next_job(), StageJob):
                count += 1
                # The count breaks ties, so that stages of equal length end in the order in which they began, in every
                # run.
                heapq.heappush(busy, (now + self._seconds(job), count, job))
            if not busy:
                return
            now, _, ended = heapq.heappop(busy)
            self.wall_seconds = now
            try:
                result = self._result(ended)
            except ValueError as error:
                source.fail(ended.node, str(error))
            else:
                source.finish(result)
            watch()

    def _seconds(self, job: StageJob) -> float:
        """A stage lies within one phase: trials are cut at their boundaries."""
        return (job.end - job.start) * self.step_seconds(job.spec, phase_at(phases_of(job.spec), job.start))

    def _result(self, job: StageJob) -> StageResult:
        phase = phase_at(phases_of(job.spec), job.start)
        seconds, schedule = self._seconds(job), job.spec.schedule
        # A trunk that is yet to decay has no loss that may be compared; without a decay every stage may be some
        # trial's end.
        ends = job.end == schedule.total_steps or schedule.decay_steps == 0
        points = (StagePoint(job.end, self.surface(job.spec), phase.name),) if ends else ()
        method = job.spec.method
        self.trained_steps[method] = self.trained_steps.get(method, 0) + job.end - job.start
        self.trained_seconds[method] = self.trained_seconds.get(method, 0.0) + seconds
        return StageResult(
            node=job.node,
            parent=job.parent,
            start=job.start,
            end=job.end,
            outcome=None,
            points=points,
            timings=(PhaseTiming(phase.name, phase.bag_size, job.end - job.start, seconds / (job.end - job.start)),),
            busy_seconds=seconds,
            billed_seconds=seconds,
            skipped_steps=0,
            booked_by=job.booked_by,
            device=self.device,
            execution=job.execution,
            devices=job.devices,
        )
