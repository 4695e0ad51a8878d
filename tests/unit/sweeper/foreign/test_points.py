"""What a trainer says is read as it writes, whole lines only; what cannot be read is told in words."""

from __future__ import annotations

import math
import re
import struct
from pathlib import Path

import pytest

from sweeper.foreign.points import EventReader, LineReader, Sighting, scalars_of, sighting
from sweeper.foreign.track import BETWEEN, Track
from sweeper.space.foreign_schema import TensorboardTags


def test_lines_are_read_as_they_come_and_a_half_one_waits(tmp_path: Path) -> None:
    file = tmp_path / "points.jsonl"
    reader = LineReader(file, None)
    assert reader.read() == []
    file.write_text('{"step": 1, "loss": 3}\n{"step": 2, "l')
    assert reader.read() == [Sighting(1, 3.0)]
    with file.open("a") as more:
        more.write('oss": 2.5, "seconds": 4, "tokens": 100, "flops": 1e9, "phase": "bags"}\n{"final_loss": 2}\n')
    assert reader.read() == [Sighting(2, 2.5, 4.0, 100, 1e9, "bags"), Sighting(None, 2.0)]
    assert reader.read() == []
    assert reader.bad is None


def test_a_last_line_without_its_break_counts_if_it_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "points.jsonl"
    file.write_text('{"step": 1, "loss": 3}')
    reader = LineReader(file, None)
    assert reader.read() == []
    assert reader.cut(forgive=False) == [Sighting(1, 3.0)]
    assert reader.bad is None


@pytest.mark.parametrize(
    ("forgive", "bad"), [(True, None), (False, 'points.jsonl:1: its last line was never finished: \'{"step": 1, "lo\'')]
)
def test_half_a_line_is_forgiven_where_the_writer_was_cut(tmp_path: Path, forgive: bool, bad: str | None) -> None:
    file = tmp_path / "points.jsonl"
    file.write_text('{"step": 1, "lo')
    reader = LineReader(file, None)
    assert reader.cut(forgive=forgive) == []
    assert reader.bad == bad
    with file.open("a") as more:
        more.write('{"step": 1, "loss": 3}\n')
        more.write("loss is three\n")
    assert reader.read() == [Sighting(1, 3.0)], "whoever goes on begins a new line"
    assert reader.bad == (bad or "points.jsonl:3: not JSON: 'loss is three'")


def test_a_log_is_read_by_its_expression_and_other_lines_are_no_mistake(tmp_path: Path) -> None:
    file = tmp_path / "log.txt"
    file.write_text("hello\nstep 10 val_loss 3.5 seconds 1.5\nstep 20 val_loss nan\nstep 30 val_loss\n")
    pattern = re.compile(r"step (?P<step>\d+) val_loss (?P<loss>\S+)( seconds (?P<seconds>\S+))?")
    reader = LineReader(file, pattern)
    first, second = reader.read()
    assert first == Sighting(10, 3.5, 1.5)
    assert second.step == 20
    assert math.isnan(second.loss)
    assert reader.bad is None


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (3, "not an object with step and loss"),
        ({"step": 1}, "neither step and loss nor final_loss"),
        ({"step": 1, "loss": 2, "los": 3}, "unknown los"),
        ({"step": 1.5, "loss": 2}, "step is no whole number"),
        ({"step": -1, "loss": 2}, "step is no whole number"),
        ({"step": True, "loss": 2}, "step is no number"),
        ({"step": math.inf, "loss": 2}, "step is no whole number"),
        ({"step": 1, "loss": None}, "loss is no number"),
        ({"step": 1, "loss": "low"}, "loss is no number"),
        ({"step": 1, "loss": 2, "seconds": -1}, "seconds is not in"),
        ({"step": 1, "loss": 2, "flops": math.nan}, "flops is not in"),
        ({"final_loss": [2]}, "loss is no number"),
    ],
)
def test_what_is_no_point_is_said(said: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        sighting(said)


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def part(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def event(step: int, tag: str, value: float, *, as_tensor: bool = False, at: float = 1.7e9) -> bytes:
    """An event as TensorBoard writes it: the wall time, the step, a summary of one value."""
    packed = struct.pack("<f", value)
    tensor = part(8, varint(1 << 3) + varint(1) + part(2, b"") + part(5, packed))  # data type, shape, float_val
    held = tensor if as_tensor else varint(2 << 3 | 5) + packed
    summary = part(1, part(1, tag.encode()) + held)
    return varint(1 << 3 | 1) + struct.pack("<d", at) + varint(2 << 3) + varint(step) + part(5, summary)


def framed(content: bytes) -> bytes:
    return struct.pack("<Q", len(content)) + b"sum1" + content + b"sum2"


@pytest.mark.parametrize("as_tensor", [False, True])
def test_scalars_of_an_event_are_found(as_tensor: bool) -> None:
    assert list(scalars_of(event(300, "val/loss", 3.25, as_tensor=as_tensor))) == [(300, "val/loss", 3.25, 1.7e9)]
    assert list(scalars_of(varint(1 << 3 | 1) + struct.pack("<d", 1.0) + part(3, b"brain.Event:2"))) == []


def test_event_files_are_read_as_they_grow(tmp_path: Path) -> None:
    file = tmp_path / "runs" / "events.out.tfevents.1.host"
    file.parent.mkdir()
    reader = EventReader(tmp_path, TensorboardTags(loss="val/loss", seconds="time", tokens="seen"))
    whole = framed(event(10, "val/loss", 3.5)) + framed(event(10, "time", 2.0)) + framed(event(10, "other", 9.0))
    cut = framed(event(20, "val/loss", 3.25))
    file.write_bytes(whole + cut[:20])
    assert reader.read() == [Sighting(10, 3.5, 2.0, at=1.7e9)]
    file.write_bytes(whole + cut + framed(event(20, "seen", 640.0)))
    assert reader.read() == [Sighting(20, 3.25, tokens=640, at=1.7e9)]
    before = framed(event(30, "time", 6.0)) + framed(event(30, "val/loss", 3.0))
    with file.open("ab") as more:
        more.write(before)
    assert reader.read() == [Sighting(30, 3.0, 6.0, at=1.7e9)], "a writer may say the time first"
    assert reader.read() == []


def test_what_a_buffer_held_back_is_timed_by_when_it_was_written(tmp_path: Path) -> None:
    """TensorBoard's writer flushes every two minutes: all of a short run comes at once."""
    file = tmp_path / "events.out.tfevents.1.host"
    file.write_bytes(b"".join(framed(event(step, "loss", 3.0, at=1.7e9 + step / 5)) for step in (10, 20, 30)))
    track = Track(30)
    track.add(EventReader(tmp_path, TensorboardTags(loss="loss")).read(), now=100.0)
    assert track.clock(60.0) == (BETWEEN, pytest.approx(0.2))
