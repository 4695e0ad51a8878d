"""Runs from elsewhere: read whole or not at all, every bad row with its line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from reports.estimate.verdict import Reached
from reports.evidence.delimited import RunImportError
from reports.evidence.exporting import runs_to_csv
from reports.evidence.importing import read_runs, size_from_name
from reports.evidence.runs import DECAY_NOT_STATED
from reports.evidence.study import SweepContext, build_study
from reports.published import published_study
from reports.summary import summarize, summary_to_json
from tests.support.finished_runs import sweep, true_loss

HEADER = "scale,method,seed,total_steps,bag_size,step_ratio,gpu_hours,tokens,final_loss"


def write(folder: Path, *rows: str, header: str = HEADER, name: str = "runs.csv") -> Path:
    path = folder / name
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def problems(path: Path, points: Path | None = None) -> list[str]:
    with pytest.raises(RunImportError) as caught:
        read_runs(path, points)
    return str(caught.value).split("\n")


def test_a_sweep_trained_elsewhere_is_read_and_judged(tmp_path: Path) -> None:
    rows = [
        f"270M,baseline,{seed},{steps},1,0,{steps / 1000},{steps * 512},{true_loss(steps) + 0.002 * seed}"
        for steps in (4_000, 6_000, 8_000)
        for seed in range(3)
    ]
    rows += [
        f"270M,tst,{seed},4000,4,0.25,4.0,{4_000 * 512 * 1.75},{true_loss(5_600) + 0.002 * seed}" for seed in range(3)
    ]
    runs = read_runs(write(tmp_path, *rows))
    assert len(runs) == 12
    assert runs[0].params == 270e6
    assert runs[0].notes == (DECAY_NOT_STATED,)
    assert runs[-1].boundary_step == 1_000
    (verdict,) = summarize(build_study(SweepContext("theirs", "faster?", kind="imported"), runs)).verdicts
    assert isinstance(verdict.speedup, Reached)
    assert verdict.speedup.speedup == pytest.approx(1.4, rel=1e-4)
    assert verdict.speedup.interval is not None
    assert verdict.data_multiplier == pytest.approx(1.75 / 1.4, rel=1e-4)
    assert (verdict.trials_baseline, verdict.trials_method) == (None, None)
    clocks = dict(verdict.by_clock)
    assert isinstance(clocks["flops"], Reached)
    assert clocks["flops"].speedup == pytest.approx(1.4, rel=1e-4)


def test_all_bad_rows_are_listed_and_nothing_is_read(tmp_path: Path) -> None:
    found = problems(
        write(
            tmp_path,
            "3B,baseline,0,100,1,0,3,4,2.5",
            "3B,tst,0,100,4,1.4,3,4,2.5",
            "3B,tst,0,0,4,0.3,3,4,2.5",
            "3B,tst,zero,100,4,0.3,3,4,2.5",
            "",
            "3B,tst,0,100,4,0.3,3,4,",
            "3B,baseline,0,200,4,0,3,4,2.5",
            "3B,baseline,0,100,1,0,3,4,2.4",
            "3B,tst,0,100",
            "3B,tst,1,100,4,0.3,-3,4,2.5",
            ",tst,1,100,4,0.3,3,4,2.5",
        )
    )
    assert found == [
        "runs.csv:3: step_ratio: 1.4 is not in [0, 1]",
        "runs.csv:4: total_steps: 0 is not a positive whole number",
        "runs.csv:5: seed: 'zero' is not a whole number from 0 up",
        "runs.csv:7: final_loss: empty; a run that did not finish says so with outcome or nan",
        "runs.csv:8: bag_size: 4 for the baseline, which has 1",
        "runs.csv:9: the same scale, method, parameters, learning rate, steps and seed as line 2",
        "runs.csv:10: 4 cells, the header has 9",
        "runs.csv:11: gpu_hours: -3 is not a positive number",
        "runs.csv:12: scale: empty; it is needed",
    ]


def test_missing_columns_and_empty_files_are_said(tmp_path: Path) -> None:
    (found,) = problems(write(tmp_path, "3B,1", header="scale,seed"))
    assert found.startswith("runs.csv:1: missing columns method, total_steps")
    assert problems(write(tmp_path)) == ["runs.csv:1: no runs below the header"]


def test_a_loss_that_is_no_number_is_a_divergence(tmp_path: Path) -> None:
    (run,) = read_runs(write(tmp_path, "3B,tst,0,100,4,0.3,,,nan"))
    assert (run.outcome, run.final_loss, run.decayed) == ("diverged", None, False)
    assert (run.gpu_hours, run.tokens) == (None, None)


def test_optional_columns(tmp_path: Path) -> None:
    header = f"{HEADER},learning_rate,device,params,stage,decayed,outcome"
    first, second = read_runs(
        write(
            tmp_path,
            "mine,tst,0,100,4,0.3,3,4,2.5,2e-4,H100,7e9,tuning,no,finished",
            "mine,tst,1,100,4,0.3,3,4,,2e-4,H100,7e9,,yes,failed",
            header=header,
        )
    )
    assert (first.learning_rate, first.device, first.params, first.purpose) == (2e-4, "H100", 7e9, "tuning")
    assert not first.decayed
    assert first.notes == ()
    assert (second.outcome, second.purpose) == ("failed", "confirmation")
    assert problems(write(tmp_path, "3B,tst,0,100,4,0.3,3,4,2.5,,,,final,,", header=header)) == [
        "runs.csv:2: stage: 'final' is not one of tuning, confirmation, noise_floor"
    ]


def test_other_names_for_the_columns(tmp_path: Path) -> None:
    path = write(tmp_path, "3B,tst,0,100,4,0.3,3,4,2.5", header=HEADER.replace("final_loss", "val/ce"))
    (run,) = read_runs(path, columns={"final_loss": "val/ce"})
    assert run.final_loss == 2.5


def test_in_run_points_join_by_the_name_of_the_run(tmp_path: Path) -> None:
    runs = write(tmp_path, "one,3B,tst,0,100,4,0.3,3,4,2.5", header=f"run,{HEADER}")
    points = write(tmp_path, "one,50,3.0,1.5", "one,100,2.5,3.0", header="run,step,loss,gpu_hours", name="points.csv")
    (run,) = read_runs(runs, points)
    assert run.curve.steps.tolist() == [50, 100]
    assert run.curve.losses.tolist() == [3.0, 2.5]
    assert run.curve.gpu_hours is not None
    assert run.curve.gpu_hours.tolist() == [1.5, 3.0]
    assert run.curve.tokens is None
    bad = write(tmp_path, "two,50,3.0", "one,x,3.0", header="run,step,loss", name="points.csv")
    assert problems(runs, bad) == [
        "points.csv:2: run: 'two' is not in runs.csv",
        "points.csv:3: step: 'x' is not a number from 0 up",
    ]


def test_sizes_in_names() -> None:
    assert [size_from_name(name) for name in ("270M", "3b", "1.7B", "10B-A1B", "nano", "3bears")] == [
        270e6,
        3e9,
        1.7e9,
        10e9,
        None,
        None,
    ]


def test_what_is_exported_comes_back(tmp_path: Path) -> None:
    for number, study in enumerate((published_study(), sweep(1.4))):
        path = tmp_path / f"{number}.csv"
        path.write_text(runs_to_csv(study), encoding="utf-8")
        runs = read_runs(path)
        assert len(runs) == len(study.runs)
        again = summary_to_json(summarize(build_study(study.context, runs)))["scales"]
        before = summary_to_json(summarize(study))["scales"]
        for ours, theirs in zip(before, again, strict=True):
            assert theirs["matched_pair"] == ours["matched_pair"]
            assert (theirs["speedup"] is None) == (ours["speedup"] is None)
            assert theirs["speedup"] is None or theirs["speedup"] == pytest.approx(ours["speedup"], rel=1e-9)
            assert theirs["trials"] == ours["trials"]


def test_exported_text_cannot_start_a_formula(tmp_path: Path) -> None:
    study = sweep(1.4)
    odd = build_study(study.context, [replace(study.runs[0], device="=cmd()")])
    assert "'=cmd()" in runs_to_csv(odd)


def test_further_parameters_of_a_method_come_back_and_tell_its_settings_apart(tmp_path: Path) -> None:
    study = sweep(1.4)
    given = (("heads", 2), ("note", "a"), ("step_ratio", 0.5))
    runs = [replace(run, method="other", parameters=given) if run.method == "tst" else run for run in study.runs]
    path = tmp_path / "runs.csv"
    path.write_text(runs_to_csv(build_study(study.context, runs)), encoding="utf-8")
    again = {run.run_id: run for run in read_runs(path)}
    assert {run.run_id: run.parameters for run in runs} == {name: run.parameters for name, run in again.items()}
    assert {run.run_id: run.flops for run in runs} == {name: run.flops for name, run in again.items()}
    (unstated,) = read_runs(write(tmp_path, "3b,other,0,10,,0.5,1,1,2.5,heads=2", header=HEADER + ",parameters"))
    assert unstated.flops is None, "a parameter may change the FLOPs of a step"


@pytest.mark.parametrize("cell", ["heads", "=2", "heads=", "heads=2 heads=3", "bag_size=2", "2x=1"])
def test_a_bad_parameter_is_named_with_its_line(cell: str, tmp_path: Path) -> None:
    path = write(tmp_path, f"3b,other,0,10,,,1,1,2.5,{cell}", header=HEADER + ",parameters")
    (line,) = problems(path)
    assert line.startswith("runs.csv:2: parameters: ")
    (line,) = problems(write(tmp_path, "3b,baseline,0,10,1,0,1,1,2.5,heads=2", header=HEADER + ",parameters"))
    assert "for the baseline" in line
