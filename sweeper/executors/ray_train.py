"""One stage on several ranks: Ray Train inside a trial of Ray Tune. With `ray_tune` the only files that import ray.

The trial itself holds no resources; its ranks do, a GPU each (or CPUs), and Ray Train joins them in a process group before
they train. A rank that dies ends the attempt; Tune tries the trial again, and it goes on from the ranks' last checkpoint.
What to train is handed in; what ranks do together is `trainers.model.ranks`'s.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from sweeper.executors.inline import Train
from trainers.contract.stage import StageJob, StagePoint, StageResult, job_from_dict, job_to_dict

SETTINGS = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5", "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600"}
"""Set where the user has not: Ray Train's own two seconds are how late it sees the end of a stage, its minute for starting
is short on a busy machine. Trials at once are limited so that the ranks' resources are free."""
LOOK_SECONDS = 0.5
"""Between two looks at whether the ranks have ended."""


class RankLostError(RuntimeError):
    """A rank's process died under it: killed, or its node is gone."""


@dataclass(frozen=True, slots=True)
class RankResources:
    """`size` ranks with `cpus` CPUs and `gpus` GPUs (none or one, of the kind `accelerator`) each; `storage` is seen by every
    node."""

    size: int
    cpus: float
    gpus: int
    storage: str
    accelerator: str | None = None


def train_on_ranks(
    train: Train, job: StageJob, on_point: Callable[[StagePoint], None], ranks: RankResources
) -> StageResult:
    """`train(job, on_point)` on `ranks`, called from inside a Tune trial; points and result are the first rank's.

    Raises what a rank raised, as a stage in this process would, or `RankLostError`.
    """
    os.environ.update({key: value for key, value in SETTINGS.items() if key not in os.environ})
    from ray.train import TrainingFailedError
    from ray.util.queue import Empty, Queue

    found: list[StageResult] = []
    # Ray's own bridge from Train to Tune holds one report and may lose the last one, or wait for itself for ever, when
    # Tune is slower than the training; it also lets every rank wait for each report.
    reports = Queue(actor_options={"num_cpus": 0})
    with ThreadPoolExecutor(max_workers=1) as pool:
        try:
            fitting = pool.submit(_trainer(train, job, ranks, reports).fit)
            ended = False
            while not ended:
                ended = fitting.done()  # asked first: what was reported before the end is taken below
                with contextlib.suppress(Empty):
                    while True:
                        report = reports.get(timeout=LOOK_SECONDS)
                        found.append(report) if isinstance(report, StageResult) else on_point(report)
            fitting.result()
        except TrainingFailedError as error:
            raise cause_of(getattr(error, "worker_failures", {})) from error
        finally:
            reports.shutdown(force=True)
    return found[0]


def _trainer(train: Train, job: StageJob, ranks: RankResources, reports: Any) -> Any:
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    resources = {"CPU": ranks.cpus, "GPU": ranks.gpus} if ranks.gpus else {"CPU": ranks.cpus}
    return TorchTrainer(
        _rank(train, reports),
        train_loop_config={"job": json.dumps(job_to_dict(job))},
        scaling_config=ScalingConfig(
            num_workers=ranks.size,
            use_gpu=ranks.gpus > 0,
            resources_per_worker=resources,
            accelerator_type=ranks.accelerator,
        ),
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if ranks.gpus else "gloo"),
        run_config=RunConfig(name=f"ranks-{job.node}-{secrets.token_hex(4)}", storage_path=ranks.storage),
    )


def _rank(train: Train, reports: Any) -> Callable[[dict[str, Any]], None]:
    def rank(config: dict[str, Any]) -> None:
        from ray.train import get_context
        from ray.train.torch import get_device

        first = get_context().get_world_rank() == 0
        job = replace(job_from_dict(json.loads(config["job"])), device=str(get_device()))

        def on_point(point: StagePoint) -> None:
            if first:
                reports.put(point)

        result = train(job, on_point)
        if first:
            reports.put(result)

    return rank


def cause_of(failures: Mapping[int, Exception]) -> Exception:
    """What went wrong first, by rank: those that lose a peer in the middle of a sum end in errors of their own."""
    # By the class's name: Ray keeps the class itself in a private module that has moved between versions.
    dead = [rank for rank, failure in failures.items() if type(failure).__name__ == "WorkerHealthCheckFailedError"]
    raised = [failure for rank, failure in sorted(failures.items()) if rank not in dead]
    told = [failure for failure in raised if type(failure).__name__ not in ("RuntimeError", "DistBackendError")]
    if told:
        return told[0]
    if dead or not raised:
        return RankLostError(f"the process of rank {dead[0]} died" if dead else "the process of a rank died")
    return raised[0]
