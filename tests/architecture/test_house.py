"""The house is as the README says, light where it must be, and each rule about it can fail."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("sweeper", "trainers", "reports")
HEAVY = ("torch", "ray", "mlflow", "pandas", "plotly", "optuna", "scipy", "pydantic")
MOST_FILE_LINES, MOST_FUNCTION_LINES = 450, 60
LONGER_FUNCTIONS = {"train": 120, "_searcher": 70, "plan_scale": 75, "_open_arm": 62}
"""The loop, and functions that are mostly a class, a call or a result with many fields."""


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)


def own_files() -> list[Path]:
    return sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))


def test_help_imports_nothing_heavy() -> None:
    done = python(
        "import sys\nsys.argv = ['sweeper', '--help']\n"
        "from sweeper.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        f"print('HEAVY', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    assert done.stdout.strip().endswith("HEAVY []"), done.stdout + done.stderr


def test_records_are_read_where_torch_is_not_installed() -> None:
    done = python(
        "import sys\n"
        "for name in ('torch', 'ray', 'mlflow'): sys.modules[name] = None\n"
        "import trainers.record, trainers.methods, reports.study, reports.summary, reports.page"
    )
    assert done.returncode == 0, done.stderr


def tree_entries() -> Iterator[tuple[str, str]]:
    """Patterns of the README's tree, each with its folder."""
    (block,) = re.findall(r"```text\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    folder = ""
    for line in block.splitlines():
        names = re.split(r"   +| {2,}(?=[a-z`A-Z0-9])", line.strip(), maxsplit=1)[0].split()
        inside = line.startswith(" ")
        for name in names:
            if not inside and name.endswith("/"):
                folder = name
            yield (folder if inside else "", name)


def test_the_readme_s_tree_is_the_tree() -> None:
    entries = list(tree_entries())
    for folder, pattern in entries:
        assert list(ROOT.glob(folder + pattern)), f"README names {folder}{pattern}, which is not there"
    missing = []
    for file in [*own_files(), *(ROOT / "search_spaces").glob("*.yaml")]:
        relative = file.relative_to(ROOT).as_posix()
        covered = any(
            fnmatch(relative, folder + pattern)
            or (pattern.endswith("/") and relative.startswith(folder + pattern) and folder)
            for folder, pattern in entries
        )
        if not covered and file.name != "__init__.py":
            missing.append(relative)
    assert not missing


def test_top_level_is_the_customer_s() -> None:
    done = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    top = {name.split("/")[0] for name in done.stdout.split()}
    assert {name for name in top if not name.startswith(".")} == {
        "pyproject.toml",
        "README.md",
        "search_spaces",
        "tests",
        *PACKAGES,
    }


def too_long(file: Path) -> list[str]:
    text = file.read_text(encoding="utf-8")
    found = [f"{file.name}: {len(text.splitlines())} lines"] if len(text.splitlines()) > MOST_FILE_LINES else []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            if length > LONGER_FUNCTIONS.get(node.name, MOST_FUNCTION_LINES):
                found.append(f"{file.name}: {node.name} has {length} lines")
    return found


def test_files_and_functions_stay_short(tmp_path: Path) -> None:
    assert [finding for file in own_files() for finding in too_long(file)] == []
    bad = tmp_path / "bad.py"
    bad.write_text("def f():\n" + "    x = 1\n" * 70, encoding="utf-8")
    assert too_long(bad) == ["bad.py: f has 71 lines"]


def test_every_module_says_what_it_decides() -> None:
    silent = [
        file.name
        for file in own_files()
        if file.stat().st_size and not ast.get_docstring(ast.parse(file.read_text("utf-8")))
    ]
    assert not silent


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("trainers/loop.py", "import reports"),
        ("reports/page.py", "import torch"),
        ("trainers/model.py", "import pydantic"),
        ("trainers/schedule.py", "import torch"),
        ("sweeper/sweep.py", "import ray"),
        ("sweeper/plan.py", "import mlflow"),
        ("sweeper/plan.py", "import plotly"),
        ("sweeper/plan.py", "import rich"),
    ],
)
@pytest.mark.slow
def test_each_import_contract_can_fail(module: str, line: str, tmp_path: Path) -> None:
    import shutil

    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    assert settings["contracts"]
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    environment = {"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"}

    def linted() -> int:
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False).returncode

    assert linted() == 0
    file = tmp_path / module
    file.write_text(file.read_text(encoding="utf-8") + f"\n{line}\n", encoding="utf-8")
    assert linted() == 1


@pytest.mark.slow
def test_the_wheel_holds_what_an_installed_sweeper_needs(tmp_path: Path) -> None:
    import shutil

    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    for name in (*PACKAGES, "search_spaces"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", str(tmp_path), str(source)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    wanted = {file.relative_to(ROOT).as_posix() for file in own_files()}
    wanted |= {f"search_spaces/{name}" for name in ("quickstart.yaml", "schema.json", "paper-grid.yaml")}
    wanted |= {f"reports/{file.name}" for file in (ROOT / "reports").glob("*.j2")}
    wanted |= {"reports/page.css", "reports/page.js", "reports/published/table1_runs.csv"}
    assert wanted <= names
    assert not [name for name in names if name.startswith("tests")]
    fresh = tmp_path / "fresh"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(fresh), str(wheel)], check=True, capture_output=True)
    code = "import sweeper, sys; print(sweeper.__file__); from sweeper.cli import main; sys.argv = ['sweeper', '-h']; main()"
    import os

    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(fresh)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(fresh))
    assert "plan" in done.stdout
