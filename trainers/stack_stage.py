"""Several stages on one worker at once: a stack is a way to run stages; results, states and costs are each stage's own.

Decides which stages may share a stack and how its wall time is shared out. A slice that ends, diverges or is lost leaves
the others as they are: the stack goes on without it, smaller. On a CPU in float32 a slice has the bits of the stage trained
alone, whatever its neighbours do. Which stages are stacked when is the orchestrator's.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from trainers.checkpoint import TrainState
from trainers.devices import synchronise
from trainers.flops import count_parameters
from trainers.loop import (
    CHUNK_STEPS,
    Progress,
    StagePoint,
    begin_phase,
    chunk_end,
    is_due,
    watch_steps,
    watch_validation,
)
from trainers.methods import phases_of
from trainers.model import build_model
from trainers.optim import build_optimizer
from trainers.record import Diverged, Stopped
from trainers.schedule import Phase, number_of_heads, phase_at
from trainers.spec import Schedule, TrialSpec
from trainers.stacked import Slice, StackedStep, stacked_validation_losses
from trainers.stacked_static import StaticStack, engine_of
from trainers.stage import (
    PIECE_CONTEXTS,
    StageJob,
    StageResult,
    close_stage,
    done_before,
    restore_stage,
    save_partial_state,
)

STACKED = "stacked"
"""The form of the step, as jobs and node names have it. A stage of a stacked sweep that finds no companion is a stack of
one, so that a result never depends on which stages happened to be ready together."""
STACKED_PARAMETERS = 10_000_000
"""Above about this size one run keeps a GPU busy."""
ALONE_SECONDS = 20.0
"""Between two looks at what a step takes alone; a look takes a dozen steps and, on a GPU, recording the stack anew."""


def can_stack(spec: TrialSpec) -> bool:
    """Whether the stacked step knows this trial's model, and the model is small enough to leave a device idle."""
    ordinary = spec.shape.num_experts == 0 and number_of_heads(phases_of(spec)) == 1
    return ordinary and count_parameters(spec.shape).total <= STACKED_PARAMETERS


def _course(job: StageJob) -> tuple[tuple[int, Phase], ...]:
    """What is trained on the way, and how many steps from the stage's start each objective begins."""
    return tuple(
        (max(phase.start - job.start, 0), replace(phase, name="", start=0, end=0))
        for phase in phases_of(job.spec)
        if phase.start < job.end and job.start < phase.end
    )


def stack_key(job: StageJob) -> tuple[StageJob, tuple[tuple[int, Phase], ...]]:
    """Stages with equal keys can be stacked: all is equal but seed, learning rate, schedule, place in it, and length."""
    schedule = Schedule(total_steps=1, warmup_steps=0, decay_steps=0, learning_rate=1.0)
    spec = replace(job.spec, scale="", method="", parameters=(), schedule=schedule, seed=0)
    common = replace(job, node="", parent=None, start=0, end=0, spec=spec, booked_by="", keep_state=True)
    return common, _course(job)


@dataclass
class _Run:
    """One stage in a stack. `ended` says that it leaves the stack, with `outcome` as in `StageResult`."""

    job: StageJob
    part: Slice
    progress: Progress
    billed_seconds: float
    outcome: Stopped | Diverged | None = None
    ended: bool = False

    @property
    def phase(self) -> Phase:
        """Of the next step."""
        return phase_at(self.part.phases, self.part.state.step)

    def chunk(self) -> int:
        """Steps up to where the stage, trained alone, would look at its losses."""
        step = self.part.state.step
        return chunk_end(step, self.phase, self.job.end, self.job.evaluate_every) - step


def _open(job: StageJob, corpus: Any) -> _Run:
    spec, device = job.spec, torch.device(job.device)
    model = build_model(spec.shape, spec.context, spec.seed, device)
    state = TrainState(model, build_optimizer(model, spec.optimizer))
    progress, billed = restore_stage(job, state)
    stream = corpus.stream(spec.seed, piece_tokens=PIECE_CONTEXTS * spec.context)
    return _Run(job, Slice.of(spec, phases_of(spec), stream, state), progress, billed)


def alone_seconds(part: Slice, device: torch.device, micro_sequences: int | None) -> float:
    """Seconds of a slice's next step in a stack of one, on a copy that is thrown away: the mean of a chunk of steps.

    The clock of a record is that of training alone. A K-th of a stack's step would make a trial cheaper the more companions
    it happened to have, and arms of a comparison do not have equally many.
    """
    model = build_model(part.spec.shape, part.spec.context, part.spec.seed, device)
    model.load_state_dict(part.state.model.state_dict())
    scratch = TrainState(model, build_optimizer(model, part.spec.optimizer), part.state.step)
    engine = engine_of(StackedStep([replace(part, state=scratch)], device, micro_sequences))
    engine.enter()
    engine.run(0)  # warms up
    synchronise(device)
    left = phase_at(part.phases, part.state.step).end - part.state.step
    steps = range(1, min(left, CHUNK_STEPS + 1)) or range(1)
    started = time.perf_counter()
    for ahead in steps:
        engine.run(ahead)
    synchronise(device)
    seconds = (time.perf_counter() - started) / len(steps)
    engine.close()
    return seconds


