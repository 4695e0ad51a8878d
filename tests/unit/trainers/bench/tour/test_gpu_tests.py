"""Tests that hang, crash or warn cost themselves; the others are run, and told as they end."""

from __future__ import annotations

from pathlib import Path

from trainers.bench.tour.gpu_tests import Ended, run_tests

TESTS = {
    "test_a.py": """
import os, signal, warnings, pytest
warnings.warn("torch warns of its own affairs", DeprecationWarning)
def test_fine(): warnings.warn("and again", UserWarning)
def test_fine_too(): print("a word for the log")
def test_wrong(): assert 1 == 2
def test_hangs():
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    signal.sigwait([signal.SIGUSR1])
def test_hangs_not(): pass
def test_crashes(): os._exit(9)
@pytest.mark.skip(reason="not here")
def test_skipped(): pass
""",
    "test_b.py": "import no_such_module",
    "test_c.py": "def test_last(): pass",
}
SETTINGS = "[tool.pytest.ini_options]\naddopts = '--no-such-option'\nfilterwarnings = ['error']\n"


def test_each_test_costs_itself_only(tmp_path: Path) -> None:
    folder = tmp_path / "root" / "tests"
    folder.mkdir(parents=True)
    (tmp_path / "root" / "pyproject.toml").write_text(SETTINGS)
    for name, text in TESTS.items():
        (folder / name).write_text(text)
    told: list[Ended] = []
    log = tmp_path / "pytest.log"
    found = run_tests(folder, tmp_path / "root", ("-p", "no:cacheprovider"), log, told.append, seconds=8.0)
    assert found == told
    ends = {one.name.removeprefix("tests/"): one for one in found}
    assert len(ends) == len(found)
    assert {name: one.outcome for name, one in ends.items()} == {
        "test_b.py": "failed",
        "test_a.py::test_fine": "passed",
        "test_a.py::test_fine_too": "passed",
        "test_a.py::test_wrong": "failed",
        "test_a.py::test_hangs": "hung",
        "test_a.py::test_hangs_not": "passed",
        "test_a.py::test_crashes": "crashed",
        "test_a.py::test_skipped": "skipped",
        "test_c.py::test_last": "passed",
    }
    assert ends["test_a.py::test_wrong"].said == "assert 1 == 2"
    assert ends["test_a.py::test_hangs"].said == "not over after 8 s"
    assert ends["test_a.py::test_crashes"].said == "the process ended with 9"
    assert ends["test_a.py::test_skipped"].said.endswith("not here")
    assert "no_such_module" in ends["test_b.py"].said
    assert log.read_text().count("test session starts") == 3, "one more process for each test that took its own along"


def test_a_process_that_cannot_begin_is_told(tmp_path: Path) -> None:
    found = run_tests(tmp_path, tmp_path, ("--no-such-option",), tmp_path / "log", lambda one: None)
    assert [(one.name, one.outcome) for one in found] == [("collection", "crashed")]
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    assert run_tests(nothing, tmp_path, (), tmp_path / "log", lambda one: None) == []
