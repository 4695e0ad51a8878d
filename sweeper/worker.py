"""One stage, or a stack of them, on one worker process: opens the corpus once, then trains what it is given. Runs under any
executor."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from trainers.loop import StagePoint
from trainers.stack_stage import STACKED, run_stack
from trainers.stage import StageJob, StageResult, run_stage


@cache
def _corpus(directory: str) -> Any:
    from trainers.data.shards import open_corpus

    return open_corpus(Path(directory))


def _use_given_threads() -> None:
    """As many as the executor gave (`OMP_NUM_THREADS`), else one."""
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


def train_stage(job: StageJob, on_point: Callable[[StagePoint], None]) -> StageResult:
    """Train `job` here; where its scale is stacked, as a stack of one.

    Raises what `trainers.stage.run_stage` raises.
    """
    if job.execution == STACKED:
        return train_stack([job], lambda job, point: on_point(point), lambda result: None)[0]
    _use_given_threads()
    return run_stage(job, _corpus(job.corpus), on_point)


def train_stack(
    jobs: list[StageJob],
    on_point: Callable[[StageJob, StagePoint], None],
    on_end: Callable[[StageResult], None],
) -> list[StageResult]:
    """Train stages of one `stack_key` together. Raises what `trainers.stack_stage.run_stack` raises."""
    _use_given_threads()
    return run_stack(jobs, _corpus(jobs[0].corpus), on_point, on_end)
