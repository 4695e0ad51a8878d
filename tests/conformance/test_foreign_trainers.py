"""Every executor runs somebody else's trainer to the same records, and whatever becomes of its command is an outcome."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sweeper.engine.live import LiveLedger, LiveSweep
from sweeper.engine.site import Site
from sweeper.engine.sweep import Sweep
from sweeper.executors.inline import Executor, InlineExecutor
from sweeper.foreign.trainer import ForeignTrainer, trainer_of
from sweeper.foreign.worker import run_command
from sweeper.ledger.in_memory import MemoryLedger
from sweeper.options import CorpusFacts
from sweeper.space.foreign_schema import ForeignSpace
from sweeper.space.load import load_search_space
from tests.support.places import ROOT
from tests.support.strategies import PROVENANCE
from trainers.contract.record import Diverged, Failed, Finished, RunRecord
from trainers.contract.spec import AnySpec
from trainers.planning.store import DiskStore

TRAINER = Path(__file__).with_name("a_trainer.py")
NUM_TRIALS = 4 + 2 * (3 + 1)
SPACE = """
name: foreign
question: Does the machine work?
trainer:
  command: ["{{python}}", a_trainer.py, --steps, "{{total_steps}}", --lr, "{{learning_rate}}", --seed, "{{seed}}",
            --bag-size, "{{bag_size}}", --out, "{{out}}", --marks, "{marks}", --fault, "{fault}"]
  directory: "{directory}"
  code: [a_trainer.py]
  decayed: true
  resumes: {resumes}
scales: {{small: {{size: 6}}}}
methods:
  baseline: {{budgets: {{tuning: 20, confirmation: [20, 30, 40]}}, axes: {{learning_rate: &lr {{grid: [1.0e-3, 2.0e-3]}}}}}}
  tst:
    budgets: {{tuning: 20, confirmation: [20]}}
    axes: {{learning_rate: *lr, bag_size: 4}}
