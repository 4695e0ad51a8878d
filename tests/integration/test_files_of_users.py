"""What people have lying about, through the installed command: charts and histories of W&B, logs, MLflow, odd tables; then
what else their tables hold, in this process.

Every file says the same runs: a baseline's ladder, and a method that ends where the baseline would at 1.4 times the steps.
"""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from reports.evidence.runs import FinishedRun
from sweeper.cli.app import app
from sweeper.ledger.imports import ImportLedger
from sweeper.ledger.location import default_tracking_uri
from sweeper.ledger.tables import runs_of
from tests.support.finished_runs import OFFSETS, true_loss
from tests.support.ledger_factory import MLFLOW_WARNINGS, empty_results
from tests.support.places import SWEEPER

pytestmark = [MLFLOW_WARNINGS, pytest.mark.slow]
COLUMNS = ("run", "scale", "method", "seed", "total_steps", "gpu_hours", "tokens", "final_loss")
Line = dict[str, Any]


@pytest.fixture
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return empty_results(tmp_path_factory)


Arm = tuple[str, int, float]


def lines(methods: Sequence[Arm] = (("muon", 4_000, 1.4),)) -> list[Line]:
    """Nine baseline runs, and three of each method: its name, its steps, and how much faster it is."""
    arms = [*(("baseline", steps, 1.0) for steps in (4_000, 6_000, 8_000)), *methods]
    return [
        {
            "run": f"{method}-{steps}-{seed}",
            "scale": "124M",
            "method": method,
            "seed": seed,
            "total_steps": steps,
            "gpu_hours": steps / 1_000,
            "tokens": steps * 512,
            "final_loss": true_loss(steps * factor) + offset,
        }
        for method, steps, factor in arms
        for seed, offset in enumerate(OFFSETS)
    ]


