"""The house's files and functions are short, nothing is a crowd, and nothing in it names one machine."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from tests.support.places import ROOT

PACKAGES = ("sweeper", "trainers", "reports")
MOST_FILE_LINES, MOST_FUNCTION_LINES, MOST_MODULES = 450, 60, 13
LONGER_FUNCTIONS: dict[str, int] = {}
"""Functions that may be longer, and how long: none at present. The training loop would be allowed 120 lines."""


def own_files() -> list[Path]:
    return sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))


def test_no_folder_is_a_crowd() -> None:
    modules = Counter(file.parent.relative_to(ROOT).as_posix() for file in own_files() if file.name != "__init__.py")
    assert {folder: count for folder, count in modules.items() if count > MOST_MODULES} == {}


def test_unit_tests_stand_in_the_folders_of_what_they_test() -> None:
    unit = ROOT / "tests" / "unit"
    folders = {file.parent.relative_to(unit) for file in unit.rglob("test_*.py")}
    assert {folder.as_posix() for folder in folders if not (ROOT / folder / "__init__.py").exists()} == set()


@pytest.mark.parametrize("name", sorted(file.stem for file in (ROOT / "tests" / "gpu").glob("test_*.py")))
def test_tests_on_a_gpu_bear_with_a_torch_that_warns(name: str) -> None:
    """Warnings are errors here, and a GPU build of torch warns of its own affairs: what forgets that fails on a GPU alone."""
    marks = {mark.name: mark.args for mark in importlib.import_module(f"tests.gpu.{name}").pytestmark}
    assert {"gpu", "skipif"} <= marks.keys()
    assert marks["filterwarnings"] == ("default",)


def test_top_level_is_the_customer_s() -> None:
    done = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    top = {name.split("/")[0] for name in done.stdout.split()}
    assert {name for name in top if not name.startswith(".")} == {
        "pyproject.toml",
        "README.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
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


def test_no_exemption_outlives_its_function() -> None:
    longest: dict[str, int] = {}
    for file in own_files():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                longest[node.name] = max(length, longest.get(node.name, 0))
    assert [name for name in LONGER_FUNCTIONS if longest.get(name, 0) <= MOST_FUNCTION_LINES] == []


HOSTS = ("pypi", "pythonhosted", "conda.anaconda", "download.pytorch", "registry.npmjs", "proxy.golang")
ONE_MACHINE_S = re.compile(
    "|".join([r"(?<![\w./-])/(?:work|root|home)/\w", *(rf"\b{host}\.\w+" for host in HOSTS)]), re.IGNORECASE
)
"""Paths that exist on one machine, and hosts that only one network has: where packages come from is the reader's to set."""


def one_machine_s(text: str) -> list[str]:
    return [line for line in text.splitlines() if ONE_MACHINE_S.search(line)]


def committed_files() -> list[Path]:
    done = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    if done.returncode:
        pytest.skip("not a git checkout")
    return [file for name in done.stdout.split("\0") if name and (file := ROOT / name).is_file()]


def test_nothing_names_one_machine() -> None:
    binary = {".png", ".jpg", ".woff2", ".gz"}
    named = {
        file.relative_to(ROOT).as_posix(): found
        for file in committed_files()
        if file.suffix not in binary and file != Path(__file__) and (found := one_machine_s(file.read_text("utf-8")))
    }
    assert named == {}


@pytest.mark.parametrize(
    ("line", "objects"),
    [
        ("cd /" + "work/tree", True),
        ('PATH = "/home/me/data"', True),
        ("--index-url https://pypi.org/simple", True),
        ("https://files.PythonHosted.org/x", True),
        ("search_spaces" + "/work" + "/x.yaml", False),
        ("the work of a PyPI mirror", False),
    ],
)
def test_the_rule_about_machines_can_object(line: str, objects: bool) -> None:
    assert bool(one_machine_s(line)) is objects
