"""An executor in which every stage is a trial of Ray Tune, on a cluster that `cluster` has joined.

The sweep is Tune's searcher: Tune asks it for a configuration whenever a worker is free, and tells it how the trial ended.
Tune's own experiment state is not used for going on later (our ledger is the truth), so every run is a Tuner of its own.
What to train and how are handed in.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

from sweeper.engine.live import LOOK_SECONDS
from sweeper.engine.sweep import Idle
from sweeper.executors.cluster import KIND
from sweeper.executors.inline import MAX_FAILURES, StageSource, Train
from sweeper.executors.ray_train import RankResources, train_on_ranks
from sweeper.executors.workers import failure_file
from trainers.contract.faults import is_full_disk
from trainers.contract.record import reason_of
from trainers.contract.spec import TrialSpec
from trainers.contract.stage import (
    ParentLostError,
    PointCost,
    StageJob,
    StagePoint,
    job_from_dict,
    job_to_dict,
    result_from_dict,
    result_to_dict,
)
from trainers.planning.footprint import footprint
from trainers.planning.life import first_sign, label_of, signed_at, write_life

POINT_SECONDS = 3.0
"""At least so long between two messages from a stage: one takes milliseconds, on a busy machine tens, in which nothing trains.
The ledger is written as seldom."""
A_LITTLE = 0.001
"""Of a node's kind: so that as many trials as there are GPUs can ask for it."""
DIED = "the worker process died"


def _searcher(source: StageSource, max_failures: int) -> Any:
    from ray.tune.search import Searcher

    class StageSearcher(Searcher):
        """Tune's view of the sweep. Tune pickles its searcher into snapshots; the sweep is no part of them."""

        def __init__(self, source: StageSource) -> None:
            super().__init__(metric=None, mode=None)
            self.source = source
            self.jobs: dict[str, StageJob] = {}
            self.trials: dict[str, Any] = {}
            self.deaths: Counter[str] = Counter()
            self.signs: dict[str, int | None] = {}
            self.unheard: dict[str, str] = {}

        def __getstate__(self) -> dict[str, Any]:
            return {}

        def suggest(self, trial_id: str) -> Any:
            # Tune asks whenever it sees room, also while a trial of ours still ends: None means "not now" and is asked
            # again.
            job = self.source.next_job()
            if isinstance(job, StageJob):
                self.jobs[trial_id] = job
                self.signs[trial_id] = signed_at(Path(job.store), job.node)
                return {"job": json.dumps(job_to_dict(job))}
            return Searcher.FINISHED if job is Idle.OVER else None

        def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
            for step, loss, cost in result.get("points", ()) if trial_id in self.jobs else ():
                self.source.point(self.jobs[trial_id].node, step, loss, None if cost is None else PointCost(*cost))

        def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
            # Exactly one of the four ways to end a stage is told for every job that was given out.
            job, trial = self.jobs.pop(trial_id), self.trials.pop(trial_id, None)
            self.signs.pop(trial_id, None)
            unheard = self.unheard.pop(trial_id, DIED)
            end = (result or {}).get("end")
            if error or end is None:
                # Of a worker that dies while it changes from one trial to the next Tune says at once that its trial failed.
                self.deaths[job.node] += max(1, getattr(trial, "num_failures", 1))
                if self.deaths[job.node] <= max_failures and not _failure_file(job).exists():
                    self.source.give_back(job.node)
                else:
                    self.source.fail(job.node, _reason(job, getattr(trial, "error_file", None), unheard))
            elif end == "full":
                self.source.fail(job.node, (result or {})["reason"])
            elif end == "lost":
                self.source.lose_parent(job)
            else:
                self.source.finish(result_from_dict(json.loads(end)))

        def save(self, checkpoint_path: str) -> None:
            """Nothing: the ledger and the store are the state."""

        def restore(self, checkpoint_path: str) -> None:
            """Nothing: the ledger and the store are the state."""

    return StageSearcher(source)


def _scheduler() -> Any:
    from ray.tune.schedulers import FIFOScheduler

    class Workers(FIFOScheduler):
        """In their order, like Tune's own. Schedulers alone are shown which worker a trial has before that has started."""

        def __init__(self) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self.controller: Any = None

        def __getstate__(self) -> dict[str, Any]:
            return {}

        def choose_trial_to_run(self, tune_controller: Any, **options: Any) -> Any:
            self.controller = tune_controller
            return super().choose_trial_to_run(tune_controller, **options)

        def workers(self) -> dict[str, tuple[object, Any]]:
            """Of each trial that has one: what Tune knows it by, and Ray's handle to it. Tune promises neither name."""
            try:
                handles = self.controller._actor_manager._live_actors_to_ray_actors_resources
                mine = self.controller._trial_to_actor
            except AttributeError:
                return {}
            return {trial.trial_id: (actor, handles[actor][0]) for trial, actor in mine.items() if actor in handles}

    return Workers()


