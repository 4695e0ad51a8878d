"""`sweeper status`: how a sweep stands, from another terminal or another machine.

It reads what the driver and its workers leave in the sweep's folder, and the ledger where there is nothing of the kind: an
imported sweep, one of an earlier version, a ledger on a server without the folder. It asks no process anything.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sweeper.cli.options import RESULTS, Json, Results, Uri, guarded, print_json

if TYPE_CHECKING:
    from rich.console import RenderableType

    from reports.evidence.runs import FinishedRun
    from sweeper.engine.status import ArmStatus, SweepStatus
    from sweeper.lock import Driver
    from trainers.planning.life import StageLife

STAGE_COLUMNS = ("stage", "step", "loss", "steps/s", "spent", "ends", "seen", "node")
WATCH_SECONDS = 2.0
MOST_FAILURES = 10
"""Lines of failures on the screen; `--json` has them all."""
WIDE = 100
"""Columns from which on the screen has room for rates and nodes of full length."""


@guarded
def status(
    name: Annotated[str, typer.Argument(help="Name of the sweep, as in its file.", show_default=False)],
    results: Results = RESULTS,
    watch: Annotated[
        bool, typer.Option("--watch", help="Draw it again every two seconds, until nobody drives.")
    ] = False,
    as_json: Json = False,
    tracking_uri: Uri = None,
) -> None:
    """Show what a sweep has done, which stages run and where, when it may end, and what went wrong."""
    from sweeper.cli.console import PlainConsole

    if as_json:
        print_json(status_to_json(*status_of(results, name, tracking_uri)))
        return
    console = PlainConsole()
    if not watch:
        console.print(drawn(*status_of(results, name, tracking_uri), console.width))
        return
    from rich.live import Live

    with Live(console=console, auto_refresh=False) as live:
        while True:
            found, driver = status_of(results, name, tracking_uri)
            live.update(drawn(found, driver, console.width), refresh=True)
            if driver is None:
                return
            time.sleep(WATCH_SECONDS)


def status_of(results: Path, name: str, tracking_uri: str | None) -> tuple[SweepStatus, Driver | None]:
    """How the sweep stands, and who drives it. Raises `LedgerError` where there is no such sweep."""
    from sweeper.engine.status import read_status, with_stages
    from sweeper.ledger.location import check_name
    from sweeper.lock import current_driver
    from sweeper.options import STAGES
    from trainers.planning.life import lives_in

    check_name(name)
    driver = current_driver(results / name)
    found = read_status(results / name) or _from_ledger(results, name, tracking_uri)
    return with_stages(found, lives_in(results / name / STAGES)), driver


def _from_ledger(results: Path, name: str, tracking_uri: str | None) -> SweepStatus:
    from sweeper.engine.arms import of_this_file
    from sweeper.engine.status import Failure, SweepStatus, arms_of, failures_of
    from sweeper.ledger.imports import ImportLedger
    from sweeper.ledger.tables import imported_runs
    from sweeper.options import CorpusFacts
    from sweeper.reporting import file_of

    with ImportLedger.open(results, name, tracking_uri, create=False) as ledger:
        about = ledger.about()
        if about.origin == "imported":
            runs = imported_runs(ledger)
            bad = [Failure(run.run_id, run.outcome, run.reason) for run in runs if run.outcome != "finished"]
            arms = _imported_arms(runs)
            spent = sum(arm.hours for arm in arms)
            return SweepStatus(name, about.question, arms, tuple(bad), hours_spent=spent, complete=True)
        records, pending, damaged = ledger.records(), ledger.pending(), ledger.damaged()
    space = file_of(about)
    corpus = CorpusFacts(about.corpus_fingerprint, about.tokenizer_fingerprint, 0, 0, "", about.code)
    earlier = {r.spec.spec_id for r in records if space is not None and not of_this_file(space, corpus, r)}
    arms = arms_of(records, (spec for spec, _ in pending), earlier)
    return SweepStatus(
        name,
        about.question,
        arms,
        failures_of(records),
        tuple(damaged),
        hours_spent=sum(arm.hours for arm in arms),
        complete=not pending,
    )


def _imported_arms(runs: Sequence[FinishedRun]) -> tuple[ArmStatus, ...]:
    """Hours are what was paid where that is known."""
    from sweeper.engine.status import ArmStatus

    found = []
    for scale, method in dict.fromkeys((run.scale, run.method) for run in runs):
        mine = [run for run in runs if (run.scale, run.method) == (scale, method)]
        ends = [run.outcome for run in mine]
        paid = [run.gpu_hours if run.incurred_gpu_hours is None else run.incurred_gpu_hours for run in mine]
        losses = [run.final_loss for run in mine if run.purpose == "confirmation" and run.final_loss is not None]
        found.append(
            ArmStatus(
                scale,
                method,
                finished=ends.count("finished"),
                diverged=ends.count("diverged"),
                failed=ends.count("failed") + ends.count("stopped"),
                open=0,
                hours=sum(hours for hours in paid if hours is not None),
                best_confirmed=min(losses, default=None),
            )
        )
    return tuple(found)


def state_of(status: SweepStatus, driver: Driver | None) -> str:
    """`running`, `finished`, `stopped` (in order) or `interrupted` (its driver died)."""
    if driver is not None:
        return "running"
    if status.complete:
        return "finished"
    return "interrupted" if status.at and status.stopping is None else "stopped"


def stage_end(life: StageLife) -> float | None:
    """When a stage may end, in seconds since 1970 by its host's clock; None where that cannot be said."""
    return life.at + (life.end - life.step) / life.rate if life.running and life.rate else None


