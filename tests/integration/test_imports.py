"""Runs from elsewhere at the command line, with a real MLflow ledger: imported, reported, shown, replaced, compared."""

from __future__ import annotations

import json
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from reports.evidence.importing import read_runs
from reports.evidence.study import SweepContext, build_study
from reports.summary import summarize, summary_to_json
from sweeper.cli.app import app
from sweeper.imports.tables import import_tables
from sweeper.ledger.dashboard import prepare
from sweeper.ledger.imports import ImportLedger
from sweeper.ledger.location import LedgerError, default_tracking_uri
from sweeper.ledger.mlflow_ledger import Ledger
from sweeper.ledger.tables import runs_of, tables_of_files
from tests.support.finished_runs import OFFSETS, true_loss
from tests.support.ledger_factory import MLFLOW_WARNINGS, about_of, empty_results
from tests.support.strategies import record_of, spec_of
from trainers.contract.record import RunRecord
from trainers.contract.record_lines import records_to_text

pytestmark = MLFLOW_WARNINGS
HEADER = "run,scale,method,seed,total_steps,bag_size,step_ratio,gpu_hours,tokens,final_loss"


@pytest.fixture
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return empty_results(tmp_path_factory)


def rows(speedup: float = 1.4) -> list[str]:
    """A ladder of three budgets and one method, three seeds each."""
    table = [
        f"b{steps}-{seed},270M,baseline,{seed},{steps},1,0,{steps / 1000},{steps * 512},{true_loss(steps) + offset}"
        for steps in (4_000, 6_000, 8_000)
        for seed, offset in enumerate(OFFSETS)
    ]
    return table + [
        f"t-{seed},270M,tst,{seed},4000,4,0.25,4.0,{4_000 * 512 * 1.75},{true_loss(4_000 * speedup) + offset}"
        for seed, offset in enumerate(OFFSETS)
    ]


def write(folder: Path, lines: list[str], name: str = "runs.csv", header: str = HEADER) -> Path:
    path = folder / name
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path


def sweeper(results: Path, *arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments), "--results", str(results)], catch_exceptions=False)


def done(results: Path, *arguments: object) -> str:
    result = sweeper(results, *arguments)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def refused(results: Path, *arguments: object) -> str:
    """Exit code 2 and one line on stderr."""
    result = sweeper(results, *arguments)
    assert (result.exit_code, result.stdout) == (2, ""), result.stderr
    (line,) = result.stderr.splitlines()
    return line


def rows_in_mlflow(results: Path, name: str) -> list[Any]:
    """The rows that the dashboard's own filter finds."""
    with Ledger.open(results, name, create=False) as ledger:
        return ledger._search("tags.`sweeper.kind` != 'sweep'")


def test_imported_runs_are_reported_shown_and_exported_as_our_own(results: Path, tmp_path: Path) -> None:
    points = write(tmp_path, ["t-0,2000,4.5,2.0", "t-0,4000,2.9,4.0"], "points.csv", "run,step,loss,gpu_hours")
    file = write(tmp_path, [*rows(), "bad,270M,tst,9,4000,4,0.25,,,nan"])
    said = done(results, "import", file, "--points", points, "--name", "theirs").splitlines()
    assert said[0] == "theirs: 13 runs"
    assert said[1].startswith("TST is 1.40x faster (95 %: ")
    assert Path(said[2]).is_file()

    summary = json.loads(done(results, "report", "theirs", "--json"))
    context = SweepContext("theirs", "?", kind="imported")
    assert summary == summary_to_json(summarize(build_study(context, read_runs(file, points))))
    headline, equal_data, page = done(results, "report", "theirs").splitlines()
    assert ([headline, page], equal_data) == (said[1:], summary["equal_data"])

    shown = done(results, "status", "theirs")
    assert "finished" in shown
    assert [line.split()[2:5] for line in shown.splitlines() if line.startswith("270M")] == [
        ["9", "0", "0"],
        ["3", "1", "0"],
    ]
    assert "bad: diverged" in shown

    assert prepare(results, None, None).name == "theirs"
    found = {run.data.tags["sweeper.row"]: run for run in rows_in_mlflow(results, "theirs")}
    assert len(found) == 13
    assert found["t-0"].data.metrics["final_loss"] == pytest.approx(true_loss(5_600) - 0.004)
    assert found["t-0"].data.metrics["gpu_hours"] == 4.0
    assert found["t-0"].data.params["bag_size"] == "4"
    assert found["bad"].info.status == "FAILED"
    with ImportLedger.open(results, "theirs", create=False) as ledger:
        assert ledger.records() == []
        links = ledger.row_links()
        assert links["t-0"].endswith(found["t-0"].info.run_id)
        (run,) = (run for run in runs_of(ledger.tables()) if run.run_id == "t-0")
    assert run.curve.losses.tolist() == [4.5, 2.9]

    exported = tmp_path / "out" / "runs.csv"
    assert done(results, "report", "theirs", "--csv", exported).splitlines()[-1] == str(exported)
    again = json.loads(done(results, "report", "theirs", "--json"))
    done(results, "import", exported, "--name", "again")
    back = json.loads(done(results, "report", "again", "--json"))
    assert [one["speedup"] for one in back["scales"]] == pytest.approx([one["speedup"] for one in again["scales"]])

    missed = sweeper(results, "report", "theirs", "--fail-under", "1.5")
    assert missed.exit_code == 4
    assert missed.stderr.startswith("270M tst: lower bound 1.3")
    assert sweeper(results, "report", "theirs", "--fail-under", "1.05").exit_code == 0


