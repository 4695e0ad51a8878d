"""Signs of life: said only where training got further, kept for whoever goes on, gone with the stage's result."""

from __future__ import annotations

import errno
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.tiny_sweep import Desk
from trainers.contract.stage import RESULT, StageJob
from trainers.planning import life
from trainers.planning.life import SignOfLife, first_sign, life_file, lives_in, read_life, write_life


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StageJob:
    from dataclasses import replace

    monkeypatch.setattr(life, "BEAT_SECONDS", 0.01)
    job = Desk().open().next_job()
    assert isinstance(job, StageJob)
    return replace(job, store=str(tmp_path), devices=2)


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_stage_says_how_far_it_is_and_falls_silent_when_it_hangs(job: StageJob, tmp_path: Path) -> None:
    with SignOfLife(job) as said:
        until(lambda: bool(lives_in(tmp_path)))
        for step in (1, 2, 3):
            time.sleep(0.01)
            said.look(step, 4.5 - step, 0.25)
        until(lambda: lives_in(tmp_path)[0].step == 3)
        (found,) = lives_in(tmp_path)
        assert (found.node, found.trial, found.loss, found.step_seconds) == (job.node, job.booked_by, 1.5, 0.25)
        assert found.running
        assert found.watched
        assert found.rate > 0
        assert found.gap_seconds > 0
        assert found.hours == 2 * found.seconds / 3600 > 0
        assert "nano baseline" in found.label
        changed = life_file(tmp_path, job.node).stat().st_mtime_ns
        time.sleep(0.1)
        assert life_file(tmp_path, job.node).stat().st_mtime_ns == changed
        said.moved()
        until(lambda: life_file(tmp_path, job.node).stat().st_mtime_ns != changed)
        said.look(4, float("nan"), 0.25)
    (ended,) = lives_in(tmp_path)
    assert (ended.step, ended.loss, ended.running) == (4, None, False)


def test_what_an_attempt_has_cost_is_kept_for_the_next(job: StageJob, tmp_path: Path) -> None:
    from dataclasses import replace

    write_life(tmp_path, replace(first_sign(job), seconds=100.0, step=3))
    again = first_sign(job)
    assert (again.seconds, again.step) == (100.0, 3)
    assert first_sign(replace(job, devices=4)).seconds == 50.0
    # The same node, reached from elsewhere, is another stretch of steps.
    assert first_sign(replace(job, parent="other", start=2)).seconds == 0.0
    said = SignOfLife(job, speaks=False)
    assert said.billed() >= 100.0
    said.spent_before(120.0)
    said.spent_before(90.0)
    assert said.billed() >= 120.0


def test_it_goes_with_the_result(job: StageJob, tmp_path: Path) -> None:
    with SignOfLife(job):
        until(lambda: bool(lives_in(tmp_path)))
        (tmp_path / job.node).mkdir()
        (tmp_path / job.node / RESULT).write_text("{}", encoding="utf-8")
    assert lives_in(tmp_path) == []


def test_other_ranks_say_nothing(job: StageJob, tmp_path: Path) -> None:
    with SignOfLife(job, speaks=False) as said:
        said.look(1, 4.0, 0.1)
        time.sleep(0.05)
    assert lives_in(tmp_path) == []


def test_a_disk_without_room_still_shows_that_there_is_life(
    job: StageJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    write_life(tmp_path, first_sign(job))
    file = life_file(tmp_path, job.node)
    before = file.stat().st_mtime_ns

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        time.sleep(0.01)
        write_life(tmp_path, replace(first_sign(job), step=5))
    assert file.stat().st_mtime_ns != before
    assert read_life(file) == replace(first_sign(job), at=json.loads(file.read_text())["at"])


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"node": 1}'])
def test_what_is_no_sign_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "live").mkdir()
    (tmp_path / "live" / "a.json").write_text(text, encoding="utf-8")
    assert lives_in(tmp_path) == []
