"""Search strategies raced on tables of finished runs, as a page of its own: what each spent until its answer was good.

Takes medians as plain values and draws them. Says on top that nothing was trained: no number here is about a method,
only about ways to search.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from reports.html import theme
from reports.html.blocks import Block, Chart, Code, Column, Fragment, Prose, Table
from reports.html.charts import blank, label, linear_axis, log_axis
from reports.html.layout import DrawnSection, Masthead, render_sections, side_by_side

if TYPE_CHECKING:
    import plotly.graph_objects as go

COLORS = {
    "surface": theme.ACCENT,
    "gp": theme.GREEN,
    "tpe": theme.ORANGE,
    "random": theme.MUTED,
    "grid": theme.PURPLE,
}
OTHER_COLOR = theme.VERMILLION
HIGHEST_REGRET = 8.0
"""Top of the pictures, in thousandths of a nat."""


@dataclass(frozen=True, slots=True)
class RacedStrategy:
    """One strategy on one table, medians over seeds. Costs in full-budget equivalents, None where half of the races or
    more never got there; regrets in nats; `course` as (spent, median regret of what would be recommended)."""

    table: str
    strategy: str
    sampler: str
    shared: bool
    warm_start: bool
    spent: float | None
    held: float | None
    regret: float
    raw_regret: float
    reached: float
    course: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class RacePage:
    """The races of one command. `tolerance` in nats is what counts as found."""

    source: str
    command: str
    seeds: int
    trials: int
    seed_deviation: float
    tolerance: float
    strategies: tuple[RacedStrategy, ...]


def cost(value: float | None, most: int) -> str:
    """Full-budget equivalents, or that most races did not get there."""
    return f"> {most}" if value is None else f"{value:.1f}"


def regret_chart(key: str, table: str, shared: bool, races: RacePage) -> Chart:
    """Median regret against what was spent, for the strategies with or without sharing."""
    mine = [item for item in races.strategies if item.table == table and item.shared == shared]
    figure = blank(left=58, right=16, top=10, bottom=110)
    end = max([item.course[-1][0] for item in mine if item.course] + [2.0])
    for item in mine:
        _draw_course(figure, item, end)
    limit = 1000 * races.tolerance
    figure.add_scatter(
        x=[1, end], y=[limit, limit], mode="lines", line={"color": theme.INK, "width": 1}, hoverinfo="skip",
        showlegend=False,
    )  # fmt: skip
    figure.update_layout(
        showlegend=True,
        legend={"orientation": "h", "y": -0.22, "yanchor": "top", "x": 0, "font": {"size": 11.5}},
        xaxis=log_axis("spent, full-budget equivalents (log scale)", 0.95, end * 1.05),
        yaxis=linear_axis("regret of the answer, 0.001 nats", 0, HIGHEST_REGRET),
        annotations=[
            label("found", 1, limit, theme.INK, xref="paper", xanchor="right", yanchor="bottom", font={"size": 11})
        ],
    )
    return Chart(key, _title(table, shared, mine, races), figure, _course_table(table, mine), 430, 3)


def _draw_course(figure: go.Figure, item: RacedStrategy, end: float) -> None:
    if not item.course:
        return
    dash = "dash" if item.warm_start else "dot" if "observation" in item.strategy else "solid"
    x = [spent for spent, _ in item.course] + [end]
    y = [1000 * regret for _, regret in item.course] + [1000 * item.course[-1][1]]
    color = COLORS.get(item.sampler, OTHER_COLOR)
    figure.add_scatter(
        x=x,
        y=y,
        name=item.strategy,
        mode="lines",
        line={"color": color, "width": 2.5 if item.sampler == "surface" else 1.6, "dash": dash, "shape": "hv"},
        hovertemplate=f"{item.strategy}<br>%{{x:.1f}} spent, regret %{{y:.2f}} mnats<extra></extra>",
    )


def _title(table: str, shared: bool, mine: Sequence[RacedStrategy], races: RacePage) -> str:
    how = "prefixes shared" if shared else "every run by itself"
    found = sorted((item for item in mine if item.spent is not None), key=lambda item: item.spent or 0.0)
    if not found:
        return f"{table}, {how}: no strategy finds a good cell within {races.trials} trials"
    cold = [item for item in found if not item.warm_start]
    best = cold[0] if cold else found[0]
    return f"{table}, {how}: {best.strategy} needs {cost(best.spent, races.trials)} full budgets in the median"


def _course_table(table: str, mine: Sequence[RacedStrategy]) -> Table:
    columns = (Column("Strategy", numeric=False), *(Column(f"at {spent}") for spent in (1, 2, 3, 4, 6, 8, 12, 16, 24)))

    def at(item: RacedStrategy, spent: int) -> str:
        known = [regret for place, regret in item.course if place <= spent]
        return f"{1000 * known[-1]:.2f}" if known else "–"

    rows = tuple((item.strategy, *(at(item, spent) for spent in (1, 2, 3, 4, 6, 8, 12, 16, 24))) for item in mine)
    return Table(f"Median regret on {table} in 0.001 nats, by full-budget equivalents spent", columns, rows)


def standings_table(table: str, races: RacePage) -> Table:
    """Medians of every strategy on one table."""
    columns = (
        Column("Strategy", numeric=False),
        Column("Prefixes", numeric=False),
        Column("Spent until found"),
        Column("Until found for good"),
        Column("Races that found it"),
        Column("Regret, 0.001 nats"),
        Column("Raw regret, 0.001 nats"),
    )
    rows = tuple(
        (
            item.strategy,
            "shared" if item.shared else "alone",
            cost(item.spent, races.trials),
            cost(item.held, races.trials),
            theme.percent(item.reached),
            f"{1000 * item.regret:.2f}",
            f"{1000 * item.raw_regret:.2f}",
        )
        for item in races.strategies
        if item.table == table
    )
    return Table(f"{table}: medians over {races.seeds} seeds, in full-budget equivalents", columns, rows)


def render_races(races: RacePage, numbers: Mapping[str, Any]) -> str:
    """The page as HTML; `numbers` are embedded as JSON (`#summary`)."""
    tables = list(dict.fromkeys(item.table for item in races.strategies))
    top = Masthead(
        "Replay.",
        f"Losses are those of {races.source} plus seed noise of {races.seed_deviation:g} nats; nothing was trained.",
        "How much does each search strategy spend until it would recommend a good cell?",
        _headline(races, tables),
    )
    rule = (
        f"Found: the cell that the strategy would recommend by its own model is within {races.tolerance:g} nats of the "
        "best of the smoothed table (weights 1-2-1 along both axes; a single cell's minimum is luck too). Raw regret is "
        f"against the table as it stands. {races.seeds} seeds, at most {races.trials} trials a race; with shared prefixes, "
        "trials of one bag size and seed pay their common superposition phase once. Best observation: recommends its "
        "luckiest trial, as a plain tuner does."
    )
    sections = [
        DrawnSection("answer", "", side_by_side([Fragment("masthead.html.j2", top), Prose(rule, "note")])),
    ]
    for index, table in enumerate(tables):
        sharing = sorted({item.shared for item in races.strategies if item.table == table}, reverse=True)
        blocks: list[Block] = [regret_chart(f"races-{index}-{int(way)}", table, way, races) for way in sharing]
        blocks.append(standings_table(table, races))
        sections.append(DrawnSection(f"table-{index}", table, side_by_side(blocks)))
    sections.append(DrawnSection("again", "This page again", side_by_side([Code(races.command)])))
    return render_sections("Replay: search strategies on published tables", "Replay", sections, numbers)


def _headline(races: RacePage, tables: Sequence[str]) -> str:
    """The best strategy without a warm start on each table."""
    parts = []
    for table in tables:
        mine = [item for item in races.strategies if item.table == table and item.spent is not None]
        best = min((item for item in mine if not item.warm_start), key=lambda item: item.spent or 0.0, default=None)
        if best is not None:
            parts.append(f"{cost(best.spent, races.trials)} on {table} ({best.strategy})")
    if not parts:
        return "No strategy finds a good cell."
    return f"Full budgets spent until a good cell is found: {', '.join(parts)}."
