"""A ledger whose searches are copied into Optuna studies while the sweep runs.

The sweep speaks to it as to its ledger. What it says is noted in memory and written by a thread, what happens within some
seconds together: no stage waits for the copy, and a copy that cannot be written is one warning and nothing else.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from sweeper.ledger.about import SweepAbout
from sweeper.ledger.location import first_line, sqlite_file, sqlite_uri
from sweeper.ledger.mlflow_ledger import Ledger
from sweeper.ledger.spooled import SpooledLedger
from sweeper.lock import current_driver
from sweeper.space.foreign_schema import AnySpace
from sweeper.space.load import parse_search_space
from sweeper.studies.storage import replace_studies, write_studies
from sweeper.studies.trials import LedgerTrial, StudyCopy, copy_of, in_study, study_name
from trainers.contract.faults import without_login
from trainers.contract.record import RunRecord
from trainers.contract.spec import AnySpec

DATABASE = "optuna.db"
BATCH_SECONDS = 5.0
"""What happens within this time is written together."""
HIDDEN = "***"
"""What stands in an address for what is a secret or may be one."""
_END_SECONDS = 60.0
"""How long the end of a sweep waits for a storage that does not answer."""


@dataclass(frozen=True, slots=True)
class StudyPlace:
    """Where the studies are. `file` is the sweep's own, which may be replaced; None for a storage that somebody named."""

    url: str
    file: Path | None = None


def place_of(folder: Path, study_storage: str | None) -> StudyPlace:
    """The storage that was named, or the file in the sweep's folder."""
    if study_storage is not None:
        return StudyPlace(study_storage)
    return StudyPlace(sqlite_uri(folder.absolute() / DATABASE), folder.absolute() / DATABASE)


def remembered(study_storage: str | None) -> str:
    """A storage's address as the ledger keeps it: an SQLite file by its whole path, password and query as `***`."""
    if study_storage is None:
        return ""
    if (file := sqlite_file(study_storage)) is not None:
        return sqlite_uri(file.absolute())
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(study_storage)
    except ArgumentError:
        return HIDDEN  # nobody knows what in it is a password
    if url.password is None and not url.query:
        return study_storage
    plain = url.set(query={}).render_as_string()  # which writes a password as asterisks
    return f"{plain}?{HIDDEN}" if url.query else plain


