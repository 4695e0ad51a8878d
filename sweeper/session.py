"""One run of a sweep from file to report: what `sweeper run` does, without the words on the screen.

Running the same again goes on: the ledger says which trials have ended, the store which stages have. One driver at a
time; a stop request, Ctrl-C and SIGTERM all let running stages save their state first.
"""

from __future__ import annotations

import contextlib
import math
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from sweeper.engine.live import STARTING, LiveSweep
from sweeper.engine.site import Site
from sweeper.engine.status import StatusFile
from sweeper.engine.sweep import Sweep
from sweeper.engine.view import SweepView, not_done, view_of
from sweeper.executors.inline import Executor, InlineExecutor
from sweeper.executors.workers import PATIENCE_SECONDS, Workers
from sweeper.ledger.about import SweepAbout
from sweeper.ledger.mlflow_ledger import Ledger, list_sweeps
from sweeper.ledger.spooled import SpooledLedger
from sweeper.lock import STOP, driving
from sweeper.materials import Materials, expected, materials_of, ranks_of
from sweeper.options import REPORT, STAGES, RunOptions
from sweeper.plans.known import known_records
from sweeper.plans.plan import Plan, make_plan
from sweeper.plans.room import Room, find_room, gpus_here, refuse_too_little
from sweeper.space.foreign_schema import AnySpace
from sweeper.space.load import load_search_space
from sweeper.studies.keeper import StudyLedger, place_of, remembered
from trainers.contract.errors import NO_ROOM, UserError
from trainers.contract.faults import FAULT, Terminated
from trainers.contract.record import Failed, Provenance, RunRecord
from trainers.planning.store import DiskStore
from trainers.training.provenance import provenance


@dataclass(frozen=True, slots=True)
class SessionEnd:
    """`reason` is None when the sweep is complete, else why it stopped early. `unfinished` trials have no final loss;
    `failed` of them by a fault of program or machine, the others diverged."""

    reason: str | None
    headline: str
    report: Path
    summary: Mapping[str, Any]
    unfinished: int
    failed: int


Watch = Callable[[SweepView], None]
Say = Callable[[str], None]


def plan(options: RunOptions) -> Plan:
    """The plan of a search-space file with what its ledger holds. Starts, prepares and writes nothing.

    Raises `UserError` for a file with mistakes, for a scale that does not fit its trials' devices, and for a ledger that cannot
    be read.
    """
    space = load_search_space(options.file)
    room = find_room(space, options)
    known = known_records(options.results, space.name, options.tracking_uri)
    what = expected(space, options, room, known)
    return make_plan(
        space,
        corpus=what.corpus,
        corpus_words=what.words,
        cost=what.cost,
        workers=room.workers,
        on_gpu=room.on_gpu,
        known=known,
        earlier=_earlier(space, options),
        devices_per_trial=room.devices,
        fits=room.fits,
        commands=what.commands,
    )


class _Stopping:
    """Ctrl-C and SIGTERM: while the sweep runs (`gently`) they ask the workers to save and end, at any other time and when
    they come again they end at once."""

    def __init__(self, folder: Path) -> None:
        self.gently = False
        self._folder = folder
        self._asked: list[int] = []

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self._asked.append(number)
        if len(self._asked) > 1 or not self.gently:
            self.end()
        (self._folder / STOP).touch()
        sys.stderr.write("\nstopping: running stages save their state (again to end at once)\n")

    def listen(self) -> None:
        """From here on; again after Ray has started, which listens itself. Python gives signals to its main thread only: in
        another one, whoever started it decides what they do."""
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                signal.signal(number, self)

    def end(self) -> None:
        """Raise what the first signal means, if there was one."""
        if self._asked:
            raise Terminated if self._asked[0] == signal.SIGTERM else KeyboardInterrupt


