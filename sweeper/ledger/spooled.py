"""A ledger that nobody waits for: what a sweep says is kept in a file beside the results and written to MLflow by a thread.

Whatever happens to the ledger (a server that is away, a database in use, a full disk), the sweep goes on, and what was said
is written when it answers again: by the same thread, or by the next run of the sweep. Everything in the file may be written
twice, since each entry says what it says with its moment: none is lost, none is doubled. What is read back comes from memory.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from sweeper.ledger.about import SweepAbout
from sweeper.ledger.entries import MetricPoint, live_points
from sweeper.ledger.location import first_line
from sweeper.ledger.mlflow_ledger import Ledger
from trainers.contract.errors import InputError, given
from trainers.contract.faults import without_login
from trainers.contract.reading import json_value
from trainers.contract.record import RunRecord, record_from_dict, record_to_dict
from trainers.contract.spec import AnySpec, spec_from_dict, spec_to_dict

FILE = "unwritten.jsonl"
"""In the sweep's folder; empty, or not there, while the ledger has everything."""
BATCH_SECONDS = 3.0
"""What is said within this time is written together."""
PAUSES = (1.0, 2.0, 5.0, 10.0, 20.0)
"""Seconds between two tries at a ledger that does not answer; the last one for ever."""
END_SECONDS = 60.0
"""How long the end of a sweep waits for a ledger that does not answer."""
RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"


