"""A ledger in the places that people have: strange paths, folders of others, files in use, passwords in addresses."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import tarfile
import threading
import time
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from typer.testing import CliRunner

from sweeper.cli.app import app
from sweeper.ledger import connection
from sweeper.ledger.connection import connect
from sweeper.ledger.location import DATABASE, default_tracking_uri, log_in, sqlite_file
from sweeper.ledger.mlflow_ledger import Ledger, list_sweeps
from sweeper.options import CORPORA, REPORT
from tests.integration.test_command_line import FILE
from tests.support.places import GOLDEN, SWEEPER
from trainers.contract.errors import InputError, UserError

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning")


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """Results of a finished sweep, in a folder of their own."""
    with tarfile.open(GOLDEN / "earlier_results" / "results.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "results"


@pytest.mark.parametrize("name", ["100 % a?b", "%41", "a#b c", "é ü", "it's [red]"])
def test_any_folder_name_holds_a_ledger_and_nothing_beside_it(tmp_path: Path, name: str) -> None:
    results = tmp_path / name
    made = Ledger.open(results, "one", create=True)
    made.__exit__()
    assert sqlite_file(default_tracking_uri(results)) == results / DATABASE
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert list_sweeps(results) == ["one"]
    moved = results.rename(tmp_path / "elsewhere ?%")
    assert list_sweeps(moved) == ["one"]


MAKE = """
import sys
from pathlib import Path
from sweeper.ledger.mlflow_ledger import Ledger
print("go", flush=True)
Ledger.open(Path(sys.argv[1]), "one", create=True)
"""


def test_killed_while_the_ledger_is_made_it_is_made_by_the_next(tmp_path: Path) -> None:
    """At several moments of the making; a table that is half there used to be refused for ever."""
    for wait in (0.9, 1.1, 1.3, 1.5, 1.7):
        with subprocess.Popen([sys.executable, "-c", MAKE, str(tmp_path)], stdout=subprocess.PIPE) as maker:
            assert maker.stdout is not None
            maker.stdout.readline()
            end = time.monotonic() + wait
            while time.monotonic() < end and not (tmp_path / f"{DATABASE}.new").exists():
                time.sleep(0.005)
            time.sleep(wait / 10)
            maker.send_signal(signal.SIGKILL)
    (tmp_path / DATABASE).unlink(missing_ok=True)
    (tmp_path / f"{DATABASE}.new").write_bytes(b"half a database")
    with Ledger.open(tmp_path, "one", create=True):
        assert list_sweeps(tmp_path) == ["one"]
    assert not (tmp_path / f"{DATABASE}.new").exists()


@pytest.mark.slow
def test_a_ledger_in_use_is_waited_for_and_said(earlier: Path, caplog: pytest.LogCaptureFixture) -> None:
    name = list_sweeps(earlier)[0]
    freed = threading.Event()

    def writes_for_a_while() -> None:
        with closing(sqlite3.connect(earlier / DATABASE, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            held.set()
            time.sleep(23)  # MLflow itself gives up after twenty seconds
            other.execute("COMMIT")
            freed.set()

    held = threading.Event()
    with Ledger.open(earlier, name, create=False) as ledger:
        writer = threading.Thread(target=writes_for_a_while)
        writer.start()
        held.wait()
        ledger.save_view({"mlflow.note.content": "written after the other"})
        assert freed.is_set()
        writer.join()
    assert "locked by another program" in caplog.text


@pytest.mark.slow
def test_a_ledger_that_stays_locked_ends_in_one_line(earlier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "LOCKED_SECONDS", 0.0)
    name = list_sweeps(earlier)[0]
    with Ledger.open(earlier, name, create=False), closing(sqlite3.connect(earlier / DATABASE)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(UserError, match="database is locked") as raised:
            list_sweeps(earlier)
    assert "\n" not in str(raised.value)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("moved", [False, True])
def test_somebody_else_s_results_are_read(earlier: Path, moved: bool, tmp_path_factory: pytest.TempPathFactory) -> None:
    """By a user who may change nothing there; also a copy, whose artifacts lie elsewhere than the ledger says."""
    if not moved:
        for name in list_sweeps(earlier):
            Ledger.open(earlier, name, create=False).__exit__()
    for path in (earlier, *earlier.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    for path in earlier.resolve().parents:
        if str(path).startswith("/tmp/"):
            path.chmod(0o755)
    name = list_names(earlier)[0]
    before = {path: path.stat().st_mtime_ns for path in earlier.rglob("*")}
    nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    command = [*nobody, SWEEPER, "status", name, "--results", str(earlier)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HOME": "/nonexistent"})
    assert done.returncode == 0, done.stderr
    assert "finished" in done.stdout
    assert "unreadable" not in done.stderr
    here = tmp_path_factory.mktemp("here")
    here.chmod(0o777)
    command[command.index("status")] = "report"
    read = subprocess.run(command, capture_output=True, text=True, cwd=here, env={**os.environ, "HOME": "/nonexistent"})
    assert read.returncode == 0, read.stderr
    page = here / f"report-{name}" / REPORT
    assert read.stdout.splitlines()[-1] == str(page)
    assert page.exists()
    assert f"Permission denied; writing into {page.parent} instead" in read.stderr
    assert {path: path.stat().st_mtime_ns for path in earlier.rglob("*")} == before


def list_names(results: Path) -> list[str]:
    """Names of sweeps, read without a lock or a change."""
    with closing(sqlite3.connect(f"file:{results / DATABASE}?mode=ro", uri=True)) as database:
        rows = database.execute("SELECT value FROM experiment_tags WHERE key = 'sweeper.sweep'").fetchall()
    return [row[0] for row in rows]


class Refusing(BaseHTTPRequestHandler):
    """Answers nothing but its health, and notes who asked."""

    asked: ClassVar[list[str | None]] = []

    def do_GET(self) -> None:
        Refusing.asked.append(self.headers.get("Authorization"))
        healthy = self.path == "/health"
        body = b"OK" if healthy else json.dumps({"error_code": "PERMISSION_DENIED", "message": "no"}).encode()
        self.send_response(200 if healthy else 403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


def test_name_and_password_of_a_server_are_used_and_never_shown(tmp_path: Path) -> None:
    """And a server on this machine is reached past a proxy that does not exist."""
    Refusing.asked.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://ann:s3cr%40t@127.0.0.1:{server.server_address[1]}"
        environment = {**os.environ, "http_proxy": "http://127.0.0.1:9", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
        for name in ("no_proxy", "NO_PROXY"):
            environment.pop(name, None)
        done = subprocess.run(
            [SWEEPER, "status", "one", "--results", str(tmp_path), "--tracking-uri", address],
            capture_output=True,
            text=True,
            env=environment,
        )
        server.shutdown()
    assert done.returncode == 2, done.stderr
    assert "s3cr" not in done.stdout + done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert f"Basic {base64.b64encode(b'ann:s3cr@t').decode()}" in Refusing.asked


@pytest.mark.parametrize(
    "address",
    ["http://ann:s3cr/et@host:5000", "http://", "http://[::1", "https://host:port", "http://host:99999", "http://a b"],
)
def test_what_looks_like_an_address_and_is_none_is_one_line_without_it(address: str) -> None:
    with pytest.raises(InputError, match=r"^--tracking-uri: no server's address, such as http://") as caught:
        connect(address)
    assert "s3cr" not in str(caught.value)


@pytest.mark.parametrize("place", ["--results", "--tracking-uri"])
def test_a_ledger_that_cannot_be_read_is_one_line_of_every_command(place: str, tmp_path: Path, corpora: Path) -> None:
    """A file that is no database, and a server that is not there."""
    results, runs, file = tmp_path / "results", tmp_path / "runs.csv", str(FILE)
    results.mkdir()
    (results / CORPORA).symlink_to(corpora)
    if place == "--results":
        (results / DATABASE).write_bytes(b"nothing that SQLite wrote" * 100)
    runs.write_text("scale,method,total_steps,final_loss\nm,baseline,1000,3.3\nm,tst,1000,3.2\n", encoding="utf-8")
    for words in (
        ("plan", file),
        ("plan", file, "--specs", str(tmp_path / "specs.jsonl")),
        ("run", file, "--executor", "inline"),
        ("status", "tiny"),
        ("report", "tiny"),
        ("report", "tiny", "other"),
        ("recipe", "tiny"),
        ("export", "tiny", str(tmp_path / "models")),
        ("import", str(runs), "--name", "theirs"),
        ("import", "--mlflow", "theirs", "--name", "theirs"),
        ("ui", "tiny"),
    ):
        more = ("--results", str(results), *(("--tracking-uri", "http://127.0.0.1:9") if place != "--results" else ()))
        done = CliRunner().invoke(app, [*words, *more])
        assert done.exit_code == 2, (words, done.output)
        said = done.stderr.splitlines()[-1]
        assert ("no MLflow server answers" if place != "--results" else str(results / DATABASE)) in said, words
        assert "Traceback" not in done.stderr, words


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("postgresql://ann:s3cr%40t@127.0.0.1:9/runs", "postgresql://127.0.0.1:9/runs: no database answers there: "),
        ("postgresql://ann:s3cret@host:port/runs", "tracking_uri: postgresql://... is not a database's address"),
        ("mysql+nodriver://ann:s3cret@host/runs", "tracking_uri: mysql+nodriver://... is not a database's address"),
        ("mysql+pymysql://ann:s3cret@host/runs", "tracking_uri: the driver of mysql+pymysql is not installed"),
    ],
)
def test_a_database_that_is_not_there_is_one_line_at_once(address: str, said: str) -> None:
    """MLflow itself asks it again and again, for minutes."""
    if address.startswith("postgresql:") and "answers" in said:
        pytest.importorskip("psycopg", reason="psycopg not installed (PyPI: psycopg[binary])")
    with pytest.raises(UserError) as caught:
        connect(address)
    assert str(caught.value).startswith(said)
    assert "s3cr" not in str(caught.value)


def test_an_address_without_a_login_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME", raising=False)
    assert log_in("http://host:5000/a") == "http://host:5000/a"
    assert "MLFLOW_TRACKING_USERNAME" not in os.environ


@pytest.mark.parametrize(
    "uri",
    [
        "http://ann:s3/cret@127.0.0.1:5000",
        "http://ann:s3@cret@127.0.0.1:5000",
        "http://ann:s3#cret@127.0.0.1:5000",
        "http://ann:s3 cret@127.0.0.1:5000",
        "http://127.0.0.1:5000/?token=s3cret",
        "http://127.0.0.1:5000/\x1b[31m",
        "https://ann:s3cret@127.0.0.1:50x0",
    ],
)
def test_an_address_that_may_be_read_in_two_ways_is_refused_and_not_shown(earlier: Path, uri: str) -> None:
    command = [SWEEPER, "status", "x", "--results", str(earlier), "--tracking-uri", uri]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("--tracking-uri: no server's address")
    assert not {"s3", "cret"} & set(re.split(r"\W", line))


def test_the_dashboard_s_server_ends_with_a_killed_command(earlier: Path) -> None:
    with subprocess.Popen([SWEEPER, "ui", "--results", str(earlier)], stdout=subprocess.PIPE, text=True) as command:
        assert command.stdout is not None
        address = ""
        while "http" not in address:
            address = command.stdout.readline()
        port = address.split("127.0.0.1:")[1].split("/")[0]
        assert listens(port)
        command.send_signal(signal.SIGKILL)
        deadline = time.monotonic() + 30
        while listens(port) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert not listens(port)


def listens(port: str) -> bool:
    import socket

    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", int(port))) == 0
