"""The sweep as executors see it, with an eye on its workers: what they say while they train, and what their silence means.

Between an executor and the sweep it reads the workers' signs of life: hours of stages that have no result yet count for the
budget, points go to the ledger while a trial trains, a worker that was silent for too long is named, and so is a sweep to
which none ever came. Who ends a worker and who tells whom is left to whoever runs the sweep.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from sweeper.engine.sweep import Idle, Sweep
from trainers.contract.faults import is_full_disk
from trainers.contract.flops import flops_at
from trainers.contract.record import Stopped
from trainers.contract.schedule import data_position
from trainers.contract.spec import AnySpec, ForeignSpec
from trainers.contract.stage import PointCost, StageJob, StageResult
from trainers.methods import phases_of
from trainers.planning.assemble import is_evaluated, phase_timings
from trainers.planning.life import StageLife, life_file, lives_in, read_life, signed_at, write_life

LOOK_SECONDS = 2.0
"""Between two readings of the signs of life."""
SILENT_GAPS = 20
"""Times its own median time between two looks that a worker may be silent, where that is longer than the limit."""
STARTING = 3
"""Times the limit that a stage may take to its first look: it compiles."""
MOST_POINTS = 400
"""Of a trial while it trains; the dashboard has room for the rest of the curve's shape when it has ended."""


class LiveLedger(Protocol):
    """Where points go while a trial trains."""

    def point(self, spec: AnySpec, step: int, loss: float, tokens: int, flops: float, device_seconds: float) -> None:
        """A trial has evaluated after `step` steps."""
        ...


