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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from sweeper.engine.site import Site
from sweeper.engine.sweep import Sweep
from sweeper.engine.view import SweepView, view_of
from sweeper.executors.inline import Executor, InlineExecutor
from sweeper.ledger.about import SweepAbout
from sweeper.ledger.location import LedgerError
from sweeper.ledger.mlflow_ledger import Ledger, list_sweeps
from sweeper.lock import STOP, driving
from sweeper.options import CORPORA, REPORT, STAGES, CorpusFacts, RunOptions, corpus_facts, corpus_request
from sweeper.plans.costs import step_cost
from sweeper.plans.fits import ScaleFit, device_memory, fits_of, refuse_what_does_not_fit
from sweeper.plans.plan import UNPREPARED, Plan, make_plan
from sweeper.space.load import load_search_space
from sweeper.space.schema import SearchSpace
from trainers.bench.result import FOLDER as BENCH
from trainers.bench.result import read_figures
from trainers.contract.errors import UserError
from trainers.contract.record import Provenance, RunRecord
from trainers.planning.store import DiskStore
from trainers.training.devices import cpu_name, device_name
from trainers.training.provenance import provenance


@dataclass(frozen=True, slots=True)
class SessionEnd:
    """`reason` is None when the sweep is complete, else why it stopped early."""

    reason: str | None
    headline: str
    report: Path
    summary: Mapping[str, Any]
    failed: int


Watch = Callable[[SweepView], None]
Say = Callable[[str], None]


def plan(options: RunOptions) -> Plan:
    """The plan of a search-space file with what its ledger holds. Starts, prepares and writes nothing.

    Raises `UserError` for a file with mistakes, `ValueError` for a scale that does not fit its trials' devices.
    """
    from trainers.data.prepare import find_prepared

    space = load_search_space(options.file)
    refuse_what_does_not_fit(_fits(space, options, _room(space, options)[0]))
    facts, words = UNPREPARED, f"{space.corpus.source}, unprepared"
    try:
        manifest = find_prepared(corpus_request(space), options.results / CORPORA)
        if manifest:
            facts, words = corpus_facts(manifest), f"{manifest.description}, prepared"
    except ValueError as error:
        words = f"unprepared ({error})"
    known: list[RunRecord] = []
    with (
        contextlib.suppress(LedgerError),
        Ledger.open(options.results, space.name, options.tracking_uri, create=False) as ledger,
    ):
        known = ledger.records()
    return _plan(space, options, facts, words, known)


def _plan(
    space: SearchSpace, options: RunOptions, facts: CorpusFacts, corpus_words: str, known: list[RunRecord]
) -> Plan:
    gpus, workers = _room(space, options)
    device = _device_name(on_gpu=gpus > 0)
    bench = read_figures(options.results / BENCH, device)
    return make_plan(
        space,
        corpus=facts,
        corpus_words=corpus_words,
        cost=step_cost(
            known,
            device,
            on_gpu=gpus > 0,
            bench=bench,
            devices=_devices(space, gpus),
            ranks=gpus if 0 < gpus < 1 else space.resources.num_ranks,
        ),
        workers=workers,
        on_gpu=gpus > 0,
        known=known,
        devices_per_trial=_devices(space, gpus),
        fits=_fits(space, options, gpus),
    )


def _fits(space: SearchSpace, options: RunOptions, gpus: float) -> Mapping[str, ScaleFit]:
    memory, recompute = device_memory(space, gpus), options.checkpoint_activations
    return fits_of(space, gpus, memory, options.micro_sequences, recompute=recompute)


def gpus_per_trial(space: SearchSpace, available: float) -> float:
    """What the file asks for; `auto` is one GPU where there is any."""
    wanted = space.resources.gpus
    return float(available > 0) if wanted == "auto" else float(wanted)


def _room(space: SearchSpace, options: RunOptions) -> tuple[float, int]:
    """GPUs of a trial on this machine, and how many trials run at once."""
    available = 0
    if space.resources.gpus != 0:
        import torch

        available = torch.cuda.device_count()
    gpus = gpus_per_trial(space, available)
    cores = len(os.sched_getaffinity(0))
    room = int(max(available, 1) / gpus) if gpus else cores // space.resources.cpus
    return gpus, options.workers or max(1, room)


def _device_name(*, on_gpu: bool) -> str:
    """What step times are looked up by. A plan for GPUs may be made where there is none."""
    if not on_gpu:
        return cpu_name()
    import torch

    return device_name("cuda") if torch.cuda.is_available() else "a GPU"


def _devices(space: SearchSpace, gpus: float) -> float:
    """Devices that a trial's clock counts: GPUs or a share of one, or the CPUs where it has none."""
    if not gpus:
        return space.resources.cpus
    return gpus if gpus < 1 else int(gpus)


@contextlib.contextmanager
def _executor(space: SearchSpace, options: RunOptions, folder: Path) -> Iterator[tuple[Executor, float]]:
    """The executor, and the GPUs that each of its trials gets."""
    if options.executor == "inline":
        yield InlineExecutor(), math.ceil(_room(space, options)[0])  # one at a time has the whole device
        return
    from sweeper.executors.ray_tune import RayExecutor, attach

    with attach(options.address, num_cpus=len(os.sched_getaffinity(0))) as cluster:
        gpus = gpus_per_trial(space, cluster.gpus)
        if gpus > cluster.gpus:
            raise ValueError(f"resources.gpus: {gpus:g} wanted for a trial, the cluster has {cluster.gpus:g}")
        if space.resources.cpus > cluster.cpus:
            raise ValueError(f"resources.cpus: {space.resources.cpus} wanted, the cluster has {cluster.cpus}")
        ranks, workers = space.resources.num_ranks, options.workers
        if ranks > 1:
            workers = workers or max(1, int(cluster.gpus / gpus if gpus else cluster.cpus / space.resources.cpus))
        yield RayExecutor(folder / "ray", space.resources.cpus, gpus, workers, ranks=ranks), gpus


