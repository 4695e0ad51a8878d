"""One driver a sweep, whatever clocks, crashes and readers do; real processes, since the kernel holds the lock."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sweeper.lock import LOCK, SILENT_SECONDS, STOP, LockedError, current_driver, driving, request_stop

HOLD = """
import sys, time
from pathlib import Path
from sweeper.lock import driving
with driving(Path(sys.argv[1])):
    print("in", flush=True)
    time.sleep(600)
"""


@contextmanager
def holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "in\n"
        try:
            yield process
        finally:
            process.kill()


def test_the_second_driver_is_told_who_is_in_and_a_killed_one_makes_way(tmp_path: Path) -> None:
    folder = tmp_path / "a sweep"
    with holder(folder) as first:
        with pytest.raises(LockedError, match=f"process {first.pid} on "), driving(folder):
            pass
        assert request_stop(folder) is not None
        assert (folder / STOP).exists()
        first.send_signal(signal.SIGKILL)
    assert current_driver(folder) is None
    with driving(folder):
        assert not (folder / STOP).exists()
        assert (current_driver(folder) or pytest.fail("nobody")).pid == os.getpid()
    assert not folder.exists()


def test_a_clock_that_steps_changes_nobody_s_lock(tmp_path: Path) -> None:
    """The driver is on this machine: what the file says about times is not asked."""
    folder = tmp_path / "sweep"
    with holder(folder):
        driver = json.loads((folder / LOCK).read_text())
        os.utime(folder / LOCK, (0, 0))
        (folder / LOCK).write_text(json.dumps(driver | {"started": driver["started"] - 7_200}))
        with pytest.raises(LockedError), driving(folder):
            pass


def test_a_locked_file_that_says_nothing_is_a_driver_all_the_same(tmp_path: Path) -> None:
    with driving(tmp_path / "sweep"):
        (tmp_path / "sweep" / LOCK).write_text('{"pid": []}')
        assert (current_driver(tmp_path / "sweep") or pytest.fail("nobody")).host == "unknown"


@pytest.mark.parametrize(("age", "alive"), [(0.0, True), (SILENT_SECONDS / 2, True), (2 * SILENT_SECONDS, False)])
def test_another_machine_s_driver_lives_as_long_as_it_gives_signs(tmp_path: Path, age: float, alive: bool) -> None:
    lock = tmp_path / LOCK
    lock.write_text(json.dumps({"host": "elsewhere", "pid": 7, "started": 1.0}))
    os.utime(lock, (time.time() - age, time.time() - age))
    assert (current_driver(tmp_path) is not None) is alive
    if alive:
        with pytest.raises(LockedError, match="process 7 on elsewhere"), driving(tmp_path):
            pass
    else:
        with driving(tmp_path):
            assert (current_driver(tmp_path) or pytest.fail("nobody")).pid == os.getpid()


def enter(folder: Path, barrier: object, inside: object, most: object) -> None:
    for _ in range(30):
        barrier.wait()  # type: ignore[attr-defined]
        try:
            with driving(folder):
                with inside.get_lock():  # type: ignore[attr-defined]
                    inside.value += 1  # type: ignore[attr-defined]
                    most.value = max(most.value, inside.value)  # type: ignore[attr-defined]
                time.sleep(0.002)
                with inside.get_lock():  # type: ignore[attr-defined]
                    inside.value -= 1  # type: ignore[attr-defined]
        except LockedError:
            pass


def test_of_four_that_start_at_once_one_gets_in(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier, inside, most = context.Barrier(4), context.Value("i", 0), context.Value("i", 0)
    crowd = [context.Process(target=enter, args=(tmp_path / "sweep", barrier, inside, most)) for _ in range(4)]
    for one in crowd:
        one.start()
    for one in crowd:
        one.join(timeout=120)
    assert [one.exitcode for one in crowd] == [0] * 4
    assert most.value == 1
