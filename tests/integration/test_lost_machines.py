"""Parts of a sweep that end or die under it: its driver, a worker, a node, the raylet, the head.

Real processes on loopback. What is compared with an undisturbed sweep is whatever is not a clock, to the last bit; each
step that is trained is counted (printed), and none may be trained again that a saved state had held.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from sweeper.executors.cluster import AUTH_MODE
from sweeper.ledger.dashboard import free_port
from sweeper.ledger.location import DATABASE as LEDGER
from sweeper.ledger.mlflow_ledger import Ledger
from sweeper.options import CORPORA, STAGES
from sweeper.studies.keeper import DATABASE as STUDIES
from tests.conformance.sweep_of import essence
from tests.integration.test_cluster import RAY, end_tree, environment, family_of
from tests.integration.test_command_line import FILE, SWEEPER, results
from tests.support.counted_steps import counted, counting
from trainers.contract.stage import RESULT
from trainers.planning.life import lives_in

__all__ = ["results"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.alone,
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning"),
]
DEADLINE = 900.0
SECONDS_BETWEEN_STATES = 1.0
SECONDS_LOCKED = 60.0
"""MLflow gives up a call after twenty."""
WORKER = "ray::ImplicitFunc"
ELSEWHERE = ["unshare", "--uts", "sh", "-c", 'echo "$0" > /proc/sys/kernel/hostname && exec "$@"']
"""Runs a command under another name of the machine."""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep whose stages take seconds, so that a fault can fall into one."""
    text = FILE.read_text(encoding="utf-8").replace("tuning: 30", "tuning: 300")
    text = text.replace("[40, 60, 80]", "[320, 360, 400]").replace("[40]", "[320]")
    made = tmp_path_factory.mktemp("file") / "some.yaml"
    made.write_text(text, encoding="utf-8")
    return made


@pytest.fixture(scope="module")
def undisturbed(file: Path, tmp_path_factory: pytest.TempPathFactory, corpora: Path) -> dict[str, tuple[Any, ...]]:
    """What the sweep comes to when nothing happens."""
    return swept_alone(file, tmp_path_factory.mktemp("undisturbed"), corpora)


def swept_alone(file: Path, folder: Path, corpora: Path) -> dict[str, tuple[Any, ...]]:
    """The records of a sweep in one process, for whose results there is a `folder`."""
    folder.mkdir(exist_ok=True)
    (folder / CORPORA).symlink_to(corpora)
    command = [str(SWEEPER), "run", str(file), "--results", str(folder), "--executor", "inline"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=DEADLINE)
    assert done.returncode == 0, done.stderr
    return records_of(folder)


def records_of(results: Path, uri: str | None = None) -> dict[str, tuple[Any, ...]]:
    with Ledger.open(results, "tiny", uri, create=False) as ledger:
        assert not ledger.pending()
        return essence(ledger.records())


@dataclass
class Nodes:
    """Ray nodes of our own, each with a place for its files; what dies can be started again. `more` is in their environment,
    and all but the head are on a machine of the name `host`, where there is one."""

    folder: Path
    more: Mapping[str, str] = field(default_factory=dict)
    host: str | None = None
    address: str = field(default_factory=lambda: f"127.0.0.1:{free_port()}")
    running: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)
    generation: int = 0

    def start(self, node: int) -> None:
        """Number 0 is the head."""
        self.generation += 1
        place = self.folder / f"{self.generation}"
        head = ["--head", "--port", self.address.split(":")[1], "--include-dashboard=false", "--temp-dir", str(place)]
        common = ["--num-cpus", "1", "--disable-usage-stats", "--object-store-memory", str(100 * 2**20), "--block"]
        with (self.folder / "ray.log").open("ab") as log:
            command = [RAY, "start", *(head if node == 0 else ["--address", self.address]), *common]
            if node and self.host is not None:
                command = [*ELSEWHERE, self.host, *command]
            self.running[node] = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                env=environment(**{AUTH_MODE: "disabled"}, **self.more),
                start_new_session=True,
            )
        deadline = time.monotonic() + 120
        while (
            node == 0
            and subprocess.run([RAY, "health-check", "--address", self.address], capture_output=True).returncode
        ):
            assert time.monotonic() < deadline, (self.folder / "ray.log").read_text()

    def end(self, node: int) -> None:
        """With everything that the node started."""
        if node in self.running:
            end_tree(self.running.pop(node))

    def part(self, node: int, name: str) -> psutil.Process | None:
        """A process of a node, see `part_of`."""
        return part_of(self.running[node].pid, name) if node in self.running else None