class SpooledLedger:
    """See `sweeper.engine.sweep.SweepLedger` and `sweeper.engine.live.LiveLedger`. A context manager.

    `say` is told once when the ledger stops answering and once when it answers again, by the thread that calls.
    """

    def __init__(self, ledger: Ledger, folder: Path, say: Callable[[str], None] = lambda line: None) -> None:
        self._ledger, self._file, self._say = ledger, folder / FILE, say
        self._asked: dict[str, tuple[AnySpec, str]] = {}
        self._records: dict[str, RunRecord] = {}
        self._about: SweepAbout
        self._queue: list[dict[str, Any]] = []
        self._charted: dict[str, set[int]] = {}
        self._kept: Any = None
        self._lock = threading.Lock()
        self._news, self._idle = threading.Event(), threading.Event()
        self._ending, self._given_up = threading.Event(), threading.Event()
        self._idle.set()
        self._thread = threading.Thread(target=self._work, name="writer of the ledger", daemon=True)
        self._trouble: str | None = None
        self._words: list[str] = []
        self.full: str | None = None
        """Why nothing more can be kept, None as long as there is room."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._given_up.set()
        self._ending.set()
        self._news.set()
        if self._thread.is_alive():
            self._thread.join(END_SECONDS)
        if self._kept is not None and not self._thread.is_alive():
            self._kept.close()
        self.speak()

    # what a sweep says

    def begin(self, about: SweepAbout) -> None:
        """Start the sweep's run, and write what an earlier driver could not. Raises `LedgerError` where nobody answers."""
        self._ledger.begin(about)
        self._about = self._ledger.about()
        left = _entries(self._file)
        damaged = sum(not self._applied(entry) for entry in left)
        if len(left) > damaged:
            self._say(f"{len(left) - damaged} entries that the ledger had not taken are written")
        if damaged:
            self._say(
                f"{self._file}: {damaged} of its entries are damaged; what they said is found in the stages again"
            )
        with given(self._file):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._kept = self._file.open("wb", buffering=0)
        self._records = {record.spec.spec_id: record for record in self._ledger.records()}
        known = {spec_id: (record.spec, record.purpose) for spec_id, record in self._records.items()}
        known |= {spec.spec_id: (spec, purpose) for spec, purpose in self._ledger.pending()}
        self._asked = {spec_id: known[spec_id] for spec_id in self._ledger.run_ids() if spec_id in known}
        self._thread.start()

    def schedule(self, spec: AnySpec, purpose: str) -> None:
        """Note that a trial was asked for. Asking again changes nothing."""
        if spec.spec_id not in self._asked:
            self._asked[spec.spec_id] = (spec, purpose)
            self._note({"op": "schedule", "spec": spec_to_dict(spec), "purpose": purpose})

    def started(self, spec: AnySpec) -> None:
        """A trial that was asked for runs."""
        self._note({"op": "started", "spec": spec_to_dict(spec)})

    def reopen(self, spec: AnySpec) -> None:
        """A trial that failed is tried again."""
        self._records.pop(spec.spec_id, None)
        self._note({"op": "reopen", "spec": spec_to_dict(spec)})

    def write(self, record: RunRecord) -> None:
        """A trial has ended."""
        self._asked[record.spec.spec_id] = (record.spec, record.purpose)
        self._records[record.spec.spec_id] = record
        self._note({"op": "write", "record": record_to_dict(record)})

    def point(self, spec: AnySpec, step: int, loss: float, tokens: int, flops: float, device_seconds: float) -> None:
        """A trial has evaluated after `step` steps."""
        points = live_points(step, loss, tokens, flops, device_seconds, round(1_000 * time.time()))
        plain = [[point.key, point.value, point.step, point.timestamp] for point in points]
        self._note({"op": "points", "spec_id": spec.spec_id, "points": plain})

    def finish(self, status: str, headline: str | None, report: Path | None) -> None:
        """Write what is left and end the sweep's run. Where the ledger does not answer for a minute, say so and leave it."""
        self._ending.set()
        self._news.set()
        deadline = time.monotonic() + END_SECONDS
        # A ledger that answers may take as long as it needs for what is left.
        while not self._idle.wait(0.1) and (self._trouble is None or time.monotonic() < deadline):
            self.speak()
        self.speak()
        if self._idle.is_set():
            try:
                self._ledger.finish(status, headline, report)
                return
            except Exception as error:  # the sweep has ended all the same, and its page is written
                self._trouble = first_line(error)
        self._say(
            f"the ledger does not answer ({without_login(self._trouble or '')}): {len(self._queue)} entries wait in "
            f"{self._file}; the same command writes them"
        )

    # what is read back

    def about(self) -> SweepAbout:
        """What the sweep said about itself."""
        return self._about

    def records(self) -> list[RunRecord]:
        """Trials that have ended, in the order asked."""
        return [self._records[spec_id] for spec_id in self._asked if spec_id in self._records]

    def pending(self) -> list[tuple[AnySpec, str]]:
        """Trials that were asked for and have not ended, with their purpose, in the order asked."""
        return [trial for spec_id, trial in self._asked.items() if spec_id not in self._records]

    def run_ids(self) -> Mapping[str, str]:
        """Each trial's run in MLflow by spec id, as far as it is written."""
        return self._ledger.run_ids()

    def run_links(self) -> Mapping[str, str]:
        """Each trial's run in MLflow's interface by spec id, as far as it is written."""
        return {spec_id: self._ledger.link_of(run_id) for spec_id, run_id in self.run_ids().items()}

    # the file and the thread

    def _note(self, entry: dict[str, Any]) -> None:
        """Keep an entry in the file, and for the thread. A full disk is said, and whoever runs the sweep ends it."""
        text = (json.dumps(entry, allow_nan=False) + "\n").encode()
        with self._lock:
            try:
                self._keep(text)
            except OSError as error:
                self.full = f"{self._file}: {error.strerror}; make room there"
            self._queue.append(entry)
            self._idle.clear()
        self._news.set()
        self.speak()

    def _keep(self, text: bytes) -> None:
        position = self._kept.tell()
        try:
            if self._kept.write(text) < len(text):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            self._kept.truncate(position)  # half an entry would spoil the next one
            self._kept.seek(position)
            raise

    def speak(self) -> None:
        """Say what the thread has found out."""
        while self._words:
            self._say(self._words.pop(0))

    def _work(self) -> None:
        failures = 0
        with _no_retries():
            while not self._ending.is_set() or self._queue:
                self._news.wait()
                # Longer and longer, and at once where somebody waits for the end.
                self._ending.wait(BATCH_SECONDS if not failures else PAUSES[min(failures, len(PAUSES)) - 1])
                try:
                    self._write_out()
                    failures = 0
                except Exception as error:  # whatever is wrong with the ledger is not the sweep's end
                    if self._given_up.is_set():
                        return
                    failures += 1
                    self._fall_behind(_words_of(error))
                    if self._ending.is_set():
                        time.sleep(PAUSES[0])

    def _fall_behind(self, why: str) -> None:
        if self._trouble is None:
            self._words.append(
                f"the ledger does not answer ({without_login(why)}); what happens is kept in {self._file}"
            )
        self._trouble = why
        self._ledger.look_again()

    def _write_out(self) -> None:
        while True:
            with self._lock:
                if not self._queue:
                    self._kept.truncate(0)
                    self._kept.seek(0)
                    self._news.clear()
                    self._idle.set()
                    return
                batch = list(self._queue)
            for entry in _together(batch):
                if entry is not None:
                    self._apply(entry)
                with self._lock:
                    del self._queue[0]
                if entry is not None and self._trouble is not None:
                    self._words.append("the ledger answers again; what was kept is being written")
                    self._trouble = None

    def _applied(self, entry: Any) -> bool:
        """Whether an entry of an earlier driver's file was one. What the ledger itself raises passes."""
        try:
            self._apply(entry)
        except (InputError, ValueError, KeyError, TypeError):
            return False
        return True

    def _apply(self, entry: Mapping[str, Any]) -> None:
        match entry["op"]:
            case "schedule":
                self._ledger.schedule(spec_from_dict(entry["spec"]), entry["purpose"])
            case "started":
                self._ledger.started(spec_from_dict(entry["spec"]))
            case "reopen":
                self._ledger.reopen(spec_from_dict(entry["spec"]))
            case "write":
                self._ledger.write(record_from_dict(entry["record"]))
            case "points":
                self._chart(entry["spec_id"], [MetricPoint(*point) for point in entry["points"]])
            case other:
                raise ValueError(f"{other!r} is nothing that a ledger is told")

    def _chart(self, spec_id: str, points: list[MetricPoint]) -> None:
        """A stage that goes on from its last state says again what it had said since."""
        if spec_id not in self._charted:
            self._charted[spec_id] = set(self._ledger.charted(spec_id))
        new = [point for point in points if point.step not in self._charted[spec_id]]
        if new:
            self._ledger.chart(spec_id, new)
            self._charted[spec_id] |= {point.step for point in new}


