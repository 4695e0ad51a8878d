"""What a trainer says of itself, read while it writes: JSON lines, lines of its log, or TensorBoard's event files.

Only whole lines count. What cannot be read is kept in words; whether it matters is `track`'s.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from sweeper.space.foreign_schema import POINT_KEYS, Metrics, TensorboardTags
from trainers.contract.record import MOST_COUNTED, MOST_FLOPS, MOST_SECONDS

LONGEST_SHOWN = 80
MOST_TAGS = 20
"""Of those told of that TensorBoard's files hold."""


@dataclass(frozen=True, slots=True)
class Sighting:
    """One thing that a trainer said. `step` is None for a final loss; `seconds`, `tokens` and `flops` are totals so far, None
    where it did not say. `loss` may be any float, NaN among them. `at` is when it was written, in seconds by the wall's clock,
    where that stands beside it: a buffer may hold it back."""

    step: int | None
    loss: float
    seconds: float | None = None
    tokens: int | None = None
    flops: float | None = None
    phase: str | None = None
    at: float | None = None


class Reader(Protocol):
    """Reads what is new."""

    bad: str | None

    def read(self) -> list[Sighting]:
        """What has been said since the last call."""
        ...

    def cut(self, *, forgive: bool) -> list[Sighting]:
        """The writer has ended: what it left half written is read, too, or forgiven."""
        ...

    def why_nothing(self) -> str:
        """Why no point was found, in words: what is there instead."""
        ...


def reader_of(metrics: Metrics, out: Path, log: Path) -> Reader:
    """The reader that a file's `metrics` ask for."""
    if metrics.tensorboard is not None:
        return EventReader(out, metrics.tensorboard)
    if metrics.log is not None:
        return LineReader(log, re.compile(metrics.log))
    return LineReader(out / str(metrics.points), None)


@dataclass
class LineReader:
    """Lines of a growing file: JSON objects, or those that `pattern` finds."""

    file: Path
    pattern: re.Pattern[str] | None
    bad: str | None = None
    _offset: int = 0
    _lines: int = 0
    _cut_short: bool = False

    def read(self) -> list[Sighting]:
        """See `Reader`."""
        try:
            with self.file.open("rb") as file:
                file.seek(self._offset)
                content = file.read()
        except OSError:
            return []
        whole = content[: content.rfind(b"\n") + 1]
        self._offset += len(whole)
        found: list[Sighting] = []
        for line in whole.split(b"\n")[:-1]:
            self._lines += 1
            found += self._sightings(line)
        return found

    def cut(self, *, forgive: bool) -> list[Sighting]:
        """See `Reader`. Whoever goes on in this file begins a new line."""
        found, before = self.read(), self.bad
        try:
            with self.file.open("rb+") as file:
                file.seek(self._offset)
                rest = file.read()
                if rest:
                    file.write(b"\n")
                self._cut_short = bool(rest)
        except OSError:
            return found
        found += self.read()
        self._cut_short = False
        if forgive:
            self.bad = before
        return found

    def why_nothing(self) -> str:
        """See `Reader`."""
        if self.pattern is None:
            there = "is empty" if self.file.exists() else "is not there"
            return f"{self.file.name} {there} (metrics.points)"
        return f"none of the {self._lines:,} lines of its output matches metrics.log"

    def _sightings(self, line: bytes) -> Iterator[Sighting]:
        text = line.decode("utf-8", errors="replace").strip()
        if not text:
            return
        try:
            if self.pattern is None:
                yield sighting(json.loads(text))
            elif match := self.pattern.search(text):
                yield sighting({name: value for name, value in match.groupdict().items() if value is not None})
        except (ValueError, RecursionError) as error:
            not_json = "its last line was never finished" if self._cut_short else "not JSON"
            reason = not_json if isinstance(error, json.JSONDecodeError) else str(error)
            self.bad = self.bad or f"{self.file.name}:{self._lines}: {reason}: {text[:LONGEST_SHOWN]!r}"


def sighting(said: Any) -> Sighting:
    """A line of the contract as a value. Raises `ValueError` in words for anything else."""
    if not isinstance(said, Mapping):
        raise ValueError("not an object with step and loss")
    unknown = [str(key) for key in said if key not in POINT_KEYS]
    if unknown:
        raise ValueError(f"unknown {', '.join(sorted(unknown))}")
    if "final_loss" not in said and not {"step", "loss"} <= said.keys():
        raise ValueError("neither step and loss nor final_loss")
    whole = {name: _whole(name, said[name]) for name in ("step", "tokens") if name in said}
    phase = said.get("phase")
    return Sighting(
        step=None if "final_loss" in said else whole["step"],
        loss=_number("loss", said.get("final_loss", said.get("loss"))),
        seconds=_total("seconds", said["seconds"], MOST_SECONDS) if "seconds" in said else None,
        tokens=whole.get("tokens"),
        flops=_total("flops", said["flops"], MOST_FLOPS) if "flops" in said else None,
        phase=None if phase is None else str(phase)[:64],
    )


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{name} is no number")
    try:
        return float(value)
    except (ValueError, OverflowError):
        raise ValueError(f"{name} is no number") from None