tokens_per_step: 100
seeds: {{tuning: [0], confirmation: [1000, 1001]}}
search: {{sampler: grid, trials_per_arm: 2, warm_start: false}}
resources: {{gpus: 0}}
"""
"""Two tuning trials an arm, eight confirmation runs; what a fault is about are the four with seed 1000."""


@dataclass
class ForeignBench:
    """A sweep of the trainer that misbehaves: its folder and ledger outlive its drivers."""

    folder: Path
    fault: str = "none"
    resumes: bool = False
    directory: Path = TRAINER.parent
    changes: dict[str, Any] = field(default_factory=dict)
    ledger: MemoryLedger = field(default_factory=MemoryLedger)

    def __post_init__(self) -> None:
        file = self.folder / "foreign.yaml"
        file.write_text(
            SPACE.format(
                marks=self.folder, fault=self.fault, directory=self.directory, resumes=str(self.resumes).lower()
            )
        )
        space = load_search_space(file)
        assert isinstance(space, ForeignSpace)
        self.space = space
        self.trainer: ForeignTrainer = replace(
            trainer_of(space, file, "imaginary", 0), **{"grace_seconds": 5.0, **self.changes}
        )

    @property
    def stop_file(self) -> Path:
        return self.folder / "stop"

    def run(self, executor: Executor, max_hours: float | None = None, ledger: LiveLedger | None = None) -> Sweep:
        store = self.folder / "stages"
        site = Site(store=str(store), stop_file=str(self.stop_file), execution="command")
        facts = CorpusFacts("unknown", "unknown", 0, 0, "", self.trainer.fingerprint)
        sweep = Sweep(self.space, facts, self.ledger, DiskStore(store), site, PROVENANCE, max_hours)
        executor.run(LiveSweep(sweep, ledger, store, 600), partial(run_command, self.trainer), lambda: None)
        return sweep

    @property
    def records(self) -> list[RunRecord]:
        return self.ledger.records()

    def reasons(self, kind: type[Failed] | type[Diverged]) -> set[str]:
        return {record.outcome.reason for record in self.records if isinstance(record.outcome, kind)}

    @property
    def unhurt(self) -> bool:
        """Whether every trial that no fault was about has finished."""
        return all(isinstance(r.outcome, Finished) for r in self.records if r.spec.seed != 1000)


def essence(records: list[RunRecord]) -> dict[tuple[object, ...], object]:
    """What must be the same whatever happened on the way; ids differ, since the fault is a word of the command."""
    return {
        (r.purpose, r.spec.method, r.spec.schedule, r.spec.seed): (
            r.outcome,
            tuple((p.step, p.tokens, p.loss, p.seconds) for p in r.curve.points),
        )
        for r in records
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[object, ...], object]:
    bench = ForeignBench(tmp_path_factory.mktemp("undisturbed"))
    bench.run(InlineExecutor())
    return essence(bench.records)


def wait_for(there: Callable[[], bool], seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < until, "it never came"
        time.sleep(0.02)


def lives(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_foreign_sweep_comes_to_its_records_and_then_runs_nothing_again(
    executor: Executor, tmp_path: Path, undisturbed: dict[object, object]
) -> None:
    bench = ForeignBench(tmp_path)
    assert bench.run(executor).stopping is None
    assert essence(bench.records) == undisturbed
    assert len(undisturbed) == NUM_TRIALS
    assert all(isinstance(record.outcome, Finished) for record in bench.records)
    best = [r for r in bench.records if r.purpose == "confirmation" and r.spec.method == "tst"]
    assert {r.spec.schedule.learning_rate for r in best} == {0.002}
    assert best[0].curve.points[-1].tokens == 20 * 100
    assert best[0].timing.clock == "trainer's own"
    assert best[0].timing.step_seconds == pytest.approx(10.0)
    before = bench.records
    assert sum(bench.run(executor).arm_steps.values()) == 0
    assert bench.records == before


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("exits", "exit code 7 at step 5 of 20; its log ends: 'from step 0' | 'no such layer'"),
        ("early", "exit code 0 at step 5 of 20; its log ends: 'from step 0'"),
        ("garbage", "its output cannot be used: points.jsonl:2: not JSON: 'loss is about three'"),
        (
            "half",
            'its output cannot be used: points.jsonl:2: its last line was never finished: \'{"step": 20, "loss": 3.\'',
        ),
        (
            "silent",
            "exit code 0 and no loss: points.jsonl is empty (metrics.points); its log ends: 'from step 0' | 'done'",
        ),
        ("killed", "killed by SIGKILL at step 5 of 20"),
    ],
)
def test_what_becomes_of_a_command_is_an_outcome_with_its_reason(
    executor: Executor, tmp_path: Path, fault: str, said: str
) -> None:
    bench = ForeignBench(tmp_path, fault)
    assert bench.run(executor).stopping is None
    assert any(reason.startswith(said) for reason in bench.reasons(Failed)), bench.reasons(Failed)
    assert bench.unhurt
    failed = [record for record in bench.records if isinstance(record.outcome, Failed)]
    assert len(failed) == 4
    assert all(record.timing.incurred_seconds > 0 for record in failed), "what a failure took is paid, too"


def test_a_loss_that_is_no_number_ends_the_trial_at_once(executor: Executor, tmp_path: Path) -> None:
    bench = ForeignBench(tmp_path, "nan")
    began = time.monotonic()
    bench.run(executor)
    assert bench.reasons(Diverged) == {"the loss is nan"}
    assert bench.unhurt
    assert time.monotonic() - began < 4 * 60, "each of the four would sleep for a minute"


def test_a_command_that_is_not_there_is_told(executor: Executor, tmp_path: Path) -> None:
    bench = ForeignBench(tmp_path)
    command = ("no-such-program", *(bench.space.trainer.command or ())[1:])
    bench.space = bench.space.model_copy(
        update={"trainer": bench.space.trainer.model_copy(update={"command": command})}
    )
    bench.run(executor)
    assert bench.reasons(Failed) == {"the command cannot be started: no-such-program: No such file or directory"}
    assert not any(isinstance(record.outcome, Finished) for record in bench.records)


def test_a_trainer_that_hangs_is_ended(executor: Executor, tmp_path: Path) -> None:
    bench = ForeignBench(tmp_path, "hangs", changes={"stall_seconds": 3.0})
    bench.run(executor)
    assert any(reason.startswith("silent for 0.05 minutes at step 5 of 20") for reason in bench.reasons(Failed))
    assert bench.unhurt


def test_a_trainer_that_was_killed_goes_on_where_it_was(
    executor: Executor, tmp_path: Path, undisturbed: dict[object, object]
) -> None:
    bench = ForeignBench(tmp_path, "killed", resumes=True)
    bench.run(executor)
    assert essence(bench.records) == undisturbed
    logs = [log.read_text() for log in (tmp_path / "stages").glob("*/log.txt")]
    assert sum(log.count("from step") for log in logs) == len(logs) + 4


def test_what_a_trial_started_ends_with_it(executor: Executor, tmp_path: Path) -> None:
    bench = ForeignBench(tmp_path, "children")
    bench.run(executor)
    children = [int(line) for line in (tmp_path / "children").read_text().split()]
    assert len(children) == 8
    assert [child for child in children if lives(child)] == []
    assert all(isinstance(record.outcome, Finished) for record in bench.records)


@pytest.mark.parametrize("fault", ["waits", "deaf"])
def test_a_stop_request_ends_the_command_and_the_next_run_goes_on(
    executor: Executor, tmp_path: Path, undisturbed: dict[object, object], fault: str
) -> None:
    bench = ForeignBench(tmp_path, fault, resumes=True, changes={"grace_seconds": 1.0})

    def ask() -> None:
        wait_for((tmp_path / "waiting").exists)
        bench.stop_file.touch()

    asking = threading.Thread(target=ask)
    asking.start()
    sweep = bench.run(executor)
    asking.join()
    assert sweep.stopping == "stop requested"
    assert bench.ledger.pending()
    bench.stop_file.unlink()
    (tmp_path / "go-on").touch()
    assert bench.run(executor).stopping is None
    assert essence(bench.records) == undisturbed


def test_code_that_is_edited_while_a_sweep_runs_trains_nothing_under_the_old_name(
    executor: Executor, tmp_path: Path, undisturbed: dict[object, object]
) -> None:
    code = Path(shutil.copy(TRAINER, tmp_path))
    before = code.read_text()
    bench = ForeignBench(tmp_path, "waits", resumes=True, directory=tmp_path)

    def edit() -> None:
        wait_for((tmp_path / "waiting").exists)
        code.write_text(before.replace("3 + 10", "2 + 10"))
        (tmp_path / "go-on").touch()

    editing = threading.Thread(target=edit)
    editing.start()
    sweep = bench.run(executor)
    editing.join()
    assert sweep.stopping is not None
    assert sweep.stopping.startswith("a_trainer.py changed while the sweep ran (trainer.code)")
    assert bench.ledger.pending()
    assert essence(bench.records).items() <= undisturbed.items()
    code.write_text(before)
    assert bench.run(executor).stopping is None
    assert essence(bench.records) == undisturbed


@dataclass
class Told:
    """A ledger that lets the trials that wait go on once it has heard of one of them."""

    go_on: Path
    said: set[tuple[object, ...]] = field(default_factory=set)

    def point(self, spec: AnySpec, step: int, loss: float, tokens: int, flops: float, device_seconds: float) -> None:
        self.said.add((spec.spec_id, step, loss, tokens, flops, device_seconds))
        if spec.seed == 1000:
            self.go_on.touch()


def test_points_reach_the_ledger_while_a_command_runs(executor: Executor, tmp_path: Path) -> None:
    bench = ForeignBench(tmp_path, "waits", resumes=True)
    told = Told(tmp_path / "go-on")
    bench.run(executor, ledger=told)
    assert told.go_on.exists(), "the trials that waited for it were never heard of"
    held = {
        (r.spec.spec_id, p.step, p.loss, p.tokens, p.flops, p.seconds * r.timing.devices)
        for r in bench.records
        for p in r.curve.points
    }
    assert told.said <= held
    assert all(step < 40 for _, step, *_ in told.said)


def test_a_spent_limit_starts_nothing_more(executor: Executor, tmp_path: Path) -> None:
    bench = ForeignBench(tmp_path)
    sweep = bench.run(executor, max_hours=1e-9)
    assert sweep.stopping is not None
    assert "device-hours are spent" in sweep.stopping
    assert len(bench.records) < NUM_TRIALS


DRIVER = """
import sys
from pathlib import Path
from sweeper.executors.inline import InlineExecutor
from tests.conformance.test_foreign_trainers import ForeignBench
ForeignBench(Path(sys.argv[1]), "waits", resumes=True).run(InlineExecutor())
"""


def test_a_killed_driver_leaves_nobody_behind_and_the_next_one_goes_on(
    tmp_path: Path, undisturbed: dict[object, object]
) -> None:
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tmp_path)], env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=ROOT
    )
    wait_for((tmp_path / "waiting").exists)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    (tmp_path / "go-on").touch()
    bench = ForeignBench(tmp_path, "waits", resumes=True)
    bench.run(InlineExecutor())
    assert essence(bench.records) == undisturbed
    lock = next((tmp_path / "stages").glob("*/lock"))
    assert lock.exists()
