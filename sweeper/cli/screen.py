"""What the command line shows: progress, plans, tables. Values in, text out; nothing is decided here.

On a terminal a sweep is a small table that redraws itself; elsewhere it is one plain line whenever something happened.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from reports.html import theme
from sweeper.cli.console import PlainConsole
from trainers.bench.result import FAIL, OK, BenchResult
from trainers.bench.words import TextTable, check_cells, opening, tables

if TYPE_CHECKING:
    from reports.pages.plan import PlannedArm, PlannedStage
    from reports.pages.replay import ReplayResult, Standing
    from sweeper.cli.doctor import Finding
    from sweeper.engine.view import ArmView, SweepView
    from sweeper.foreign.dry import Check
    from sweeper.plans.plan import Plan, ScalePlan

BAR_WIDTH = 8
NARROW = 100
"""Columns below which those of a bench's tables stand closer."""
CHECK_STYLES = {OK: "green", FAIL: "bold red"}
QUIET_SECONDS = 30
"""Between two plain lines when nothing has ended."""


def seconds(value: float) -> str:
    """The duration of a step."""
    return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:,.3g} s"


def device_time(value: float | None, clock: str) -> str:
    """Device-hours in words: `9.9 min of GPU time`. On a CPU a worker's wall time is what is spent; the report's clock there is
    processor time, which is less beside other work."""
    device = clock.removesuffix("-hours")
    return f"{theme.hours(value)} of {'worker' if device == 'CPU' else device} time"


def size(num_bytes: float) -> str:
    """Bytes, decimal."""
    return f"{num_bytes / 1e9:,.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:,.1f} MB"


def _bar(arm: ArmView) -> Text:
    width = BAR_WIDTH
    done = round(width * arm.done / arm.total) if arm.total else width
    running = min(width - done, arm.running)
    bar = Text("━" * done, style="green")
    bar.append("━" * running, style="yellow")
    bar.append("━" * (width - done - running), style="bright_black")
    return bar