class StudyLedger:
    """See `sweeper.engine.sweep.SweepLedger`. A context manager: at its end the studies are as the ledger is.

    `say` is told once when the studies cannot be written; always from the thread that uses the ledger.
    """

    def __init__(
        self, ledger: Ledger | SpooledLedger, place: StudyPlace, say: Callable[[str], None] = lambda line: None
    ) -> None:
        self._ledger, self._place, self._say = ledger, place, say
        self._trials: dict[str, LedgerTrial] | None = None
        self._changed: set[str] = set()
        self._lock = threading.Lock()
        self._news, self._ending = threading.Event(), threading.Event()
        self._about: SweepAbout
        self._space: AnySpace
        self._thread = threading.Thread(target=self._work, name="writer of the studies", daemon=True)
        self._trouble = ""
        self._said = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._trials is None:
            return
        with self._lock:
            # Nothing runs any more: what had begun waits for the next run of the sweep. And all are held against what
            # is there, not only those that changed.
            self._trials = {key: replace(trial, running=False) for key, trial in self._trials.items()}
            self._changed = self._names()
        self._ending.set()
        self._news.set()
        if not self._thread.is_alive():
            self._thread.start()
        self._thread.join(_END_SECONDS)
        if self._thread.is_alive():
            self._trouble = self._trouble or f"no answer within {_END_SECONDS:g} seconds"
        self._warn()

    # what the sweep needs of its ledger

    def schedule(self, spec: AnySpec, purpose: str) -> None:
        """Note that a trial was asked for."""
        self._ledger.schedule(spec, purpose)
        self._note(spec, purpose=purpose)

    def started(self, spec: AnySpec) -> None:
        """A trial that was asked for runs."""
        self._ledger.started(spec)
        self._note(spec, running=True)

    def reopen(self, spec: AnySpec) -> None:
        """A trial that failed is tried again."""
        self._ledger.reopen(spec)
        self._note(spec, running=False, record=None)

    def write(self, record: RunRecord) -> None:
        """A trial has ended."""
        self._ledger.write(record)
        self._note(record.spec, purpose=record.purpose, running=False, record=record)

    def records(self) -> list[RunRecord]:
        """Trials that have ended. A sweep asks this first of all, and with it the copy begins."""
        if self._trials is None:
            try:
                self._take_in()
                self._thread.start()
            except Exception as error:  # the copy's trouble is never the sweep's
                self._trouble = first_line(error)
                self._warn()
        return self._ledger.records()

    def pending(self) -> list[tuple[AnySpec, str]]:
        """Trials that were asked for and have not ended, with their purpose."""
        return self._ledger.pending()

    # the copy

    def _take_in(self) -> None:
        self._about = self._ledger.about()
        file = Path(self._about.search_space_file or "search-space.yaml")
        self._space = parse_search_space(self._about.search_space_text, file)
        records = {record.spec.spec_id: record for record in self._ledger.records()}
        trials = {record.spec.spec_id: (record.spec, record.purpose) for record in records.values()}
        trials |= {spec.spec_id: (spec, purpose) for spec, purpose in self._ledger.pending()}
        with self._lock:
            self._trials = {
                spec_id: LedgerTrial(*trials[spec_id], record=records.get(spec_id))
                for spec_id in self._ledger.run_ids()
                if spec_id in trials and in_study(self._space, self._about, trials[spec_id][0])
            }
            self._changed = self._names()

    def _note(self, spec: AnySpec, **changes: Any) -> None:
        if self._trials is None or not in_study(self._space, self._about, spec):
            return
        known = self._trials.get(spec.spec_id)
        if known is None:
            known = LedgerTrial(spec, changes["purpose"])
        with self._lock:
            self._trials[spec.spec_id] = replace(known, **changes)
            self._changed.add(self._name(spec))
        self._news.set()
        self._warn()

    def _name(self, spec: AnySpec) -> str:
        return study_name(self._space.name, spec.scale, spec.method, spec.schedule.total_steps)

    def _names(self) -> set[str]:
        return {self._name(trial.spec) for trial in (self._trials or {}).values()}

    def _warn(self) -> None:
        if self._trouble and not self._said:
            self._said = True
            where = without_login(remembered(self._place.url))
            trouble = without_login(self._trouble.replace(self._place.url, where))
            self._say(f"{where}: no studies are written there ({trouble})")

    # in the thread

    def _work(self) -> None:
        self._news.set()
        while True:
            self._news.wait()
            self._ending.wait(BATCH_SECONDS)
            self._news.clear()
            last = self._ending.is_set()  # asked after the news: whoever sets both is seen now, or wakes this again
            with self._lock:
                changed, self._changed = self._changed, set()
                trials = list((self._trials or {}).values())
            try:
                self._write(trials, changed)
            except Exception as error:
                self._trouble = first_line(error)
                with self._lock:
                    self._changed |= changed  # with the next news
            if last:
                return

    def _write(self, trials: list[LedgerTrial], changed: set[str]) -> None:
        file = self._place.file
        if file is None or file.exists():
            try:
                write_studies(self._place.url, self._copies(trials, changed))
                return
            except Exception:
                if file is None:
                    raise
        # Missing, damaged or of an older form: it is a copy, so that a new one serves as well. It is put in its place
        # whole, because a dashboard that opens a file whose tables are being made makes them, too, and one of the two fails.
        replace_studies(file, self._copies(trials, {self._name(trial.spec) for trial in trials}))

    def _copies(self, trials: list[LedgerTrial], names: set[str]) -> list[StudyCopy]:
        studies: dict[str, list[LedgerTrial]] = {}
        runs = self._ledger.run_ids()  # those of the newest trials may come a little later
        for trial in trials:
            known = replace(trial, run_id=runs.get(trial.spec.spec_id, ""))
            studies.setdefault(self._name(trial.spec), []).append(known)
        return [copy_of(self._space, tuple(members)) for name, members in studies.items() if name in names]


def copy_studies(ledger: Ledger, folder: Path, study_storage: str | None, say: Callable[[str], None]) -> None:
    """Make the studies of a sweep as its ledger is; nothing where it was imported, or runs and does so itself.

    `folder` is the sweep's own; `study_storage` is where the studies are, None for where the sweep had them.
    """
    if current_driver(folder) is not None:
        return
    about = ledger.about()
    if about.origin != "sweep":
        return
    where = study_storage or about.study_storage or None
    if where is not None and HIDDEN in where:
        say(
            f"{about.name}: its studies at {where} are as the last run left them; --study-storage URL brings them up to date"
        )
        return
    with StudyLedger(ledger, place_of(folder, where), say) as kept:
        kept.records()
