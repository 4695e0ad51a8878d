"""A sweep as a job of a Ray cluster: what only the asking machine has is refused, and the rest runs where nobody watches."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from sweeper.ledger.dashboard import free_port
from sweeper.ledger.mlflow_ledger import Ledger
from tests.integration.test_cluster import RAY, end_tree, environment, short
from tests.integration.test_command_line import FILE, SWEEPER, TRIALS, results

__all__ = ["results", "short"]
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning")
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "ef" * 32}


def submit(*arguments: object, **more: str) -> subprocess.CompletedProcess[str]:
    command = [str(SWEEPER), "submit", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment(**more), timeout=300)


def refused(*arguments: object) -> str:
    done = submit(*arguments)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    return line


def test_paths_of_this_machine_are_refused(tmp_path: Path) -> None:
    assert "results: 'results' is relative" in refused(FILE, "--results", "results")
    text = FILE.read_text(encoding="utf-8").replace("{source: stdlib}", "{source: files, paths: [texts/*.txt]}")
    file = tmp_path / "relative.yaml"
    file.write_text(text, encoding="utf-8")
    assert "corpus.paths: 'texts/*.txt' is relative" in refused(file, "--results", tmp_path)


def test_a_password_would_be_shown_by_ray_and_is_refused(tmp_path: Path) -> None:
    line = refused(FILE, "--results", tmp_path, "--tracking-uri", "http://ann:s3cret@host:5000")
    assert "MLFLOW_TRACKING_PASSWORD" in line
    assert "s3cret" not in line
    line = refused(FILE, "--results", tmp_path, "--tracking-uri", "http://host:5000/?token=s3cret")
    assert "s3cret" not in line


def test_where_nobody_takes_jobs_is_one_line(tmp_path: Path) -> None:
    address = f"http://ann:s3cret@127.0.0.1:{free_port()}"
    line = refused(FILE, "--results", tmp_path, "--address", address)
    assert re.search(r"no job was started at http://127.0.0.1:\d+: .*tst-sweeper\[cluster\]", line)
    assert "not a dashboard's" in refused(FILE, "--results", tmp_path, "--address", "127.0.0.1:6379")


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.real
@pytest.mark.skipif(find_spec("aiohttp_cors") is None, reason="ray[default] is not installed (the extra `cluster`)")
def test_a_job_runs_the_sweep_to_its_report(results: Path, short: Path) -> None:
    """On a cluster with a token, from another folder than the file's."""
    here = environment(**TOKEN, PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    dashboard = f"http://127.0.0.1:{free_port()}"
    command = [
        RAY,
        "start",
        "--head",
        "--port",
        str(free_port()),
        "--dashboard-port",
        dashboard.split(":")[2],
        "--dashboard-agent-listen-port",
        str(free_port()),  # its own: another Ray's agent on this machine has the usual one, and then nobody takes jobs
        "--block",
    ]
    command += ["--num-cpus", "2", "--object-store-memory", str(100 * 2**20), "--temp-dir", str(short)]
    with (
        open(short / "ray.log", "wb") as log,
        subprocess.Popen(command, stdout=log, stderr=log, env=here, start_new_session=True) as head,
    ):
        try:
            deadline = time.monotonic() + 120
            while (done := submit(FILE, "--results", results, "--address", dashboard, **TOKEN)).returncode:
                assert time.monotonic() < deadline, done.stderr
                time.sleep(1)
            (line,) = done.stderr.splitlines()
            assert line.startswith("its output: ray job logs"), "Ray names what it sends"
            other = submit(FILE, "--results", results, "--address", dashboard, **{**TOKEN, "RAY_AUTH_TOKEN": "ba" * 32})
            assert other.returncode == 2
            (line,) = other.stderr.splitlines()
            assert line.startswith(f"no job was started at {dashboard}: ")
            job = done.stdout.strip()
            asked = [RAY, "job", "status", job, "--address", dashboard]
            status = ""
            while not re.search("succeeded|failed|stopped", status):
                assert time.monotonic() < deadline + 700, status
                time.sleep(2)
                status = "".join(subprocess.run(asked, capture_output=True, text=True, env=here).stdout)
            logs = subprocess.run(
                [RAY, "job", "logs", job, "--address", dashboard], capture_output=True, text=True, env=here
            )
            assert "succeeded" in status, logs.stdout
        finally:
            end_tree(head)
    with Ledger.open(results, "tiny", create=False) as ledger:
        assert len(ledger.records()) == TRIALS
    assert "faster" in logs.stdout or "report.html" in logs.stdout
