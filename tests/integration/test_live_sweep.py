"""A sweep that is watched, limited and disturbed while it runs: the installed command with real Ray and real processes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from sweeper.executors.cluster import attach
from sweeper.executors.ray_tune import RayExecutor
from sweeper.executors.workers import NoWorkerError, Workers
from sweeper.ledger.mlflow_ledger import Ledger
from sweeper.lock import LOCK
from sweeper.options import CORPORA, STAGES
from tests.conformance.sweep_of import RAY_WARNINGS
from tests.integration.test_command_line import FILE, SWEEPER, TRIALS, results, sweeper
from tests.support.counted_steps import counted, counting
from tests.support.tiny_sweep import Desk, result_of, site_in
from trainers.contract.record import Finished
from trainers.contract.stage import StageJob, StagePoint, StageResult
from trainers.planning.life import StageLife, lives_in

__all__ = ["results"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.alone,
    *RAY_WARNINGS,
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning"),
]


def text_with(tmp_path: Path, *changes: tuple[str, str]) -> Path:
    text = FILE.read_text(encoding="utf-8")
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    file = tmp_path / "changed.yaml"
    file.write_text(text, encoding="utf-8")
    return file


LONG = (("tuning: 30", "tuning: 50000"), ("[40, 60, 80]", "[50000]"), ("confirmation: [40]", "confirmation: [50000]"))
"""Stages of minutes, which save a state before they end on any machine."""


def await_(what: Callable[[], Any], process: subprocess.Popen[str] | None = None) -> Any:
    """What it gives, once that is something."""
    deadline = time.monotonic() + 400
    while not (found := what()):
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return found


def counted_driver(command: list[str], tmp_path: Path) -> subprocess.Popen[str]:
    """A sweep whose steps are counted, with a state a second."""
    env = {**os.environ, **counting(tmp_path / "steps", 1.0)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def refuse_lost_steps(tmp_path: Path) -> None:
    """Of what had been trained nothing is trained again that a state held."""
    done = counted(tmp_path / "steps")
    print(done)
    assert done.repeated < done.trained
    assert done.beyond == 0


def training(results: Path) -> list[StageLife]:
    return [life for life in lives_in(results / "tiny" / STAGES) if life.running and life.gap_seconds]


def status(results: Path) -> dict[str, Any]:
    shown = sweeper("status", "tiny", "--results", results, "--json")
    assert shown.returncode == 0, shown.stderr
    found = json.loads(shown.stdout)
    assert isinstance(found, dict)
    return found


def test_a_budget_is_counted_over_runs_and_a_larger_one_goes_on(results: Path, tmp_path: Path) -> None:
    file = text_with(tmp_path, ("price:", "budget: {gpu_hours: 0.001}\nprice:"))
    first = sweeper("run", file, "--results", results, "--executor", "inline")
    assert first.returncode == 3, first.stderr
    (line,) = [line for line in first.stderr.splitlines() if line.startswith("stopped early")]
    assert re.search(
        r"[\d.]+ of at most 0.001 device-hours are spent; not done: \d of nano baseline, \d of nano tst;", line
    )
    stages = {path: path.stat().st_mtime_ns for path in results.glob("tiny/stages/*/result.json")}
    spent = status(results)["hours_spent"]
    assert spent >= 0.001

    again = sweeper("run", file, "--results", results, "--executor", "inline")
    assert again.returncode == 3, again.stderr
    assert {path: path.stat().st_mtime_ns for path in results.glob("tiny/stages/*/result.json")} == stages
    assert status(results)["state"] == "stopped"

    larger = sweeper("run", file, "--results", results, "--executor", "inline", "--max-gpu-hours", "10")
    assert larger.returncode == 0, larger.stderr
    assert {path: path.stat().st_mtime_ns for path in stages} == stages
    with Ledger.open(results, "tiny", create=False) as ledger:
        assert len(ledger.records()) == TRIALS
    done = status(results)
    assert (done["state"], done["failures"], done["stages"]) == ("finished", [], [])
    assert done["hours_spent"] == pytest.approx(sum(arm["hours"] for arm in done["arms"]))


def test_a_stopped_worker_is_ended_and_another_terminal_sees_it_all(results: Path, tmp_path: Path) -> None:
    """SIGSTOP on a real worker; then the driver is killed, and the state of things is still to be had."""
    file = text_with(tmp_path, *LONG, ("cpus: 1}", "cpus: 1, stall_minutes: 0.2}"))
    command = [str(SWEEPER), "run", str(file), "--results", str(results), "--workers", "1"]
    with counted_driver(command, tmp_path) as driver:
        (before,) = await_(lambda: training(results), driver)
        await_(lambda: list((results / "tiny" / STAGES / before.node).glob("partial/*")), driver)
        os.kill(before.pid, signal.SIGSTOP)
        (after,) = await_(lambda: [life for life in training(results) if life.pid != before.pid], driver)
        assert after.node == before.node
        assert after.step >= before.step, "it went on from the last state"
        seen = status(results)
        assert seen["state"] == "running"
        (stage,) = [one for one in seen["stages"] if one["running"]]
        assert {"node", "step", "end", "loss", "rate", "hours", "ends_at", "silent_seconds", "host"} <= stage.keys()
        assert stage["silent_seconds"] < 60
        driver.send_signal(signal.SIGKILL)
        _, err = driver.communicate()
    assert "no sign of life for 0.2 minutes" in err
    assert "ended, to go on from its last state" in err
    dead = status(results)
    assert dead["state"] == "interrupted"
    assert dead["driver"] is None
    assert dead["stages"]
    assert dead["hours_spent"] > 0
    assert (results / "tiny" / LOCK).exists()
    refuse_lost_steps(tmp_path)


def test_a_sweep_to_which_no_worker_comes_ends_with_a_likely_reason(tmp_path: Path) -> None:
    """Something else holds the only core of a Ray of our own."""
    from sweeper.engine.live import LiveSweep

    with attach(None, num_cpus=1):
        import ray

        @ray.remote(num_cpus=1)
        class Holder:
            def here(self) -> bool:
                return True

        holder = Holder.remote()
        assert ray.get(holder.here.remote())
        live = LiveSweep(Desk().open(), None, tmp_path / STAGES, 600.0)
        workers = Workers(live, print, joined=False, patience=4.0)

        def watch() -> None:
            live.look()
            workers.look()

        with pytest.raises(NoWorkerError, match=r"no worker came within 0 minutes: \w+") as raised:
            RayExecutor(tmp_path / "ray").run(live, lambda job, on_point: result_of(job), watch)
    assert len(str(raised.value).splitlines()) == 1


@dataclass
class HangsOnce:
    """Trains like `result_of`; the first process to get at it stops, by a signal that no handler of its own sees."""

    mark: Path
    where: str
    driver: int = field(default_factory=os.getpid)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._hang("while it is loaded")

    def __call__(self, job: StageJob, on_point: Callable[[StagePoint], None]) -> StageResult:
        self._hang("before it trains")
        return result_of(job)

    def _hang(self, where: str) -> None:
        with suppress(FileExistsError):
            if where == self.where and os.getpid() != self.driver:
                self.mark.touch(exist_ok=False)
                os.kill(os.getpid(), signal.SIGSTOP)


@pytest.mark.parametrize("where", ["while it is loaded", "before it trains"])
def test_a_worker_that_hangs_before_it_has_begun_is_ended_and_another_one_trains(tmp_path: Path, where: str) -> None:
    """In the first case it has not said a word, and nobody knows its process."""
    from sweeper.engine.live import STARTING, LiveSweep

    limit, said = 3.0, list[str]()
    desk, store = Desk(), tmp_path / STAGES
    train = HangsOnce(tmp_path / "mark", where)
    with attach(None, num_cpus=1):
        live = LiveSweep(desk.open(site=site_in(store)), None, store, limit)
        workers = Workers(live, said.append, joined=True)

        def watch() -> None:
            live.look()
            workers.look()

        executor = RayExecutor(tmp_path / "ray", start_seconds=STARTING * limit, say=said.append)
        executor.run(live, train, watch)
    assert train.mark.exists()
    (line,) = said
    assert "no sign of life for" in line
    assert all(isinstance(record.outcome, Finished) for record in desk.ledger.records())
    assert live.sweep.stopping is None
    assert not live.sweep.book.paths


def test_on_a_cluster_of_others_waiting_is_said_again_and_again(tmp_path: Path) -> None:
    from sweeper.engine.live import LiveSweep

    said: list[str] = []
    live = LiveSweep(Desk().open(), None, tmp_path, 600.0)
    workers = Workers(live, said.append, joined=True, patience=0.2)
    live.next_job()
    deadline = time.monotonic() + 60
    while len(said) < 3:
        workers.look()
        assert time.monotonic() < deadline
    assert all("no worker has come" in line for line in said)
    live.came = True
    workers.look()
    assert len(said) == 3


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with little room."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", place], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def test_a_full_disk_ends_a_sweep_in_order_and_with_room_it_goes_on(
    small_disk: Path, corpora: Path, tmp_path: Path
) -> None:
    """Everything is written there: states, results, signs, the ledger, the studies, the page."""
    (small_disk / CORPORA).symlink_to(corpora)
    file = text_with(tmp_path, ("tuning: 30", "tuning: 600"))
    command = [str(SWEEPER), "run", str(file), "--results", str(small_disk)]
    with counted_driver(command, tmp_path) as driver:
        await_(lambda: training(small_disk), driver)
        filler = small_disk / "filler"
        with suppress(OSError), filler.open("wb", buffering=0) as stream:
            while stream.write(b"x" * 4096):
                pass
        _, err = driver.communicate(timeout=400)
    assert driver.returncode == 3, err
    assert "Traceback" not in err
    assert "make room there" in err
    filler.unlink()
    with counted_driver(command, tmp_path) as again:
        _, err = again.communicate(timeout=400)
    assert again.returncode == 0, err
    refuse_lost_steps(tmp_path)
    with Ledger.open(small_disk, "tiny", create=False) as ledger:
        records = ledger.records()
    assert len(records) == TRIALS
    assert all(isinstance(record.outcome, Finished) for record in records)


@pytest.mark.parametrize("command", ["prepare", "run"])
def test_a_disk_that_was_full_before_is_named_and_with_room_the_same_command_goes_on(
    small_disk: Path, command: str
) -> None:
    filler = small_disk / "filler"
    with filler.open("wb") as stream:
        stream.truncate(0)
        os.posix_fallocate(stream.fileno(), 0, 38 * 2**20)
    words = [command, FILE, "--results", small_disk, *(["--executor", "inline"] if command == "run" else [])]
    full = sweeper(*words)
    assert full.returncode == 3, full.stderr
    (line,) = [line for line in full.stderr.splitlines() if "stopped" in line]
    assert f"{small_disk}" in line
    assert "no room on the disk" in line
    filler.unlink()
    done = sweeper(*words)
    assert done.returncode == 0, done.stderr