@contextlib.contextmanager
def _stopping(folder: Path) -> Iterator[None]:
    """Ctrl-C and SIGTERM ask the workers to save and end; a second Ctrl-C ends at once.

    Python gives signals to its main thread only: in another one, whoever started it decides what they do.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        (folder / STOP).touch()
        sys.stderr.write("\nstopping: running stages save their state (again to end at once)\n")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked:
        raise KeyboardInterrupt


def _about(space: SearchSpace, options: RunOptions, corpus: Any, where: Provenance) -> SweepAbout:
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
        corpus_description=corpus.description,
        corpus_tokens=corpus.train_tokens,
        git_commit=where.git_commit,
        git_dirty=where.git_dirty,
        versions=where.versions,
        device=where.device,
        started_at=where.started_at,
    )


def run(options: RunOptions, say: Say = lambda line: None, watch: Watch = lambda view: None) -> SessionEnd:
    """Run the sweep of a file to its end, its stop or its limit, and write the report of what there is.

    `say` is told what happens in lines, `watch` how far the sweep is, often. Raises `UserError`, `ConnectionError` or
    `ValueError`, each in one line, before anything is trained; `KeyboardInterrupt` after an interrupted
    sweep was left in order.
    """
    from sweeper.executors.worker import train_stage
    from trainers.data.prepare import prepare

    space = load_search_space(options.file)
    if options.executor == "inline" and (ranks := space.resources.num_ranks) > 1:
        raise UserError(f"executor: inline trains in one process; {ranks} ranks of a trial need ray")
    if options.address is None or space.resources.gpus != "auto":  # else the cluster says what a trial gets
        refuse_what_does_not_fit(_fits(space, options, _room(space, options)[0]))
    folder = (options.results / space.name).resolve()
    with driving(folder), contextlib.ExitStack() as stack:
        corpus = prepare(corpus_request(space), options.results / CORPORA, say)
        corpus.validation(space.validation_tokens + 1)
        ledger = stack.enter_context(Ledger.open(options.results, space.name, options.tracking_uri, create=True))
        sweep: Sweep | None = None
        complete = False
        try:
            with _stopping(folder), _executor(space, options, folder) as (executor, gpus):
                refuse_what_does_not_fit(_fits(space, options, gpus))
                sweep = _sweep(space, options, folder, ledger, corpus, gpus, say)
                facts, words = corpus_facts(corpus), corpus.description
                planned = _plan(space, options, facts, words, ledger.records()).planned_steps
                executor.run(sweep, train_stage, lambda: _look(sweep, folder, planned, watch))
                watch(view_of(sweep, planned))
                complete = sweep.stopping is None and not sweep.book.paths
        finally:
            if sweep is not None:
                end = _report(ledger, options, folder, say)
                ledger.finish("finished" if complete else "killed", end.headline, end.report)
        failed = sum(record.final_loss is None for record in sweep.finished.values())
        return replace(end, reason=None if complete else sweep.stopping or "trials are left", failed=failed)


def _look(sweep: Sweep, folder: Path, planned: Mapping[tuple[str, str], int], watch: Watch) -> None:
    if sweep.stopping is None and (folder / STOP).exists():
        sweep.stopping = "stop requested"
    watch(view_of(sweep, planned))


def _sweep(
    space: SearchSpace, options: RunOptions, folder: Path, ledger: Ledger, corpus: Any, gpus: float, say: Say
) -> Sweep:
    import torch

    from trainers.training.execution import resolve_execution

    on_gpu = gpus > 0
    ranks = space.resources.num_ranks
    execution = resolve_execution(options.execution, torch.device("cuda" if on_gpu else "cpu"), say, ranks)
    where = provenance(execution, "cuda" if on_gpu and torch.cuda.is_available() else None)
    ledger.begin(_about(space, options, corpus, where))
    store = folder / STAGES
    site = Site(
        store=str(store),
        stop_file=str(folder / STOP),
        execution=execution,
        devices_per_trial=_devices(space, gpus),
        on_gpu=on_gpu,
        micro_sequences=options.micro_sequences,
        checkpoint_activations=options.checkpoint_activations,
        disk_bytes=space.resources.disk_gb * 1e9,
    )
    return Sweep(
        space,
        corpus_facts(corpus),
        ledger,
        DiskStore(store),
        site,
        where,
        max_hours=options.max_gpu_hours,
        earlier=_earlier(space, options) if space.search.warm_start else (),
    )


def _earlier(space: SearchSpace, options: RunOptions) -> tuple[RunRecord, ...]:
    """Records of the other sweeps in this ledger."""
    records: list[RunRecord] = []
    for name in list_sweeps(options.results, options.tracking_uri):
        if name != space.name:
            with Ledger.open(options.results, name, options.tracking_uri, create=False) as ledger:
                records += ledger.records()
    return tuple(records)


def _report(ledger: Ledger, options: RunOptions, folder: Path, say: Say) -> SessionEnd:
    from reports.summary import summary_to_json
    from sweeper.reporting import study_of, write_report_files

    say("writing the report")
    study = study_of(ledger, shlex.join(["sweeper", "run", str(options.file)]))
    summary = write_report_files(study, folder)
    return SessionEnd(None, summary.headline, folder / REPORT, summary_to_json(summary), 0)
