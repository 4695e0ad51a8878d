"""`sweeper ui`: MLflow's own server on this ledger, on loopback, opened on a view that is ready to read.

The server is a subprocess, quiet and small (no job workers, one request worker); what the view shows is decided in
`dashboard_view`. A ledger that is behind a server already needs no second one: only the link is made.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

from sweeper.ledger.dashboard_view import run_link, view_link, view_tags
from sweeper.ledger.location import ARTIFACTS, LedgerError, default_tracking_uri, is_server, log_in, spare_loopback
from sweeper.ledger.mlflow_ledger import Ledger, list_sweeps
from trainers.contract.errors import UserError

LOOPBACK = "127.0.0.1"
_START_SECONDS = 120.0
_POLL_SECONDS = 0.2


class DashboardError(UserError):
    """The server did not start; the message is for the user."""


@dataclass(frozen=True, slots=True)
class Links:
    """Addresses of a sweep: its ready view (all runs, loss against GPU-hours) and its own run with the report."""

    name: str
    view: str
    sweep: str


def serve(results: Path, name: str | None, tracking_uri: str | None, port: int | None, open_browser: bool) -> None:
    """Show a sweep (the newest one where `name` is None) until interrupted.

    Raises `LedgerError` when there is no such sweep, `DashboardError` when the server does not start.
    """
    prepared = prepare(results, name, tracking_uri)
    if tracking_uri is not None and is_server(tracking_uri):
        _show(log_in(tracking_uri).rstrip("/") + "/", prepared, open_browser)
        return
    # As an exception, so that the server below is ended on the way out. Python's default would leave it running.
    previous = signal.signal(signal.SIGTERM, _leave)
    try:
        with running_server(results, tracking_uri, port) as (address, process):
            _show(address, prepared, open_browser)
            print("Ctrl-C ends it.", flush=True)
            process.wait()
            raise DashboardError(f"the MLflow server ended by itself with code {process.returncode}")
    except KeyboardInterrupt:
        return
    finally:
        signal.signal(signal.SIGTERM, previous)


def prepare(results: Path, name: str | None, tracking_uri: str | None) -> Links:
    """Save the view in the ledger; returns the links as fragments, to be put behind a server's address.

    Raises `LedgerError` when there is no such sweep, or none at all.
    """
    if name is None:
        sweeps = list_sweeps(results, tracking_uri)
        if not sweeps:
            raise LedgerError(f"no sweep in {tracking_uri or results}; run one first, or give --results")
        name = sweeps[-1]
    with Ledger.open(results, name, tracking_uri, create=False) as ledger:
        mlflow_version = version("mlflow")
        ledger.save_view(view_tags(name, mlflow_version, int(1_000 * time.time())))
        return Links(name, view_link(ledger.experiment_id, mlflow_version), run_link(ledger.sweep_link()))


@contextmanager
def running_server(
    results: Path, tracking_uri: str | None = None, port: int | None = None
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """An MLflow server on loopback, as its address and its process; it is gone with all its children at the end.

    `port` None takes a free one. Raises `DashboardError` with the server's last words when it does not answer.
    """
    # Free a moment ago: another program may take it in between, and then the server says so.
    chosen = free_port() if port is None else port
    spare_loopback()
    log = results / "mlflow-server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            _command(results, chosen),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={
                **os.environ,
                # Not as an argument: a database's address may hold a password, and anybody reads the list of processes.
                "MLFLOW_BACKEND_STORE_URI": tracking_uri or default_tracking_uri(results),
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
                "MLFLOW_DISABLE_TELEMETRY": "true",
            },
            start_new_session=True,
        )
    try:
        with _ends_with_us(process):
            _await_answer(chosen, process, log)
            yield f"http://{LOOPBACK}:{chosen}/", process
    finally:
        _end(process)


@contextmanager
def _ends_with_us(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """End the server's process group when we are gone, also after a SIGKILL: a shell sees our end of its pipe close."""
    watch = 'read -r line; kill -s TERM -- "-$1"; sleep 5; kill -s KILL -- "-$1"'
    with subprocess.Popen(
        ["sh", "-c", watch, "sh", str(process.pid)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as guard:
        try:
            yield
        finally:
            guard.kill()


def _command(results: Path, port: int) -> list[str]:
    artifacts = (results.absolute() / ARTIFACTS).as_uri()
    return [
        *(sys.executable, "-m", "mlflow", "server"),
        *("--artifacts-destination", artifacts),
        *("--host", LOOPBACK),
        *("--port", str(port)),
        *("--workers", "1"),
    ]


def free_port() -> int:
    """A port on loopback that nobody listens at now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        number: int = probe.getsockname()[1]
        return number


def _await_answer(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(f"http://{LOOPBACK}:{port}/health", timeout=5).close()
        except OSError:
            time.sleep(_POLL_SECONDS)
        else:
            return
    said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:]
    raise DashboardError(f"the MLflow server did not start on port {port} (log: {log}): {' / '.join(said)}")


def _end(process: subprocess.Popen[bytes]) -> None:
    for ending in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, ending)
        except ProcessLookupError:
            break
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            continue


def _show(address: str, links: Links, open_browser: bool) -> None:
    print(f"Sweep {links.name}: runs by scale and method, loss against GPU-hours\n  {address}{links.view}")
    print(f"Its report and description\n  {address}{links.sweep}", flush=True)
    if open_browser:
        webbrowser.open(address + links.view)


def _leave(signal_number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt
