"""Who may import whom: the contracts of pyproject.toml hold, each can fail, and a start of the command line is light."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.support.places import ROOT

PACKAGES = ("sweeper", "trainers", "reports")
HEAVY = ("torch", "ray", "mlflow", "pandas", "plotly", "optuna", "scipy", "pydantic")
SETTINGS: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
CONTRACTS: dict[str, dict[str, Any]] = {contract["name"]: contract for contract in SETTINGS["contracts"]}

LAYERS = "sweeper is built on reports, reports on trainers"
REPORTS = "reports reads specs and records, and trains nothing"
BARE = "trainers runs on a bare machine"
CORE = "the contract between the layers needs no torch"
RAY, MLFLOW, PLOTLY, SCREEN = (
    "ray is dispatch's",
    "mlflow is the ledger's",
    "plotly is the report's",
    "the screen is the command line's",
)
BREACHES = [
    ("trainers/training/loop.py", "import reports.evidence.study", {LAYERS}),
    ("reports/pages/report.py", "import sweeper.plans.plan", {LAYERS, REPORTS}),
    ("reports/evidence/study.py", "import trainers.training.loop", {REPORTS}),
    ("reports/pages/report.py", "import torch", {REPORTS}),
    ("trainers/model/decoder.py", "import pydantic", {BARE}),
    ("trainers/data/files.py", "import yaml", {BARE}),
    ("trainers/contract/schedule.py", "import torch", {CORE, REPORTS}),
    ("trainers/methods/tst.py", "from trainers import losses", {CORE, REPORTS}),
    ("sweeper/engine/sweep.py", "import ray", {RAY}),
    ("sweeper/executors/worker.py", "import ray.tune", {RAY}),
    ("trainers/model/ranks.py", "import ray.train", {RAY, BARE}),
    ("sweeper/plans/plan.py", "import mlflow", {MLFLOW}),
    ("sweeper/ledger/dashboard.py", "from mlflow import MlflowClient", {MLFLOW}),
    ("sweeper/plans/plan.py", "import plotly", {PLOTLY}),
    ("sweeper/plans/plan.py", "import rich", {SCREEN}),
    ("sweeper/session.py", "import typer", {SCREEN}),
]
"""A line that breaks a rule, where, and the rules that must object; others must not."""


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)


def test_help_imports_nothing_heavy() -> None:
    done = python(
        "import sys\nsys.argv = ['sweeper', '--help']\n"
        "from sweeper.cli.app import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        f"print('HEAVY', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    assert done.stdout.strip().endswith("HEAVY []"), done.stdout + done.stderr


def test_records_are_read_where_torch_is_not_installed() -> None:
    done = python(
        "import sys\n"
        "for name in ('torch', 'ray', 'mlflow'): sys.modules[name] = None\n"
        "import trainers.contract.record, trainers.methods, reports.evidence.study, reports.summary, reports.pages.report"
    )
    assert done.returncode == 0, done.stderr


def broken(folder: Path) -> set[str]:
    """Names of the contracts that import-linter reports as broken for the packages in `folder`."""
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    verdicts = dict(re.findall(r"^(.+) (KEPT|BROKEN)\b", done.stdout, flags=re.MULTILINE))
    assert verdicts.keys() == CONTRACTS.keys(), done.stdout + done.stderr
    found = {name for name, verdict in verdicts.items() if verdict == "BROKEN"}
    assert done.returncode == (1 if found else 0)
    return found


@pytest.fixture
def house(tmp_path: Path) -> Path:
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_every_contract_holds(house: Path) -> None:
    assert broken(house) == set()


@pytest.mark.parametrize(("module", "line", "objecting"), BREACHES, ids=lambda value: value if "/" in value else "")
def test_each_contract_can_fail(module: str, line: str, objecting: set[str], house: Path) -> None:
    file = house / module
    file.write_text(file.read_text(encoding="utf-8") + f"\n{line}\n", encoding="utf-8")
    assert broken(house) == objecting


def test_no_contract_is_without_a_breach() -> None:
    assert set.union(*(objecting for _, _, objecting in BREACHES)) == CONTRACTS.keys()


def test_a_new_trainer_module_is_closed_to_reports_until_it_is_opened() -> None:
    modules = {
        f"trainers.{path.stem}" for path in (ROOT / "trainers").glob("*") if path.suffix == ".py" or path.is_dir()
    }
    modules -= {"trainers.__init__", "trainers.__pycache__"}
    closed = {name for name in CONTRACTS[REPORTS]["forbidden_modules"] if name.startswith("trainers.")}
    assert modules - closed == set(CONTRACTS[CORE]["source_modules"])
