"""Sweeps that train nothing: a space of a few trials, workers that end in any order, losses by arithmetic.

The machine, the tree, the arms and the searches are the real ones; `conformance` has the same with real training.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sweeper.engine.site import Site
from sweeper.engine.sweep import Idle, Sweep
from sweeper.ledger.in_memory import MemoryLedger
from sweeper.options import CorpusFacts
from sweeper.space.schema import SearchSpace
from tests.support.strategies import PROVENANCE
from trainers.contract.record import Diverged, PhaseTiming
from trainers.contract.schedule import phase_at
from trainers.contract.spec import TrialSpec
from trainers.contract.stage import StageJob, StagePoint, StageResult
from trainers.methods import phases_of
from trainers.planning.store import MemoryStore, StageStore

FACTS = CorpusFacts("corpus", "tokenizer", 300, 100_000, "nowhere")


def space_of(**changes: Any) -> SearchSpace:
    """Four tuning trials an arm on a grid, two confirmation seeds, three baseline budgets."""
    plain: dict[str, Any] = {
        "name": "tiny",
        "question": "Does the machine work?",
        "corpus": {"source": "stdlib"},
        "tokenizer": {"kind": "bpe", "vocab_size": 300},
        "scales": ("nano",),
        "context": 16,
        "tokens_per_step": 32,
        "validation_tokens": 257,
        "evaluate_every": 4,
        "schedule": {"warmup_steps": 2, "decay_fraction": 0.25},
        "seeds": {"tuning": (0, 1), "confirmation": (1000, 1001)},
        "methods": {
            "baseline": {
                "budgets": {"tuning": 8, "confirmation": (8, 12, 16)},
                "axes": {"learning_rate": {"grid": (0.002, 0.004)}},
            },
            "tst": {
                "budgets": {"tuning": 8, "confirmation": (8,)},
                "axes": {
                    "learning_rate": 0.004,
                    "bag_size": {"grid": (2, 3)},
                    "step_ratio": {"grid": (0.25, 0.5)},
                    "bag_weighting": "uniform",
                },
            },
        },
        "search": {"sampler": "grid", "trials_per_arm": 4, "fan": 2, "warm_start": False},
        "resources": {"gpus": 0, "cpus": 1},
    }
    return SearchSpace.model_validate({**plain, **changes})


def loss_of(spec: TrialSpec, step: int) -> float:
    """Falls with the steps; best at the higher learning rate, bags of two and a ratio of a half."""
    value = 3.0 + 10.0 / (step + 4) + abs(spec.schedule.learning_rate - 0.004) * 20
    return value + 0.1 * (spec.bag_size - 2) ** 2 * (spec.method == "tst") - 0.05 * spec.step_ratio + spec.seed * 1e-6


def result_of(job: StageJob, outcome: Diverged | None = None) -> StageResult:
    """What a worker would bring: evaluations where the loop has them, half a second a step."""
    phase = phase_at(phases_of(job.spec), job.start)
    steps = [step for step in range(job.start + 1, job.end + 1) if step % job.evaluate_every == 0 or step == job.end]
    return StageResult(
        node=job.node,
        parent=job.parent,
        start=job.start,
        end=job.end,
        outcome=outcome,
        points=() if outcome else tuple(StagePoint(step, loss_of(job.spec, step), phase.name) for step in steps),
        timings=(PhaseTiming(phase.name, phase.bag_size, job.end - job.start, 0.5),),
        busy_seconds=0.5 * (job.end - job.start),
        billed_seconds=0.5 * (job.end - job.start),
        skipped_steps=0,
        booked_by=job.booked_by,
        device="imaginary",
        execution=job.execution,
        devices=job.devices,
    )


def site_in(folder: Path) -> Site:
    """A site whose stages would lie in `folder`."""
    return Site(store=str(folder), stop_file=str(folder / "stop"), execution="eager")


@dataclass
class Desk:
    """Where the runs of one sweep meet: what survives when a driver ends."""

    space: SearchSpace = field(default_factory=space_of)
    ledger: MemoryLedger = field(default_factory=MemoryLedger)
    store: StageStore = field(default_factory=MemoryStore)

    def open(self, **changes: Any) -> Sweep:
        """A new driver of the sweep."""
        site = replace(site_in(Path("never")), store="memory")
        arguments: dict[str, Any] = {
            "space": self.space,
            "corpus": FACTS,
            "ledger": self.ledger,
            "store": self.store,
            "site": site,
            "provenance": PROVENANCE,
        }
        return Sweep(**{**arguments, **changes})

    @property
    def summary(self) -> set[tuple[str, str, str, float | None]]:
        """Every record without its clock."""
        return {
            (r.spec.spec_id, r.purpose, type(r.outcome).__name__, r.final_loss) for r in self.ledger.written.values()
        }


Judge = Callable[[StageJob], "StageResult | str"]
"""A stage's result, or the reason of its failure."""


@dataclass
class Workers:
    """`count` workers that end in an order drawn from `order`. `trained` counts how often each node was,
    `held` are the stages that ran when the driver was killed."""

    count: int = 1
    order: random.Random = field(default_factory=lambda: random.Random(0))
    judge: Judge = result_of
    trained: Counter[str] = field(default_factory=Counter)
    jobs: list[StageJob] = field(default_factory=list)
    held: list[StageJob] = field(default_factory=list)

    def run(self, sweep: Sweep, stages: int | None = None) -> bool:
        """Work until the sweep is over (True), or the driver is killed after `stages` stages (False)."""
        running: list[StageJob] = []
        while True:
            idle: Idle | None = None
            while len(running) < self.count and idle is None:
                job = sweep.next_job()
                if isinstance(job, Idle):
                    idle = job
                else:
                    assert job.parent is None or sweep.store.has_state(job.parent), "a stage without its parent's state"
                    running.append(job)
            if not running:
                assert idle is Idle.OVER
                return True
            if stages is not None and len(self.jobs) >= stages:
                self.held = running
                return False
            job = running.pop(self.order.randrange(len(running)))
            self.jobs.append(job)
            self.trained[job.node] += 1
            judged = self.judge(job)
            if isinstance(judged, str):
                sweep.fail(job.node, judged)
            else:
                sweep.finish(judged)
