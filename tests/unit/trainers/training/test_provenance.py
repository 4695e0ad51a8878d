"""Provenance: the commit is the checkout's own or unknown, names are stable, and a record can carry it."""

from __future__ import annotations

import os
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.support.strategies import record_of, spec_of
from trainers.contract.record import record_from_dict, record_to_dict
from trainers.training.devices import cpu_name
from trainers.training.provenance import UNKNOWN, git_state, provenance, versions


def git(root: Path, *arguments: str) -> str:
    who = {
        "GIT_AUTHOR_NAME": "a",
        "GIT_AUTHOR_EMAIL": "a@b.c",
        "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@b.c",
    }
    environment = {**os.environ, **who, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    git(tmp_path, "init", "--quiet")
    (tmp_path / "a.txt").write_text("one")
    git(tmp_path, "add", "a.txt")
    git(tmp_path, "commit", "--quiet", "-m", "one")
    return tmp_path


def test_commit_of_a_clean_checkout(checkout: Path) -> None:
    assert git_state(checkout) == (git(checkout, "rev-parse", "HEAD"), False)


def test_changed_file_makes_it_dirty_and_a_new_one_does_not(checkout: Path) -> None:
    (checkout / "results.txt").write_text("untracked")
    assert git_state(checkout)[1] is False
    git_state.cache_clear()
    (checkout / "a.txt").write_text("two")
    assert git_state(checkout)[1] is True


def test_package_installed_inside_another_repository_does_not_borrow_its_commit(checkout: Path) -> None:
    inside = checkout / "environment" / "site-packages"
    inside.mkdir(parents=True)
    assert git_state(inside) == (UNKNOWN, False)


def test_broken_checkout_is_unknown(tmp_path: Path) -> None:
    (tmp_path / ".git").write_text("not a repository")
    assert git_state(tmp_path) == (UNKNOWN, False)


def test_cpu_name_is_the_model_as_one_line(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(
        "processor\t: 0\nmodel name\t: Imaginary   CPU\t9000 @ 3GHz\nprocessor\t: 1\nmodel name\t: Other\n"
    )
    assert cpu_name(cpuinfo) == "Imaginary CPU 9000 @ 3GHz"


def test_cpu_without_a_model_name_still_has_a_name(tmp_path: Path) -> None:
    assert cpu_name(tmp_path / "absent")


def test_versions_name_what_changes_a_result() -> None:
    found = dict(versions())
    assert {"python", "torch", "numpy", "ray", "optuna", "mlflow", "tst-sweeper"} <= set(found)
    assert list(versions()) == sorted(versions())


def test_provenance_survives_a_record() -> None:
    moment = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    made = provenance("eager", "cpu", moment)
    assert (made.device_kind, made.execution, made.started_at) == ("cpu", "eager", "2026-01-02T03:04:05+00:00")
    record = record_of(spec_of(), provenance=made)
    assert record_from_dict(record_to_dict(record)) == record


def test_no_device_is_the_processor() -> None:
    moment = datetime(2026, 1, 2, tzinfo=UTC)
    assert provenance("eager", None, moment) == provenance("eager", "cpu", moment)
