"""`sweeper report` in this process: what a reader asks of it beside the sweep's name."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from typer.testing import CliRunner

from reports.evidence.exporting import runs_to_csv
from sweeper.cli.app import app
from tests.support.finished_runs import sweep


def test_a_report_says_what_a_given_loss_costs_each_arm(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["report", "--published", "--results", str(tmp_path), "--target", "2.7"])
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert "The baseline gets to a loss of 2.7 in 382 h (95 %: 375 h to 390 h) at 3b." in lines
    assert any(line.startswith("TST has one budget at 3b, so no curve to read a loss of 2.7 off") for line in lines)
    assert "What a loss of 2.7 costs" in (tmp_path / "published" / "report.html").read_text(encoding="utf-8")


def test_a_loss_may_be_given_as_a_perplexity(tmp_path: Path) -> None:
    command = [
        "report",
        "--published",
        "--results",
        str(tmp_path),
        "--target",
        str(math.exp(2.7)),
        "--unit",
        "perplexity",
    ]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert (
        "The baseline gets to a loss of 2.7 (14.8797 perplexity) in 382 h (95 %: 375 h to 390 h) at 3b."
        in done.output.splitlines()
    )


def test_a_report_holds_two_methods_against_each_other_in_a_folder_of_its_own(tmp_path: Path) -> None:
    command = ["report", "--published", "--results", str(tmp_path), "--against", "tst_reinit_embeddings", "--json"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    summary = json.loads(done.output)
    assert summary["against"] == "tst_reinit_embeddings"
    assert [(one["scale"], one["method"]) for one in summary["scales"]] == [("3b", "tst")]
    assert (tmp_path / "published" / "against-tst_reinit_embeddings" / "summary.json").exists()


def test_a_report_says_what_text_in_the_place_of_hours_says_on_a_line_of_its_own(tmp_path: Path) -> None:
    runs = tmp_path / "runs.csv"
    runs.write_text(runs_to_csv(sweep(1.5)), encoding="utf-8")
    options = ["--results", str(tmp_path / "results")]
    done = CliRunner().invoke(app, ["import", str(runs), "--name", "theirs", *options])
    assert done.exit_code == 0, done.output
    headline, equal_data, page = CliRunner().invoke(app, ["report", "theirs", *options]).output.splitlines()
    assert headline.startswith("TST is 1.50x faster (95 %: ")
    assert equal_data.startswith("At equal data (tokens read instead of GPU-hours): TST is slower: 0.86x (95 %: ")
    assert page.endswith("report.html")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--published", "--target", "0"], "--target: 0 is not a loss above 0"),
        (["--published", "--target", "nan"], "--target: nan is not a loss above 0"),
        (["--published", "--unit", "nats"], "--unit: is the unit of --target"),
        (
            ["--published", "--target", "3", "--unit", "bits"],
            "--unit: 'bits' is not one of nats, bits_per_byte, perplexity",
        ),
        (
            ["--published", "--target", "3", "--unit", "bits_per_byte"],
            "the bytes of a token of this validation text are not",
        ),
        (
            ["--published", "--target", "0.9", "--unit", "perplexity"],
            "--target: 0.9 is no perplexity of a loss above 0",
        ),
        (["--published", "--against", "nobody"], "nobody: not a method of published"),
        (["a", "b", "--target", "3"], "are for one sweep, not for a comparison"),
        (["a", "b", "--study-storage", "sqlite:///s.db"], "are for one sweep, not for a comparison"),
        (["--published", "--study-storage", "sqlite:///s.db"], "--study-storage: are for a sweep in the ledger"),
        (["a", "--study-storage", "s.db"], "study_storage: 's.db' is not a database's address"),
    ],
)
def test_what_a_report_cannot_be_asked_is_one_line(options: list[str], message: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["report", *options, "--results", str(tmp_path)])
    assert done.exit_code == 2
    assert message in done.output
