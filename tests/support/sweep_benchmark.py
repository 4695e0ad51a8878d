"""What a large sweep costs its driver: `python -m tests.support.sweep_benchmark`, some minutes.

Simulated sweeps of 100, 1,000 and 10,000 trials, each in a process of its own: searches, trees, arms and records are the real
ones, nothing is trained. Most of the trials are confirmations: a search of thousands would time its model of all of them. Then
the status of each and the report of its records. Prints the figures of sweeper/README.md.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

from reports.evidence.runs import run_from_record
from reports.evidence.study import build_study
from reports.pages.report import write_report
from reports.summary import summarize
from sweeper.cli.status import drawn, status_of
from sweeper.engine.live import LiveSweep
from sweeper.engine.status import FILE, status_of_sweep
from sweeper.executors.simulated import SimulatedExecutor, trains_nothing
from sweeper.space.schema import SearchSpace
from tests.support.report_factory import Invented, context_of
from tests.support.tiny_sweep import Desk, loss_of, space_of
from trainers.training.devices import cpu_name

SIZES = (100, 1_000, 10_000)
WORKERS = 16


def space_of_size(trials: int) -> SearchSpace:
    """A sweep of about so many trials: two short searches, then three budgets of both arms on many fresh seeds."""
    seeds = tuple(range(1000, 1000 + (trials - 16) // 6))
    both = {"tuning": 8, "confirmation": (8, 12, 16)}
    methods = space_of().model_dump()["methods"]
    return space_of(
        seeds={"tuning": (0, 1), "confirmation": seeds},
        methods={name: {**method, "budgets": both} for name, method in methods.items()},
        search={"sampler": "grid", "trials_per_arm": 8, "fan": 2, "warm_start": False},
    )


def drive(trials: int, folder: Path) -> tuple[Desk, LiveSweep, float]:
    """Run the sweep; returns the driver's seconds."""
    desk = Desk(space_of_size(trials))
    live = LiveSweep(desk.open(), None, folder, 600.0)
    executor = SimulatedExecutor(
        lambda spec: loss_of(spec, spec.schedule.total_steps), lambda spec, phase: 1.0, workers=WORKERS
    )
    started = time.process_time()
    executor.run(live, trains_nothing, lambda: None)
    return desk, live, time.process_time() - started


def one(trials: int) -> None:
    """Drive a sweep and print its figures."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        desk, live, seconds = drive(trials, folder)
        records = desk.ledger.records()
        memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        print(f"{len(records):,} trials: {1000 * seconds / len(records):.2f} ms a trial, {memory:.0f} MB", flush=True)
        started = time.perf_counter()
        (folder / "tiny").mkdir()
        text = json.dumps(asdict(status_of_sweep(live, "How large?", True)))
        (folder / "tiny" / FILE).write_text(text, encoding="utf-8")
        written = time.perf_counter() - started
        started = time.perf_counter()
        drawn(*status_of(folder, "tiny", None), 100)
        print(f"status: written in {written:.2f} s, read in {time.perf_counter() - started:.2f} s")
        started = time.perf_counter()
        # As the ledger gives them: what simulated stages lack is nothing that a page's size or time hangs on.
        study = build_study(context_of("large", (Invented(),)), [run_from_record(replace(r)) for r in records])
        page = folder / "report.html"
        write_report(study, summarize(study), page)
        print(f"report: {time.perf_counter() - started:.1f} s, {page.stat().st_size / 1e6:.2f} MB")


def main() -> None:
    """One process for each size, so that the memory of one is not that of another."""
    if len(sys.argv) > 1:
        one(int(sys.argv[1]))
        return
    print(f"{cpu_name()}, {WORKERS} simulated workers")
    for trials in SIZES:
        subprocess.run([sys.executable, "-m", "tests.support.sweep_benchmark", str(trials)], check=True)


if __name__ == "__main__":
    main()
