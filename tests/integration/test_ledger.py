"""The ledger on a real MLflow: what a reviewer finds there, and that writing twice, dying and moving lose nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from sweeper.ledger.location import ARTIFACTS, LedgerError, default_tracking_uri
from sweeper.ledger.mlflow_ledger import Ledger, list_sweeps
from tests.support.ledger_factory import MLFLOW_WARNINGS, about_of, empty_results
from tests.support.places import ROOT
from tests.support.strategies import record_of, spec_of
from trainers.contract.record import Diverged, Failed, Stopped

pytestmark = MLFLOW_WARNINGS
NAME = "quickstart"


@pytest.fixture
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return empty_results(tmp_path_factory)


@pytest.fixture
def ledger(results: Path) -> Ledger:
    ledger = Ledger.open(results, NAME, create=True)
    ledger.begin(about_of(NAME))
    return ledger


def client_of(results: Path) -> MlflowClient:
    return MlflowClient(default_tracking_uri(results))


def runs_of(results: Path, ledger: Ledger) -> list[Run]:
    return list(client_of(results).search_runs([ledger.experiment_id]))


def children_of(results: Path, ledger: Ledger) -> dict[str, Run]:
    return {run.data.tags["spec_id"]: run for run in runs_of(results, ledger) if "spec_id" in run.data.tags}


def sweep_run(results: Path, ledger: Ledger) -> Run:
    (run,) = [run for run in runs_of(results, ledger) if "spec_id" not in run.data.tags]
    return run


def record_file(results: Path, run: Run) -> Path:
    return results / ARTIFACTS / NAME / run.info.run_id / "artifacts" / "record.json"


def test_trials_are_children_of_the_sweep(results: Path, ledger: Ledger) -> None:
    ledger.write(record_of(spec_of("tst")))
    ledger.schedule(spec_of("tst", seed=1), "tuning")
    parent = sweep_run(results, ledger)
    children = children_of(results, ledger).values()
    assert len(children) == 2
    assert {child.data.tags["mlflow.parentRunId"] for child in children} == {parent.info.run_id}
    assert {child.info.status for child in children} == {"FINISHED", "SCHEDULED"}
    assert parent.info.status == "RUNNING"


def test_sweep_says_where_it_comes_from(results: Path, ledger: Ledger) -> None:
    parent = sweep_run(results, ledger)
    about = about_of(NAME)
    assert parent.data.tags["git_commit"] == about.git_commit
    assert parent.data.tags["command"] == about.command
    (dataset,) = parent.inputs.dataset_inputs
    assert dataset.dataset.digest == about.corpus_fingerprint
    folder = results / ARTIFACTS / NAME / parent.info.run_id / "artifacts"
    assert (folder / "search_space.yaml").read_text() == about.search_space_text


def test_trial_shows_its_tags_parameters_and_metrics(results: Path, ledger: Ledger) -> None:
    record = record_of(spec_of("tst", seed=1000))
    ledger.write(record)
    run = children_of(results, ledger)[record.spec.spec_id]
    assert run.info.run_name == "nano TST s=3 r=0.2 lr=2.8e-03 · 4,000 steps · seed 1000 · confirmation"
    shown = {key: run.data.tags[key] for key in ("scale", "method", "stage", "outcome", "device", "git_commit")}
    assert shown == {
        "scale": "nano",
        "method": "tst",
        "stage": "confirmation",
        "outcome": "finished",
        "device": record.provenance.device,
        "git_commit": record.provenance.git_commit,
    }
    assert run.data.params["bag_size"] == "3"
    assert run.data.metrics["final_loss"] == record.final_loss
    assert run.data.metrics["gpu_hours"] == pytest.approx(record.timing.gpu_hours)


def test_loss_and_clocks_lie_at_the_same_steps(results: Path, ledger: Ledger) -> None:
    record = record_of(spec_of("tst"))
    ledger.write(record)
    run_id = children_of(results, ledger)[record.spec.spec_id].info.run_id
    client = client_of(results)
    for key, values in {
        "validation_loss": [point.loss for point in record.curve.points],
        "gpu_hours": [point.seconds / 3_600 for point in record.curve.points],
        "tokens": [point.tokens for point in record.curve.points],
        "flops": [point.flops for point in record.curve.points],
    }.items():
        history = sorted(client.get_metric_history(run_id, key), key=lambda metric: metric.step)
        assert [metric.step for metric in history] == [point.step for point in record.curve.points]
        assert [metric.value for metric in history] == values


def test_long_curve_is_thinned_in_the_dashboard_and_whole_in_the_record(results: Path, ledger: Ledger) -> None:
    record = record_of(spec_of(total_steps=20_000), num_points=3_000)
    ledger.write(record)
    run_id = children_of(results, ledger)[record.spec.spec_id].info.run_id
    history = client_of(results).get_metric_history(run_id, "validation_loss")
    assert len(history) == 500
    assert {0, 20_000} & {metric.step for metric in history} == {20_000}
    assert ledger.records() == [record]


def test_everything_twice_is_as_once(results: Path, ledger: Ledger) -> None:
    records = [record_of(spec_of("tst")), record_of(spec_of(), outcome=Diverged(700, "loss is not finite"))]
    for _ in range(2):
        with Ledger.open(results, NAME, create=True) as again:
            again.begin(about_of(NAME))
            for record in records:
                again.schedule(record.spec, record.purpose)
                again.write(record)
            again.finish("finished", "no difference detected", None)
    assert len(runs_of(results, ledger)) == 3
    run_id = children_of(results, ledger)[records[0].spec.spec_id].info.run_id
    assert len(client_of(results).get_metric_history(run_id, "validation_loss")) == len(records[0].curve.points)
    assert list_sweeps(results) == ["unused", NAME]


def test_outcomes_have_their_status(results: Path, ledger: Ledger) -> None:
    outcomes = {0: Stopped(9, "asked to"), 1: Diverged(9, "not finite"), 2: Failed("<script>alert(1)</script>")}
    for seed, outcome in outcomes.items():
        ledger.write(record_of(spec_of(seed=seed), outcome=outcome))
    runs = children_of(results, ledger)
    by_seed = {seed: runs[spec_of(seed=seed).spec_id] for seed in outcomes}
    assert [by_seed[seed].info.status for seed in outcomes] == ["KILLED", "FAILED", "FAILED"]
    assert by_seed[2].data.tags["reason"] == "<script>alert(1)</script>"
    assert [record.outcome for record in ledger.records()] == list(outcomes.values())


def test_first_start_is_kept_and_the_rest_is_as_of_now(results: Path, ledger: Ledger) -> None:
    later = replace(about_of(NAME, "sweeper run other.yaml"), started_at="2027-01-01T00:00:00+00:00")
    ledger.begin(later)
    assert ledger.about() == replace(later, started_at=about_of(NAME).started_at)


@pytest.fixture(scope="module")
def abandoned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of a driver in a process of its own that was killed after one of its four trials."""
    results = empty_results(tmp_path_factory)
    program = """
import os, signal, sys
from pathlib import Path
from sweeper.ledger.mlflow_ledger import Ledger
from tests.support.ledger_factory import about_of
from tests.support.strategies import record_of, spec_of
ledger = Ledger.open(Path(sys.argv[1]), "quickstart", create=True)
ledger.begin(about_of("quickstart"))
for seed in range(4):
    ledger.schedule(spec_of(seed=seed), "tuning")
ledger.started(spec_of(seed=2))
ledger.write(record_of(spec_of(seed=1), purpose="tuning"))
os.kill(os.getpid(), signal.SIGKILL)
"""
    root = ROOT
    ended = subprocess.run([sys.executable, "-c", program, str(results)], cwd=root, check=False)
    assert ended.returncode == -signal.SIGKILL
    return results


