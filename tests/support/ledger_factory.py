"""Empty ledgers for tests: MLflow takes seconds to lay out a database, so it is laid out once and copied."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from sweeper.ledger.about import SweepAbout
from sweeper.ledger.location import DATABASE
from sweeper.ledger.mlflow_ledger import Ledger

MLFLOW_WARNINGS = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning")
"""MLflow 3.17 uses what SQLAlchemy 2.1 deprecates; nothing of ours can change it."""


def empty_results(folders: pytest.TempPathFactory) -> Path:
    """A new results directory whose database knows no sweep but `unused`."""
    template = folders.getbasetemp() / "ledger_template"
    if not template.exists():
        with Ledger.open(template, "unused", create=True):
            pass
    results = folders.mktemp("results")
    shutil.copy(template / DATABASE, results / DATABASE)
    return results


def about_of(name: str, command: str = "sweeper run search_spaces/quickstart.yaml") -> SweepAbout:
    """A sweep as the driver would describe it."""
    return SweepAbout(
        name=name,
        question="Is token superposition faster?",
        search_space_text=f"name: {name}\n",
        search_space_file="search_spaces/quickstart.yaml",
        command=command,
        price_per_gpu_hour=0.05,
        currency="USD",
        corpus_fingerprint="c0ffee",
        tokenizer_fingerprint="deadbeef",
        corpus_description="sources of the standard library",
        corpus_tokens=6_000_000,
        git_commit="0123456789abcdef0123456789abcdef01234567",
        git_dirty=False,
        versions=(("python", "3.11.9"), ("torch", "2.13.0")),
        device="Imaginary CPU 9000",
        started_at="2026-05-04T12:00:00+00:00",
    )
