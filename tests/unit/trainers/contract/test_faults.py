"""A fault leaves its traceback in a log and one line on the screen; the user's mistake is its own text."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.places import ROOT
from trainers.contract.errors import InputError, UserError, given
from trainers.contract.faults import FAULT, STOPPED, USER, end_of, without_login


def broken(message: str) -> Exception:
    try:
        raise ZeroDivisionError(message)
    except ZeroDivisionError as error:
        return error


def test_a_fault_is_one_line_with_the_path_of_its_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert end_of(broken("in\nsome library"), "sweeper run", tmp_path) == FAULT
    out, err = capsys.readouterr()
    (log,) = tmp_path.iterdir()
    assert (out, err) == (
        "",
        f"sweeper run failed: ZeroDivisionError: in some library; the traceback is in {log}\n",
    )
    assert "test_faults.py" in log.read_text()
    assert "ZeroDivisionError" in log.read_text()


@pytest.mark.parametrize("kind", [UserError, InputError])
def test_the_user_s_mistake_is_its_own_text_and_leaves_no_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: type[UserError]
) -> None:
    assert end_of(kind("bag_size: 0 is not a positive integer"), "sweeper run", tmp_path) == USER
    assert capsys.readouterr().err == "bag_size: 0 is not a positive integer\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["x" * 5_000, "file/below", "circle"])
def test_a_path_that_cannot_be_one_is_the_user_s_and_short(
    path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(OSError, match=r"too long|Not a directory|Too many levels") as caught:
        (tmp_path / path).read_text(encoding="utf-8")
    assert end_of(caught.value, "sweeper status", tmp_path / path) == USER
    said = capsys.readouterr().err
    assert said.startswith(f"{tmp_path / path}"[:200])
    assert len(said) < 300


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
        RuntimeError("(sqlite3.OperationalError) database or disk is full"),
    ],
)
def test_a_full_disk_is_nobody_s_fault_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    assert end_of(error, "sweeper run", tmp_path) == STOPPED
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("sweeper run stopped: /")
    assert "no room on the disk" in line
    assert list(tmp_path.iterdir()) == []
    told = UserError(f"{tmp_path}: {error}")  # by a ledger, in its own words
    assert end_of(told, "sweeper import", tmp_path) == STOPPED
    assert capsys.readouterr().err == f"{told}\n"
    with pytest.raises(OSError, match="No space left"), given(tmp_path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_debug_shows_the_traceback_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert end_of(broken("x"), "sweeper run", tmp_path, debug=True) == FAULT
    assert "Traceback (most recent call last)" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_where_the_folder_does_not_exist_the_log_is_a_temporary_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert end_of(broken("x"), "sweeper status", tmp_path / "results") == FAULT
    (log,) = tmp_path.iterdir()
    assert str(log) in capsys.readouterr().err


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize(
    "address",
    [
        "http://user:secret@host:5000/",
        "http://user:not/quoted@secret@host:5000",
        "http://user:/secret@host:5000/",
        "postgresql://host/runs?user=ann&password=secret",
        "https://host/?x=1&access_token=secret#there",
    ],
)
def test_a_password_in_an_address_is_in_neither(
    address: str, debug: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    end_of(broken(f"{address} says no"), "sweeper run", tmp_path, debug=debug)
    text = capsys.readouterr().err + "".join(log.read_text() for log in tmp_path.iterdir())
    assert "secret" not in text
    assert "host" in text
    assert "says no" in text


@pytest.mark.parametrize("text", ["sqlite:////a@b/mlflow.db", "see file:///home/a@b.c and http://host/x?y=z", "a@b"])
def test_an_address_without_a_login_is_left_alone(text: str) -> None:
    assert without_login(text) == text


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.csv: No such file or directory"), given("nowhere.csv"):
        (tmp_path / "nowhere.csv").open()


PROGRAM = """
import sys
from pathlib import Path
import sweeper.session
def broken(options):
    raise ValueError("math domain error")
sweeper.session.plan = broken
sys.argv = ["sweeper", "plan", "search_spaces/quickstart.yaml", "--results", sys.argv[1], *sys.argv[2:]]
from sweeper.cli import main
main()
"""


@pytest.mark.parametrize("more", [(), ("--debug",)])
def test_a_value_error_of_ours_does_not_look_like_a_mistake_in_the_file(tmp_path: Path, more: tuple[str, ...]) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), *more]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"NO_COLOR": "1"})
    assert (done.returncode, done.stdout) == (1, "")
    if more:
        assert "Traceback (most recent call last)" in done.stderr
    else:
        (log,) = tmp_path.glob("fault-*.log")
        assert done.stderr == f"sweeper plan failed: ValueError: math domain error; the traceback is in {log}\n"
