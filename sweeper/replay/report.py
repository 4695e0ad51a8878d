"""Races of search strategies for readers: a page with pictures, JSON, and a Markdown table. Says "replay" everywhere."""

from __future__ import annotations

import json
from pathlib import Path

from reports.pages.replay import ReplayResult, cost, render_races
from trainers.contract.writing import write_atomically

PAGE = "replay.html"
NUMBERS = "replay.json"


def write_replay_files(result: ReplayResult, folder: Path, *, command: str, source: str) -> Path:
    """Write the page and its numbers into `folder`; returns the page's path."""
    write_atomically(folder / NUMBERS, json.dumps(result.to_json(), indent=1, allow_nan=False))
    write_atomically(folder / PAGE, render_races(result, source, command))
    return folder / PAGE


def markdown_table(result: ReplayResult) -> str:
    """Median full-budget equivalents until found: one row a strategy, with and without sharing for each table."""
    labels = list(dict.fromkeys(standing.label for standing in result.standings))
    names = list(dict.fromkeys(standing.contestant for standing in result.standings))
    cells = {(one.contestant, one.label, one.shared): one.median_spent for one in result.standings}

    def cell(name: str, label: str, shared: bool) -> str:
        if (name, label, shared) not in cells:
            return ""
        return cost(cells[name, label, shared], result.trials)

    head = [f"{label}, {how}" for label in labels for how in ("shared", "alone")]
    lines = [f"| strategy (replay, {result.seeds} seeds) | {' | '.join(head)} |", "|---|" + "---:|" * len(head)]
    for name in names:
        row = [cell(name, label, shared) for label in labels for shared in (True, False)]
        lines.append(f"| {name} | {' | '.join(row)} |")
    return "\n".join(lines)


def against_best_table(result: ReplayResult) -> str:
    """How each sampler stands beside the best other one of each table: geometric mean, worst, and how often it is beyond.

    The best is chosen after the fact, so that no sampler can be expected to come near 1: the rows are to be compared.
    """
    samplers = dict.fromkeys(standing.sampler for standing in result.standings)
    rows = {name: result.against_best(name) for name in samplers}
    rows = {name: row for name, row in rows.items() if row}
    if not rows:
        return ""
    tables = max(len(one.pairs) for row in rows.values() for one in row)
    ways = [
        f"{'shared' if one.shared else 'alone'}, {'median' if one.quantile == 'median_spent' else '90th percentile'}"
        for one in next(iter(rows.values()))
    ]
    lines = [
        f"| sampler / best other ({result.seeds} seeds, {tables} tables): mean, worst, beyond | {' | '.join(ways)} |",
        "|---|" + "---:|" * len(ways),
    ]
    for name, row in rows.items():
        cells = [f"{one.geometric_mean:.2f}, {one.worst:.2f}, {one.beyond}" for one in row]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)
