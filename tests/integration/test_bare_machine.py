"""A sweep on a machine without an orchestrator: plan, train there, import, report, and go on here as if nothing had been."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from sweeper.cli.app import app
from sweeper.ledger.mlflow_ledger import Ledger
from sweeper.options import CORPORA
from tests.support.ledger_factory import MLFLOW_WARNINGS, about_of, empty_results
from tests.support.strategies import record_of, spec_of
from trainers.contract.record import Diverged, Failed, RunRecord, record_to_dict
from trainers.contract.record_lines import read_records
from trainers.planning.spec_lines import read_trials
from trainers.run import main

pytestmark = MLFLOW_WARNINGS
FILE = Path(__file__).with_name("tiny.yaml")


@pytest.fixture
def results(tmp_path_factory: pytest.TempPathFactory, corpora: Path) -> Path:
    folder = empty_results(tmp_path_factory)
    (folder / CORPORA).symlink_to(corpora)
    return folder


def sweeper(results: Path, *arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments), "--results", str(results)], catch_exceptions=False)


def done(results: Path, *arguments: object) -> list[str]:
    result = sweeper(results, *arguments)
    assert result.exit_code == 0, result.stderr
    return result.stdout.splitlines()


def refused(results: Path, *arguments: object) -> list[str]:
    result = sweeper(results, *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    return result.stderr.splitlines()


def write(path: Path, records: list[RunRecord]) -> Path:
    path.write_text("".join(json.dumps(record_to_dict(record)) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.mark.slow
def test_plan_train_elsewhere_import_report_and_go_on(results: Path, tmp_path: Path) -> None:
    specs = tmp_path / "specs.jsonl"
    said = done(results, "plan", FILE, "--specs", specs)
    assert said[0] == f"{specs}: 4 tuning, 8 confirmation of winners"
    train, back = (shlex.split(said[index]) for index in (2, 4))
    assert train[:3] == ["python", "-m", "trainers.run"]
    assert [line.spec.seed for line in read_trials(specs)] == [0] * 4 + [1000] * 4 + [1001] * 4

    assert main(train[3:]) == 0
    records = read_records(Path(train[train.index("--out") + 1]))
    assert len(records) == 12
    assert back[:2] == ["sweeper", "import"]
    imported = done(results, *back[1:])
    assert imported[0] == "tiny: 12 runs"
    reported = done(results, "report", "tiny")
    assert imported[1:] == [reported[0], reported[-1]]
    (scale,) = json.loads("\n".join(done(results, "report", "tiny", "--json")))["scales"]
    assert scale["seeds"] == {"baseline": 2, "method": 2}
    assert scale["equal_tuning"] is True
    assert done(results, *back[1:])[0] == "tiny: 12 runs, as imported before"
    with Ledger.open(results, "tiny", create=False) as ledger:
        assert ledger.records() == list(records)
        assert "question:" in ledger.about().search_space_text
        assert "standard library" in ledger.about().corpus_description

    (left,) = done(results, "plan", FILE, "--specs", tmp_path / "more.jsonl")
    assert left.endswith("nothing is left to train")
    done(results, "run", FILE, "--executor", "inline")
    with Ledger.open(results, "tiny", create=False) as ledger:
        assert ledger.records() == list(records), "the sweep here takes them for its own"


def test_bad_records_are_listed_and_nothing_is_imported(results: Path, tmp_path: Path) -> None:
    good = record_of(spec_of())
    file = write(tmp_path / "records.jsonl", [good, good])
    lines = file.read_text().splitlines()
    broken = [lines[0], lines[1].replace('"schema": 1', '"schema": 7'), "{", '{"schema": 1}']
    bad = tmp_path / "bad.jsonl"
    bad.write_text("\n".join(broken))
    problems = refused(results, "import", bad, "--name", "bare")
    assert [problem.split(": ")[0] for problem in problems] == ["bad.jsonl:2", "bad.jsonl:3", "bad.jsonl:4"]
    assert not (results / "bare").exists()
    (tmp_path / "empty.jsonl").write_text("\n")
    assert refused(results, "import", tmp_path / "empty.jsonl", "--name", "bare") == ["empty.jsonl: holds no record"]
    (problem,) = refused(results, "import", file, "--name", "bare", "--points", file)
    assert "records take no option for tables" in problem
    (problem,) = refused(results, "import", tmp_path / "runs.csv", "--name", "bare", "--space", FILE)
    assert problem == "--space: is for records (a file that ends in .jsonl)"


def test_records_add_to_what_the_ledger_holds_and_never_make_it_worse(results: Path, tmp_path: Path) -> None:
    first, second = record_of(spec_of()), record_of(spec_of(seed=1), outcome=Diverged(10, "nan"))
    with Ledger.open(results, "ours", create=True) as ledger:
        ledger.begin(about_of("ours"))
        ledger.write(first)
        before = ledger.about()
    worse = record_of(first.spec, outcome=Failed("out of memory"))
    assert done(results, "import", write(tmp_path / "a.jsonl", [worse, second]), "--name", "ours")[0] == "ours: 2 runs"
    with Ledger.open(results, "ours", create=False) as ledger:
        assert ledger.records() == [first, second]
        assert ledger.about() == before
    better = record_of(second.spec, final_loss=2.5)
    done(results, "import", write(tmp_path / "b.jsonl", [second, better]), "--name", "ours")
    with Ledger.open(results, "ours", create=False) as ledger:
        assert ledger.records() == [first, better], "the last line of a trial counts"


def test_a_published_folder_is_reported_without_a_ledger(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a sweep leaves under `reports/published` gives the page that its ledger gave."""
    import reports.published

    specs = [spec_of(total_steps=steps, seed=seed) for seed in (1000, 1001) for steps in (4_000, 6_000, 8_000)]
    specs += [spec_of("tst", seed=seed) for seed in (1000, 1001)]
    base = [
        record_of(spec, final_loss=2.6 + 400 / spec.schedule.total_steps - 0.02 * (spec.method == "tst"))
        for spec in specs
    ]
    done(results, "import", write(tmp_path / "in.jsonl", base), "--name", "gpu", "--space", FILE)
    home = tmp_path / "published"
    folder = home / "2026-01-02_tiny_imaginary"
    said = done(results, "report", "gpu", "--records", folder / "records.jsonl")
    (folder / "space.yaml").write_text(FILE.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(reports.published, "__file__", str(home / "__init__.py"))
    (problem,) = refused(results, "report", "--published", "nothing")
    assert problem == "nothing: no published sweep; there are 2026-01-02_tiny_imaginary"
    nowhere = tmp_path / "elsewhere"
    published = done(nowhere, "report", "--published", folder.name)
    assert published[0] == said[0]
    assert " faster" in said[0]
    assert Path(published[-1]) == nowhere / "published" / folder.name / "report.html"
    assert not (nowhere / "mlflow.db").exists()
    one, other = (
        json.loads("\n".join(done(results, "report", "--json", *names)))
        for names in (["gpu"], ["--published", folder.name])
    )
    assert other["scales"] == one["scales"]
