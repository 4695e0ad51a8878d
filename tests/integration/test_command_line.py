"""The installed command, as a user runs it: real Ray, real MLflow, real text, and a driver that is killed half-way."""

from __future__ import annotations

import html
import json
import os
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import optuna
import pytest

from sweeper.ledger.mlflow_ledger import Ledger
from sweeper.options import CORPORA
from tests.support.places import SWEEPER
from trainers.contract.record import Finished

FILE = Path(__file__).with_name("tiny.yaml")
TRIALS = 2 + 2 + 3 * 2 + 1 * 2

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning")


def sweeper(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([SWEEPER, *map(str, arguments)], capture_output=True, text=True, timeout=900, check=False)


def finished_runs(results: Path) -> list[str]:
    if not (results / "mlflow.db").exists():
        return []
    try:
        with Ledger.open(results, "tiny", create=False) as ledger:
            return [record.spec.spec_id for record in ledger.records()]
    except Exception:  # the database is being made
        return []


def tuning_losses(results: Path) -> dict[str, float | None]:
    """Losses by spec id, of all trials in the sweep's Optuna studies."""
    url = f"sqlite:///{results / 'tiny' / 'optuna.db'}"
    studies = [optuna.load_study(study_name=name, storage=url) for name in optuna.get_all_study_names(url)]
    return {trial.user_attrs["spec_id"]: trial.value for study in studies for trial in study.trials}


@pytest.fixture
def results(tmp_path: Path, corpora: Path) -> Path:
    """A results directory that knows no sweep; the text is prepared where other tests find it, too."""
    results = tmp_path / "results"
    results.mkdir()
    (results / CORPORA).symlink_to(corpora)
    return results


def kill_when(process: subprocess.Popen[str], results: Path, trials: int) -> None:
    """SIGKILL the driver once `trials` trials have ended."""
    deadline = time.monotonic() + 600
    # A trial ends with a stage; counting files first keeps MLflow from taking the sweep's turn on the processor.
    while len(list(results.glob("tiny/stages/*/result.json"))) < trials or len(finished_runs(results)) < trials:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "the sweep does not get on"
        time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    process.communicate()


@pytest.mark.slow
def test_a_killed_sweep_goes_on_and_has_every_trial_once(results: Path) -> None:
    command = [str(SWEEPER), "run", str(FILE), "--results", str(results)]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    kill_when(first, results, trials=3)
    before = finished_runs(results)
    assert 3 <= len(before) < TRIALS
    stages_before = {file: file.stat().st_mtime_ns for file in results.glob("tiny/stages/*/result.json")}

    second = sweeper("run", FILE, "--results", results)
    assert second.returncode == 0, second.stderr
    headline, page = second.stdout.strip().splitlines()

    with Ledger.open(results, "tiny", create=False) as ledger:
        records = ledger.records()
        assert not ledger.pending()
    assert max(Counter(record.spec.spec_id for record in records).values()) == 1
    assert len(records) == TRIALS
    assert set(before) <= {record.spec.spec_id for record in records}
    assert all(isinstance(record.outcome, Finished) for record in records)
    assert {file: file.stat().st_mtime_ns for file in stages_before} == stages_before, (
        "a finished stage was trained again"
    )
    assert headline in html.unescape(Path(page).read_text(encoding="utf-8"))

    losses = {record.spec.spec_id: record.final_loss for record in records}
    studies = tuning_losses(results)
    assert len(studies) >= 4
    assert studies.items() <= losses.items()
    (results / "tiny" / "optuna.db").unlink()

    third = sweeper("run", FILE, "--results", results)
    assert third.returncode == 0, third.stderr
    assert third.stdout == second.stdout
    assert tuning_losses(results) == studies

    summary = json.loads(sweeper("report", "tiny", "--results", results, "--json").stdout)
    assert summary["schema"] == 1
    (scale,) = summary["scales"]
    assert (scale["scale"], scale["method"]) == ("nano", "tst")
    assert scale["trials"] == {"baseline": 2, "method": 2}
    assert scale["seeds"] == {"baseline": 2, "method": 2}

    shown = sweeper("status", "tiny", "--results", results)
    assert shown.returncode == 0
    assert "nano baseline" in shown.stdout


@pytest.mark.slow
def test_stop_from_another_terminal_leaves_a_sweep_that_goes_on(results: Path, tmp_path: Path) -> None:
    text = FILE.read_text(encoding="utf-8").replace("tuning: 30", "tuning: 20000").replace("[40, 60, 80]", "[25000]")
    file = tmp_path / "long.yaml"
    file.write_text(text, encoding="utf-8")
    command = [str(SWEEPER), "run", str(file), "--results", str(results), "--executor", "inline"]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while sweeper("stop", "tiny", "--results", results).returncode != 0:
        assert driver.poll() is None
        assert time.monotonic() < deadline
    _, err = driver.communicate(timeout=300)
    assert driver.returncode == 3, err
    assert "the same command goes on from here" in err
    assert not (results / "tiny" / "driver.json").exists()
    with Ledger.open(results, "tiny", create=False) as ledger:
        assert ledger.pending(), "the trials that were asked for wait for the next run"
        assert not ledger.records()


def test_a_bad_file_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(FILE.read_text(encoding="utf-8").replace("step_ratio: 0.3", "step_ratio: 1.3"), encoding="utf-8")
    done = sweeper("plan", file, "--results", tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{file}:24: ")
    assert "1.3" in line
    assert "[0, 1]" in line


def test_an_unknown_sweep_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    for command in ("status", "report", "stop"):
        done = sweeper(command, "nowhere", "--results", tmp_path)
        assert done.returncode == 2, command
        assert len(done.stderr.splitlines()) == 1, done.stderr


def test_a_plan_starts_and_writes_nothing(tmp_path: Path) -> None:
    done = sweeper("plan", FILE, "--results", tmp_path / "results")
    assert done.returncode == 0, done.stderr
    assert "unprepared" in done.stdout
    assert not (tmp_path / "results").exists()


def test_one_driver_per_sweep(tmp_path: Path) -> None:
    from sweeper.lock import driving

    with driving(tmp_path / "tiny"):
        done = sweeper("run", FILE, "--results", tmp_path, "--executor", "inline")
    assert done.returncode == 2
    assert f"process {os.getpid()}" in done.stderr
