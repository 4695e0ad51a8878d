"""`sweeper ui`'s server: it answers on loopback, keeps a ledger over HTTP as well, and leaves nothing behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from sweeper.ledger.dashboard import DashboardError, prepare, running_server, serve
from sweeper.ledger.location import LedgerError
from sweeper.ledger.mlflow_ledger import Ledger, list_sweeps
from tests.support.ledger_factory import MLFLOW_WARNINGS, about_of, empty_results
from tests.support.places import ROOT
from tests.support.strategies import record_of, spec_of

pytestmark = MLFLOW_WARNINGS


@pytest.fixture
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return empty_results(tmp_path_factory)


def listening(address: str) -> bool:
    try:
        urllib.request.urlopen(address + "health", timeout=5).close()
    except OSError:
        return False
    return True


@pytest.mark.slow
def test_served_sweep_is_announced_read_over_http_and_ended_by_a_signal(results: Path, tmp_path: Path) -> None:
    with Ledger.open(results, "quickstart", create=True) as ledger:
        ledger.begin(about_of("quickstart"))
        ledger.write(record_of(spec_of("tst")))
    program = "import sys, pathlib, sweeper.ledger.dashboard as d; d.serve(pathlib.Path(sys.argv[1]), None, None, None, False)"
    command = [sys.executable, "-c", program, str(results)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = [process.stdout.readline().strip() for _ in range(5)]
        try:
            view, sweep = said[1], said[3]
            address = view.split("#")[0]
            assert address.startswith("http://127.0.0.1:")
            assert "viewStateShareKey" in view
            assert "/runs/" in sweep
            with Ledger.open(tmp_path, "quickstart", address, create=False) as ledger:
                assert ledger.records() == [record_of(spec_of("tst"))]
                ledger.write(record_of(spec_of()))
                assert ledger.records() == [record_of(spec_of("tst")), record_of(spec_of())]
            with Ledger.open(tmp_path, "remote", address, create=True) as ledger:
                ledger.begin(about_of("remote"))
                ledger.write(record_of(spec_of("tst", seed=5)))
            with Ledger.open(tmp_path, "remote", address, create=False) as ledger:
                assert ledger.records() == [record_of(spec_of("tst", seed=5))]
                assert ledger.about() == about_of("remote")
            assert list_sweeps(tmp_path, address) == ["unused", "quickstart", "remote"]
            assert list(tmp_path.iterdir()) == []
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
    assert not listening(address)


def test_view_is_saved_once_however_often_it_is_opened(results: Path) -> None:
    with Ledger.open(results, "quickstart", create=True) as ledger:
        ledger.begin(about_of("quickstart"))
    assert prepare(results, "quickstart", None) == prepare(results, None, None)
    from mlflow import MlflowClient

    from sweeper.ledger.location import default_tracking_uri

    experiment = MlflowClient(default_tracking_uri(results)).get_experiment_by_name("sweeper/quickstart")
    views = [value for key, value in experiment.tags.items() if key.startswith("mlflow.sharedViewState.")]
    assert len(views) == 1
    assert json.loads(views[0])["name"] == "quickstart: loss against GPU-hours"


def test_no_sweep_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="no sweep in"):
        serve(tmp_path, None, None, None, False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_server_that_cannot_start_says_why(results: Path) -> None:
    broken = results / "no-such-folder" / "mlflow.db"
    with (
        pytest.raises(DashboardError, match=r"did not start on port \d+"),
        running_server(results, f"nonsense:///{broken}"),
    ):
        pass
