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

SWEEPER, REPORTS, TRAINERS = ("the rooms of sweeper", "the rooms of reports", "the rooms of trainers")
VALUES, BARE, CORE, LIBRARIES = (
    "reports stands below sweeper, reads values and methods, and trains nothing",
    "trainers stands below all and runs on a bare machine",
    "values, methods and planning need no torch",
    "each library has its rooms",
)
BREACHES = [
    ("trainers/training/loop.py", "import reports.evidence.study", {BARE}),
    ("reports/pages/report.py", "import sweeper.plans.plan", {VALUES, SWEEPER}),
    ("trainers/training/stage.py", "import sweeper.lock", {BARE}),
    ("sweeper/engine/sweep.py", "import sweeper.executors.inline", {SWEEPER}),
    ("sweeper/ledger/entries.py", "import sweeper.space.load", {SWEEPER}),
    ("sweeper/session.py", "import sweeper.replay.race", {SWEEPER}),
    ("sweeper/newcomer.py", "NOTHING = None", {SWEEPER}),
    ("reports/evidence/runs.py", "import reports.estimate.verdict", {REPORTS}),
    ("reports/newcomer.py", "NOTHING = None", {REPORTS}),
    ("trainers/contract/stage.py", "import trainers.planning.lineage", {TRAINERS}),
    ("trainers/model/decoder.py", "import trainers.training.loop", {TRAINERS}),
    ("trainers/newcomer.py", "NOTHING = None", {TRAINERS}),
    ("reports/evidence/study.py", "import trainers.planning.lineage", {VALUES}),
    ("reports/evidence/study.py", "import trainers.run", {VALUES}),
    ("reports/pages/report.py", "import torch", {VALUES}),
    ("trainers/model/decoder.py", "import pydantic", {BARE}),
    ("trainers/data/files.py", "import yaml", {BARE}),
    ("trainers/contract/schedule.py", "import torch", {CORE}),
    ("trainers/planning/stages.py", "import torch", {CORE}),
    ("trainers/methods/tst.py", "from trainers.model import losses", {CORE, TRAINERS}),
    ("trainers/methods/tst.py", "from trainers import superposition", {CORE, TRAINERS}),
    ("trainers/superposition.py", "import trainers.model.losses", {TRAINERS}),
    ("sweeper/engine/sweep.py", "import ray", {LIBRARIES}),
    ("sweeper/executors/worker.py", "import ray.tune", {LIBRARIES}),
    ("trainers/model/ranks.py", "import ray.train", {LIBRARIES, BARE}),
    ("sweeper/plans/plan.py", "import mlflow", {LIBRARIES}),
    ("sweeper/ledger/dashboard.py", "from mlflow import MlflowClient", {LIBRARIES}),
    ("sweeper/plans/plan.py", "import plotly", {LIBRARIES}),
    ("sweeper/plans/plan.py", "import rich", {LIBRARIES}),
    ("sweeper/session.py", "import typer", {LIBRARIES}),
    ("reports/sections/search.py", "import optuna", {LIBRARIES}),
    ("sweeper/studies/trials.py", "import sweeper.engine.sweep", {SWEEPER}),
]
"""A line that breaks a rule, where, and the rules that must object; others must not."""


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)


def test_help_imports_nothing_heavy() -> None:
    done = python(
        "import sys\nsys.argv = ['sweeper', '--help']\n"
        "from sweeper.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        f"print('HEAVY', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    assert done.stdout.strip().endswith("HEAVY []"), done.stdout + done.stderr


@pytest.mark.parametrize("words", [["status"], ["report"], ["recipe"], ["export", "models"], ["stop"]])
def test_a_name_is_checked_before_anything_heavy_is_imported(words: list[str]) -> None:
    command, *rest = words
    done = python(
        f"import sys\nsys.argv = {['sweeper', command, '../x', *rest]!r}\n"
        "from sweeper.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: print('CODE', end.code)\n"
        "print('HEAVY', [name for name in ('torch', 'ray', 'mlflow', 'pandas', 'plotly') if name in sys.modules])"
    )
    assert done.stdout.splitlines() == ["CODE 2", "HEAVY []"], done.stderr
    assert done.stderr.startswith("--name: '../x' is not allowed")


def test_records_are_read_where_torch_is_not_installed() -> None:
    done = python(
        "import sys\n"
        "for name in ('torch', 'ray', 'mlflow'): sys.modules[name] = None\n"
        "import trainers.contract.record, trainers.methods, reports.evidence.study, reports.summary, reports.pages.report"
    )
    assert done.returncode == 0, done.stderr


def modules_of(package: str) -> list[str]:
    files = [file.relative_to(ROOT).with_suffix("") for file in (ROOT / package).rglob("*.py")]
    return sorted(".".join(file.parts).removesuffix(".__init__") for file in files)


@pytest.mark.slow
def test_no_module_of_sweeper_loads_torch_but_the_worker() -> None:
    """A plan, a report and the command line are ready before torch would be; functions that train load it themselves."""
    modules = [name for name in modules_of("sweeper") if name != "sweeper.executors.worker"]
    load = (
        "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)\nprint('torch' in sys.modules)"
    )

    def loads_torch(*names: str) -> str:
        return subprocess.run(
            [sys.executable, "-c", load, *names], capture_output=True, text=True, check=True, cwd=ROOT
        ).stdout.strip()

    assert len(modules) > 50
    assert loads_torch(*modules) == "False"
    assert loads_torch("sweeper.executors.worker") == "True"


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
    with file.open("a", encoding="utf-8") as text:
        text.write(f"\n{line}\n")
    assert broken(house) == objecting


def test_no_contract_is_without_a_breach() -> None:
    assert set.union(*(objecting for _, _, objecting in BREACHES)) == CONTRACTS.keys()