def part_of(pid: int, name: str) -> psutil.Process | None:
    """A descendant of a process: `raylet`, `gcs_server`, or a worker by the beginning of its title."""
    for process in family_of(pid):
        with contextlib.suppress(psutil.Error):
            if process.name().startswith(name[:15]):
                return process
    return None


@pytest.fixture
def steps(tmp_path: Path) -> Path:
    """Where every process of a test's sweep writes down its steps."""
    return tmp_path / "steps"


@pytest.fixture
def nodes(steps: Path) -> Iterator[Nodes]:
    with nodes_at(**counting(steps, SECONDS_BETWEEN_STATES)) as made:
        yield made


def refuse_lost_steps(steps: Path) -> None:
    """Of what had been trained only that is trained again which no state held."""
    done = counted(steps)
    print(done)
    assert done.repeated < done.trained
    assert done.beyond == 0, done


@contextlib.contextmanager
def nodes_at(*, host: str | None = None, **more: str) -> Iterator[Nodes]:
    """A head and one more node."""
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as name:
        made = Nodes(Path(name), more, host)
        try:
            made.start(0)
            made.start(1)
            yield made
        finally:
            for node in sorted(made.running, reverse=True):
                made.end(node)


def driver(file: Path, results: Path, *options: str, steps: Path | None = None) -> subprocess.Popen[str]:
    """A sweep in a process of its own; on a Ray of its own `steps` counts, nodes of ours count by themselves."""
    command = [str(SWEEPER), "run", str(file), "--results", str(results), *options]
    more = {AUTH_MODE: "disabled"} if "--address" in options else {}
    if steps is not None:
        more |= counting(steps, SECONDS_BETWEEN_STATES)
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment(**more))


def until(what: Callable[[], object], run: subprocess.Popen[str] | None = None) -> None:
    deadline = time.monotonic() + DEADLINE
    while not what():
        if run is not None and run.poll() is not None:
            raise AssertionError(run.communicate())
        assert time.monotonic() < deadline
        time.sleep(0.1)


def training(results: Path) -> bool:
    """Whether a stage has ended: then others train."""
    return any(results.glob("tiny/stages/*/result.json"))


def test_a_killed_worker_is_replaced(file: Path, results: Path, undisturbed: dict[str, Any], steps: Path) -> None:
    run = driver(file, results, "--workers", "1", steps=steps)
    until(lambda: training(results) and part_of(run.pid, WORKER), run)
    worker = part_of(run.pid, WORKER)
    assert worker is not None
    worker.kill()
    _, err = run.communicate(timeout=DEADLINE)
    assert run.returncode == 0, err
    assert records_of(results) == undisturbed
    refuse_lost_steps(steps)


@pytest.mark.parametrize(
    ("how", "code"),
    [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130), ("stop", 3)],
    ids=["SIGKILL", "SIGTERM", "one Ctrl-C", "stop"],
)
def test_a_driver_that_ends_is_followed_by_one_that_goes_on(
    file: Path, results: Path, undisturbed: dict[str, Any], steps: Path, how: signal.Signals | str, code: int
) -> None:
    run = driver(file, results, steps=steps)
    until(lambda: training(results) and any(results.glob("tiny/stages/*/partial/*")), run)
    if isinstance(how, signal.Signals):
        run.send_signal(how)
    else:
        subprocess.run([str(SWEEPER), how, "tiny", "--results", str(results)], check=True, env=environment())
    _, err = run.communicate(timeout=DEADLINE)
    assert run.returncode == code, err
    assert "Traceback" not in err
    assert "***" not in err, "a dump of the C++ side"
    assert ("the same command goes on from here" in err) == (how != signal.SIGKILL)
    again = driver(file, results, steps=steps)
    _, err = again.communicate(timeout=DEADLINE)
    assert again.returncode == 0, err
    assert records_of(results) == undisturbed
    refuse_lost_steps(steps)
    assert how == signal.SIGKILL or counted(steps).repeated == 0, "what was told to end saves its states"


