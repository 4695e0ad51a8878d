"""A bench on the terminal: the trainers' rows in colour, at any width. Values in, text out; nothing is decided here."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from trainers.bench.result import FAIL, OK, BenchResult
from trainers.bench.words import TextTable, check_cells, opening, tables

STYLES = {OK: "green", FAIL: "bold red"}


NARROW = 100
"""Columns below which a table's own stand closer."""


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
        console.print(line, markup=False)
    console.print()
    checks = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for status, name, found in map(check_cells, result.checks):
        checks.add_row(Text(status, style=STYLES.get(status, "yellow")), name, found)
    console.print(checks)
    for table in tables(result):
        console.print()
        console.print(Text(table.title, style="bold"))
        console.print(_rich_table(table, console.width))
        for note in table.notes:
            console.print(Text(note, style="italic"))