def sweep_table(view: SweepView) -> Table:
    """One row an arm."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), expand=False)
    longest = max((len(f"{arm.scale} {arm.method}") for arm in view.arms), default=3)
    table.add_column("arm", no_wrap=True, min_width=min(longest, 24))
    table.add_column("", no_wrap=True, min_width=BAR_WIDTH)
    table.add_column("done", justify="right", no_wrap=True, min_width=4)
    table.add_column("run", justify="right", no_wrap=True, min_width=3)
    table.add_column("left", justify="right", no_wrap=True, min_width=4)
    table.add_column("best so far", no_wrap=True, overflow="ellipsis")
    table.add_column("spent", justify="right", no_wrap=True, min_width=8)
    table.add_column("to go", justify="right", no_wrap=True, min_width=8)
    for arm in view.arms:
        best = f"{arm.best_loss:.4f} {arm.best_parameters}" if arm.best_loss is not None else arm.state
        done = f"{arm.done}" + (f" ({arm.ended_badly} bad)" if arm.ended_badly else "")
        done += f" (+{arm.of_earlier_files} old)" if arm.of_earlier_files else ""
        cells = (f"{arm.scale} {arm.method}", _bar(arm), done, str(arm.running), str(arm.left), best)
        table.add_row(*cells, theme.hours(arm.hours_spent), "" if arm.state == "done" else theme.hours(arm.hours_left))
    return table


def sweep_line(view: SweepView) -> str:
    """The whole sweep in one plain line."""
    arms = ", ".join(f"{arm.method} {arm.done}/{arm.total}" for arm in view.arms if arm.state != "waiting")
    left = f", {theme.hours(view.hours_left)} to go" if view.hours_left is not None else ""
    return f"{arms} · {device_time(view.hours_spent, view.clock)} spent{left} · {view.latest}"


@contextmanager
def progress(console: Console) -> Iterator[tuple[Callable[[str], None], Callable[[SweepView], None]]]:
    """A pair to say a line with and to show a view with."""
    if not console.is_terminal:
        yield _plain()
        return
    with Live(console=console, refresh_per_second=4, transient=False) as live:
        drawn = 0.0

        def say(line: str) -> None:
            live.console.print(Text(line, style="bright_black"))

        def show(view: SweepView) -> None:
            nonlocal drawn
            if time.monotonic() - drawn < 0.25:
                return
            drawn = time.monotonic()
            table = sweep_table(view)
            left = f", {theme.hours(view.hours_left)} to go" if view.hours_left is not None else ""
            table.caption = Text(
                f"{device_time(view.hours_spent, view.clock)} spent{left} · {view.latest}", style="italic"
            )
            table.caption_justify = "left"
            live.update(table)

        yield say, show


def _plain() -> tuple[Callable[[str], None], Callable[[SweepView], None]]:
    last, spoken = "", time.monotonic()

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    def show(view: SweepView) -> None:
        nonlocal last, spoken
        if view.latest != last or time.monotonic() - spoken > QUIET_SECONDS:
            last, spoken = view.latest, time.monotonic()
            say(sweep_line(view))

    return say, show


def _arm_row(table: Table, arm: PlannedArm, plan: Plan) -> None:
    probes = f" + {arm.probe_trials}" if arm.probe_trials else ""
    trials = f"{arm.tuning_trials}{probes} + {arm.confirmation_trials}" + (
        f" ({arm.finished} done)" if arm.finished else ""
    )
    epochs = f"{arm.epochs:.2g}" if arm.epochs is not None else "?"
    cells = [
        arm.method,
        trials,
        theme.count(arm.steps_alone),
        theme.count(arm.steps_shared),
        theme.hours(arm.hours_shared),
    ]
    if plan.price_per_hour is not None:
        cells.append(theme.money(arm.hours_shared * plan.price_per_hour, plan.currency))
    table.add_row(*cells, theme.count(arm.tokens or None), epochs)


def _scale_table(scale: ScalePlan, plan: Plan) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), title_justify="left")
    size_words = "" if scale.parameters is None else f" · {theme.count(scale.parameters)} parameters"
    table.title = f"{scale.scale}{size_words} · {seconds(scale.step_seconds)} a step"
    probed = any(arm.probe_trials for arm in scale.arms)
    names = ["arm", "tune + probe + confirm" if probed else "tune + confirm", "steps alone", "shared", plan.clock]
    names += ["price"] if plan.price_per_hour is not None else []
    for index, name in enumerate([*names, "tokens a run", "epochs"]):
        table.add_column(name, justify="left" if index == 0 else "right", no_wrap=index == 0)
    for arm in scale.arms:
        _arm_row(table, arm, plan)
    return table


def show_plan(console: Console, plan: Plan) -> None:
    """The plan as tables and sentences."""
    console.print(Text(plan.question, style="bold"))
    console.print(f"Corpus: {plan.corpus}. Step times: {plan.cost_source}.")
    for scale in plan.scales:
        console.print()
        console.print(_scale_table(scale, plan))
        resolves = f"can resolve a speedup of {scale.resolves:.2f}x or more" if scale.resolves else "gives no interval"
        console.print(
            f"{theme.hours(scale.wall_hours)} of wall time on {plan.workers} worker{'s' if plan.workers > 1 else ''}"
            f"{_disk(scale, plan)}; {resolves} ({scale.resolves_reason})."
        )
        if scale.fit is not None:
            console.print(f"{scale.scale} {scale.fit.sentence}.")
    if (old := plan.of_earlier_files) > 0:
        console.print(
            f"An earlier state of the file asked for {old} run{'s' if old > 1 else ''} that this one does not count."
        )
    for command in plan.commands:
        console.print()
        console.print(Text(command), soft_wrap=True)
    saved = plan.hours_alone - plan.hours_shared
    price = (
        f", {theme.money(plan.hours_shared * plan.price_per_hour, plan.currency)}"
        if plan.price_per_hour is not None
        else ""
    )
    console.print()
    shared = f"; sharing prefixes saves {theme.hours(saved)} ({plan.steps_saved:.0%} of the steps)" if saved else ""
    console.print(f"In all {device_time(plan.hours_shared, plan.clock)}{price}{shared}.")


def _disk(scale: ScalePlan, plan: Plan) -> str:
    """Nothing is known of what another trainer leaves."""
    if not scale.disk_bytes:
        return ""
    kept = f", of which {size(scale.models_bytes)} stay: {scale.models} models to export" if scale.models else ""
    return f", at most {size(scale.disk_bytes)} of checkpoints (budget {size(plan.disk_budget)}){kept}"


def stage_tree(plan: Plan) -> Tree:
    """The stages of a plan: what is trained once, and what goes on from where."""
    root = Tree(f"{plan.name}: {len(plan.stages)} stages")
    children: dict[str | None, list[PlannedStage]] = {}
    known = {stage.node for stage in plan.stages}
    for stage in plan.stages:
        children.setdefault(stage.parent if stage.parent in known else None, []).append(stage)

    def grow(branch: Tree, parent: str | None, depth: int) -> None:
        for stage in sorted(children.get(parent, []), key=lambda s: (s.scale, s.method, s.label, s.end)):
            label = f"{stage.scale} {stage.method} {stage.label}: " if depth == 0 else ""
            grow(branch.add(f"{label}steps {stage.start:,} to {stage.end:,}"), stage.node, depth + 1)

    grow(root, None, 0)
    return root


def show_table(columns: list[str], rows: list[list[str]]) -> None:
    """Print a table of texts; in a pipe, lines are as long as they need to be."""
    console = PlainConsole()
    if not console.is_terminal:
        console.width = 1_000
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def show_findings(console: Console, findings: Sequence[Finding | Check]) -> None:
    """One line each."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    styles = {"ok": "green", "note": "yellow", "fail": "red"}
    for finding in findings:
        table.add_row(Text(finding.status, style=styles[finding.status]), finding.what, finding.found)
    console.print(table)


