"""One stage on one worker: take a parent's state, train to a step, leave a state and a result behind.

A stage is the piece of training between two forks of the trials that share it (a whole trial where nothing is shared).
Its folder in the store is named by the node it ends at; `result.json` is written last, so a stage exists whole or not at
all. A stage that was interrupted goes on from its own last checkpoint. Which stages there are is the orchestrator's.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from trainers.contract.reading import value_of
from trainers.contract.record import PROCESSOR, WALL, Diverged, Stopped
from trainers.contract.schedule import number_of_heads
from trainers.contract.spec import own, spec_to_dict
from trainers.contract.stage import (
    RESULT,
    STATE,
    ParentLostError,
    StageJob,
    StagePoint,
    StageResult,
    read_result,
    result_to_dict,
)
from trainers.contract.writing import write_atomically
from trainers.methods import phases_of
from trainers.model.attention import attention_backend
from trainers.model.decoder import build_model
from trainers.model.ranks import Ranks, ranks_here
from trainers.planning.life import SignOfLife
from trainers.step.fit import DoesNotFitError, advice
from trainers.step.optim import build_optimizer
from trainers.step.step import TrainingStep
from trainers.training.checkpoint import (
    CheckpointError,
    TrainState,
    load_checkpoint,
    read_note,
    save_checkpoint,
    save_weights,
)
from trainers.training.devices import device_name
from trainers.training.loop import LoopArguments, PhaseClock, Progress, train
from trainers.training.sharding import shard_model

PARTIAL = "partial"
PIECE_CONTEXTS = 4
"""Contexts to a piece of the training stream. Documents of source code are far longer than a small model's context; read
whole, a lane dwells on one file for a hundred steps, and the seed deviation of the final loss is ten times as large."""


def _clock(job: StageJob) -> str:
    """What step times count. A GPU has its work to itself; on CPU cores others may work, and would move a wall clock."""
    return WALL if torch.device(job.device).type == "cuda" else PROCESSOR


def _seconds(job: StageJob, ranks: Ranks) -> Callable[[], float]:
    """The clock of the stage in seconds of each of its `devices`: this process has its part of their processor time."""
    if _clock(job) == WALL:
        return time.perf_counter
    return lambda: time.process_time() * ranks.size / job.devices


def _progress_note(job: StageJob, progress: Progress, billed: float) -> dict[str, Any]:
    return {
        **asdict(progress),
        "billed_seconds": billed,
        "devices": job.devices,
        "clock": _clock(job),
        "from": [job.parent, job.start],
    }


def _progress_from(job: StageJob, note: dict[str, Any]) -> tuple[Progress, float] | None:
    """What an interrupted attempt had gathered, None when it was an attempt at another stretch of steps.

    The same node is reached from elsewhere once trials have been added or states deleted in between. Step times of two clocks
    have no median. What was done on
    another number of devices counts with the same device-seconds.
    """
    try:
        if note["from"] != [job.parent, job.start] or note.get("clock", WALL) != _clock(job):
            return None
        points = [value_of(StagePoint, point, "a point") for point in note["points"]]
        clocks = [value_of(PhaseClock, clock, "a clock") for clock in note["clocks"]]
        ratio = note["devices"] / job.devices
        for clock in clocks:
            # Device-seconds stay what they are: on twice as many devices a step counts half as long.
            clock.samples = [seconds * ratio for seconds in clock.samples]
            clock.warm_up = [seconds * ratio for seconds in clock.warm_up]
        return Progress(points, clocks, note["busy_seconds"] * ratio), note["billed_seconds"] * ratio
    except (KeyError, TypeError, ValueError):
        return None


def _restore_stage(job: StageJob, state: TrainState) -> tuple[Progress, float]:
    """Fill `state` from this stage's own checkpoint, else from its parent, else leave it at the seed.

    Ranks do the same, also where one of them sees a file that others do not.
    """
    # Its own checkpoint is further on than its parent's end, where both are there.
    own = Path(job.store) / job.node / PARTIAL
    gathered: tuple[Progress, float] | None = None
    with contextlib.suppress(CheckpointError):
        gathered = _progress_from(job, read_note(own))
    if state.ranks.every(gathered is not None) and gathered is not None:
        with contextlib.suppress(CheckpointError):
            load_checkpoint(own, state)
            return gathered
    if job.parent is not None:
        try:
            load_checkpoint(Path(job.store) / job.parent / STATE, state)
        except CheckpointError as error:
            raise ParentLostError(f"stage {job.node} cannot start: parent {error}") from error
        if state.step != job.start:
            raise ParentLostError(f"stage {job.node} starts at step {job.start}, its parent ends at {state.step}")
    return Progress(), 0.0


def _result(
    job: StageJob, outcome: Stopped | Diverged | None, progress: Progress, billed_seconds: float, skipped_steps: int
) -> StageResult:
    spec = own(job.spec)
    return StageResult(
        node=job.node,
        parent=job.parent,
        start=job.start,
        end=job.end,
        outcome=outcome,
        points=tuple(progress.points),
        timings=tuple(clock.timing() for clock in progress.clocks),
        busy_seconds=progress.busy_seconds,
        billed_seconds=billed_seconds,
        skipped_steps=skipped_steps,
        booked_by=job.booked_by,
        device=device_name(job.device),
        execution=job.execution,
        devices=job.devices,
        clock=_clock(job),
        attention=attention_backend(spec.shape, spec.context, spec.precision, torch.device(job.device)),
    )


@contextmanager
def _fitting(step: TrainingStep) -> Iterator[None]:
    """Out of memory becomes one line that says which micro-batch would fit."""
    if step.device.type == "cuda":
        # A worker trains many stages, and the advice is about this one's peak.
        torch.cuda.reset_peak_memory_stats(step.device)
    try:
        yield
    except torch.OutOfMemoryError as error:
        peak, total = torch.cuda.max_memory_allocated(step.device), torch.cuda.mem_get_info(step.device)[1]
        said = advice(step.spec, step.micro_sequences, peak, total, step.model.checkpoint_activations, step.ranks.size)
        raise DoesNotFitError(said) from error


def _fresh_state(job: StageJob, device: torch.device, ranks: Ranks) -> TrainState:
    """The state at the seed. Ranks build the whole model in host memory, four bytes a parameter each, and keep their rows."""
    spec = own(job.spec)
    heads = number_of_heads(phases_of(spec))
    model = build_model(spec.shape, spec.context, spec.seed, device if ranks.size == 1 else torch.device("cpu"), heads)
    shard_model(model, ranks, spec.precision, job.execution)
    return TrainState(model, build_optimizer(model, spec.optimizer), ranks=ranks)


def _done_before(job: StageJob) -> StageResult | None:
    """The result of a stage that needs no training: it ended, and its state is there where one is wanted."""
    done = read_result(Path(job.store), job.node)
    return done if not job.keep_state or (Path(job.store) / job.node / STATE).exists() else None


def _close_stage(
    job: StageJob,
    outcome: Stopped | Diverged | None,
    state: TrainState,
    progress: Progress,
    billed_seconds: Callable[[], float],
) -> StageResult:
    """Leave the end state (where kept) and then the result of a stage that ended; of a stopped one only tell.

    `billed_seconds` is asked when the state has been written.
    """
    folder = Path(job.store) / job.node
    if outcome is None and (job.keep_state or job.keep_weights):
        save = save_checkpoint if job.keep_state else save_weights
        save(folder / STATE, state, {"spec": spec_to_dict(job.spec)})
    result = _result(job, outcome, progress, billed_seconds(), state.skipped_steps)
    if not isinstance(outcome, Stopped) and state.ranks.rank == 0:
        # After the state: whoever finds a result may rely on the state beside it.
        write_atomically(folder / RESULT, json.dumps(result_to_dict(result)))
        shutil.rmtree(folder / PARTIAL, ignore_errors=True)
    return result


def run_stage(job: StageJob, corpus: Any, on_point: Callable[[StagePoint], None] = lambda point: None) -> StageResult:
    """Train a stage and leave `result.json` (and the end state, where kept) in the store.

    `corpus` is an open `trainers.data` corpus. A stopped stage leaves a partial checkpoint and no result. Raises
    `ParentLostError` when the parent's state cannot be used; other exceptions are failures of program or machine.
    Where ranks train together, each of them calls this, and only the first writes the result.
    """
    ranks = ranks_here(torch.device(job.device))
    done = _done_before(job)
    if ranks.every(done is not None) and done is not None:
        return done
    with SignOfLife(job, speaks=ranks.rank == 0) as life:
        return _train_stage(job, corpus, on_point, ranks, life)


def _train_stage(
    job: StageJob, corpus: Any, on_point: Callable[[StagePoint], None], ranks: Ranks, life: SignOfLife
) -> StageResult:
    device, spec = torch.device(job.device), own(job.spec)
    phases = phases_of(spec)
    state = _fresh_state(job, device, ranks)
    progress, billed_before = _restore_stage(job, state)
    life.spent_before(billed_before)
    step = TrainingStep(
        spec,
        phases,
        state.model,
        state.optimizer,
        corpus.stream(spec.seed, piece_tokens=PIECE_CONTEXTS * spec.context),
        device,
        job.execution,
        job.micro_sequences,
        job.checkpoint_activations,
        ranks,
    )

    def save_partial(state: TrainState, progress: Progress) -> None:
        folder = Path(job.store) / job.node / PARTIAL
        save_checkpoint(folder, state, _progress_note(job, progress, life.billed()))
        life.moved()

    def tell(point: StagePoint) -> None:
        life.moved()
        on_point(point)

    arguments = LoopArguments(
        evaluate_every=job.evaluate_every,
        evaluate_tokens=job.evaluate_tokens,
        checkpoint_seconds=job.checkpoint_seconds,
        should_stop=Path(job.stop_file).exists,
        on_point=tell,
        on_checkpoint=save_partial,
        seconds=_seconds(job, ranks),
        agree=ranks.first,
        on_look=life.look,
    )
    validation = corpus.validation(spec.validation_tokens)
    with _fitting(step), closing(step):
        outcome = train(state, step, validation, job.end, progress, arguments)
    return _close_stage(job, outcome, state, progress, life.billed)