class _Unheard:
    """Ends workers that have a stage and never say a word: Ray waits for a process that hangs while it starts for ever.

    After its first sign a worker is under the eye of `sweeper.engine.live`.
    """

    def __init__(self, searcher: Any, scheduler: Any, seconds: float, say: Callable[[str], None]) -> None:
        self._searcher, self._scheduler, self._seconds, self._say = searcher, scheduler, seconds, say
        self._begun: dict[str, tuple[object, float, int | None]] = {}
        """Of each trial its worker, since when it has it, and the sign that was there before."""
        self._looked = 0.0

    def look(self) -> None:
        import ray

        moment = time.monotonic()
        if moment - self._looked < LOOK_SECONDS:
            return
        self._looked, before, self._begun = moment, self._begun, {}
        for trial_id, (worker, handle) in self._scheduler.workers().items():
            job = self._searcher.jobs.get(trial_id)
            if job is None:
                continue
            sign = signed_at(Path(job.store), job.node)
            begun = before.get(trial_id)
            if begun is None or begun[0] is not worker:
                # Of the first attempt as it was when the stage was given out: the worker may have signed since.
                begun = (worker, moment, self._searcher.signs.get(trial_id) if begun is None else sign)
            self._begun[trial_id] = begun
            silence = moment - begun[1]
            if sign == begun[2] and silence > self._seconds:
                words = f"its worker gave no sign of life for {silence / 60:.2g} minutes"
                self._say(f"{label_of(job.spec)}: {words} and is ended, to be tried again")
                self._searcher.unheard[trial_id] = words
                self._begun.pop(trial_id)
                ray.kill(handle)


def _callback(watch: Callable[[], None], searcher: Any, unheard: _Unheard, raised: list[Exception]) -> Any:
    from ray.tune import Callback

    class Watch(Callback):
        """Looks after the sweep, and shows the searcher its trials: they know the file in which Tune writes why one failed.

        What looking after raises ends the sweep; Tune would make another exception of it."""

        def __init__(self, watch: Callable[[], None], searcher: Any) -> None:
            self.watch, self.searcher, self.seen = watch, searcher, 0

        def __getstate__(self) -> dict[str, Any]:
            return {}

        def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
            # Not when a trial starts: one whose worker is killed at once never does.
            self.searcher.trials.update({trial.trial_id: trial for trial in trials[self.seen :]})
            self.seen = len(trials)

        def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
            try:
                self.watch()
                unheard.look()
            except Exception as error:
                raised.append(error)
                raise

    return Watch(watch, searcher)


def _failure_file(job: StageJob) -> Path:
    return failure_file(Path(job.store), job.node)


_MEMORY = re.compile(r"Memory on the node .*?was ([\d.]+)GB used / ([\d.]+)GB limit", re.DOTALL)
"""In the words of Ray's memory monitor, which ends workers for what anybody on their machine uses."""


def _reason(job: StageJob, told: str | None, otherwise: str) -> str:
    """Why a stage failed: what the worker left, or Tune was told of its end, or `otherwise`."""
    with contextlib.suppress(OSError):
        return _failure_file(job).read_text(encoding="utf-8")
    said = ""
    if told is not None:
        with contextlib.suppress(OSError):
            said = Path(told).read_text(encoding="utf-8", errors="replace")
    if found := _MEMORY.findall(said):
        used, limit = found[-1]
        return (
            f"out of memory: ended while {used} of {limit} GB were in use on its machine, by this trial or others there"
            + _needed(job)
        )
    return otherwise


def _needed(job: StageJob) -> str:
    if not isinstance(job.spec, TrialSpec):
        return ""
    everything = job.spec.tokens_per_step // job.spec.context
    needs = footprint(
        job.spec,
        job.micro_sequences or everything,
        checkpoint_activations=job.checkpoint_activations,
        device_kind=job.device,
    )
    return f"; a trial of {job.spec.scale} takes about {needs.total / 1e9:.2g} GB"


