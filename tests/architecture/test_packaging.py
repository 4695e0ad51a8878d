"""What is installed: every version is pinned, and the wheel alone is a working sweeper."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.places import ROOT

PACKAGES = ("sweeper", "trainers", "reports")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ASKED = [
    *PROJECT["dependencies"],
    *(text for extra in ("test", "examples") for text in PROJECT["optional-dependencies"][extra]),
]
PINS = [
    Requirement(line)
    for line in (ROOT / ".ci" / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if not line.startswith("#")
]


def needed(requirement: Requirement, seen: dict[str, set[str]]) -> None:
    """Add to `seen` what `requirement` brings here, as name to extras; what is not installed is a leaf."""
    name, extras = canonicalize_name(requirement.name), {"", *requirement.extras}
    known = seen.setdefault(name, set())
    if extras <= known:
        return
    known |= extras
    try:
        of_it = requires(name) or []
    except PackageNotFoundError:
        return
    for inner in map(Requirement, of_it):
        if inner.marker is None or any(inner.marker.evaluate({"extra": extra}) for extra in extras):
            needed(inner, seen)


def test_every_version_that_is_installed_is_pinned() -> None:
    seen: dict[str, set[str]] = {}
    for text in ASKED:
        needed(Requirement(text), seen)
    pinned = {canonicalize_name(pin.name) for pin in PINS}
    assert len(seen) > len(ASKED)
    assert sorted(seen.keys() - pinned) == []


def test_a_pin_is_one_public_version_within_what_the_project_asks_for() -> None:
    assert len({canonicalize_name(pin.name) for pin in PINS}) == len(PINS)
    for pin in PINS:
        assert re.fullmatch(r"==[0-9][0-9a-z.]*", str(pin.specifier)), f"{pin}: not one public version"
        assert not pin.url
    versions = {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in PINS}
    for text in ASKED:
        asked = Requirement(text)
        assert asked.specifier.contains(versions[canonicalize_name(asked.name)]), text


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in (*PACKAGES, "search_spaces", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "wheel", "--no-deps", "-w"]
    done = subprocess.run([*command, str(folder), str(source)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_holds_what_an_installed_sweeper_needs_and_no_tests(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    data = {
        "reports/html/*.j2",
        "reports/html/*.css",
        "reports/html/*.js",
        "reports/published/*.csv",
        "search_spaces/*.yaml",
        "*/py.typed",
    }
    files = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py")]
    for pattern in sorted(data | {"search_spaces/schema.json"}):
        matches = list(ROOT.glob(pattern))
        assert matches, pattern
        files += matches
    assert {file.relative_to(ROOT).as_posix() for file in files} - names == set()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {*PACKAGES, "search_spaces"}


@pytest.mark.slow
def test_the_installed_wheel_answers_from_its_own_files(wheel: Path, tmp_path: Path) -> None:
    fresh = tmp_path / "fresh"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "install", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", str(fresh), str(wheel)], check=True, capture_output=True)

    def sweeper(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-P", str(fresh / "bin" / "sweeper"), *arguments],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(fresh)},
            check=False,
        )

    shown = sweeper("--help")
    assert shown.returncode == 0, shown.stderr
    assert "plan" in shown.stdout
    where = "import sweeper, trainers, reports, search_spaces as s; print(sweeper.__file__, s.__file__)"
    found = subprocess.run(
        [sys.executable, "-P", "-c", where],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(fresh)},
        check=True,
    )
    assert all(path.startswith(str(fresh)) for path in found.stdout.split())
    planned = sweeper("plan", str(fresh / "search_spaces" / "tst-270m.yaml"))
    assert planned.returncode == 0, planned.stderr
    assert "270M" in planned.stdout or "270m" in planned.stdout
