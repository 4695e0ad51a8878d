"""What `sweeper`, `trainers` and `reports` hand out: a sweep from Python, and names that cost nothing until they are used."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module, resources
from pathlib import Path
from typing import Any

import pytest

from reports import SweepContext, build_study, run_from_record, summarize, write_report
from sweeper import RunOptions, UserError, load_search_space, plan, report, run
from sweeper.ledger.mlflow_ledger import Ledger
from sweeper.options import CORPORA
from tests.support.places import ROOT
from trainers import METHODS, SCALES, RunRecord, TrialSpec

TINY = ROOT / "tests" / "integration" / "tiny.yaml"
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning")


@pytest.mark.slow
def test_a_sweep_is_planned_run_and_read_in_five_lines(tmp_path: Path, corpora: Path) -> None:
    (tmp_path / CORPORA).symlink_to(corpora)
    elsewhere = f"sqlite:///{tmp_path / 'studies.db'}"
    options = RunOptions(TINY, results=tmp_path, executor="inline", study_storage=elsewhere)
    planned = plan(options)
    end = run(options)
    summary = report("tiny", tmp_path)
    print(planned.hours_shared, end.headline, [verdict.speedup for verdict in summary.verdicts])

    assert [arm.method for arm in planned.arms] == ["baseline", "tst"]
    assert (end.reason, end.failed) == (None, 0)
    assert end.headline == summary.headline
    page = (tmp_path / "tiny" / "report.html").read_text(encoding="utf-8")
    assert "Final losses in nats per token, perplexity, bits per byte (" in page, (
        "the bytes of a token are the corpus's"
    )
    with Ledger.open(tmp_path, "tiny", create=False) as ledger:
        records = ledger.records()
        assert ledger.about().study_storage == elsewhere
    assert (tmp_path / "studies.db").exists()
    assert all(isinstance(record, RunRecord) and isinstance(record.spec, TrialSpec) for record in records)
    study = build_study(SweepContext(name="mine", question="?"), [run_from_record(record) for record in records])
    write_report(study, summarize(study), tmp_path / "mine.html")
    assert "mine" in (tmp_path / "mine.html").read_text(encoding="utf-8")


def test_a_mistake_of_the_user_has_one_root(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("name: x\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"bad\.yaml"):
        plan(RunOptions(tmp_path / "bad.yaml", results=tmp_path))
    with pytest.raises(UserError, match="no ledger"):
        report("nothing", tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"executor": "Inline"}, "executor: 'Inline' is not one of ray, inline"),
        ({"workers": -1}, "workers: -1 is below 0, which means all there is room for"),
        ({"micro_sequences": 0}, "micro_sequences: 0 is not a positive number"),
        (
            {"study_storage": "studies.db"},
            "study_storage: 'studies.db' is not a database's address, such as sqlite:///FILE.db",
        ),
        (
            {"study_storage": "me:secret@host/studies"},
            "study_storage: it is not a database's address, such as sqlite:///FILE.db",
        ),
        (
            {"study_storage": "journal:///secret.log"},
            "study_storage: journal://... is not a database's address; sqlite, postgresql and mysql are known by address",
        ),
        (
            {"study_storage": "postgresql://me:secret@host:12x/studies"},
            "study_storage: postgresql://... is not a database's address; sqlite, postgresql and mysql are known by address",
        ),
        (
            {"study_storage": "mysql+our://me:secret@host/studies"},
            "study_storage: mysql+our://... is not a database's address; sqlite, postgresql and mysql are known by address",
        ),
        ({"max_gpu_hours": -1.0}, "max_gpu_hours: -1.0 is not a number of hours"),
        ({"max_gpu_hours": float("nan")}, "max_gpu_hours: nan is not a number of hours"),
    ],
)
def test_options_that_no_run_can_have_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        RunOptions(TINY, **change)
    assert str(caught.value) == said


def test_the_tables_are_there() -> None:
    assert load_search_space(TINY).methods.keys() <= METHODS.keys()
    assert "270m" in SCALES


@pytest.mark.parametrize("package", ["sweeper", "trainers", "reports"])
def test_every_name_is_found_typed_and_loaded_late(package: str) -> None:
    module = import_module(package)
    assert {getattr(module, name) is not None for name in module.__all__} == {True}
    assert set(module.__all__) <= set(dir(module))
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nothing'"):
        _ = module.nothing
    assert (resources.files(package) / "py.typed").is_file()
    code = f"import sys, {package}; print(*(name for name in sys.modules if name.startswith({package!r})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert set(done.stdout.split()) <= {package, "trainers.contract", "trainers.contract.lazy"}