@dataclass
class _Stack:
    """The runs that are still in the stack, and the wall time that they share in equal parts."""

    runs: list[_Run]
    validation: Any
    device: torch.device
    on_point: Callable[[StageJob, StagePoint], None]
    billed_until: float = field(default_factory=time.perf_counter)

    def bill(self) -> None:
        """Share out the wall time since the last call."""
        now = time.perf_counter()
        for run in self.runs:
            run.billed_seconds += (now - self.billed_until) / len(self.runs)
        self.billed_until = now

    def train(self) -> None:
        """Train until at least one run has ended."""
        first = self.runs[0].job
        step = StackedStep([run.part for run in self.runs], self.device, first.micro_sequences)
        engine, phases = engine_of(step), None
        last_checkpoint, timed, chunks = time.perf_counter(), -math.inf, 0
        with closing(engine):
            while not any(run.ended for run in self.runs):
                started = time.perf_counter()
                if self._lacks_time(started - timed):
                    engine.close()  # no graphs while others are recorded and destroyed
                    self._time_alone()
                    phases, timed = None, started
                if phases != (phases := [run.phase for run in self.runs]):
                    self._begin_phases()
                    engine.enter()
                self._chunk(engine, step, warm=chunks > 0)
                chunks += 1
                now = time.perf_counter()
                for run in self.runs:
                    run.progress.busy_seconds += (now - started) / len(self.runs)
                due = bool(first.checkpoint_seconds) and now - last_checkpoint >= first.checkpoint_seconds
                self._save_where_asked(due)
                if due:
                    last_checkpoint = time.perf_counter()

    def _begin_phases(self) -> None:
        for run in self.runs:
            if run.part.state.step == run.phase.start:
                begin_phase(run.part.state, run.phase, run.job.spec.seed)

    def _lacks_time(self, seconds: float) -> bool:
        """Whether a sample of the clock is due, `seconds` after the last: the steps of a stack of several are none."""
        clocks = [run.progress.clock(run.phase) for run in self.runs]
        without = any(not clock.samples and not clock.warm_up for clock in clocks)
        return len(self.runs) > 1 and (without or seconds >= ALONE_SECONDS)

    def _time_alone(self) -> None:
        first = self.runs[0]
        seconds = alone_seconds(first.part, self.device, first.job.micro_sequences)
        for run in self.runs:
            run.progress.clock(run.phase).samples.append(seconds)

    def _chunk(self, engine: StackedStep | StaticStack, step: StackedStep, *, warm: bool) -> None:
        started, count = time.perf_counter(), min(run.chunk() for run in self.runs)
        phases = [run.phase for run in self.runs]
        losses, norms = engine.look([engine.run(ahead) for ahead in range(count)])
        seconds = (time.perf_counter() - started) / count
        for run, phase, run_norms, run_losses in zip(self.runs, phases, norms, losses, strict=True):
            clock = run.progress.clock(phase)
            if len(self.runs) == 1:
                (clock.samples if warm and clock.steps else clock.warm_up).append(seconds)
            clock.steps += count
            run.outcome = watch_steps(run.part.state, run_norms, run_losses)
            run.part.state.step += count
        self._evaluate(step, phases)
        for run in self.runs:
            run.ended = run.outcome is not None or run.part.state.step == run.job.end

    def _evaluate(self, step: StackedStep, phases: Sequence[Phase]) -> None:
        """Validation losses of the runs that have come to a step at which they are due."""
        due = []
        for index, (run, phase) in enumerate(zip(self.runs, phases, strict=True)):
            due_now = is_due(run.part.state.step, phase, run.job.end, run.job.evaluate_every)
            if run.outcome is None and due_now:
                due.append(index)
        if not due:
            return
        for index, loss in zip(due, stacked_validation_losses(step, self.validation, due), strict=True):
            run, at = self.runs[index], self.runs[index].part.state.step
            run.outcome = watch_validation(at, loss, run.job.spec.shape.vocab_size)
            if run.outcome is None:
                point = StagePoint(at, loss, phases[index].name)
                run.progress.points.append(point)
                self.on_point(run.job, point)

    def _save_where_asked(self, due: bool) -> None:
        """Checkpoints of the runs that go on: when time has come, or because a stop was asked for, which ends them."""
        stopping = Path(self.runs[0].job.stop_file).exists()
        for run in self.runs:
            if run.ended or not (due or stopping):
                continue
            self.bill()
            save_partial_state(run.job, run.part.state, run.progress, run.billed_seconds)
            if stopping:
                run.ended, run.outcome = True, Stopped(run.part.state.step, "stop requested")


def run_stack(
    jobs: Sequence[StageJob],
    corpus: Any,
    on_point: Callable[[StageJob, StagePoint], None] = lambda job, point: None,
    on_end: Callable[[StageResult], None] = lambda result: None,
) -> list[StageResult]:
    """`stage.run_stage` for stages with one `stack_key`: the results in the order of `jobs`, `on_end` as each comes.

    Wall time is shared out equally among the runs that are in the stack at the moment. Raises `ValueError` for stages that
    cannot be stacked, `ParentLostError` (before anything is trained) when one of them cannot start.
    """
    if len({stack_key(job) for job in jobs}) != 1 or not can_stack(jobs[0].spec):
        raise ValueError(
            f"these {len(jobs)} stages cannot be stacked: they differ in more than a slice may, or in none"
        )
    stack = _Stack([], corpus.validation(jobs[0].spec.validation_tokens), torch.device(jobs[0].device), on_point)
    results: dict[str, StageResult] = {}

    def end(result: StageResult) -> None:
        results[result.node] = result
        on_end(result)

    for job in jobs:
        done = done_before(job)
        if done is None:
            stack.runs.append(_open(job, corpus))
        else:
            end(done)
    while stack.runs:
        stack.train()
        for run in [run for run in stack.runs if run.ended]:

            def billed(run: _Run = run) -> float:
                stack.bill()
                return run.billed_seconds

            end(close_stage(run.job, run.outcome, run.part.state, run.progress, billed))
            stack.runs.remove(run)
    return [results[job.node] for job in jobs]