def table(rows: list[Line], *, columns: tuple[str, ...] = COLUMNS, separator: str = ",") -> str:
    return "\n".join(
        [separator.join(columns), *(separator.join(str(row[name]) for name in columns) for row in rows), ""]
    )


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def imported(results: Path, *arguments: object) -> tuple[str, list[str]]:
    """The headline, and what was said beside it."""
    command = [SWEEPER, "import", *map(str, arguments), "--name", "theirs", "--results", str(results)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[1], done.stderr.splitlines()


def invoked(results: Path, *arguments: object) -> Result:
    """The same in this process: starting another one is what takes long."""
    command = ["import", *map(str, arguments), "--name", "theirs", "--results", str(results)]
    return CliRunner().invoke(app, command, catch_exceptions=False)


def in_this_process(results: Path, *arguments: object) -> tuple[str, list[str]]:
    """As `imported`."""
    done = invoked(results, *arguments)
    assert done.exit_code == 0, done.stderr
    return done.stdout.splitlines()[1], done.stderr.splitlines()


def stored(results: Path) -> dict[str, FinishedRun]:
    with ImportLedger.open(results, "theirs", create=False) as ledger:
        return {run.run_id: run for run in runs_of(ledger.tables())}


def summary(results: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((results / "theirs" / "summary.json").read_text(encoding="utf-8"))
    return found


def speedup(results: Path) -> float:
    (scale,) = summary(results)["scales"]
    return float(scale["speedup"])


def test_a_chart_of_wandb(results: Path, tmp_path: Path) -> None:
    runs = write(tmp_path / "runs.csv", table(lines()))
    name = "muon-4000-0"
    chart = [
        f'"Step","{name} - val/loss","{name} - val/loss__MIN","{name} - val/loss__MAX","baseline-4000-0 - val/loss"',
        '"0","10.8","10.8","10.8",""',
        '"2000","3.4","3.4","3.4","3.6"',
        '"3000","NaN","NaN","NaN",""',
        '"4000","3.1","3.1","3.1","3.2"',
    ]
    points = write(tmp_path / "wandb_export.csv", "\n".join(chart) + "\n")
    headline, said = imported(results, runs, "--points", points)
    assert headline.startswith("muon is 1.40x faster (95 %: ")
    assert "wandb_export.csv: 1 point without a finite step and loss left out" in said
    curve = stored(results)[name].curve
    assert curve.steps.tolist() == [0, 2_000, 4_000]
    assert curve.losses.tolist() == [10.8, 3.4, 3.1]
    assert curve.gpu_hours is not None
    assert curve.gpu_hours.tolist() == [0, 2, 4]
    assert len(stored(results)["baseline-4000-0"].curve) == 2


def test_a_history_of_wandb(results: Path, tmp_path: Path) -> None:
    runs = write(tmp_path / "runs.csv", table(lines()))
    history = [
        {"_step": 0, "val/loss": 10.8, "_runtime": 1.5},
        {"_step": 1_000, "train/loss": 3.9},
        {"_step": 2_000, "val/loss": 3.4, "train/loss": 3.5},
        {"_step": 2_500, "val/loss": "NaN"},
        {"_step": 3_000, "val/loss": "Infinity"},
        {"_step": 4_000, "val/loss": 3.1},
    ]
    points = write(tmp_path / "muon-4000-1.jsonl", "\n".join(map(json.dumps, history)))
    headline, said = imported(results, runs, "--points", points)
    assert headline.startswith("muon is 1.40x faster")
    assert "muon-4000-1.jsonl: 2 points without a finite step and loss left out" in said
    curve = stored(results)["muon-4000-1"].curve
    assert curve.steps.tolist() == [0, 2_000, 4_000]
    assert curve.losses.tolist() == [10.8, 3.4, 3.1]


def log(row: Line, devices: int) -> str:
    """A log as nanogpt speedruns write them: their own source, then a line for each step that said anything."""
    total, milliseconds = row["total_steps"], row["gpu_hours"] / devices * 3.6e6
    return "\n".join(
        [
            'print(f"step:{step}/{total} val_loss:{val_loss:.4f} train_time:{time:.0f}ms")',
            f"step:0/{total} val_loss:10.8258 train_time:0ms step_avg:0.03ms",
            f"step:1/{total} train_time:{milliseconds / total:.0f}ms step_avg:58.0ms",
            f"step:{total // 2}/{total} val_loss:3.6210 train_time:{milliseconds / 2:.0f}ms step_avg:58.0ms",
            f"step:{total}/{total} val_loss:{row['final_loss']!r} train_time:{milliseconds:.0f}ms step_avg:58.0ms",
            "peak memory allocated: 31288 MiB",
        ]
    )


def test_logs_of_nanogpt_speedruns(results: Path, tmp_path: Path) -> None:
    for row in lines():
        write(tmp_path / "logs" / row["method"] / f"{row['total_steps']}-{row['seed']}.txt", log(row, devices=8))
    cut = log(lines()[-1], devices=8).replace(f"step:{4_000}/", f"step:{3_999}/")
    write(tmp_path / "logs" / "muon" / "cut.txt", cut)
    headline, _ = imported(results, tmp_path / "logs", "--set", "scale=124M", "--set", "devices=8")
    assert headline.startswith("muon is 1.40x faster (95 %: ")
    found = stored(results)
    run = found["muon/4000-1"]
    assert (run.final_loss, run.seed, run.total_steps) == (true_loss(5_600), None, 4_000)
    assert run.gpu_hours == pytest.approx(4.0)
    assert run.curve.steps.tolist() == [0, 2_000, 4_000]
    assert run.curve.gpu_hours is not None
    assert run.curve.gpu_hours.tolist() == pytest.approx([0, 2, 4])
    assert found["muon/cut"].outcome == "stopped"


def test_mlflow_with_an_infinite_loss_and_a_parent_run(results: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    from mlflow import MlflowClient

    theirs = empty_results(tmp_path_factory)
    uri = default_tracking_uri(theirs)
    client = MlflowClient(uri)
    experiment = client.create_experiment("pretraining", artifact_location=(theirs / "other").as_uri())
    parent = client.create_run(experiment, run_name="grid").info.run_id
    client.log_param(parent, "trials", 13)
    broken = {**lines()[-1], "run": "broken", "seed": 9, "final_loss": math.inf}
    for row in [*lines(), broken]:
        tags = {"mlflow.parentRunId": parent}
        run = client.create_run(experiment, run_name=row["run"], tags=tags).info.run_id
        for key in ("method", "seed", "total_steps"):
            client.log_param(run, key, row[key])
        client.log_metric(run, "val/loss", row["final_loss"])
        client.log_metric(run, "gpu_hours", row["gpu_hours"])
        client.set_terminated(run)
    client.set_terminated(parent)
    headline, said = imported(
        results, "--mlflow", "pretraining", "--source-uri", uri, "--map", "final_loss=val/loss", "--set", "scale=124M"
    )
    assert headline.startswith("muon is 1.40x faster (95 %: ")
    assert "pretraining: 1 run left out that stands above others and trained nothing" in said
    found = stored(results)
    assert len(found) == 13
    assert (found["broken"].outcome, found["broken"].final_loss) == ("diverged", None)


def test_a_table_with_semicolons(results: Path, tmp_path: Path) -> None:
    for top in ("", "sep=;\n"):
        text = top + table(lines(), separator=";")
        headline, _ = imported(results, write(tmp_path / "runs.csv", text))
        assert headline.startswith("muon is 1.40x faster (95 %: ")


def test_a_table_in_bits_per_byte(results: Path, tmp_path: Path) -> None:
    rows = [{**row, "final_loss": row["final_loss"] / math.log(2) / 4.2} for row in lines()]
    file = write(tmp_path / "runs.csv", table(rows))
    headline, _ = imported(results, file, "--unit", "bits_per_byte", "--bytes-per-token", "4.2")
    assert headline.startswith("muon is 1.40x faster (95 %: ")
    (scale,) = summary(results)["scales"]
    assert scale["target_loss"] == pytest.approx(true_loss(5_600))
    (check,) = (check for check in summary(results)["checks"] if check["name"] == "Losses in nats")
    assert (check["status"], check["number"]) == ("pass", "bits per byte (4.2 bytes a token)")
    page = (results / "theirs" / "report.html").read_text(encoding="utf-8")
    assert "losses were in bits per byte (4.2 bytes a token)" in page


def test_a_table_without_hours(results: Path, tmp_path: Path) -> None:
    columns = tuple(name for name in COLUMNS if name != "gpu_hours")
    headline, said = imported(results, write(tmp_path / "runs.csv", table(lines(), columns=columns)))
    assert headline.startswith("muon is 1.40x faster")
    assert "runs.csv: no column bag_size, step_ratio, gpu_hours, which stays unknown" in said
    found = summary(results)
    assert found["clock"] == "model FLOPs"
    page = (results / "theirs" / "report.html").read_text(encoding="utf-8")
    assert "baseline GPU-hours, at" in page, "the reader's own plan is in hours"
    assert "What the sweep took is not known." in page
    assert speedup(results) == pytest.approx(1.4, rel=1e-4)


def test_perplexities_that_nobody_called_so_are_warned_of(results: Path, tmp_path: Path) -> None:
    rows = [{**row, "final_loss": math.exp(row["final_loss"])} for row in lines()]
    file = write(tmp_path / "runs.csv", table(rows))
    _, said = in_this_process(results, file)
    assert any("above ln V = 13.82 of a model that knows nothing" in line for line in said)
    (check,) = (check for check in summary(results)["checks"] if check["name"] == "Losses in nats")
    assert check["status"] == "warn"
    _, said = in_this_process(results, file, "--unit", "perplexity")
    assert not any("ln V" in line for line in said)
    (scale,) = summary(results)["scales"]
    assert scale["target_loss"] == pytest.approx(true_loss(5_600))


def test_the_first_method_of_the_table_has_the_headline_under_its_own_name(results: Path, tmp_path: Path) -> None:
    rows = lines([("zeta", 4_000, 1.41), ("alpha", 4_000, 0.96)])
    headline, _ = in_this_process(results, write(tmp_path / "runs.csv", table(rows)))
    assert headline.startswith("zeta is 1.41x faster (95 %: ")
    assert [one["method"] for one in summary(results)["scales"]] == ["zeta", "alpha"]


def test_a_ladder_that_never_gets_there_is_not_known_and_asks_for_more(results: Path, tmp_path: Path) -> None:
    rows = lines([("muon", 12_400, 1.0)])
    headline, _ = in_this_process(results, write(tmp_path / "runs.csv", table(rows)))
    (scale,) = summary(results)["scales"]
    assert 0.6 < scale["lower_bound"] < 0.7
    assert headline == (
        "Not known whether muon is faster at 124M: no run of the baseline ends as low (S > 0.65x, 95 %); "
        "needs budgets of the baseline above 12,400 steps."
    )


@pytest.mark.parametrize(("unit", "status"), [("own", "pass"), ("shared", "fail")])
def test_rates_of_another_unit_are_tuned_alike_by_trials_and_octaves(
    results: Path, tmp_path: Path, unit: str, status: str
) -> None:
    """Five trials of each method over two octaves, the rescaled one at rates eleven times as high."""
    tuning = [
        {
            **lines()[0],
            "run": f"tuning-{method}-{number}",
            "method": method,
            "seed": 90,
            "learning_rate": f"{rate:.3g}",
            "stage": "tuning",
        }
        for method, first in (("baseline", 1e-3), ("muon", 1.1e-2))
        for number in range(5)
        for rate in (first * 2 ** (number / 2),)
    ]
    rows = [{"learning_rate": "", "stage": "confirmation", **row} for row in (*lines(), *tuning)]
    for row in rows:
        row["learning_rate_unit"] = unit if row["method"] == "muon" else ""
    columns = (*COLUMNS, "learning_rate", "stage", "learning_rate_unit")
    headline, _ = in_this_process(results, write(tmp_path / "runs.csv", table(rows, columns=columns)))
    (check,) = (check for check in summary(results)["checks"] if check["name"] == "Equal tuning")
    assert (check["status"], headline.startswith("UNEQUAL TUNING")) == (status, status == "fail")


def test_what_few_tables_say_is_shown_and_checked(results: Path, tmp_path: Path) -> None:
    rows = [
        {
            **row,
            "scores": f"hellaswag=0.3{row['seed']} arc=0.25",
            "execution": "eager" if row["method"] == "muon" else "compiled",
            "validation_set": "wikitext" if row["seed"] == 2 and row["method"] == "muon" else "fineweb",
            "flops": 6e20 if row["method"] == "muon" else row["total_steps"] * 2e17,
        }
        for row in lines()
    ]
    columns = (*COLUMNS, "scores", "execution", "validation_set", "flops")
    in_this_process(results, write(tmp_path / "runs.csv", table(rows, columns=columns)))
    found = summary(results)
    checks = {check["name"]: (check["status"], check["number"]) for check in found["checks"]}
    assert checks["Same execution"] == ("warn", "2 stated")
    assert checks["Same validation set"] == ("warn", "2 values")
    assert checks["Hours agree with FLOPs"][0] == "warn"
    (scale,) = found["scales"]
    assert scale["seeds"]["method"] == 2, "the run on another text is left out"
    page = (results / "theirs" / "report.html").read_text(encoding="utf-8")
    assert "Downstream scores as they were stated; no claim rests on them" in page
    assert "hellaswag" not in json.dumps(found)


def test_of_thousands_of_bad_rows_twenty_are_told(results: Path, tmp_path: Path) -> None:
    rows = [{**row, "run": "", "total_steps": "1,000"} for row in lines() * 100]
    file = write(tmp_path / "runs.csv", table(rows, separator=";"))
    done = invoked(results, file)
    assert done.exit_code == 2
    told = done.stderr.splitlines()
    assert told[0] == (
        "runs.csv:2: total_steps: '1,000' is not a positive whole number; "
        "a comma may be of thousands or of decimals: write 1000 or 1.000"
    )
    assert (len(told), told[-1]) == (21, "and 1,180 more like these")
    assert not (results / "theirs").exists()
