"""Ranks on one CPU for tests: processes with a gloo group between them that call one function each and bring back its value.

Children are forked from a server that has torch loaded, so that a group of four starts in a second.
"""

from __future__ import annotations

import multiprocessing
import os
import secrets
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.support.tiny_training import CORPUS, CPU, train_tiny
from trainers.contract.schedule import phase_at
from trainers.contract.spec import TrialSpec
from trainers.contract.stage import StageJob, StagePoint, StageResult
from trainers.methods import phases_of
from trainers.model.decoder import build_model
from trainers.model.ranks import ranks_here, rows_here
from trainers.step.optim import build_optimizer
from trainers.step.step import TrainingStep
from trainers.training.checkpoint import TrainState, load_checkpoint, save_checkpoint
from trainers.training.sharding import shard_model

CONTEXT = multiprocessing.get_context("forkserver")
LONGEST_WAIT = timedelta(seconds=120)
"""For a peer in a sum: ranks that wait for each other end in an error and not in a test without end."""
CONTEXT.set_forkserver_preload(["tests.support.rank_training", "torch.distributed.fsdp"])


def _child(
    group: dict[str, Any], meeting: str, answers: Any, work: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(store=dist.FileStore(meeting, group["world_size"]), timeout=LONGEST_WAIT, **group)
    try:
        value: Any = work(*arguments)
    except Exception as error:  # what went wrong is for the test to judge
        value = error
    answers.put((group["rank"], value))
    answers.close()
    answers.join_thread()
    os._exit(0)  # a peer may be gone, so that the group cannot be taken down in order


def run_ranks(folder: Path, size: int, work: Callable[..., Any], *arguments: Any, backend: str = "gloo") -> list[Any]:
    """What `work(*arguments)` gives on each of `size` ranks, in order; an exception as a value, None for a killed rank."""
    folder.mkdir(parents=True, exist_ok=True)
    answers = CONTEXT.Queue()
    meeting = str(folder / f"meeting-{secrets.token_hex(4)}")
    groups = [{"backend": backend, "rank": rank, "world_size": size} for rank in range(size)]
    children = [CONTEXT.Process(target=_child, args=(group, meeting, answers, work, arguments)) for group in groups]
    for child in children:
        child.start()
    for child in children:
        child.join()
    values: dict[int, Any] = dict(answers.get() for child in children if child.exitcode == 0)
    answers.close()
    return [values.get(rank) for rank in range(size)]


def train_and_kill(job: StageJob, victim: int, step: int) -> StageResult:
    """Train; rank `victim` is killed by the system once `step` steps are evaluated."""

    def on_point(point: StagePoint) -> None:
        if dist.get_rank() == victim and point.step >= step:
            os.kill(os.getpid(), signal.SIGKILL)

    return train_tiny(job, on_point)


def train_each(jobs: list[StageJob]) -> list[StageResult]:
    """Several stages one after the other on the same ranks."""
    return [train_tiny(job) for job in jobs]


def train_each_on_gpus(jobs: list[StageJob]) -> list[StageResult]:
    """The same with a GPU for each rank."""
    torch.cuda.set_device(dist.get_rank())
    return train_each([replace(job, device=f"cuda:{dist.get_rank()}") for job in jobs])


@dataclass(frozen=True)
class Steps:
    """Training losses and gradient norms of a run's first steps, and the lanes that were read here."""

    losses: list[float]
    norms: list[float]
    lanes: range


def steps_here(spec: TrialSpec, steps: int, micro_sequences: int | None = None, again: bool = False) -> Steps:
    """Train the first `steps` steps from the seed; `again`: activations are computed again in the backward."""
    _, step = _fresh(spec, micro_sequences, again)
    results = [step.run(index, phase_at(step.phases, index)) for index in range(steps)]
    return Steps([float(r.loss) for r in results], [float(r.gradient_norm) for r in results], step.lanes)


def _fresh(spec: TrialSpec, micro_sequences: int | None = None, again: bool = False) -> tuple[TrainState, TrainingStep]:
    ranks = ranks_here(CPU)
    model = build_model(spec.shape, spec.context, spec.seed, CPU)
    shard_model(model, ranks, spec.precision, "eager")
    state = TrainState(model, build_optimizer(model, spec.optimizer), ranks=ranks)
    stream = CORPUS.stream(spec.seed, 32)
    step = TrainingStep(
        spec, phases_of(spec), model, state.optimizer, stream, CPU, "eager", micro_sequences, again, ranks
    )
    return state, step


def skip_one_here(spec: TrialSpec) -> tuple[bool, float]:
    """Train a step, then one in which the last rank's rows are of no use: whether it changed nothing, and its norm."""
    state, step = _fresh(spec)
    step.run(0, step.phases[0])
    if state.ranks.rank == state.ranks.size - 1:
        rows_here(state.model.head.weight.detach()).mul_(3e38)
    before = [rows_here(p.detach()).clone() for p in state.model.parameters()]
    norm = float(step.run(1, step.phases[0]).gradient_norm)
    same = [torch.equal(rows_here(p.detach()), b) for p, b in zip(state.model.parameters(), before, strict=True)]
    return all(same), norm


def copy_here(spec: TrialSpec, source: Path, target: Path) -> int:
    """Read a state and write it again; its step."""
    state, _ = _fresh(spec)
    note = load_checkpoint(source, state)
    save_checkpoint(target, state, note)
    return state.step