class LiveSweep:
    """See `sweeper.executors.inline.StageSource`. `stall_seconds` is the least silence that counts as a stall."""

    def __init__(
        self,
        sweep: Sweep,
        ledger: LiveLedger | None,
        store: Path,
        stall_seconds: float,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.sweep, self._ledger, self.store, self._stall, self._now = sweep, ledger, store, stall_seconds, now
        self.lives: dict[str, StageLife] = {}
        self._jobs: dict[str, tuple[StageJob, float]] = {}
        self._charted: dict[str, int] = {}
        self._changed: dict[str, tuple[int, float]] = {}
        self._looked = -LOOK_SECONDS
        self.came = False
        """Whether any worker has ever said anything."""
        self.waiting_since: float | None = None
        for life in lives_in(store):  # of an earlier driver, whose workers are gone
            if sweep.store.result(life.node) is not None:
                life_file(store, life.node).unlink(missing_ok=True)
            elif life.running:
                write_life(store, replace(life, running=False))
        self.look()

    # what executors ask and bring

    def next_job(self) -> StageJob | Idle:
        """The stage that a free worker should train now."""
        job = self.sweep.next_job()
        if isinstance(job, StageJob):
            self._jobs[job.node] = (job, self._now())
            if self.waiting_since is None:
                self.waiting_since = self._now()
        return job

    def finish(self, result: StageResult) -> None:
        """A stage ended: trained, diverged or stopped."""
        self._leave(result.node, ended=not isinstance(result.outcome, Stopped))
        self.sweep.finish(result)

    def fail(self, node: str, reason: str) -> None:
        """A stage failed for good. A full disk is no trial's fault: it ends the sweep, which goes on where there is room."""
        self._leave(node)
        if is_full_disk(reason):
            self.sweep.give_back(node)
            self.sweep.stopping = self.sweep.stopping or f"{self.store}: {reason}; make room there"
            return
        self.sweep.fail(node, reason)

    def give_back(self, node: str) -> None:
        """A stage's worker is gone through no fault of the stage: another one may have it."""
        self._leave(node)
        self.sweep.give_back(node)

    def lose_parent(self, job: StageJob) -> None:
        """A stage could not start, because its parent's state is damaged."""
        self._leave(job.node)
        self.sweep.lose_parent(job)

    def point(self, node: str, step: int, loss: float, cost: PointCost | None = None) -> None:
        """A stage has evaluated; `cost` is as in `StagePoint`."""
        self.came = True
        self.sweep.point(node, step, loss)
        if self._ledger is None or node not in self._jobs:
            return
        job = self._jobs[node][0]
        if isinstance(job.spec, ForeignSpec):
            # Until its clock is known only the record can say what a point has cost; the last one is the end's.
            if cost is not None and step < job.end - 1 and self._is_far_enough(job, step):
                seconds = cost.seconds * job.devices
                self._ledger.point(job.spec, step, loss, cost.tokens, cost.flops, seconds)
            return
        spec, phases = job.spec, phases_of(job.spec)
        total, every = spec.schedule.total_steps, job.evaluate_every
        # What the trial's record will hold, with its numbers; the last point's is scored on all of the text.
        if step >= total or not is_evaluated(step, phases, total, every):
            return
        if every and step % every == 0 and step // every % math.ceil(total / every / MOST_POINTS):
            return
        life = read_life(life_file(self.store, node))
        own = (step - job.start) * life.step_seconds * job.devices if life is not None else 0.0
        self._ledger.point(
            spec,
            step,
            loss,
            data_position(phases, spec.tokens_per_step, step),
            flops_at(spec, phases, step),
            self._seconds_before(job) + own,
        )

    def _is_far_enough(self, job: StageJob, step: int) -> bool:
        """Whether a point of a trainer that evaluates when it likes is a 400th of its run beyond the last one that was told."""
        if (step - self._charted.get(job.node, step - job.end)) * MOST_POINTS < job.end:
            return False
        self._charted[job.node] = step
        return True

    def _seconds_before(self, job: StageJob) -> float:
        """Device-seconds of the clock of the stages on the way to this one."""
        seconds, node = 0.0, job.parent
        while node is not None and (result := self.sweep.store.result(node)) is not None:
            steps = sum(part.steps * part.median_step_seconds for part in phase_timings([result]))
            seconds, node = seconds + result.devices * steps, result.parent
        return seconds

    # what the signs say

    def look(self) -> None:
        """Read the signs of life again, where the last look was some time ago."""
        moment = self._now()
        if moment - self._looked < LOOK_SECONDS:
            return
        self._looked = moment
        self.lives = {life.node: life for life in lives_in(self.store)}
        for node in self._jobs:
            changed = signed_at(self.store, node)
            # By when a change is seen here: the clock of another machine, or a step of this one's, decides nothing.
            if changed is not None and self._changed.get(node, (0, 0.0))[0] != changed:
                self._changed[node] = (changed, moment)
        self.came = self.came or any(life.running and node in self._jobs for node, life in self.lives.items())
        self.sweep.open_hours = sum(life.hours for life in self.lives.values())
        self.sweep.stop_when_spent()

    def stalled(self) -> list[tuple[StageLife, float]]:
        """Workers that were silent for too long, with the seconds of their silence; each is named once a silence."""
        found = []
        for node, (_, moment) in list(self._changed.items()):
            life, silence = self.lives.get(node), self._now() - moment
            if life is None or not (life.running and life.watched and node in self._jobs):
                continue
            limit = max(self._stall, SILENT_GAPS * life.gap_seconds) if life.gap_seconds else STARTING * self._stall
            if silence > limit:
                self._changed[node] = (self._changed[node][0], self._now())
                found.append((life, silence))
        return found

    @property
    def running(self) -> Sequence[StageLife]:
        """Stages that workers train now."""
        return [life for node, life in self.lives.items() if life.running and node in self._jobs]

    def _leave(self, node: str, *, ended: bool = False) -> None:
        self.came = True
        self._jobs.pop(node, None)
        self._charted.pop(node, None)
        self._changed.pop(node, None)
        life = self.lives.pop(node, None)
        if ended:
            life_file(self.store, node).unlink(missing_ok=True)
        elif life is not None:
            self.lives[node] = replace(life, running=False)
            write_life(self.store, self.lives[node])
        self.sweep.open_hours = sum(life.hours for life in self.lives.values())
