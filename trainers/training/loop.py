"""The only training loop: steps `[state.step, end)` of any method, timed, evaluated, watched, checkpointed.

The loop knows steps and phases, no method. Time is measured in short chunks of steps from one look at their losses to the
next; evaluation and checkpoints lie outside the clock. A device that runs on its own is given the next chunk before the
last one is looked at.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np
import torch

from trainers.contract.record import Diverged, PhaseTiming, Stopped, TextScore
from trainers.contract.schedule import Phase, phase_at
from trainers.contract.spec import TrialSpec, fingerprint
from trainers.contract.stage import StagePoint
from trainers.model.decoder import initialise
from trainers.step.step import TrainingStep
from trainers.training.checkpoint import TrainState
from trainers.training.evaluate import mean_loss, score_of, window_losses

CHUNK_STEPS = 10
"""Steps between two looks at the clock, the losses and the stop request."""
DIVERGED_SKIPS = 20
"""Consecutive steps without a finite gradient after which a run counts as diverged."""


@dataclass(slots=True)
class PhaseClock:
    """Seconds a step of one phase took, a sample a chunk; the first chunk after a start or a change of phase warms up."""

    phase: str
    bag_size: int
    steps: int = 0
    samples: list[float] = field(default_factory=list)
    warm_up: list[float] = field(default_factory=list)

    def timing(self) -> PhaseTiming:
        """Steps and their median duration, from warm samples where there are any."""
        return PhaseTiming(self.phase, self.bag_size, self.steps, median(self.samples or self.warm_up))


@dataclass(slots=True)
class Progress:
    """What a stage has gathered so far; grows while it trains and survives in its checkpoints."""

    points: list[StagePoint] = field(default_factory=list)
    clocks: list[PhaseClock] = field(default_factory=list)
    busy_seconds: float = 0.0

    def clock(self, phase: Phase) -> PhaseClock:
        """The clock of `phase`, started when it is not the one that runs."""
        if not self.clocks or self.clocks[-1].phase != phase.name:
            self.clocks.append(PhaseClock(phase.name, phase.bag_size))
        return self.clocks[-1]


@dataclass(frozen=True, slots=True)
class LoopArguments:
    """How to run, without influence on what is computed. `evaluate_every` and `checkpoint_seconds` of 0 mean never,
    `evaluate_tokens` of 0 all of the validation text."""

    evaluate_every: int
    checkpoint_seconds: float
    should_stop: Callable[[], bool]
    on_point: Callable[[StagePoint], None]
    on_checkpoint: Callable[[TrainState, Progress], None]
    evaluate_tokens: int = 0
    seconds: Callable[[], float] = time.perf_counter
    """What the steps are timed by."""
    agree: Callable[[bool], bool] = bool
    """What several ranks make of a yes or no that each of them sees for itself."""
    on_look: Callable[[int, float, float], None] = lambda step, loss, seconds: None
    """Told after each look at a chunk: its last step, that step's training loss, and what a step took by `seconds`."""


