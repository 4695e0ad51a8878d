"""A command under its guard: no shell, one ending in words, and nothing left behind."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from sweeper.foreign.process import Ending, GuardedProcess, StillRunsError, held, last_lines


def run(folder: Path, *command: str, grace: float = 5.0, end: bool = False) -> Ending:
    with held(folder / "lock", 10.0) as lock:
        process = GuardedProcess(command, folder, dict(os.environ), folder / "log.txt", lock, grace)
        with process:
            while end and not last_lines(folder / "log.txt"):
                time.sleep(0.01)
            if end:
                process.end()
            while process.poll() is None:
                time.sleep(0.01)
    assert process.ending is not None
    return process.ending


def test_words_reach_the_command_as_they_are(tmp_path: Path) -> None:
    ending = run(tmp_path, sys.executable, "-c", "import sys; print(sys.argv[1:])", "a b", "$HOME; touch x", "*", "")
    assert ending == Ending("exit code 0", code=0)
    assert (tmp_path / "log.txt").read_text() == "['a b', '$HOME; touch x', '*', '']\n"
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("program", "ending"),
    [
        ("raise SystemExit(7)", Ending("exit code 7", code=7)),
        ("import os; os.kill(os.getpid(), 9)", Ending("killed by SIGKILL", killed=True)),
    ],
)
def test_an_ending_is_told_in_words(tmp_path: Path, program: str, ending: Ending) -> None:
    assert run(tmp_path, sys.executable, "-c", program) == ending


def test_a_command_or_a_folder_that_is_not_there_is_an_ending(tmp_path: Path) -> None:
    assert (
        run(tmp_path, "no-such-program").words
        == "the command cannot be started: no-such-program: No such file or directory"
    )
    with held(tmp_path / "lock", 1.0) as lock:
        gone = GuardedProcess(["true"], tmp_path / "gone", {}, tmp_path / "log.txt", lock, 1.0)
        with gone:
            assert gone.poll() == Ending("the command cannot be started: No such file or directory")


def test_an_end_is_asked_for_by_sigterm_and_then_made(tmp_path: Path) -> None:
    obeys = "import signal, time\nsignal.signal(15, lambda *_: exit(3))\nprint('ready', flush=True)\ntime.sleep(60)"
    assert run(tmp_path, sys.executable, "-c", obeys, end=True) == Ending("exit code 3", code=3)
    (tmp_path / "log.txt").unlink()
    deaf = "import signal, time\nsignal.signal(15, signal.SIG_IGN)\nprint('ready', flush=True)\ntime.sleep(60)"
    assert run(tmp_path, sys.executable, "-c", deaf, grace=0.2, end=True) == Ending("killed by SIGKILL", killed=True)


def test_a_folder_has_one_command_at_a_time(tmp_path: Path) -> None:
    with held(tmp_path / "lock", 1.0), pytest.raises(StillRunsError, match="still runs"), held(tmp_path / "lock", 0.1):
        pass
    with held(tmp_path / "lock", 0.1):
        pass


def test_the_end_of_a_log_is_one_line(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_bytes(b"first\n\n  10%\r 50%\r100%\r\nTraceback\nValueError: no \xff layer\n")
    assert last_lines(log, lines=3) == "'100%' | 'Traceback' | 'ValueError: no � layer'"
    assert last_lines(tmp_path / "none") == ""
    log.write_text(f"{'long ' * 29}http://ann:s3cret@host/ refuses\n")
    assert "s3c" not in last_lines(log)
