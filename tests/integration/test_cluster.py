"""Ray clusters as people have them: two real nodes, a head that is gone or asks for a token, a job's folder for temporary
files; and signals from whoever runs the machine. Real `ray start` on loopback, the installed command."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from sweeper.executors.cluster import ANSWER_SECONDS, AUTH_MODE, KIND, TOKEN, TOKEN_PATH
from sweeper.ledger.dashboard import free_port
from sweeper.ledger.mlflow_ledger import Ledger
from tests.integration.test_command_line import FILE, SWEEPER, TRIALS, results

__all__ = ["results"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning"),
]
RAY = str(Path(sys.executable).with_name("ray"))


def environment(**more: str) -> dict[str, str]:
    plain = {name: value for name, value in os.environ.items() if name not in (AUTH_MODE, TOKEN, TOKEN_PATH)}
    return {**plain, "RAY_USAGE_STATS_ENABLED": "0", **more}


def sweeper(*arguments: object, **more: str) -> subprocess.CompletedProcess[str]:
    command = [str(SWEEPER), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment(**more))


@contextmanager
def real_cluster(folder: Path, nodes: int = 1, kinds: Sequence[str] = (), **more: str) -> Iterator[str]:
    """The address of a head with `nodes - 1` workers, each with a folder of its own; ended with all that they started.

    With `kinds` each node says that it has a GPU of that kind.
    """
    address = f"127.0.0.1:{free_port()}"
    common = ["--num-cpus", "1", "--disable-usage-stats", "--object-store-memory", str(100 * 2**20), "--block"]
    head = ["--head", "--port", address.split(":")[1], "--include-dashboard=false", "--temp-dir", str(folder / "h")]
    with open(folder / "ray.log", "w", encoding="utf-8") as log:
        started = []
        try:
            for node in range(nodes):
                place = head if node == 0 else ["--address", address]
                gpus = ["--num-gpus", "1", "--resources", f'{{"{KIND}{kinds[node]}": 1}}'] if kinds else []
                command = [RAY, "start", *place, *common, *gpus]
                started.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment(**more)))
                if node == 0:
                    asked = [RAY, "health-check", "--address", address]
                    deadline = time.monotonic() + 120
                    while subprocess.run(asked, capture_output=True, env=environment(**more)).returncode:
                        assert time.monotonic() < deadline, (folder / "ray.log").read_text()
            yield address
        finally:
            for process in reversed(started):
                end_tree(process)


def end_tree(process: subprocess.Popen[bytes]) -> None:
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for one in family:
        try:
            one.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()


@pytest.fixture
def short(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder whose name leaves room for a socket's."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as name:
        yield Path(name)


def test_two_nodes_train_one_sweep_to_its_report(results: Path, short: Path) -> None:
    with real_cluster(short, nodes=2, **{AUTH_MODE: "disabled"}) as address:
        done = sweeper("run", FILE, "--results", results, "--address", address)
    assert done.returncode == 0, done.stderr
    with Ledger.open(results, "tiny", create=False) as ledger:
        assert len(ledger.records()) == TRIALS
    assert not list((results / "tiny").glob("seen-*"))


def test_a_cluster_with_a_token_lets_in_who_has_it(results: Path, short: Path) -> None:
    token = "ab" * 32
    (short / "token").write_text(token)
    with real_cluster(short, **{AUTH_MODE: "token", TOKEN: token}) as address:
        refused = sweeper("run", FILE, "--results", results, "--address", address, **{TOKEN: "cd" * 32})
        assert refused.returncode == 2
        assert re.fullmatch(r"the Ray cluster at [\d.:]+ asks for a token: .*\n", refused.stderr)
        done = sweeper("run", FILE, "--results", results, "--address", address, **{TOKEN_PATH: str(short / "token")})
    assert done.returncode == 0, done.stderr


def test_a_head_that_does_not_answer_is_one_line(results: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    started = time.monotonic()
    done = sweeper("run", FILE, "--results", results, "--address", address)
    assert done.returncode == 2
    assert done.stderr == f"no Ray cluster at {address}: nobody answered within {ANSWER_SECONDS} seconds\n"
    assert time.monotonic() - started < 10 * ANSWER_SECONDS, "Ray's own client takes three and a half minutes"


def test_a_head_that_hangs_is_one_line(results: Path) -> None:
    """Its kernel still takes connections."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        done = sweeper("run", FILE, "--results", results, "--address", address)
    assert done.returncode == 2
    said = f"somebody listens there, but nobody answered within {ANSWER_SECONDS} seconds"
    assert done.stderr == f"no Ray cluster at {address}: {said}\n"


def test_a_job_s_long_folder_for_temporary_files_is_no_obstacle(results: Path, tmp_path: Path) -> None:
    long = tmp_path / ("job" * 30)
    long.mkdir()
    done = sweeper("run", FILE, "--results", results, TMPDIR=str(long))
    assert done.returncode == 0, done.stderr


def family_of(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


GUEST = """
import sys, ray
try:
    ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
except Exception as error:
    print(type(error).__name__)
else:
    print("in")
"""


@pytest.mark.parametrize("first", ["subprocess", "ray"])
def test_nobody_else_gets_into_a_cluster_of_our_own(first: str) -> None:
    """A process of another user on this machine, or on another one: without the token of this run. A notebook may have
    imported Ray, which reads its settings then, before it imports us."""
    code = f"""
import {first}
import subprocess, sys, os
from sweeper.executors.cluster import attach
with attach(None, num_cpus=1) as cluster:
    import ray
    address = ray.get_runtime_context().gcs_address
    sockets = os.path.join(ray._private.worker._global_node.get_session_dir_path(), "sockets")
    assert os.listdir(sockets)
    listing = subprocess.run(["ls", sockets], user="nobody", capture_output=True, text=True) if not os.getuid() else None
    print("shut" if listing is None or "Permission denied" in listing.stderr else "open")
    plain = {{n: v for n, v in os.environ.items() if not n.startswith("RAY_")}}
    for mode in ("disabled", "token"):
        guest = {{**plain, "RAY_AUTH_MODE": mode, "HOME": "/nonexistent"}}
        done = subprocess.run([sys.executable, "-c", {GUEST!r}, address], env=guest, capture_output=True, text=True)
        print(mode, done.stdout.strip() or "refused")
"""
    quick = environment(RAY_gcs_rpc_server_reconnect_timeout_s="5")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=400, env=quick)
    assert done.returncode == 0, done.stderr
    assert "in" not in done.stdout.split()
    assert done.stdout.startswith("shut\n"), "other users of the machine see its sockets"
    assert done.stdout.count("\n") == 3


def test_signals_stay_ours_while_ray_starts() -> None:
    """SIGTERM in the seconds until a sweep listens again would end with Ray's own exit code."""
    code = """
import signal
from sweeper.executors.cluster import attach
def ours(number, frame):
    print("saved")
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, ours)
with attach(None, num_cpus=1):
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGINT)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=400, env=environment())
    assert (done.returncode, done.stdout) == (0, "saved\nsaved\n"), done.stderr


def test_a_process_that_runs_ray_already_is_told_in_one_line() -> None:
    code = """
import ray
from sweeper.executors.cluster import attach
from trainers.contract.errors import UserError
ray.init(num_cpus=1, include_dashboard=False, logging_level="ERROR")
try:
    with attach(None, num_cpus=1):
        print("in")
except UserError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=400, env=environment())
    assert done.stdout == "Ray runs in this process already; end it with ray.shutdown()\n", done.stderr