def chunk_end(step: int, phase: Phase, end: int, evaluate_every: int) -> int:
    """Where the chunk that starts at `step` ends: never across a phase, an evaluation or the end.

    Chunks lie on a grid of the run's steps, so that a run that was cut looks at its losses where an uncut one does.
    """
    stops = [(step // CHUNK_STEPS + 1) * CHUNK_STEPS, phase.end, end]
    if evaluate_every:
        stops.append((step // evaluate_every + 1) * evaluate_every)
    return min(stops)


def _is_due(step: int, phase: Phase, end: int, evaluate_every: int) -> bool:
    """Whether a stage evaluates after `step` steps, the last of them in `phase`: on the grid, at a phase's end, at its own."""
    return step in (end, phase.end) or (evaluate_every > 0 and step % evaluate_every == 0)


def keeps_load(step: int, phase: Phase, evaluate_every: int) -> bool:
    """Whether the point at `step` holds the load of every expert: the last of a phase, and the first after a boundary.

    A function of the step alone, so that a run that was cut keeps what an uncut one does.
    """
    return step == phase.end or (phase.start > 0 and step <= phase.start + evaluate_every)


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Steps `[start, stop)` of one phase, launched and yet to be looked at; `wait` gives their losses and norms."""

    start: int
    stop: int
    phase: Phase
    wait: Callable[[], tuple[list[float], list[float]]]


def _launch(step: TrainingStep, phase: Phase, start: int, end: int, evaluate_every: int) -> _Chunk:
    stop = chunk_end(start, phase, end, evaluate_every)
    results = [step.run(index, phase) for index in range(start, stop)]
    return _Chunk(start, stop, phase, step.look(results))


class _Watch:
    """Looks at chunks in their order, and takes the time from one look to the next."""

    def __init__(self, state: TrainState, progress: Progress, arguments: LoopArguments) -> None:
        self._state, self._progress, self._seconds = state, progress, arguments.seconds
        self._on_look = arguments.on_look
        self._warm, self._mark = False, self._seconds()

    def restart(self) -> None:
        """The clock goes on from here: what came before was no training."""
        self._mark = self._seconds()

    def look(self, chunk: _Chunk) -> Diverged | None:
        """Wait for the chunk; count it, and what in it was skipped."""
        losses, norms = chunk.wait()
        now = self._seconds()
        seconds, self._mark = (now - self._mark) / len(losses), now
        clock = self._progress.clock(chunk.phase)
        # The first chunk pays for compilation and capture, and so does the first one after a change of phase.
        (clock.samples if self._warm and clock.steps else clock.warm_up).append(seconds)
        diverged = _watch_steps(self._state, norms, losses)
        clock.steps, self._warm, self._state.step = clock.steps + len(losses), True, chunk.stop
        self._on_look(chunk.stop, losses[-1], seconds)
        return diverged


@torch.no_grad()
def begin_phase(state: TrainState, phase: Phase, seed: int) -> None:
    """Draw the phase's `fresh` parameters anew, with their moments and step counts at zero; with `fresh_moments` set the
    moments and step counts of all parameters to zero.

    Called with the state at the phase's start, so that a run that was stopped in it does not draw again and a run that
    leaves a shared prefix there does. The draw depends on the seed and the step, and is not the one of the run's start.
    """
    parameters = dict(state.model.named_parameters())
    assert set(phase.fresh) <= parameters.keys(), f"{phase.fresh} are not all parameters of the model"
    if phase.fresh:
        initialise(state.model, int(fingerprint([seed, phase.start])[:8], 16), phase.fresh)
    for name in parameters if phase.fresh_moments else phase.fresh:
        for moment in state.optimizer.state.get(parameters[name], {}).values():
            moment.zero_()


def _watch_steps(state: TrainState, norms: list[float], losses: list[float]) -> Diverged | None:
    """Count the steps from `state.step` on that changed nothing; diverged at the last of too many in a row."""
    for index, (norm, loss) in enumerate(zip(norms, losses, strict=True)):
        # A skipped step is harmless by itself, as after a spike; many in a row are a run that has ended without saying so.
        finite = math.isfinite(norm) and math.isfinite(loss)
        state.consecutive_skips = 0 if finite else state.consecutive_skips + 1
        state.skipped_steps += not math.isfinite(norm)
        if state.consecutive_skips == DIVERGED_SKIPS:
            return Diverged(state.step + index + 1, f"no finite gradient for {DIVERGED_SKIPS} steps")
    return None


def _watch_validation(step: int, loss: float, vocab_size: int) -> Diverged | None:
    """Diverged where a validation loss is no number or above twice that of guessing."""
    bound = 2 * math.log(vocab_size)
    if not math.isfinite(loss):
        return Diverged(step, f"validation loss is {loss}")
    if loss > bound:
        return Diverged(step, f"validation loss {loss:.3f} is above {bound:.3f}, twice that of guessing")
    return None


def _may_end(spec: TrialSpec, step: int, end: int) -> bool:
    """Whether a trial ends after `step` steps: at the schedule's end, and without a decay at the end of any stage."""
    return step == end and (step == spec.schedule.total_steps or spec.schedule.decay_steps == 0)


def _evaluate(
    step: TrainingStep, tokens: np.ndarray, evaluate_tokens: int, *, final: bool
) -> tuple[float, TextScore | None]:
    """The loss on the part of the text that points are scored on, and the score on all of it where a trial may end.

    The part is the text's beginning, a mixture of all held-out documents, so that a final score holds it.
    """
    context = step.spec.context
    part = tokens if final or not evaluate_tokens else tokens[: max(evaluate_tokens, context) + 1]
    losses = window_losses(step.working, part, context, step.device, step.ranks, step.attention)
    score = score_of(losses, context) if final else None
    if final and score is None:
        return mean_loss(losses), None  # no number: what diverged only beyond the part has diverged
    few = evaluate_tokens // context if evaluate_tokens else len(losses)
    return mean_loss(losses[: max(few, 1)]), score


def train(
    state: TrainState,
    step: TrainingStep,
    validation_tokens: object,
    end: int,
    progress: Progress,
    arguments: LoopArguments,
) -> Stopped | Diverged | None:
    """Train up to `end` and evaluate there; None means that the end was reached. `progress` is filled on the way.

    On a stop request the state is checkpointed first. `validation_tokens` is an integer array `[N]`.
    """
    spec: TrialSpec = step.spec
    tokens: Any = validation_tokens
    watch, last_checkpoint, launched = _Watch(state, progress, arguments), time.perf_counter(), state.step
    waiting: deque[_Chunk] = deque()

    def checkpoint_due() -> bool:
        return arguments.agree(0 < arguments.checkpoint_seconds <= time.perf_counter() - last_checkpoint)

    def should_stop() -> bool:
        return arguments.agree(arguments.should_stop())

    while state.step < end:
        started = time.perf_counter()
        if not waiting:
            watch.restart()
        phase = phase_at(step.phases, launched)
        # Before the launch: what the phase draws anew has to be there when its first step reads it.
        if launched == phase.start:
            begin_phase(state, phase, spec.seed)
        chunk = _launch(step, phase, launched, end, arguments.evaluate_every)
        waiting.append(chunk)
        launched = chunk.stop
        at_evaluation = _is_due(launched, phase, end, arguments.evaluate_every)
        # One chunk may be under way while the last is looked at, unless someone needs the weights as they are after it.
        goes_on = step.looks_ahead and not (at_evaluation or should_stop() or checkpoint_due())
        diverged = None
        while diverged is None and len(waiting) > goes_on:
            diverged = watch.look(waiting.popleft())
        if diverged is None and at_evaluation:
            # With the weights that compute: in bf16 the masters would report a model that nobody runs.
            loss, score = _evaluate(step, tokens, arguments.evaluate_tokens, final=_may_end(spec, launched, end))
            diverged = _watch_validation(launched, loss, spec.shape.vocab_size)
            if diverged is None:
                keep_load = keeps_load(launched, phase, arguments.evaluate_every)
                point = StagePoint(launched, loss, phase.name, step.working.routing(keep_load=keep_load), score)
                progress.points.append(point)
                arguments.on_point(point)
        progress.busy_seconds += time.perf_counter() - started
        if diverged is not None:
            return diverged
        if not waiting and launched < end and should_stop():
            arguments.on_checkpoint(state, progress)
            return Stopped(launched, "stop requested")
        if not waiting and launched < end and checkpoint_due():
            arguments.on_checkpoint(state, progress)
            last_checkpoint = time.perf_counter()
    return None
