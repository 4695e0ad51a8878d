"""One stage on several ranks: Ray Train inside a trial of Ray Tune. With `dispatch` the only files that import ray.

The trial itself holds no resources; its ranks do, a GPU each (or CPUs), and Ray Train joins them in a process group before
they train. A rank that dies ends the attempt; Tune tries the trial again, and it goes on from the ranks' last checkpoint.
What to train is handed in; what ranks do together is `trainers.parallel`'s.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from sweeper.executors import Train
from trainers.loop import StagePoint
from trainers.stage import StageJob, StageResult, job_from_dict, job_to_dict, result_to_dict

SETTINGS = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2", "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600"}
"""Set where the user has not. Ranks wait in every report until Ray Train looks at them next, with its default for two
seconds. Trials at once are limited so that the ranks' resources are free, but starting on a busy machine takes its time."""


class RankLostError(RuntimeError):
    """A rank's process died under it: killed, or its node is gone."""


@dataclass(frozen=True, slots=True)
class RankResources:
    """`size` ranks with `cpus` CPUs and `gpus` GPUs (none or one) each; `storage` is seen by every node."""

    size: int
    cpus: float
    gpus: int
    storage: str


def train_on_ranks(train: Train, job: StageJob, ranks: RankResources) -> None:
    """Train `job` on `ranks` from inside a Tune trial, which gets every report of the first rank, the end among them.

    Raises what a rank raised, as a stage in this process would, or `RankLostError`.
    """
    os.environ.update({key: value for key, value in SETTINGS.items() if key not in os.environ})
    from ray.train import RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    reports: Any = TuneReportCallback()  # type: ignore[no-untyped-call]
    resources = {"CPU": ranks.cpus, "GPU": ranks.gpus} if ranks.gpus else {"CPU": ranks.cpus}
    trainer = TorchTrainer(
        _rank(train),
        train_loop_config={"job": json.dumps(job_to_dict(job))},
        scaling_config=ScalingConfig(num_workers=ranks.size, use_gpu=ranks.gpus > 0, resources_per_worker=resources),
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if ranks.gpus else "gloo"),
        run_config=RunConfig(
            name=f"ranks-{job.node}-{secrets.token_hex(4)}",
            storage_path=ranks.storage,
            callbacks=[reports],
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        failures: dict[int, Exception] = getattr(error, "worker_failures", {})
        raise cause_of(failures) from error


def cause_of(failures: Mapping[int, Exception]) -> Exception:
    """What went wrong first, by rank: those that lose a peer in the middle of a sum end in errors of their own."""
    dead = [rank for rank, failure in failures.items() if type(failure).__name__ == "WorkerHealthCheckFailedError"]
    raised = [failure for rank, failure in sorted(failures.items()) if rank not in dead]
    told = [failure for failure in raised if type(failure).__name__ not in ("RuntimeError", "DistBackendError")]
    if told:
        return told[0]
    if dead or not raised:
        return RankLostError(f"the process of rank {dead[0]} died" if dead else "the process of a rank died")
    return raised[0]


def _rank(train: Train) -> Callable[[dict[str, Any]], None]:
    def rank(config: dict[str, Any]) -> None:
        from ray import train as ray_train
        from ray.train.torch import get_device

        job = replace(job_from_dict(json.loads(config["job"])), device=str(get_device()))

        def on_point(point: StagePoint) -> None:
            ray_train.report({"step": point.step, "loss": point.loss})

        result: StageResult = train(job, on_point)
        ray_train.report({"end": json.dumps(result_to_dict(result))})

    return rank