def sweep_end(status: SweepStatus) -> float | None:
    """When the sweep may end."""
    return None if status.hours_left is None else status.at + 3600 * status.hours_left / status.devices


def status_to_json(status: SweepStatus, driver: Driver | None) -> dict[str, Any]:
    """Everything on the screen and more, as plain JSON values. Times are in seconds since 1970."""
    stages = [
        {
            **asdict(life),
            "hours": life.hours,
            "silent_seconds": max(0.0, time.time() - life.at),
            "ends_at": stage_end(life),
        }
        for life in status.stages
    ]
    return {
        **asdict(status),
        "state": state_of(status, driver),
        "driver": None if driver is None else asdict(driver),
        "stages": stages,
        "ends_at": sweep_end(status) if driver is not None else None,
    }


def drawn(status: SweepStatus, driver: Driver | None, width: int) -> RenderableType:
    """It, for a screen of `width` columns."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [Text(status.name, style="bold").append(f"  {status.question}", style="not bold")]
    parts.append(Text(_state_line(status, driver)))
    parts.append(_arm_table(status))
    running = [life for life in status.stages if life.running]
    # Those of trials that an earlier state of file or code asked for are gone on with by nobody.
    waiting = 0 if status.complete else len(status.stages) - len(running)
    if running:
        parts += [Text(), _stage_table(running, width)]
    if waiting:
        parts.append(Text(f"{waiting} stage{'s' if waiting > 1 else ''} begun and cut, to go on from the last state"))
    if status.failures:
        parts += [Text(), Text("ended badly" + (f" ({len(status.failures)})" if len(status.failures) > 1 else ""))]
    for failure in status.failures[:MOST_FAILURES]:
        parts.append(Text(f"{failure.trial}: {failure.outcome}, {failure.reason}", style="red"))
    if len(status.failures) > MOST_FAILURES:
        parts.append(Text(f"and {len(status.failures) - MOST_FAILURES} more: `--json` has them all"))
    parts += [Text(line, style="red") for line in status.damaged]
    return Group(*parts)


def _state_line(status: SweepStatus, driver: Driver | None) -> str:
    from reports.html import theme

    state = state_of(status, driver)
    words = [state]
    if driver is not None:
        words = [f"running: process {driver.pid} on {driver.host}"]
    elif status.at:
        words = [f"{state} on {status.host}, {_ago(status.at)}"]
    if status.stopping and state != "finished":
        words.append(status.stopping)
    words.append(f"{theme.hours(status.hours_spent)} of {status.clock.removesuffix('-hours')} time spent")
    if status.hours_left is not None and state != "finished":
        words.append(f"{theme.hours(status.hours_left)} to go")
    if driver is not None and (end := sweep_end(status)) is not None:
        words.append(f"may end {_clock(end)}")
    return " · ".join(words)


def _arm_table(status: SweepStatus) -> RenderableType:
    from rich.table import Table

    from reports.html import theme

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for index, column in enumerate(("arm", "finished", "diverged", "failed", "open", "hours", "best confirmed")):
        table.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    for arm in status.arms:
        best = f"{arm.best_confirmed:.4f}" if arm.best_confirmed is not None else "-"
        counts = [str(count) for count in (arm.finished, arm.diverged, arm.failed, arm.open)]
        if arm.of_earlier_files:
            counts[0] += f" (+{arm.of_earlier_files} of an earlier file)"
        table.add_row(f"{arm.scale} {arm.method}", *counts, theme.hours(arm.hours), best)
    return table


def _stage_table(lives: Sequence[StageLife], width: int) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    wide = width >= WIDE
    rows = [_stage_cells(life, wide) for life in lives]
    gap = 2 if wide else 1
    widths = [max(map(len, cells)) for cells in zip(STAGE_COLUMNS, *rows, strict=True)]
    # Numbers keep their width: what gives way on a narrow screen is the name.
    widths[0] = max(8, min(widths[0], width - sum(widths[1:]) - gap * len(widths)))
    table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0))
    for column, space in zip(STAGE_COLUMNS, widths, strict=True):
        side: Literal["left", "right"] = "left" if column in ("stage", "node") else "right"
        table.add_column(column, justify=side, no_wrap=True, overflow="ellipsis", width=space)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _stage_cells(life: StageLife, wide: bool) -> tuple[str, ...]:
    from reports.html import theme

    end = stage_end(life)
    return (
        life.label,
        f"{life.step:,} of {life.end:,}",
        "-" if life.loss is None else f"{life.loss:.3f}",
        f"{life.rate:.3g}" if life.rate else "-",
        theme.hours(life.hours),
        "-" if end is None else _clock(end),
        _ago(life.at, short=not wide),
        life.host if wide else life.host[:8],
    )


def _ago(moment: float, *, short: bool = False) -> str:
    seconds = max(0.0, time.time() - moment)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}" + ("" if short else " ago")
    return f"{seconds:.0f} s" + ("" if short else " ago")


def _clock(moment: float) -> str:
    """A moment of today as its time, of another day with that."""
    then, now = datetime.fromtimestamp(moment), datetime.now()
    return f"{then:%H:%M}" if then.date() == now.date() else f"{then:%a %d %b %H:%M}" if moment else "-"