def test_bad_rows_are_listed_and_nothing_is_imported(results: Path, tmp_path: Path) -> None:
    bad = [*rows(), "x,270M,tst,7,4000,4,1.5,,,2.5", "y,270M,tst,8,none,4,0.2,,,2.5"]
    result = sweeper(results, "import", write(tmp_path, bad), "--name", "theirs")
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [
        "runs.csv:14: step_ratio: 1.5 is not in [0, 1]",
        "runs.csv:15: total_steps: 'none' is not a positive whole number",
    ]
    with pytest.raises(LedgerError, match="no sweep of that name"):
        Ledger.open(results, "theirs", create=False)
    assert not (results / "theirs").exists()

    done(results, "import", write(tmp_path, rows()), "--name", "theirs")
    before = done(results, "report", "theirs", "--json")
    assert sweeper(results, "import", write(tmp_path, bad), "--name", "theirs").exit_code == 2
    assert done(results, "report", "theirs", "--json") == before
    assert len(rows_in_mlflow(results, "theirs")) == 12


def test_importing_again_replaces_and_the_same_changes_nothing(results: Path, tmp_path: Path) -> None:
    first = write(tmp_path, rows(1.4))
    done(results, "import", first, "--name", "theirs")
    before = {run.info.run_id for run in rows_in_mlflow(results, "theirs")}
    assert done(results, "import", first, "--name", "theirs").startswith("theirs: 12 runs, as imported before\n")
    assert {run.info.run_id for run in rows_in_mlflow(results, "theirs")} == before

    said = done(results, "import", write(tmp_path, rows(1.2), "other.csv"), "--name", "theirs")
    assert "TST is 1.20x faster" in said
    assert "TST is 1.20x faster" in done(results, "report", "theirs")
    after = {run.info.run_id for run in rows_in_mlflow(results, "theirs")}
    assert len(after) == 12
    assert not before & after
    assert len(list((results / "mlartifacts" / "theirs").rglob("imports/*/runs.csv"))) == 1, "the first table is kept"


def test_an_import_that_was_cut_short_is_completed_by_the_next(results: Path, tmp_path: Path) -> None:
    """Rows that were never ended, and rows of an import that never counted, are made anew or removed."""
    tables = tables_of_files(write(tmp_path, rows()), None, {})
    import_tables(results, "theirs", tables, None, "sweeper import", None)
    with ImportLedger.open(results, "theirs", create=False) as ledger:
        cut, orphan = rows_in_mlflow(results, "theirs")[:2]
        ledger._client.update_run(cut.info.run_id, status="RUNNING")
        ledger._client.set_tag(orphan.info.run_id, "sweeper.import", "another")
    assert import_tables(results, "theirs", tables, None, "sweeper import", None).written == 2
    found = rows_in_mlflow(results, "theirs")
    assert len(found) == 12
    assert len({run.data.tags["sweeper.row"] for run in found}) == 12
    assert not {cut.info.run_id, orphan.info.run_id} & {run.info.run_id for run in found}


