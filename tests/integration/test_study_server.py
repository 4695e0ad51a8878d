"""The studies in a database server: PostgreSQL, a cluster of our own on loopback."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Barrier
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution, IntDistribution

from sweeper import SurfaceSampler
from sweeper.ledger.dashboard import free_port
from sweeper.options import check_study_storage
from sweeper.studies.keeper import place_of
from tests.support.study_desk import NamedLedger, swept

BINARIES = [Path(found).parent for found in [shutil.which("initdb")] if found]
BINARIES += sorted(path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb"))
ACCOUNT = "postgres" if os.geteuid() == 0 else None
"""The server refuses to run as root; Debian's package makes this account for it."""


def _account_is_there() -> bool:
    return ACCOUNT is None or any(entry.pw_name == ACCOUNT for entry in pwd.getpwall())


pytestmark = [
    pytest.mark.slow,
    pytest.mark.real,
    pytest.mark.skipif(not BINARIES, reason="initdb not installed (Debian: postgresql)"),
    pytest.mark.skipif(not _account_is_there(), reason="as root the server needs an account named postgres"),
]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Address of a database with a password."""
    pytest.importorskip("psycopg", reason="psycopg not installed (PyPI: psycopg[binary])")

    def call(name: str, *arguments: str) -> None:
        subprocess.run([BINARIES[-1] / name, *arguments], user=ACCOUNT, check=True, cwd="/", stdout=subprocess.DEVNULL)

    with tempfile.TemporaryDirectory(prefix="pg") as folder:
        if ACCOUNT is not None:
            shutil.chown(folder, ACCOUNT)
        password = Path(folder) / "password"
        password.write_text("secret\n")
        password.chmod(0o644)
        data, port = f"{folder}/data", free_port()
        call("initdb", "-D", data, "-U", "me", "-A", "scram-sha-256", f"--pwfile={password}", "--no-sync")
        settings = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
        call("pg_ctl", "-D", data, "-w", "-l", f"{folder}/log", "-o", settings, "start")
        try:
            yield f"postgresql://me:secret@127.0.0.1:{port}/postgres"
        finally:
            call("pg_ctl", "-D", data, "-w", "-m", "immediate", "stop")


@contextmanager
def opened(address: str) -> Iterator[optuna.storages.RDBStorage]:
    """The storage, whose connections are closed at the end."""
    storage = optuna.storages.RDBStorage(address)
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


def trials_in(address: str) -> dict[str, list[optuna.trial.FrozenTrial]]:
    """By study."""
    with opened(address) as storage:
        names = sorted(optuna.get_all_study_names(storage))
        return {name: optuna.load_study(study_name=name, storage=storage).trials for name in names}


def test_a_sweep_s_studies_are_in_a_server_s_database(server: str, tmp_path: Path) -> None:
    check_study_storage(server)
    ledger, said = NamedLedger(), list[str]()
    assert swept(ledger, place_of(tmp_path, server), said.append)
    assert said == []
    found = trials_in(server)
    # Eight that tune, and two that confirm at the same budget.
    assert {name: len(trials) for name, trials in found.items()} == {"tiny/nano/baseline/8": 10, "tiny/nano/tst/8": 10}
    assert {trial.user_attrs["spec_id"] for trials in found.values() for trial in trials} <= set(ledger.asked)
    assert swept(ledger, place_of(tmp_path, server), said.append)  # again: nothing twice
    assert trials_in(server) == found
    assert said == []


def test_processes_that_share_a_server_never_ask_for_the_same_trial(server: str) -> None:
    def objective(trial: optuna.Trial) -> float:
        return trial.suggest_float("x", 0.0, 1.0) + trial.suggest_int("n", 1, 5)

    def ask(number: int) -> dict[str, Any]:
        with opened(server) as storage:
            study = optuna.load_study(study_name="s", storage=storage, sampler=SurfaceSampler(cells=120))
            barrier.wait(60)
            return study.ask(ranges).params

    ranges = {"x": FloatDistribution(0.0, 1.0), "n": IntDistribution(1, 5)}
    barrier = Barrier(4)
    with opened(server) as storage:
        study = optuna.create_study(study_name="s", storage=storage, sampler=SurfaceSampler(cells=120))
        study.optimize(objective, n_trials=2)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(ask, range(4)))
    assert len({(params["x"], params["n"]) for params in found}) == 4