@pytest.mark.parametrize("whole", [True, False], ids=["the whole node", "its raylet"])
def test_a_lost_node_costs_what_ran_on_it(
    file: Path, results: Path, nodes: Nodes, undisturbed: dict[str, Any], steps: Path, whole: bool
) -> None:
    run = driver(file, results, "--address", nodes.address)
    until(lambda: training(results) and nodes.part(1, WORKER), run)
    raylet = nodes.part(1, "raylet")
    assert raylet is not None
    if whole:
        nodes.end(1)
    else:
        raylet.kill()
    _, err = run.communicate(timeout=DEADLINE)
    assert run.returncode == 0, err
    assert records_of(results) == undisturbed
    refuse_lost_steps(steps)


@pytest.mark.parametrize(
    ("part", "number"),
    [("gcs_server", signal.SIGKILL), ("raylet", signal.SIGKILL), ("gcs_server", signal.SIGSTOP)],
    ids=["gcs_server", "raylet", "a gcs_server that hangs"],
)
def test_a_lost_head_is_one_line_with_a_report_and_the_same_command_goes_on(
    file: Path, results: Path, undisturbed: dict[str, Any], steps: Path, part: str, number: signal.Signals
) -> None:
    run = driver(file, results, steps=steps)
    until(lambda: training(results) and part_of(run.pid, WORKER), run)
    process = part_of(run.pid, part)
    assert process is not None
    process.send_signal(number)
    out, err = run.communicate(timeout=DEADLINE)
    with contextlib.suppress(psutil.NoSuchProcess):
        process.kill()
    assert run.returncode == 1, err
    assert out == ""
    assert "Traceback" not in err
    assert "***" not in err, "a dump of the C++ side"
    assert len([line for line in err.splitlines() if "Ray is gone" in line]) == 1, err
    assert (results / "tiny" / "report.html").exists()
    before = {file: file.stat().st_mtime_ns for file in results.glob("tiny/stages/*/result.json")}
    again = driver(file, results, steps=steps)
    _, err = again.communicate(timeout=DEADLINE)
    assert again.returncode == 0, err
    assert records_of(results) == undisturbed
    assert {file: file.stat().st_mtime_ns for file in before} == before, "a finished stage was trained again"
    refuse_lost_steps(steps)


def test_a_stopped_worker_of_another_machine_is_ended_and_its_stage_goes_on(
    file: Path, results: Path, undisturbed: dict[str, Any], steps: Path, tmp_path: Path
) -> None:
    if subprocess.run([*ELSEWHERE, "elsewhere", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no process can have another host name here")
    impatient = tmp_path / "impatient.yaml"
    impatient.write_text(file.read_text(encoding="utf-8").replace("cpus: 1}", "cpus: 1, stall_minutes: 0.2}"))
    with nodes_at(host="elsewhere", **counting(steps, SECONDS_BETWEEN_STATES / 5)) as nodes:
        run = driver(impatient, results, "--address", nodes.address)
        until(lambda: stopped_elsewhere(results / "tiny" / STAGES), run)
        _, err = run.communicate(timeout=DEADLINE)
    assert run.returncode == 0, err
    (line,) = [line for line in err.splitlines() if "no sign of life" in line]
    assert re.search(r"step [\d,]+ of [\d,]+ on elsewhere, process \d+\); ended, to go on from its last state", line)
    assert records_of(results) == undisturbed
    refuse_lost_steps(steps)


def stopped_elsewhere(store: Path) -> bool:
    """Whether a worker of the other machine could be stopped in the middle of a stage that has a state."""
    for life in lives_in(store):
        if life.running and life.host == "elsewhere" and any((store / life.node).glob("partial/*")):
            os.kill(life.pid, signal.SIGSTOP)
            if not (store / life.node / RESULT).exists():
                return True
            os.kill(life.pid, signal.SIGCONT)
    return False


def test_databases_that_somebody_holds_for_longer_than_a_call_cost_no_step(
    file: Path, results: Path, undisturbed: dict[str, Any], steps: Path
) -> None:
    run = driver(file, results, "--executor", "inline", steps=steps)
    until(lambda: training(results), run)
    with contextlib.ExitStack() as held:
        for database in (results / LEDGER, results / "tiny" / STUDIES):
            until(database.exists, run)
            connection = held.enter_context(contextlib.closing(sqlite3.connect(database, isolation_level=None)))
            connection.execute("BEGIN IMMEDIATE")  # readers go on, nobody else may write
        time.sleep(SECONDS_LOCKED)
        assert run.poll() is None, run.communicate()
    _, err = run.communicate(timeout=DEADLINE)
    assert run.returncode == 0, err
    assert "Traceback" not in err
    assert "locked by another program" in err, err
    assert records_of(results) == undisturbed
    assert counted(steps).repeated == 0