def test_a_name_belongs_to_one_kind_of_runs(results: Path, tmp_path: Path) -> None:
    with Ledger.open(results, "ours", create=True) as ledger:
        ledger.begin(about_of("ours"))
        ledger.write(record_of(spec_of()))
    file = write(tmp_path, rows())
    assert refused(results, "import", file, "--name", "ours") == (
        "ours: is the name of a sweep of its own here; choose another name"
    )
    done(results, "import", file, "--name", "theirs")
    with (
        Ledger.open(results, "theirs", create=True) as ledger,
        pytest.raises(LedgerError, match="theirs: is the name of imported runs here"),
    ):
        ledger.begin(about_of("theirs"))
    with Ledger.open(results, "ours", create=False) as ledger:
        assert ledger.records() == [record_of(spec_of())]


def test_a_lost_table_is_said_in_one_line(results: Path, tmp_path: Path) -> None:
    done(results, "import", write(tmp_path, rows()), "--name", "theirs")
    (kept,) = (results / "mlartifacts" / "theirs").rglob("imports/*/runs.csv")
    kept.unlink()
    assert refused(results, "report", "theirs").startswith("theirs: the imported tables cannot be read: ")


def others_experiment(results: Path, uri: str) -> None:
    """What another trainer might have logged: its own keys, and one run that must stay out."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    experiment = client.create_experiment("pre training", artifact_location=(results / "other").as_uri())
    for line in rows():
        name, _, method, seed, steps, bag, ratio, hours, _, loss = line.split(",")
        run = client.create_run(experiment, run_name=name).info.run_id
        for key, value in (("arm", method), ("rng", seed), ("s", bag), ("r", ratio)):
            client.log_param(run, key, value)
        client.log_metric(run, "train.steps", float(steps))
        client.log_metric(run, "val/loss", float(loss) + 1, step=1)
        client.log_metric(run, "val/loss", float(loss), step=int(steps))
        client.log_metric(run, "hours", float(hours))
        client.set_terminated(run)
    broken = client.create_run(experiment, run_name="broken").info.run_id
    client.log_param(broken, "arm", "tst")
    client.set_tag(broken, "note", "crashed\nat start")
    client.set_terminated(broken, "FAILED")


MAPS = [
    argument
    for pair in (
        *("method=arm", "seed=rng", "bag_size=s", "step_ratio=r", "total_steps=train.steps"),
        *("final_loss=metrics.val/loss", "gpu_hours=hours"),
    )
    for argument in ("--map", pair)
]


def test_runs_that_others_logged_in_mlflow(results: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    theirs = empty_results(tmp_path_factory)
    uri = default_tracking_uri(theirs)
    others_experiment(theirs, uri)
    source = ["import", "--mlflow", "pre training", "--source-uri", uri, "--set", "scale=270M", "--name", "theirs"]
    assert refused(results, *source, *MAPS) == "pre training, run broken: total_steps: empty; it is needed"
    only = ["--filter", "attributes.status = 'FINISHED'"]
    said = done(results, *source, *MAPS, *only)
    assert said.splitlines()[0] == "theirs: 12 runs"
    assert "TST is 1.40x faster" in said
    (scale,) = json.loads(done(results, "report", "theirs", "--json"))["scales"]
    assert scale["speedup"] == pytest.approx(1.4, rel=1e-4)
    assert scale["matched_pair"]["hours"]["method"] == 4.0

    wrong = refused(results, *source, *MAPS, *only, "--map", "tokens=data.seen")
    assert wrong.startswith("--map tokens=data.seen: no run of pre training has it; there are arm, hours, r, rng, s, ")
    needed = refused(results, *source, *only)
    assert needed.startswith("method: no run of pre training has a parameter, metric or tag of that name")
    assert "it holds: " in refused(results, "import", "--mlflow", "none", "--source-uri", uri, "--name", "x")
    assert "filter" in refused(results, *source, *MAPS, "--filter", "nonsense").lower()


def test_mistakes_are_one_line(results: Path, tmp_path: Path) -> None:
    file = write(tmp_path, rows())
    assert "--name: '' is not allowed" in refused(results, "import", file)
    assert "--name: '../x' is not allowed" in refused(results, "import", file, "--name", "../x")
    assert refused(results, "import", "--name", "x") == "give a CSV file, or --mlflow EXPERIMENT"
    assert refused(results, "import", file, "--mlflow", "x", "--name", "x").endswith("give one or the other")
    assert "no MLflow database" in refused(tmp_path, "import", "--mlflow", "x", "--name", "x")
    assert "No such file" in refused(results, "import", tmp_path / "none.csv", "--name", "x")
    (tmp_path / "empty").mkdir()
    assert "no logs; they lie in a folder" in refused(results, "import", tmp_path / "empty", "--name", "x")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    assert "is not a CSV file in UTF-8" in refused(results, "import", tmp_path / "binary.csv", "--name", "x")
    assert "'loss' is not COLUMN=VALUE" in refused(results, "import", file, "--name", "x", "--map", "loss")
    assert "'los' is not a column" in refused(results, "import", file, "--name", "x", "--map", "los=val")
    assert "is a column of points" in refused(results, "import", file, "--name", "x", "--map", "loss=val")
    assert "are for --mlflow" in refused(results, "import", file, "--name", "x", "--filter", "a")
    assert refused(results, "import", file, "--name", "x", "--set", "scale=3B") == (
        "--set scale=3B: runs.csv has a column scale"
    )
    for names in ((), ("a", "b", "c"), ("a", "b", "--published")):
        assert "give the name of a sweep" in refused(results, "report", *names)
    assert "no published sweep" in refused(results, "report", "a", "--published")
    assert "cannot be compared with itself" in refused(results, "report", "a", "a")
    assert "are for one sweep" in refused(results, "report", "a", "b", "--fail-under", "1")
    assert "no sweep of that name" in refused(results, "report", "a", "b")


def test_two_sweeps_are_compared(results: Path, tmp_path: Path) -> None:
    for name, speedup in (("one", 1.4), ("two", 1.2)):
        done(results, "import", write(tmp_path, rows(speedup)), "--name", name)
    said = done(results, "report", "one", "two").splitlines()
    assert said[0].startswith("TST at 270M: 1.40x in one, 1.20x in two; ")
    assert Path(said[-1]) == results / "comparisons" / "one-and-two" / "report.html"
    assert Path(said[-1]).is_file()
    made = json.loads(done(results, "report", "one", "two", "--json"))
    (ratio,) = made["ratios"]
    assert ratio["ratio"] == pytest.approx(1.4 / 1.2, rel=1e-3)
    assert ratio["interval"] is None, "both tables name the same baseline runs"
    assert made["sweeps"][0] == json.loads(done(results, "report", "one", "--json"))


def test_the_published_runs_need_no_ledger(tmp_path: Path) -> None:
    said = done(tmp_path, "report", "--published", "--csv", tmp_path / "runs.csv").splitlines()
    assert Path(said[1]) == tmp_path / "published" / "report.html"
    assert len(read_runs(tmp_path / "runs.csv")) == len((tmp_path / "runs.csv").read_text("utf-8").splitlines()) - 1
    assert not (tmp_path / "mlflow.db").exists()
    summary = json.loads(done(tmp_path, "report", "--published", "--json"))
    tst = {entry["scale"]: entry for entry in summary["scales"] if entry["method"] == "tst"}
    pairs = {scale: entry["matched_pair"] for scale, entry in tst.items()}
    assert [round(pairs[scale]["speedup"], 2) for scale in ("3b", "10b-a1b")] == [1.79, 2.58]
    assert [round(pairs[scale]["data_multiplier"], 2) for scale in ("3b", "10b-a1b")] == [1.39, 1.9]
    assert round(tst["3b"]["speedup"], 2) == 1.81
    assert (tst["10b-a1b"]["speedup"], tst["10b-a1b"]["interval"]) == (None, None)
    assert sweeper(tmp_path, "report", "--published", "--fail-under", "1.05").exit_code == 4


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ("final_loss", "1e300"),
        ("gpu_hours", "1e-320"),
        ("gpu_hours", "1e308"),
        ("tokens", "1e308"),
        ("total_steps", "1e30"),
        ("final_loss", "-3"),
    ],
)
def test_a_number_that_no_run_has_is_named_by_its_line_and_nothing_is_kept(
    results: Path, tmp_path: Path, cell: str, value: str
) -> None:
    table = rows()
    cells = dict(zip(HEADER.split(","), table[3].split(","), strict=True)) | {cell: value}
    table[3] = ",".join(cells.values())
    assert refused(results, "import", write(tmp_path, table), "--name", "theirs").startswith(f"runs.csv:5: {cell}: ")
    assert not (results / "theirs").exists()
    assert "no sweep of that name" in refused(results, "report", "theirs")


def test_a_scale_whose_name_states_no_size_a_model_can_have_is_only_a_name(results: Path, tmp_path: Path) -> None:
    table = [row.replace("270M", "0M") for row in rows()]
    assert "1.40x faster" in done(results, "import", write(tmp_path, table), "--name", "theirs")


def test_an_infinite_loss_as_a_database_of_mlflow_keeps_it_is_a_divergence(results: Path, tmp_path: Path) -> None:
    table = [*rows(), f"inf,270M,tst,9,4000,4,0.25,4.0,1e9,{sys.float_info.max!r}"]
    done(results, "import", write(tmp_path, table), "--name", "theirs")
    assert "inf: diverged" in done(results, "status", "theirs")


def test_columns_of_one_value_are_kept_with_the_table(results: Path, tmp_path: Path) -> None:
    lines = [row.replace(",270M,", ",") for row in rows()]
    file = write(tmp_path, lines, header=HEADER.replace("scale,", ""))
    for again in ("", ", as imported before"):
        said = done(results, "import", file, "--name", "theirs", "--set", "scale=3B").splitlines()
        assert said[0] == f"theirs: 12 runs{again}"
    assert "TST is 1.40x faster (95 %" in done(results, "report", "theirs")
    with ImportLedger.open(results, "theirs", create=False) as ledger:
        assert {run.scale for run in runs_of(ledger.tables())} == {"3B"}
    said = done(results, "import", file, "--name", "theirs", "--set", "scale=7B").splitlines()
    assert said[0] == "theirs: 12 runs", "another value is another table"


def test_the_database_is_one_plain_file_after_an_import(results: Path, tmp_path: Path) -> None:
    done(results, "import", write(tmp_path, rows()), "--name", "theirs")
    with closing(sqlite3.connect(results / "mlflow.db")) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    assert sorted(file.name for file in results.glob("mlflow.db*")) == ["mlflow.db"]


def test_runs_are_counted_while_they_are_written(results: Path, tmp_path: Path) -> None:
    counted: list[tuple[int, int]] = []
    tables = tables_of_files(write(tmp_path, rows()), None, {})
    import_tables(results, "theirs", tables, None, "sweeper import", None, lambda *done: counted.append(done))
    assert counted == [(number, 12) for number in range(1, 13)]


def test_a_folder_of_logs_gives_a_run_each_its_points(results: Path, tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    for name in ("t-0", "b4000-0"):
        text = "step:0/4000 val_loss:10.8 train_time:0ms\nstep:4000/4000 val_loss:2.9 train_time:1800000ms\n"
        (folder / f"{name}.log").write_text(text, encoding="utf-8")
    done(results, "import", write(tmp_path, rows()), "--points", folder, "--name", "theirs", "--set", "devices=8")
    with ImportLedger.open(results, "theirs", create=False) as ledger:
        curves = {run.run_id: run.curve for run in runs_of(ledger.tables()) if len(run.curve)}
    losses = {name: curve.losses.tolist() for name, curve in curves.items()}
    assert losses == {"b4000-0": [10.8, 2.9], "t-0": [10.8, 2.9]}
    assert curves["t-0"].gpu_hours is not None
    assert curves["t-0"].gpu_hours.tolist() == [0, 4]
    (folder / "other.csv").write_text("run,step,loss\nt-1,1,3\n", encoding="utf-8")
    said = refused(results, "import", write(tmp_path, rows()), "--points", folder, "--name", "theirs")
    assert said.endswith("its files have 2 forms of points; one form a folder")


def test_an_import_of_records_that_is_cut_short_says_so_until_it_is_completed(results: Path, tmp_path: Path) -> None:
    records = [record_of(spec_of(seed=seed)) for seed in range(3)]
    file = tmp_path / "records.jsonl"
    file.write_text(records_to_text(records))

    class CutShort(ImportLedger):
        def write(self, record: RunRecord) -> None:
            if record == records[2]:
                raise KeyboardInterrupt
            super().write(record)

    with CutShort.open(results, "theirs", create=True) as ledger, pytest.raises(KeyboardInterrupt):
        ledger.store_records(about_of("theirs"), records, file.name)
    assert "the import of records.jsonl (3 records) was cut short" in done(results, "status", "theirs")
    assert done(results, "import", file, "--name", "theirs").splitlines()[0] == "theirs: 3 runs"
    assert "cut short" not in done(results, "status", "theirs")
