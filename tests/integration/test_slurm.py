"""A sweep as a Slurm job: the script that people submit, a real controller and node on loopback, and a job that is told to
end and queued again.

The node runs in a process namespace of its own: a job ends its Ray with `ray stop`, which would end every other one here.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from sweeper.ledger.dashboard import free_port
from sweeper.ledger.mlflow_ledger import Ledger
from tests.integration.test_cluster import environment
from tests.integration.test_command_line import FILE, SWEEPER, TRIALS, results
from tests.support.counted_steps import counted, counting
from tests.support.places import ROOT

__all__ = ["results"]
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "unshare")
MISSING = [name for name in PROGRAMS if shutil.which(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.alone,
    pytest.mark.real,
    pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)} not installed (Debian: slurm-wlm)"),
    pytest.mark.skipif(os.geteuid() != 0, reason="a Slurm node of one's own needs root"),
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning"),
]
SCRIPT = ROOT / "sweeper" / "clusters" / "slurm.sh"
CONFIGURATION = """\
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
AuthType=auth/none
CredType=cred/none
AuthInfo=cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
NodeName=localhost NodeHostname={host} NodeAddr=127.0.0.1 Port={node} CPUs=2 State=UNKNOWN
PartitionName=all Nodes=localhost Default=YES MaxTime=INFINITE State=UP
"""
ENDED = ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL")


@dataclass(frozen=True)
class Slurm:
    """One controller with one node, and what its programs need to find it."""

    folder: Path
    environment: Mapping[str, str]

    def asked(self, *command: str) -> str:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=self.environment)
        assert done.returncode == 0, (command, done.stderr)
        return done.stdout.strip()

    def field(self, job: str, name: str) -> str:
        """What `scontrol` says of a job: `JobState`, `Restarts`, `ExitCode` ..."""
        words = self.asked("scontrol", "show", "job", job).split()
        return next(word.partition("=")[2] for word in words if word.startswith(f"{name}="))

    def submit(self, *arguments: object) -> str:
        command = ["sbatch", "--parsable", f"--output={self.folder}/job.log", str(SCRIPT), *map(str, arguments)]
        return self.asked(*command)

    @property
    def said(self) -> str:
        log = self.folder / "job.log"
        return log.read_text(encoding="utf-8", errors="replace") if log.exists() else "nothing"

    def wait(self, what: Callable[[], bool], job: str | None = None, seconds: float = 400) -> None:
        """Until something is so; not longer than `job` lives."""
        deadline = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < deadline, self.said
            assert job is None or self.field(job, "JobState") not in ENDED or what(), self.said
            time.sleep(0.5)


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[Slurm]:
    folder = tmp_path / "slurm"
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    configuration = folder / "slurm.conf"
    host = socket.gethostname().split(".")[0]
    configuration.write_text(
        CONFIGURATION.format(folder=folder, host=host, controller=free_port(), node=free_port()), encoding="utf-8"
    )
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    found = Slurm(folder, environment(SLURM_CONF=str(configuration), PATH=path, **counting(folder / "steps", 1.0)))
    servers = "slurmctld -D & slurmd -D & wait"
    command = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", servers]
    with (
        (folder / "servers.log").open("wb") as log,
        subprocess.Popen(command, stdout=log, stderr=log, env=found.environment, start_new_session=True) as process,
    ):
        try:
            found.wait(lambda: "idle" in state_of_node(found), seconds=60)
            yield found
        finally:
            process.send_signal(signal.SIGKILL)  # with its namespace, hence with all that runs in it


def state_of_node(slurm: Slurm) -> str:
    command = ["sinfo", "--noheader", "--format=%T"]
    return subprocess.run(command, capture_output=True, text=True, env=slurm.environment, timeout=60).stdout


def test_a_job_that_is_told_to_end_is_queued_again_and_goes_on_to_its_report(
    slurm: Slurm, results: Path, tmp_path: Path
) -> None:
    file = tmp_path / "some.yaml"
    text = FILE.read_text(encoding="utf-8").replace("tuning: 30", "tuning: 300")
    file.write_text(text.replace("[40, 60, 80]", "[320, 360, 400]").replace("[40]", "[320]"), encoding="utf-8")
    job = slurm.submit(file, "tiny", results)
    slurm.wait(lambda: len(list(results.glob("tiny/stages/*/result.json"))) > 0, job)
    slurm.asked("scancel", "--signal=TERM", "--batch", job)
    slurm.wait(lambda: slurm.field(job, "Restarts") == "1", job)
    before = {file: file.stat().st_mtime_ns for file in results.glob("tiny/stages/*/result.json")}
    with Ledger.open(results, "tiny", create=False) as ledger:
        assert len(ledger.records()) < TRIALS, "the sweep was over before it was told to end"
    slurm.wait(lambda: slurm.field(job, "JobState") in ENDED)
    assert slurm.field(job, "JobState") == "COMPLETED", slurm.said
    with Ledger.open(results, "tiny", create=False) as ledger:
        assert len(ledger.records()) == TRIALS
        assert not ledger.pending()
    assert {file: file.stat().st_mtime_ns for file in before} == before, "a finished stage was trained again"
    done = counted(slurm.folder / "steps")
    print(done)
    assert done.trained > done.repeated == 0, "what was told to end saves its states"
    assert (results / "tiny" / "report.html").exists()
    assert not Path(f"/tmp/ray-{job}").exists(), "Ray's own files are gone"


def test_a_sweep_that_somebody_stops_is_over(slurm: Slurm, results: Path, tmp_path: Path) -> None:
    """By `sweeper stop` from a login node: exit code 3, and no job in the queue."""
    file = tmp_path / "long.yaml"
    file.write_text(
        FILE.read_text(encoding="utf-8").replace("tuning: 30", "tuning: 20000").replace("[40, 60, 80]", "[25000]")
    )
    job = slurm.submit(file, "tiny", results)
    slurm.wait(lambda: (results / "tiny" / "driver.json").exists(), job)
    command = [str(SWEEPER), "stop", "tiny", "--results", str(results)]
    slurm.wait(lambda: subprocess.run(command, capture_output=True, env=environment()).returncode == 0, job)
    slurm.wait(lambda: slurm.field(job, "JobState") == "FAILED")
    assert slurm.field(job, "ExitCode") == "3:0"
    assert slurm.field(job, "Restarts") == "0"


def test_a_job_whose_ray_does_not_start_has_failed(slurm: Slurm, results: Path) -> None:
    """`ray symmetric-run` itself ends with 0 then."""
    place = Path("/tmp/ray-1")  # where the first job's Ray keeps its files
    place.write_text("in the way")
    try:
        job = slurm.submit(FILE, "tiny", results)
        slurm.wait(lambda: slurm.field(job, "JobState") in ENDED)
        assert job == "1"
        assert slurm.field(job, "JobState") == "FAILED"
        assert "Ray did not start" in slurm.said
    finally:
        place.unlink(missing_ok=True)


def test_the_script_says_what_it_lacks() -> None:
    done = subprocess.run(["bash", str(SCRIPT), "file.yaml"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "the name in it" in done.stderr