@contextmanager
def import_progress() -> Iterator[Callable[[int, int], None]]:
    """A function to call with how many runs are written and how many there are; a bar on a terminal, nothing in a pipe."""
    console = PlainConsole(stderr=True)
    columns = (TextColumn("runs"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)

        def watch(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield watch


@contextmanager
def replay_progress(races: int) -> Iterator[Callable[[int], None]]:
    """A function to call with the number of races that have ended, out of `races`: a bar, on a terminal only."""
    console = PlainConsole(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("races"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("races", total=races)
        yield lambda ended: progress.update(bar, completed=ended)


def _spent(standing: Standing | None, trials: int) -> str:
    if standing is None:
        return ""
    return f"> {trials}" if standing.median_spent is None else f"{standing.median_spent:.1f}"


def show_replay(result: ReplayResult) -> None:
    """Medians of every strategy, one table of losses after the other."""
    console = PlainConsole()
    console.print(
        f"Replay on tables of finished runs, nothing trained: {result.seeds} seeds, noise {result.seed_deviation:g} nats. "
        f"Full-budget equivalents (medians) until the recommended cell is within {result.tolerance:g} nats of the "
        "smoothed table's best; raw regret in 0.001 nats."
    )
    for name in dict.fromkeys((standing.table, standing.params) for standing in result.standings):
        mine = [standing for standing in result.standings if (standing.table, standing.params) == name]
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), title_justify="left")
        table.title = f"{name[1]} (table {name[0]})"
        for index, column in enumerate(("strategy", "shared", "reached", "raw", "alone", "reached", "raw")):
            table.add_column(column, justify="left" if index == 0 else "right")
        for contestant in dict.fromkeys(standing.contestant for standing in mine):
            row = [contestant]
            for shared in (True, False):
                found = next((s for s in mine if (s.contestant, s.shared) == (contestant, shared)), None)
                row += [_spent(found, result.trials)]
                row += ["", ""] if found is None else [f"{found.reached:.0%}", f"{1000 * found.median_raw_regret:.1f}"]
            table.add_row(*row)
        console.print()
        console.print(table)


def _rich_table(table: TextTable, width: int) -> Table:
    gap = 1 if width < NARROW else 2
    drawn = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0))
    for index, name in enumerate(table.columns):
        drawn.add_column(name, justify="right" if index else "left", no_wrap=bool(index))
    for row in table.rows:
        drawn.add_row(*row)
    return drawn


def show_bench(console: Console, result: BenchResult) -> None:
    """Checks first, then every table, the headline ratios last."""
    for line in opening(result):
        console.print(line)
    console.print()
    checks = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for status, name, found in map(check_cells, result.checks):
        checks.add_row(Text(status, style=CHECK_STYLES.get(status, "yellow")), name, found)
    console.print(checks)
    for table in tables(result):
        console.print()
        console.print(Text(table.title, style="bold"))
        console.print(_rich_table(table, console.width))
        for note in table.notes:
            console.print(Text(note, style="italic"))
