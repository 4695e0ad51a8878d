"""Races of search strategies for readers: a page with pictures, JSON, and a Markdown table. Says "replay" everywhere."""

from __future__ import annotations

import json
from pathlib import Path

from sweeper.replay.race import ReplayResult, Standing
from trainers.contract.writing import write_atomically

PAGE = "replay.html"
NUMBERS = "replay.json"


def table_label(standing: Standing) -> str:
    """A table for people: its size, and which of several of that size."""
    return f"{standing.params} (table {standing.table})"


def write_replay_files(result: ReplayResult, folder: Path, *, command: str, source: str) -> Path:
    """Write the page and its numbers into `folder`; returns the page's path."""
    from reports.pages.replay import RacedStrategy, RacePage, render_races

    races = RacePage(
        source=source,
        command=command,
        seeds=result.seeds,
        trials=result.trials,
        seed_deviation=result.seed_deviation,
        tolerance=result.tolerance,
        strategies=tuple(
            RacedStrategy(
                table=table_label(standing),
                strategy=standing.contestant,
                sampler=standing.sampler,
                shared=standing.shared,
                warm_start=standing.warm_start,
                spent=standing.median_spent,
                held=standing.median_held,
                regret=standing.median_regret,
                raw_regret=standing.median_raw_regret,
                reached=standing.reached,
                course=standing.course,
            )
            for standing in result.standings
        ),
    )
    numbers = result.to_json()
    write_atomically(folder / NUMBERS, json.dumps(numbers, indent=1, allow_nan=False))
    without_races = {**numbers, "standings": [{**one, "races": []} for one in numbers["standings"]]}
    write_atomically(folder / PAGE, render_races(races, without_races))
    return folder / PAGE


def markdown_table(result: ReplayResult) -> str:
    """Median full-budget equivalents until found: one row a strategy, with and without sharing for each table."""
    labels = list(dict.fromkeys(table_label(standing) for standing in result.standings))
    names = list(dict.fromkeys(standing.contestant for standing in result.standings))
    cells = {(one.contestant, table_label(one), one.shared): one.median_spent for one in result.standings}

    def cell(name: str, label: str, shared: bool) -> str:
        if (name, label, shared) not in cells:
            return ""
        spent = cells[name, label, shared]
        return f"> {result.trials}" if spent is None else f"{spent:.1f}"

    head = [f"{label}, {how}" for label in labels for how in ("shared", "alone")]
    lines = [f"| strategy (replay, {result.seeds} seeds) | {' | '.join(head)} |", "|---|" + "---:|" * len(head)]
    for name in names:
        row = [cell(name, label, shared) for label in labels for shared in (True, False)]
        lines.append(f"| {name} | {' | '.join(row)} |")
    return "\n".join(lines)