def _whole(name: str, value: Any) -> int:
    number = _number(name, value)
    if not 0 <= number <= MOST_COUNTED or number != int(number):
        raise ValueError(f"{name} is no whole number")
    return int(value) if isinstance(value, int) else int(number)


def _total(name: str, value: Any, most: float) -> float:
    number = _number(name, value)
    if not 0 <= number <= most:
        raise ValueError(f"{name} is not in [0, {most:g}]")
    return number


Scalar = tuple[int, str, float, float | None]
"""Step, tag, value, and when it was written."""


@dataclass
class EventReader:
    """Scalars of TensorBoard's event files below a folder, with the little of their format that this needs."""

    folder: Path
    tags: TensorboardTags
    bad: str | None = None
    _offsets: dict[Path, int] = field(default_factory=dict)
    _points: dict[int, Sighting] = field(default_factory=dict)
    _beside: dict[int, dict[str, Any]] = field(default_factory=dict)
    _others: dict[str, None] = field(default_factory=dict)

    def read(self) -> list[Sighting]:
        """See `Reader`."""
        changed: dict[int, None] = {}
        for file in sorted(self.folder.rglob("*tfevents*")):
            for step, tag, value, at in self._scalars(file):
                # A step's other values may stand before its loss.
                beside = self._beside.setdefault(step, {})
                if tag == self.tags.loss:
                    self._points[step] = replace(self._points.get(step, Sighting(step, value)), loss=value, at=at)
                elif tag == self.tags.seconds:
                    beside["seconds"] = value
                elif tag == self.tags.tokens:
                    beside["tokens"] = int(value)
                else:
                    self._others[tag] = None
                    continue
                if step in self._points:
                    changed[step] = None
                    self._points[step] = replace(self._points[step], **beside)
        return [self._points[step] for step in changed]

    def cut(self, *, forgive: bool) -> list[Sighting]:
        """See `Reader`. A record that was cut is none."""
        return self.read()

    def why_nothing(self) -> str:
        """See `Reader`."""
        if not self._offsets:
            return "no event file of TensorBoard's is in its folder (metrics.tensorboard)"
        tags = sorted(self._others)
        shown = [*map(repr, tags[:MOST_TAGS]), *([f"{len(tags) - MOST_TAGS} more"] if len(tags) > MOST_TAGS else [])]
        held = f"they hold {', '.join(shown)}" if shown else "they hold no other scalar"
        return f"no {self.tags.loss!r} in TensorBoard's event files (metrics.tensorboard); {held}"

    def _scalars(self, file: Path) -> Iterator[Scalar]:
        try:
            with file.open("rb") as opened:
                opened.seek(self._offsets.get(file, 0))
                content = opened.read()
        except OSError:
            return
        at = 0
        # A record: eight bytes of length, four of its checksum, the event, four of its checksum.
        while at + 12 <= len(content):
            (length,) = struct.unpack_from("<Q", content, at)
            if at + 16 + length > len(content):
                break
            yield from scalars_of(content[at + 12 : at + 12 + length])
            at += 16 + length
        self._offsets[file] = self._offsets.get(file, 0) + at


def scalars_of(event: bytes) -> Iterator[Scalar]:
    """The scalars in one event (a protocol buffer): field 1 is the wall's time, 2 the step, 5 the summary, whose values have a
    tag in 1 and a float in 2, or a tensor in 8 with its floats in 5 or its bytes in 4."""
    fields = list(_fields(event))
    times = [value for number, value in fields if number == 1 and isinstance(value, bytes) and len(value) == 8]
    at = float(struct.unpack("<d", times[0])[0]) if times else None
    step = next((value for number, value in fields if number == 2 and isinstance(value, int)), 0)
    for number, summary in fields:
        if number == 5 and isinstance(summary, bytes):
            for inner, value in _fields(summary):
                if inner == 1 and isinstance(value, bytes):
                    known = dict(_fields(value))
                    number_found = _float_in(known)
                    if number_found is not None:
                        yield step, bytes(known.get(1, b"")).decode(errors="replace"), number_found, at


def _float_in(value: Mapping[int, int | bytes]) -> float | None:
    simple, tensor = value.get(2), value.get(8)
    if isinstance(simple, bytes) and len(simple) == 4:
        return float(struct.unpack("<f", simple)[0])
    if isinstance(tensor, bytes):
        inner = dict(_fields(tensor))
        packed = inner.get(5) or inner.get(4)
        if isinstance(packed, bytes) and len(packed) == 4:
            return float(struct.unpack("<f", packed)[0])
    return None


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Numbers and raw values of a protocol buffer's fields."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = _varint(message, at)
            yield number, value
            continue
        size = {1: 8, 5: 4}.get(kind)
        if size is None:
            size, at = _varint(message, at)
        yield number, message[at : at + size]
        at += size


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(message):
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
        shift += 7
    return value, at