def test_killed_driver_leaves_its_trials_pending(abandoned: Path, tmp_path: Path) -> None:
    results = shutil.copytree(abandoned, tmp_path / "results")
    with Ledger.open(results, NAME, create=True) as ledger:
        ledger.begin(about_of(NAME))
        assert ledger.pending() == [(spec_of(seed=seed), "tuning") for seed in (0, 2, 3)]
        for spec, purpose in ledger.pending():
            ledger.write(record_of(spec, purpose=purpose))
        assert ledger.pending() == []
        assert len(children_of(results, ledger)) == 4


def test_moved_results_are_read_and_continued_at_their_new_place(abandoned: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(abandoned, tmp_path / "elsewhere, with spaces")
    before = {file: file.read_bytes() for file in abandoned.rglob("*") if file.is_file()}
    done = record_of(spec_of(seed=1), purpose="tuning")
    with Ledger.open(moved, NAME, create=False) as ledger:
        assert ledger.records() == [done]
        assert ledger.about() == about_of(NAME)
    with Ledger.open(moved, NAME, create=True) as ledger:
        ledger.begin(about_of(NAME, "sweeper run other.yaml"))
        ledger.write(record_of(spec_of("tst")))
        assert ledger.records() == [done, record_of(spec_of("tst"))]
        run = children_of(moved, ledger)[done.spec.spec_id]
    assert [file.path for file in client_of(moved).list_artifacts(run.info.run_id)] == ["record.json"]
    assert {file: file.read_bytes() for file in abandoned.rglob("*") if file.is_file()} == before


def test_death_between_record_and_outcome_is_healed(results: Path, ledger: Ledger) -> None:
    record = record_of(spec_of())
    ledger.write(record)
    run = children_of(results, ledger)[record.spec.spec_id]
    client = client_of(results)
    client.delete_tag(run.info.run_id, "outcome")
    client.update_run(run.info.run_id, status="RUNNING")
    with Ledger.open(results, NAME, create=True) as again:
        again.begin(about_of(NAME))
        assert again.pending() == []
        assert again.records() == [record]
    assert children_of(results, ledger)[record.spec.spec_id].info.status == "FINISHED"


def test_death_within_the_record_file_leaves_the_trial_pending(results: Path, ledger: Ledger) -> None:
    record = record_of(spec_of())
    ledger.write(record)
    run = children_of(results, ledger)[record.spec.spec_id]
    client_of(results).delete_tag(run.info.run_id, "outcome")
    os.truncate(record_file(results, run), 100)
    with Ledger.open(results, NAME, create=True) as again:
        again.begin(about_of(NAME))
        assert again.pending() == [(record.spec, record.purpose)]
        assert again.records() == []


def test_damaged_record_is_named_and_asked_for_again(results: Path, ledger: Ledger) -> None:
    good, bad, alien = (record_of(spec_of(seed=seed)) for seed in range(3))
    for record in (good, bad, alien):
        ledger.write(record)
    runs = children_of(results, ledger)
    record_file(results, runs[bad.spec.spec_id]).write_text("{")
    shutil.copy(record_file(results, runs[good.spec.spec_id]), record_file(results, runs[alien.spec.spec_id]))
    with Ledger.open(results, NAME, create=False) as again:
        assert again.records() == [good]
        assert [line.split(" · ")[2] for line in again.damaged()] == ["seed 1", "seed 2"]
        assert all("\n" not in line and "record.json is unreadable" in line for line in again.damaged())
        assert [spec for spec, _ in again.pending()] == [bad.spec, alien.spec]


@pytest.mark.parametrize("change", [{"schema": 99}, {"stage": "warm-up"}, {"corpus_tokens": None, "curve": {}}])
def test_record_of_another_schema_is_not_read(results: Path, ledger: Ledger, change: dict[str, object]) -> None:
    record = record_of(spec_of())
    ledger.write(record)
    file = record_file(results, children_of(results, ledger)[record.spec.spec_id])
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with Ledger.open(results, NAME, create=False) as again:
        assert again.records() == []
        assert len(again.damaged()) == 1


def test_reopened_trial_is_pending_until_its_next_record(results: Path, ledger: Ledger) -> None:
    failed = record_of(spec_of(), outcome=Failed("lost its machine"))
    ledger.write(failed)
    ledger.reopen(failed.spec)
    with Ledger.open(results, NAME, create=True) as again:
        again.begin(about_of(NAME))
        assert again.pending() == [(failed.spec, failed.purpose)]
        finished = record_of(spec_of())
        again.write(finished)
        assert again.records() == [finished]
    run = children_of(results, ledger)[failed.spec.spec_id]
    assert (run.info.status, run.data.tags["outcome"]) == ("FINISHED", "finished")
    assert "reason" not in run.data.tags


def test_another_record_of_the_same_trial_replaces_the_first(results: Path, ledger: Ledger) -> None:
    ledger.write(record_of(spec_of(), outcome=Failed("lost its machine")))
    finished = record_of(spec_of())
    ledger.write(finished)
    with Ledger.open(results, NAME, create=False) as again:
        assert again.records() == [finished]
    (run,) = children_of(results, ledger).values()
    assert run.info.status == "FINISHED"
    assert "reason" not in run.data.tags


def test_two_sweeps_in_one_database_do_not_mix(results: Path, ledger: Ledger) -> None:
    ledger.write(record_of(spec_of(), final_loss=2.5))
    with Ledger.open(results, "other", create=True) as other:
        other.begin(about_of("other"))
        other.write(record_of(spec_of(), final_loss=2.9))
        assert [record.final_loss for record in other.records()] == [2.9]
        assert set(other.run_links().values()).isdisjoint(ledger.run_links().values())
    assert [record.final_loss for record in ledger.records()] == [2.5]
    assert list_sweeps(results) == ["unused", NAME, "other"]


def test_end_of_the_sweep_carries_headline_and_report(results: Path, ledger: Ledger, tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    report.write_text("<h1>report</h1>")
    (tmp_path / "summary.json").write_text("{}")
    ledger.finish("finished", "TST was 1.05× faster", report)
    parent = sweep_run(results, ledger)
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["mlflow.note.content"].splitlines()[0] == "TST was 1.05× faster"
    attached = {file.path for file in client_of(results).list_artifacts(parent.info.run_id)}
    assert attached == {"about.json", "report.html", "search_space.yaml", "summary.json"}


def test_links_name_the_runs(results: Path, ledger: Ledger) -> None:
    record = record_of(spec_of())
    ledger.write(record)
    run_id = children_of(results, ledger)[record.spec.spec_id].info.run_id
    assert ledger.run_links() == {record.spec.spec_id: f"#/experiments/{ledger.experiment_id}/runs/{run_id}"}


def test_missing_ledger_is_one_clear_line(results: Path, tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match=r"nowhere: no sweep of that name in .*mlflow\.db; it holds: unused"):
        Ledger.open(results, "nowhere", create=False)
    with pytest.raises(LedgerError, match=r"nowhere: no ledger at .*; run a sweep first"):
        Ledger.open(tmp_path, "nowhere", create=False)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(LedgerError, match="no MLflow server answers there"):
        Ledger.open(tmp_path, "nowhere", "http://127.0.0.1:9", create=True)


def test_database_that_is_none_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("not a database, but long enough to look like one" * 30)
    with pytest.raises(LedgerError) as raised:
        Ledger.open(tmp_path, NAME, create=True)
    assert "\n" not in str(raised.value)


def test_deleted_sweep_says_how_to_bring_it_back(results: Path, ledger: Ledger) -> None:
    client_of(results).delete_experiment(ledger.experiment_id)
    with pytest.raises(LedgerError, match=f"mlflow experiments restore --experiment-id {ledger.experiment_id}"):
        Ledger.open(results, NAME, create=True)


def test_sweep_that_never_began_has_no_description(results: Path) -> None:
    with Ledger.open(results, "unused", create=False) as ledger, pytest.raises(LedgerError, match="never begun"):
        ledger.about()