VIEW_SHARE = 20
"""Times as long as a view took, until the next one."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _Lost:
    """The end when the cluster is gone: whatever waits for Ray waits for ever, so that this thread ends the process."""

    def __init__(self, say: Say) -> None:
        self.report: Callable[[], object] | None = None
        self._say = say

    def __call__(self, server: str) -> None:
        self._say(f"Ray is gone (its {server} does not answer); the same command goes on from here")
        try:
            if self.report is not None:
                self.report()
        finally:
            os._exit(FAULT)


@contextlib.contextmanager
def _stopping(folder: Path) -> Iterator[_Stopping]:
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    stopping = _Stopping(folder)
    stopping.listen()
    try:
        yield stopping
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)
    # The workers have saved and ended by now. Whoever called still learns that it was interrupted.
    stopping.end()


def _about(space: AnySpace, options: RunOptions, materials: Materials, where: Provenance) -> SweepAbout:
    corpus = materials.corpus
    return SweepAbout(
        name=space.name,
        question=space.question,
        search_space_text=options.file.read_text(encoding="utf-8"),
        search_space_file=options.file.name,
        command=shlex.join(["sweeper", "run", str(options.file)]),
        price_per_gpu_hour=space.price.per_gpu_hour if space.price else None,
        currency=space.price.currency if space.price else "USD",
        corpus_fingerprint=corpus.fingerprint,
        tokenizer_fingerprint=corpus.tokenizer_fingerprint,
        corpus_description=materials.description,
        corpus_tokens=corpus.train_tokens,
        seen_share=materials.seen_share,
        bytes_per_token=materials.bytes_per_token,
        code=corpus.code,
        git_commit=where.git_commit,
        git_dirty=where.git_dirty,
        versions=where.versions,
        device=where.device,
        started_at=where.started_at,
        study_storage=remembered(options.study_storage),
    )


def run(options: RunOptions, say: Say = lambda line: None, watch: Watch = lambda view: None) -> SessionEnd:
    """Run the sweep of a file to its end, its stop or its limit, and write the report of what there is.

    `say` is told what happens in lines, `watch` how far the sweep is, often. Raises `UserError` before anything is trained;
    `KeyboardInterrupt` after an interrupted sweep was left in order.
    """
    space = load_search_space(options.file)
    if options.executor == "inline" and (ranks := ranks_of(space)) > 1:
        raise UserError(f"executor: inline trains in one process; {ranks} ranks of a trial need ray")
    # What does not fit here is said at once. A cluster has to be asked, and is before minutes go into preparing text.
    room = find_room(space, options) if options.address is None else None
    folder = (options.results / space.name).resolve()
    lost = _Lost(say)
    with (
        driving(folder),
        _stopping(folder) as stopping,
        _executor(space, options, folder, room, lost, say) as (executor, room),
        contextlib.ExitStack() as stack,
    ):
        stopping.listen()
        materials = materials_of(space, options, room, say)
        plain = stack.enter_context(Ledger.open(options.results, space.name, options.tracking_uri, create=True))
        ledger = stack.enter_context(SpooledLedger(plain, folder, say))
        kept = stack.enter_context(StudyLedger(ledger, place_of(folder, options.study_storage), say))
        sweep, live = None, None
        complete = False
        try:
            sweep = _sweep(space, options, folder, ledger, kept, materials, room)
            live = LiveSweep(sweep, ledger, folder / STAGES, 60 * space.resources.stall_minutes)
            seen = _Watching(live, ledger, folder, options.address is not None, say, watch)
            stopping.gently = True
            lost.report = partial(_end, ledger, options, folder, say, "killed")
            executor.run(live, materials.train, seen)
            watch(view_of(sweep))
            complete = sweep.stopping is None and not sweep.book.paths
        finally:
            # Also after an interruption or a fault: what was paid for is in the ledger, and a page of it costs
            # seconds.
            if sweep is not None:
                if live is not None:
                    StatusFile(live, folder).write(complete=complete, now=True)
                end = _end(ledger, options, folder, say, "finished" if complete else "killed")
        ended = sweep.finished.values()
        return replace(
            end,
            reason=None if complete else f"{sweep.stopping or 'trials are left'}; {not_done(view_of(sweep))}",
            unfinished=sum(record.final_loss is None for record in ended),
            failed=sum(isinstance(record.outcome, Failed) for record in ended),
        )


@contextlib.contextmanager
def _executor(
    space: AnySpace, options: RunOptions, folder: Path, room: Room | None, lost: Callable[[str], None], say: Say
) -> Iterator[tuple[Executor, Room]]:
    """The executor, and the room of a trial: the one given, or what the cluster says where there is none."""
    if options.executor == "inline":
        assert room is not None, "options refuse an address without Ray"
        # Cores are nobody's here: a trial that wants more of them waits for no one.
        refuse_too_little(room, gpus=gpus_here() if room.on_gpu else 0, cpus=math.inf, where="this machine")
        yield InlineExecutor(), replace(room, gpus=math.ceil(room.gpus))  # one at a time has the whole device
        return
    from sweeper.executors.cluster import attach
    from sweeper.executors.ray_tune import RayExecutor

    with attach(options.address, num_cpus=len(os.sched_getaffinity(0)), shared=folder, lost=lost) as cluster:
        kind = space.resources.accelerator
        gpus = cluster.usable_gpus(kind) if space.resources.gpus != 0 else 0.0
        room = room or find_room(space, options, cluster.cpus, gpus)
        refuse_too_little(room, gpus=gpus, cpus=cluster.cpus, where="the cluster")
        kind = kind or cluster.only_kind if room.on_gpu else None
        ranks = ranks_of(space)
        workers = room.workers if ranks > 1 else options.workers  # else Ray counts them, also on nodes that join later
        executor = RayExecutor(folder / "ray", room.cpus, room.gpus, workers, ranks=ranks, accelerator=kind)
        patience = max(PATIENCE_SECONDS, STARTING * 60 * space.resources.stall_minutes)
        yield replace(executor, start_seconds=patience, say=say), room


class _Watching:
    """What is done again and again while stages train: who asks for a stop, whose workers are silent, what is shown."""

    def __init__(
        self, live: LiveSweep, ledger: SpooledLedger, folder: Path, joined: bool, say: Say, watch: Watch
    ) -> None:
        self._live, self._ledger, self._folder, self._say, self._watch = live, ledger, folder, say, watch
        self._workers = Workers(live, say, joined)
        self._status = StatusFile(live, folder)
        self._next_view = 0.0

    def __call__(self) -> None:
        sweep = self._live.sweep
        if sweep.stopping is None and (self._folder / STOP).exists():
            sweep.stopping = "stop requested"
        sweep.stopping = sweep.stopping or self._ledger.full
        self._ledger.speak()
        self._live.look()
        if sweep.stopping is not None and self._live.running:
            # Stages that run save their state and end: a long one would spend far more than was given.
            with contextlib.suppress(OSError):  # a full disk, which whoever saves will find, too
                (self._folder / STOP).touch()
        self._workers.look()
        self._status.write()
        # A view goes through all trials: of ten thousand it is not made at every event.
        began = time.monotonic()
        if began >= self._next_view:
            self._watch(view_of(sweep))
            self._next_view = time.monotonic() + VIEW_SHARE * (time.monotonic() - began)


def _sweep(
    space: AnySpace,
    options: RunOptions,
    folder: Path,
    ledger: SpooledLedger,
    kept: StudyLedger,
    materials: Materials,
    room: Room,
) -> Sweep:
    import torch

    where = provenance(materials.execution, "cuda" if room.on_gpu and torch.cuda.is_available() else None)
    ledger.begin(_about(space, options, materials, where))
    store = folder / STAGES
    site = Site(
        store=str(store),
        stop_file=str(folder / STOP),
        execution=materials.execution,
        devices_per_trial=room.devices,
        on_gpu=room.on_gpu,
        micro_sequences=options.micro_sequences,
        checkpoint_activations=options.checkpoint_activations,
        disk_bytes=space.resources.disk_gb * 1e9,
    )
    return Sweep(
        space,
        materials.corpus,
        kept,
        DiskStore(store),
        site,
        where,
        max_hours=_limit(space, options),
        earlier=_earlier(space, options) if space.search.warm_start else (),
    )


def _limit(space: AnySpace, options: RunOptions) -> float | None:
    """Device-hours that all runs of the sweep may spend: the option's, else the file's."""
    if options.max_gpu_hours is not None or space.budget is None:
        return options.max_gpu_hours
    return space.budget.gpu_hours


def _earlier(space: AnySpace, options: RunOptions) -> tuple[RunRecord, ...]:
    """Records of the other sweeps in this ledger."""
    records: list[RunRecord] = []
    for name in list_sweeps(options.results, options.tracking_uri):
        if name != space.name:
            with Ledger.open(options.results, name, options.tracking_uri, create=False) as ledger:
                records += ledger.records()
    return tuple(records)


def _end(ledger: SpooledLedger, options: RunOptions, folder: Path, say: Say, status: str) -> SessionEnd:
    """Write the report of what there is, and end the sweep's run in the ledger."""
    from reports.summary import summarize, summary_to_json
    from sweeper.reporting import study_from, write_report_files

    say("writing the report")
    command = shlex.join(["sweeper", "run", str(options.file)])
    study = study_from(ledger.about(), ledger.records(), command, ledger.run_links())
    try:
        summary = write_report_files(study, folder)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        say(f"{folder / REPORT}: {error.strerror}; `sweeper report {study.context.name}` writes it where there is room")
        summary = summarize(study)
    ledger.finish(status, summary.headline, folder / REPORT)
    return SessionEnd(None, summary.headline, folder / REPORT, summary_to_json(summary), 0, 0)