def _words_of(error: Exception) -> str:
    """What went wrong in one line; a database's own words stand in brackets behind those of whoever asked it."""
    lines = str(error).splitlines()
    return next((line for line in lines if line.startswith("(sqlite3.")), first_line(error))


def _together(entries: list[dict[str, Any]]) -> list[dict[str, Any] | None]:
    """The entries in their order, points of one trial with the first of them: the others are None. What is told of a trial's
    end parts them."""
    found: list[dict[str, Any] | None] = []
    open_points: dict[str, list[Any]] = {}
    for entry in entries:
        if entry["op"] == "points":
            if entry["spec_id"] in open_points:
                open_points[entry["spec_id"]] += entry["points"]
                found.append(None)
                continue
            open_points[entry["spec_id"]] = points = list(entry["points"])
            entry = {**entry, "points": points}
        elif entry["op"] in ("write", "reopen"):
            plain = entry["record"]["spec"] if entry["op"] == "write" else entry["spec"]
            open_points.pop(spec_from_dict(plain).spec_id, None)
        found.append(entry)
    return found


def _entries(file: Path) -> list[Any]:
    """The entries of a file; a line that was cut in the middle was never said."""
    found = []
    with contextlib.suppress(OSError), file.open("rb") as lines:
        for line in lines:
            with contextlib.suppress(InputError):
                found.append(json_value(line))
    return found


@contextlib.contextmanager
def _no_retries() -> Iterator[None]:
    """MLflow sends a request again that had no answer, and may so make a run twice; here each try begins with a look."""
    before = os.environ.get(RETRIES)
    os.environ[RETRIES] = "0"
    try:
        yield
    finally:
        os.environ.pop(RETRIES)
        if before is not None:
            os.environ[RETRIES] = before