def _trainable(train: Train, ranks: RankResources) -> Callable[[dict[str, Any]], None]:
    def stage(config: dict[str, Any]) -> None:
        from ray import tune

        job = job_from_dict(json.loads(config["job"]))
        _failure_file(job).unlink(missing_ok=True)  # of an earlier attempt; this one may die without a word
        alone = ranks.size == 1
        # Ranks may have to wait for their devices, and Ray Train looks after them.
        write_life(Path(job.store), replace(first_sign(job), watched=alone))

        waiting: list[tuple[int, float, tuple[float, ...] | None]] = []
        told = -math.inf

        def on_point(point: StagePoint) -> None:
            nonlocal told
            waiting.append((point.step, point.loss, None if point.cost is None else astuple(point.cost)))
            if time.monotonic() - told >= POINT_SECONDS:
                tune.report({"points": waiting.copy()})
                waiting.clear()
                told = time.monotonic()

        try:
            result = train(job, on_point) if alone else train_on_ranks(train, job, on_point, ranks)
            end = json.dumps(result_to_dict(result))
        except ParentLostError:
            end = "lost"
        except Exception as error:
            # A further attempt would find the disk as full, and no room for the reason.
            if is_full_disk(reason_of(error)):
                tune.report({"points": waiting, "end": "full", "reason": reason_of(error)})
                return
            tune.report({"points": waiting})
            _failure_file(job).parent.mkdir(parents=True, exist_ok=True)
            _failure_file(job).write_text(reason_of(error), encoding="utf-8")
            raise
        tune.report({"points": waiting, "end": end})

    return stage


@dataclass(frozen=True, slots=True)
class RayExecutor:
    """Stages on a Ray cluster that `attach` has joined. `scratch` must be seen by every node.

    `workers` is the number of stages at once; 0 means as many as the cluster has room for. With several `ranks` a stage is
    that many processes, which share its CPUs and have a GPU each; `workers` has then to be given. `accelerator` is the kind of
    GPU, under Ray's name, that stages run on. A worker may take `start_seconds` until it gives a first sign of life; `say` is
    told of one that is ended.
    """

    scratch: Path
    cpus: int = 1
    gpus: float = 0.0
    workers: int = 0
    max_failures: int = MAX_FAILURES
    ranks: int = 1
    accelerator: str | None = None
    start_seconds: float = math.inf
    say: Callable[[str], None] = lambda line: None

    def run(self, source: StageSource, train: Train, watch: Callable[[], None]) -> None:
        """See `Executor`."""
        from ray import tune

        self.scratch.mkdir(parents=True, exist_ok=True)
        storage = Path(tempfile.mkdtemp(prefix="tune-", dir=self.scratch)).resolve()
        assert self.ranks == 1 or self.workers, "ranks hold the resources, so that Tune cannot see how many stages fit"
        resources: dict[str, float] = {"cpu": self.cpus, "gpu": self.gpus} if self.gpus else {"cpu": self.cpus}
        if self.accelerator is not None:
            resources[f"{KIND}{self.accelerator}"] = A_LITTLE
        if self.ranks > 1:
            resources = {"cpu": 0, "memory": 1}  # one byte: Tune refuses a trial without any resources
        raised: list[Exception] = []
        searcher, scheduler = _searcher(source, self.max_failures), _scheduler()
        unheard = _Unheard(searcher, scheduler, self.start_seconds, self.say)
        ranks = RankResources(self.ranks, self.cpus / self.ranks, int(self.gpus > 0), str(storage), self.accelerator)
        # Tune restores nothing: a new Tuner with a folder of its own, so that what an earlier run left cannot be in
        # the way.
        tuner = tune.Tuner(
            tune.with_resources(_trainable(train, ranks), resources),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=scheduler,
                num_samples=-1,
                max_concurrent_trials=self.workers or None,
                reuse_actors=True,
                trial_dirname_creator=lambda trial: str(trial.trial_id),
            ),
            run_config=tune.RunConfig(
                name=storage.name,
                storage_path=str(self.scratch.resolve()),
                failure_config=tune.FailureConfig(max_failures=self.max_failures),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                callbacks=[_callback(watch, searcher, unheard, raised)],
                verbose=0,
            ),
        )
        try:
            tuner.fit()
        except Exception:
            if raised:
                raise raised[0] from None
            # Tune reads its own files again when all has ended, and on a full disk they are cut: none of them is missed.
            if searcher.jobs or source.next_job() is not Idle.OVER:
                raise
        shutil.rmtree(storage, ignore_errors=True)
