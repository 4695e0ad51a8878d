"""One stage on one worker process: opens the corpus where its files have changed, then trains. Runs under any executor."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from trainers.contract.stage import StageJob, StagePoint, StageResult
from trainers.data.manifest import look_of
from trainers.training.stage import run_stage


@lru_cache(maxsize=1)
def _corpus(directory: str, look: tuple[object, ...]) -> Any:
    """Open, with every hash checked, once for as long as its files look the same: a sweep lasts for days."""
    from trainers.data.shards import open_corpus

    return open_corpus(Path(directory))


def train_stage(job: StageJob, on_point: Callable[[StagePoint], None]) -> StageResult:
    """Train `job` here, with as many threads as the executor gave (`OMP_NUM_THREADS`, else one).

    Raises what `trainers.training.stage.run_stage` raises.
    """
    import torch

    # Ray sets OMP_NUM_THREADS to the trial's CPUs. PyTorch's own default is every core of the machine, which makes
    # trials that run side by side wait for each other, and the order of its sums, hence the loss, depend on the
    # machine.
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    return run_stage(job, _corpus(job.corpus, look_of(Path(job.corpus))), on_point)
