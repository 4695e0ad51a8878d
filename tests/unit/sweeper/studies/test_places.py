"""Where the studies of a sweep may be: a file, a server; how a report finds them again, and that no password is kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import optuna
import pytest

from sweeper.ledger.about import about_to_dict
from sweeper.ledger.mlflow_ledger import Ledger
from sweeper.studies.keeper import copy_studies, remembered
from tests.support.ledger_factory import MLFLOW_WARNINGS, empty_results
from tests.support.study_desk import NamedLedger, file_in, swept

pytestmark = [pytest.mark.slow, MLFLOW_WARNINGS]


@pytest.fixture
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return empty_results(tmp_path_factory)


def ended_sweep(results: Path, study_storage: str) -> None:
    """A sweep in the ledger whose studies were at `study_storage`: all its trials are there, some have ended."""
    known = NamedLedger()
    swept(known, file_in(results / "unused"))
    with Ledger.open(results, "tiny", create=True) as ledger:
        ledger.begin(replace(known.about(), study_storage=remembered(study_storage)))
        for spec, purpose in list(known.asked.values())[:5]:
            ledger.schedule(spec, purpose)
        for record in known.records()[:3]:
            ledger.write(record)


def copied(results: Path, study_storage: str | None) -> list[str]:
    """What is said while the studies of the sweep are made."""
    said: list[str] = []
    with Ledger.open(results, "tiny", create=False) as ledger:
        copy_studies(ledger, results / "tiny", study_storage, said.append)
    return said


def test_a_report_finds_the_studies_where_the_sweep_had_them(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended_sweep(results, "sqlite:///elsewhere.db")
    monkeypatch.chdir(results)  # a report may be asked for from any folder
    assert copied(results, None) == []
    assert optuna.get_all_study_names(f"sqlite:///{tmp_path / 'elsewhere.db'}") == ["tiny/nano/baseline/8"]
    assert not (results / "tiny" / "optuna.db").exists()
    copied(results, f"sqlite:///{tmp_path / 'third.db'}")
    assert (tmp_path / "third.db").exists()


def test_where_a_password_was_left_out_the_option_is_named(results: Path) -> None:
    ended_sweep(results, "postgresql://me:se/cret@nowhere/studies")
    assert copied(results, None) == [
        "tiny: its studies at postgresql://me:***@nowhere/studies are as the last run left them; "
        "--study-storage URL brings them up to date"
    ]
    assert not (results / "tiny" / "optuna.db").exists()


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        (None, ""),
        ("postgresql://me@host:5432/studies", "postgresql://me@host:5432/studies"),
        ("postgresql://me:secret@host/studies", "postgresql://me:***@host/studies"),
        ("mysql+pymysql://:secret@host/studies", "mysql+pymysql://:***@host/studies"),
        ("postgresql:///studies?host=/run&password=secret", "postgresql:///studies?***"),
        ("no address:// secret", "***"),
    ],
)
def test_no_password_is_kept(url: str | None, kept: str) -> None:
    about = replace(NamedLedger().about(), study_storage=remembered(url))
    assert about.study_storage == kept
    assert "secret" not in json.dumps(about_to_dict(about))
