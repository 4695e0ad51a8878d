"""One tiny sweep with real training on real text, run through whatever executor it is given.

Stages, store, trainer and corpus are those of `sweeper run`; only the ledger is in memory. Functions that train live at
module level, so that workers in other processes find them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from sweeper.engine.site import Site
from sweeper.engine.sweep import Sweep
from sweeper.executors.inline import Executor, InlineExecutor, Train
from sweeper.executors.worker import train_stage
from sweeper.ledger.in_memory import MemoryLedger
from sweeper.options import corpus_facts
from tests.support.strategies import PROVENANCE
from tests.support.tiny_sweep import space_of
from trainers.contract.record import Failed, RunRecord
from trainers.contract.stage import StageJob, StagePoint, StageResult
from trainers.data import stdlib
from trainers.data.prepare import prepare
from trainers.data.request import CorpusRequest
from trainers.data.shards import PreparedCorpus
from trainers.planning.store import DiskStore

SPACE = space_of(
    seeds={"tuning": (0,), "confirmation": (1000,)},
    methods={
        "baseline": {
            "budgets": {"tuning": 8, "confirmation": (12, 16)},
            "axes": {"learning_rate": {"grid": (0.002, 0.004)}},
        },
        "tst": {
            "budgets": {"tuning": 8, "confirmation": (12,)},
            "axes": {
                "learning_rate": {"grid": (0.002, 0.004)},
                "bag_size": 3,
                "step_ratio": 0.4,
                "bag_weighting": "uniform",
            },
        },
    },
    search={"sampler": "grid", "trials_per_arm": 2, "fan": 2, "warm_start": False},
)
"""Two tuning trials an arm, three confirmation runs, and the noise floor that one seed brings: eleven trials."""
NUM_TRIALS = 4 + 3 + 4


RAY_WARNINGS = [
    # Ray leaves sockets and files to the interpreter's end.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    # Ray 2.60 uses what it and its libraries deprecate.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def prepare_text(cache: Path) -> PreparedCorpus:
    """The sources of one package of the standard library, some thousand tokens."""
    pattern = str(stdlib.library_root() / "json" / "*.py")
    request = CorpusRequest("files", (pattern,), validation_fraction=0.3, vocab_size=300)
    return prepare(request, cache)


@dataclass
class Bench:
    """A sweep's folder and ledger, which outlive its drivers."""

    corpus: PreparedCorpus
    folder: Path
    ledger: MemoryLedger = field(default_factory=MemoryLedger)

    @property
    def stop_file(self) -> Path:
        """Where another terminal asks for a stop."""
        return self.folder / "stop"

    def open(self, max_hours: float | None = None) -> Sweep:
        """A new driver."""
        store = self.folder / "stages"
        site = Site(
            store=str(store),
            stop_file=str(self.stop_file),
            execution="eager",
            checkpoint_seconds=0.0,
        )
        return Sweep(SPACE, corpus_facts(self.corpus), self.ledger, DiskStore(store), site, PROVENANCE, max_hours)

    def run(self, executor: Executor, train: Train = train_stage, max_hours: float | None = None) -> Sweep:
        """Drive the sweep to its end or its stop."""
        sweep = self.open(max_hours)
        executor.run(sweep, train, lambda: None)
        return sweep

    @property
    def records(self) -> list[RunRecord]:
        """In the order asked."""
        return self.ledger.records()


def essence(records: list[RunRecord]) -> dict[str, tuple[Any, ...]]:
    """What must be the same wherever a sweep ran, to the last bit: all but clocks and who was booked."""
    return {
        r.spec.spec_id: (
            r.purpose,
            r.outcome,
            tuple((p.step, p.tokens, p.flops, p.loss, p.phase) for p in r.curve.points),
            tuple((t.phase, t.bag_size, t.steps) for t in r.timing.phases),
            r.corpus_tokens,
        )
        for r in records
    }


def train_but_fail_in_bags(job: StageJob, on_point: Callable[[StagePoint], None]) -> StageResult:
    """A machine that cannot train the first phase of the method's confirmation run."""
    if job.spec.method == "tst" and job.spec.seed == 1000 and job.start == 0:
        raise torch.OutOfMemoryError("no memory\nfor bags")
    return train_stage(job, on_point)


def train_and_ask_for_a_stop(job: StageJob, on_point: Callable[[StagePoint], None]) -> StageResult:
    """While the first longer stage trains, somebody asks the sweep to stop."""

    def watched(point: StagePoint) -> None:
        if job.end - job.start > 4:
            Path(job.stop_file).touch()
        on_point(point)

    return train_stage(job, watched)


def train_and_crash_once(job: StageJob, on_point: Callable[[StagePoint], None]) -> StageResult:
    """The first attempt at each superposition phase ends in a crash after an evaluation."""
    if job.spec.method != "tst" or job.start > 0:
        return train_stage(job, on_point)
    mark = Path(job.store) / f"crashed-{job.node}"

    def crash(point: StagePoint) -> None:
        if not mark.exists():
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()
            raise OSError("the machine is gone")
        on_point(point)

    return train_stage(job, crash)


def train_and_damage(job: StageJob, on_point: Callable[[StagePoint], None]) -> StageResult:
    """The disk flips a bit in the first state that is left behind."""
    result = train_stage(job, on_point)
    mark = Path(job.store) / "damaged"
    for file in (Path(job.store) / job.node / "state").glob("*.safetensors"):
        if not mark.exists():
            content = bytearray(file.read_bytes())
            content[-1] ^= 1
            file.write_bytes(content)
            mark.touch()
    return result


def flip_a_token(corpus: Path) -> None:
    """Somebody writes into a prepared corpus; twice, and it is as it was."""
    file = corpus / "train.tokens"
    content = bytearray(file.read_bytes())
    content[0] ^= 1
    file.write_bytes(content)


def train_and_change_the_text(job: StageJob, on_point: Callable[[StagePoint], None]) -> StageResult:
    """After the first stage the text is another."""
    result = train_stage(job, on_point)
    mark = Path(job.store) / "changed"
    if not mark.exists():
        mark.touch()
        flip_a_token(Path(job.corpus))
    return result


@contextmanager
def inline(folder: Path) -> Iterator[Executor]:
    """In this process."""
    yield InlineExecutor(max_failures=1)


@contextmanager
def on_ray(folder: Path) -> Iterator[Executor]:
    """Two workers of a Ray that is started for this test."""
    from sweeper.executors.cluster import attach
    from sweeper.executors.ray_tune import RayExecutor

    with attach(None, num_cpus=2):
        yield RayExecutor(scratch=folder / "ray", max_failures=1)


def failed(records: list[RunRecord]) -> set[str]:
    """The methods and reasons of failed trials."""
    return {f"{r.spec.method}: {r.outcome.reason}" for r in records if isinstance(r.outcome, Failed)}
