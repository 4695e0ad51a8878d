"""Results that an earlier version left behind: a ledger, a corpus and a store of stages read the same, and are gone on with.

`tests/golden/earlier_results/results.tar.gz` was written by commit 91a4dac with `--executor inline` in a folder of its own:
`finished` is a whole sweep, `halfway` the same trials stopped after ten stages (two states and a stage cut in the middle are
in its store), `theirs` an imported table. `expected.json` holds what that commit said of them, after it had ended `halfway`
in a copy.
"""

from __future__ import annotations

import json
import re
import tarfile
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from typer.testing import CliRunner

from sweeper.cli.app import app
from sweeper.ledger.location import default_tracking_uri
from sweeper.ledger.mlflow_ledger import Ledger, list_sweeps
from tests.support.places import GOLDEN

HERE = GOLDEN / "earlier_results"
EXPECTED: dict[str, Any] = json.loads((HERE / "expected.json").read_text(encoding="utf-8"))

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the earlier commands ran in, and in which these run."""
    with tarfile.open(HERE / "results.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def sweeper(*arguments: str) -> str:
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def records(home: Path, name: str) -> dict[str, list[Any]]:
    with Ledger.open(home / "results", name, create=False) as ledger:
        return {record.spec.spec_id: [record.purpose, record.final_loss] for record in ledger.records()}


def stages(home: Path, name: str) -> dict[str, int]:
    """When each stage's result was written."""
    files = (home / "results" / name / "stages").glob("*/result.json")
    return {file.parent.name: file.stat().st_mtime_ns for file in files}


def names(home: Path, sweep: str) -> dict[str, set[Any]]:
    """Under which names a sweep is stored: the keys of each run in MLflow, files on disk (with `*` for what is a hash)."""
    results = home / "results"
    with Ledger.open(results, sweep, create=False) as ledger:
        runs = MlflowClient(default_tracking_uri(results)).search_runs([ledger.experiment_id])
    folders = [results / sweep, results / "mlartifacts" / sweep]
    files = [file.relative_to(folder).as_posix() for folder in folders for file in folder.rglob("*.json")]
    return {
        "parameters": {frozenset(run.data.params) for run in runs},
        "metrics": {frozenset(run.data.metrics) for run in runs},
        "tags": {frozenset(run.data.tags) for run in runs},
        "files": {re.sub(r"[0-9a-f]{16,}", "*", file) for file in files},
    }


def assert_alike(found: Any, wanted: Any, at: str = "") -> None:
    """Equal, but for the last digits of numbers. What a later version says besides, a key or a check, is no change."""
    if isinstance(wanted, dict):
        assert found.keys() >= wanted.keys(), at
        for key in wanted:
            assert_alike(found[key], wanted[key], f"{at}.{key}")
    elif at.endswith(".checks"):
        assert_alike({one["name"]: one for one in found}, {one["name"]: one for one in wanted}, at + " by name")
    elif isinstance(wanted, list):
        assert len(found) == len(wanted), at
        for index, (one, other) in enumerate(zip(found, wanted, strict=True)):
            assert_alike(one, other, f"{at}[{index}]")
    elif isinstance(wanted, float):
        assert found == pytest.approx(wanted, rel=1e-9), at
    else:
        assert found == wanted, at


def test_the_sweeps_are_found(home: Path) -> None:
    assert set(list_sweeps(home / "results", None)) == {"finished", "halfway", "theirs"}


@pytest.mark.parametrize("name", ["finished", "theirs"])
def test_the_report_says_what_it_said(name: str, home: Path) -> None:
    found = json.loads(sweeper("report", name, "--json"))
    assert_alike(found, EXPECTED["summaries"][name])


def test_the_status_counts_what_is_there(home: Path) -> None:
    lines = [line.split() for line in sweeper("status", "halfway").splitlines() if line.startswith("pico")]
    assert [line[:6] for line in lines] == [
        ["pico", "baseline", "2", "0", "0", "6"],
        ["pico", "tst", "2", "0", "0", "0"],
    ]


def test_a_finished_sweep_is_not_trained_again(home: Path) -> None:
    before = stages(home, "finished")
    sweeper("run", "finished.yaml", "--executor", "inline")
    assert stages(home, "finished") == before
    assert records(home, "finished") == EXPECTED["records"]["finished"]


@pytest.mark.slow
def test_a_sweep_that_was_stopped_goes_on_from_its_states(home: Path) -> None:
    before, known = stages(home, "halfway"), records(home, "halfway")
    (cut,) = (home / "results" / "halfway" / "stages").glob("*/partial")
    sweeper("run", "halfway.yaml", "--executor", "inline")
    after, found = stages(home, "halfway"), records(home, "halfway")
    written = names(home, "halfway")
    written["files"].remove("status.json")  # what `status` reads, which the earlier version did not write
    written["files"].remove("stages/*/state/note.json")  # winners' weights, which the earlier version did not keep
    assert written == names(home, "finished"), "what is written is written under the names that are read"
    assert before.items() <= after.items()
    assert len(after) == len(stages(home, "finished"))
    assert not cut.exists()
    assert cut.parent.name in after
    assert {spec_id: found[spec_id] for spec_id in known} == known
    wanted = EXPECTED["records"]["halfway"]
    assert found.keys() == wanted.keys()
    for spec_id, (purpose, loss) in wanted.items():
        assert found[spec_id][0] == purpose
        assert found[spec_id][1] == pytest.approx(loss, rel=1e-4), "a processor may round in another way"
