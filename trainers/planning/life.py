"""Signs of life: what a worker says of the stage that it trains, in a small file that anybody may read.

A thread of the worker's writes it every two seconds, and only where training has got further: a worker that hangs falls
silent. The file outlives its worker, so that what was spent is known to whoever goes on, and goes with the stage's result.
What silence means is the orchestrator's.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
import threading
import time
from collections import deque
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Self

from trainers.contract.errors import InputError
from trainers.contract.reading import json_value, value_of
from trainers.contract.spec import AnySpec
from trainers.contract.stage import RESULT, StageJob
from trainers.methods import describe_parameters

FOLDER = "live"
"""In the store of the stages."""
BEAT_SECONDS = 2.0
LOOKS = 50
"""The last so many looks at the losses make the rate."""


@dataclass(frozen=True, slots=True)
class StageLife:
    """How far a stage is. `loss` is the training loss of its last step in nats (None: not yet, or no number).

    `rate` is steps a second of wall time and `step_seconds` the stage's own clock (see `Timing`), both of late and 0 before
    they are known; `gap_seconds` is the median time between two looks. `seconds` are billed, earlier attempts included, on
    each of `devices`. `at` is this sign's moment by the clock of `host`. Where it is `watched`, silence means that it hangs.
    """

    node: str
    parent: str | None
    trial: str
    label: str
    start: int
    end: int
    step: int
    host: str
    pid: int
    at: float
    devices: float
    seconds: float = 0.0
    loss: float | None = None
    rate: float = 0.0
    step_seconds: float = 0.0
    gap_seconds: float = 0.0
    watched: bool = False
    running: bool = True

    @property
    def hours(self) -> float:
        """Device-hours spent so far."""
        return self.devices * self.seconds / 3600


def life_file(store: Path, node: str) -> Path:
    """Where the signs of a stage lie."""
    return store / FOLDER / f"{node}.json"


def read_life(file: Path) -> StageLife | None:
    """The sign in a file, None where there is none that can be read."""
    try:
        return value_of(StageLife, json_value(file.read_bytes()), "a sign of life")
    except (OSError, InputError, TypeError):
        return None


def signed_at(store: Path, node: str) -> int | None:
    """When the sign of a stage changed, in nanoseconds by the clock of its file system; None where there is none."""
    try:
        return life_file(store, node).stat().st_mtime_ns
    except OSError:
        return None


def lives_in(store: Path) -> list[StageLife]:
    """Every stage that has given a sign and has no result, the one with most to do last."""
    with contextlib.suppress(OSError):
        found = [life for file in (store / FOLDER).glob("*.json") if (life := read_life(file)) is not None]
        return sorted(found, key=lambda life: (life.end - life.step, life.node))
    return []


def write_life(store: Path, life: StageLife) -> None:
    """Put a sign in its place; where the disk has no room, at least the old one's time changes."""
    file = life_file(store, life.node)
    new = file.with_name(f".{life.node}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        # Not flushed to the disk, unlike what must not be lost: this is written every other second.
        new.write_text(json.dumps(asdict(life), allow_nan=False), encoding="utf-8")
        new.replace(file)
    except OSError:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            os.utime(file)


def label_of(spec: AnySpec) -> str:
    """A trial in words for people."""
    words = [spec.scale, spec.method, describe_parameters(spec.parameters), f"lr={spec.schedule.learning_rate:g}"]
    return " ".join([*(word for word in words if word), f"seed {spec.seed}"])


def first_sign(job: StageJob) -> StageLife:
    """What a worker can say before it has begun. Earlier attempts at the same steps have spent what they have spent."""
    before = read_life(life_file(Path(job.store), job.node))
    same = before is not None and (before.parent, before.start) == (job.parent, job.start)
    return StageLife(
        node=job.node,
        parent=job.parent,
        trial=job.booked_by,
        label=label_of(job.spec),
        start=job.start,
        end=job.end,
        step=before.step if before is not None and same else job.start,
        host=socket.gethostname(),
        pid=os.getpid(),
        at=time.time(),
        devices=job.devices,
        seconds=before.seconds * before.devices / job.devices if before is not None and same else 0.0,
    )


class SignOfLife:
    """A context manager around the training of a stage; says nothing where it does not `speak` (all ranks but the first)."""

    def __init__(self, job: StageJob, *, speaks: bool = True) -> None:
        self._store, self._speaks = Path(job.store), speaks
        self._life = replace(first_sign(job), watched=True)
        self.before = self._life.seconds
        """Billed seconds of earlier attempts."""
        self._began = time.perf_counter()
        self._looks: deque[tuple[int, float, float]] = deque(maxlen=LOOKS)
        self._seen, self._told = 1, 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="sign of life", daemon=True)

    def __enter__(self) -> Self:
        if self._speaks:
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        if not self._speaks:
            return
        self._ended.set()
        self._thread.join()
        if (self._store / self._life.node / RESULT).exists():
            life_file(self._store, self._life.node).unlink(missing_ok=True)
        else:
            write_life(self._store, replace(self._now(), running=False))

    def spent_before(self, seconds: float) -> None:
        """A checkpoint says what earlier attempts had spent: whichever is more."""
        self.before = max(self.before, seconds)

    def billed(self) -> float:
        """Seconds that this stage has cost on each device, earlier attempts included."""
        return self.before + time.perf_counter() - self._began

    def look(self, step: int, loss: float, step_seconds: float) -> None:
        """Training has got to `step`, by steps of `step_seconds` each on the stage's clock."""
        self._looks.append((step, time.perf_counter(), step_seconds))
        self._life = replace(self._life, step=step, loss=loss if math.isfinite(loss) else None)
        self._seen += 1

    def moved(self) -> None:
        """Something else has got further: an evaluation, a checkpoint."""
        self._seen += 1

    def _now(self) -> StageLife:
        looks = list(self._looks)
        gaps = [after[1] - before[1] for before, after in pairwise(looks)]
        passed = looks[-1][1] - looks[0][1] if gaps else 0.0
        return replace(
            self._life,
            at=time.time(),
            seconds=self.billed(),
            rate=(looks[-1][0] - looks[0][0]) / passed if passed > 0 else 0.0,
            step_seconds=median(look[2] for look in looks) if looks else 0.0,
            gap_seconds=median(gaps) if gaps else 0.0,
        )

    def _beat(self) -> None:
        while True:
            if self._seen != self._told:
                self._told = self._seen
                write_life(self._store, self._now())
            if self._ended.wait(BEAT_SECONDS):
                return
