"""How a sweep stands, on screens of 80 and 120 columns and as JSON: from what its driver and its workers left."""

from __future__ import annotations

import io
import json
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from rich.console import Console

from reports.html import theme
from sweeper.cli.status import MOST_FAILURES, drawn, state_of, status_of, status_to_json
from sweeper.engine.live import LiveSweep
from sweeper.engine.status import FILE, Failure, StatusFile, SweepStatus, read_status
from sweeper.lock import Driver
from sweeper.options import STAGES
from tests.support.tiny_sweep import Desk, Workers
from trainers.contract.stage import StageJob
from trainers.planning.life import first_sign, write_life

DRIVER = Driver("a-host", 4711, 0.0)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A sweep in the middle: half its stages have ended, two train, one trial failed."""
    folder = tmp_path / "tiny"
    desk = Desk()
    sweep = desk.open()
    Workers().run(sweep, stages=6)
    moments = iter(range(0, 10_000, 10))
    live = LiveSweep(sweep, None, folder / STAGES, 600.0, lambda: float(next(moments)))
    for number in range(2):
        job = live.next_job()
        assert isinstance(job, StageJob)
        life = replace(
            first_sign(job), watched=True, step=job.end - 1, loss=3.25, rate=2.0, seconds=60.0, gap_seconds=1.0
        )
        write_life(folder / STAGES, replace(life, host="a-node-with-a-long-name", devices=8.0, pid=number))
    failing = live.next_job()
    assert isinstance(failing, StageJob)
    live.fail(failing.node, "OutOfMemoryError: it wants 90 GB")
    live.look()
    StatusFile(live, folder).write(now=True)
    return tmp_path


def shown(found: SweepStatus, driver: Driver | None, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(drawn(found, driver, width))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_a_screen_has_room_for_it(results: Path, width: int) -> None:
    found, driver = status_of(results, "tiny", None)
    assert driver is None
    text = shown(found, DRIVER, width)
    assert max(map(len, text.splitlines())) <= width
    for words in (
        "running: process 4711 on a-host",
        "3.250",
        theme.hours(8 * 60 / 3600),
        "ends",
        "OutOfMemoryError: it wants 90 GB",
        "a-node",
    ):
        assert words in " ".join(text.split()), words
    assert ("a-node-with-a-long-name" in text) == (width == 120)


def test_json_holds_all_of_it(results: Path) -> None:
    plain = status_to_json(*status_of(results, "tiny", None))
    assert json.loads(json.dumps(plain, allow_nan=False)) == json.loads(json.dumps(plain))
    assert plain["state"] == "interrupted"
    assert plain["ends_at"] is None
    assert {failure["reason"] for failure in plain["failures"]} == {"OutOfMemoryError: it wants 90 GB"}
    assert plain["hours_spent"] > 2 * 8 * 60 / 3600
    first, second = plain["stages"]
    assert first["ends_at"] == pytest.approx(first["at"] + 0.5)
    assert first["hours"] == pytest.approx(8 * 60 / 3600)
    assert 0 <= second["silent_seconds"] < 60
    assert sum(arm["finished"] + arm["failed"] + arm["open"] for arm in plain["arms"]) >= 4


def test_who_drives_and_how_it_ended(results: Path) -> None:
    found, _ = status_of(results, "tiny", None)
    assert state_of(found, DRIVER) == "running"
    assert state_of(found, None) == "interrupted"
    assert state_of(replace(found, stopping="stop requested"), None) == "stopped"
    assert state_of(replace(found, complete=True), None) == "finished"
    assert "finished on" in shown(replace(found, complete=True), None, 80)
    cut = replace(found, stages=tuple(replace(life, running=False) for life in found.stages))
    assert "begun and cut" in shown(cut, None, 80)
    assert "begun and cut" not in shown(replace(cut, complete=True), None, 80), "nobody goes on with them"
    assert "stop requested" in shown(replace(found, stopping="stop requested"), None, 80)


def test_a_hundred_failures_are_counted(results: Path) -> None:
    found, _ = status_of(results, "tiny", None)
    many = replace(found, failures=tuple(Failure(f"trial {number}", "failed", "no luck") for number in range(100)))
    text = shown(many, None, 120)
    assert text.count("no luck") == MOST_FAILURES
    assert f"and {100 - MOST_FAILURES} more" in text


def test_words_of_others_are_shown_as_they_are(results: Path) -> None:
    found, _ = status_of(results, "tiny", None)
    assert "[bold]x[/x]" in shown(replace(found, question="[bold]x[/x]"), None, 120)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"name": 1}'])
def test_a_damaged_file_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text, encoding="utf-8")
    assert read_status(tmp_path) is None


def test_what_is_written_is_read(results: Path) -> None:
    found = read_status(results / "tiny")
    assert found is not None
    assert json.loads((results / "tiny" / FILE).read_text(encoding="utf-8")) == json.loads(json.dumps(asdict(found)))
    assert time.time() - found.at < 600
