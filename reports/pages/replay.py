"""Search strategies raced on tables of finished runs, as a page of its own: what each spent until its answer was good.

Holds the values of the races, for the sweeper that runs them, and draws them. Says on top that nothing was trained: no
number here is about a method, only about ways to search.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
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
DEFAULT = "surface"
"""What `auto` is wherever trials do not cover the grid."""
QUANTILES = ("median_spent", "ninetieth_spent")
OTHER_COLOR = theme.VERMILLION
HIGHEST_REGRET = 8.0
"""Top of the pictures, in thousandths of a nat."""


@dataclass(frozen=True, slots=True)
class Race:
    """One contestant on one table and seed. Costs in full-budget equivalents, None where it never got there.

    `spent` until the recommended cell was first within the tolerance, `held` until it was and stayed so to the end of the
    race; `regret` and `raw_regret` in nats (smoothed, published) where `spent` was reached, else at the end. `course` is
    what the recommendation was worth on the way: (spent, smoothed regret) after every answer.
    """

    seed: int
    spent: float | None
    held: float | None
    regret: float
    raw_regret: float
    trials: int
    course: tuple[tuple[float, float], ...]

    def regret_at(self, spent: float) -> float:
        """Smoothed regret of what would be recommended after spending `spent`; infinite before the first answer."""
        return next((regret for cost, regret in reversed(self.course) if cost <= spent), math.inf)


@dataclass(frozen=True, slots=True)
class Standing:
    """A contestant on a table over all seeds: medians, with "not reached" counted as beyond every number (None). Costs in
    full-budget equivalents, regrets in nats; `reached` is the part of the races that found a good cell, nine in ten of which
    had spent at most `ninetieth_spent`.

    `course` holds the median smoothed regret after 1, 1.5, 2, ... full-budget equivalents, from where half of the races
    recommend anything; a race that is over keeps its last answer.
    """

    table: str
    params: str
    sampler: str
    contestant: str
    shared: bool
    warm_start: bool
    median_spent: float | None
    ninetieth_spent: float | None
    median_held: float | None
    median_regret: float
    median_raw_regret: float
    reached: float
    course: tuple[tuple[float, float], ...]
    races: tuple[Race, ...]

    @property
    def label(self) -> str:
        """The table for people: its size, and which of several of that size."""
        return f"{self.params} (table {self.table})"


@dataclass(frozen=True, slots=True)
class AgainstBest:
    """What a sampler spent on each table, and what the best of the others did, in full-budget equivalents.

    `quantile` is one of `QUANTILES`. The best is chosen after the fact for each table, so that it is better than any one
    sampler.
    """

    shared: bool
    quantile: str
    pairs: tuple[tuple[float, float], ...]

    @property
    def geometric_mean(self) -> float:
        """Of sampler / best over the tables."""
        return math.exp(sum(math.log(mine / best) for mine, best in self.pairs) / len(self.pairs))

    @property
    def worst(self) -> float:
        """The largest sampler / best."""
        return max(mine / best for mine, best in self.pairs)

    @property
    def beyond(self) -> int:
        """Tables on which the sampler is worse by more than a quarter and by more than one full run."""
        return sum(mine > max(1.25 * best, best + 1) + 1e-9 for mine, best in self.pairs)

    def to_json(self) -> dict[str, Any]:
        """With the ratios' summary."""
        return {**asdict(self), "geometric_mean": self.geometric_mean, "worst": self.worst, "beyond": self.beyond}


@dataclass(frozen=True, slots=True)
class ReplayResult:
    """All standings, with the settings that they depend on; within `tolerance` nats of the best a cell counts as found."""

    seeds: int
    trials: int
    fan: int
    seed_deviation: float
    tolerance: float
    standings: tuple[Standing, ...]

    def against_best(self, sampler: str = DEFAULT) -> tuple[AgainstBest, ...]:
        """A sampler beside the best other one, cold and recommending by the model; none where it raced alone."""
        found = []
        for shared in (True, False):
            for quantile in QUANTILES:
                pairs = self._pairs(sampler, shared, quantile)
                if pairs:
                    found.append(AgainstBest(shared, quantile, tuple(pairs)))
        return tuple(found)

    def _pairs(self, sampler: str, shared: bool, quantile: str) -> list[tuple[float, float]]:
        tables: dict[str, dict[str, float]] = {}
        for item in self.standings:
            if item.shared == shared and item.contestant == item.sampler:
                spent = getattr(item, quantile)
                # Not found costs at least all trials, each of them in full.
                tables.setdefault(item.label, {})[item.sampler] = self.trials if spent is None else spent
        return [
            (spent[sampler], min(value for name, value in spent.items() if name != sampler))
            for spent in tables.values()
            if sampler in spent and len(spent) > 1
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; the courses of single races are left out."""
        plain = {"schema": 1, "kind": "replay", "unit": "full-budget equivalents", **asdict(self)}
        plain["default_against_best"] = [one.to_json() for one in self.against_best()]
        for standing in plain["standings"]:
            for race in standing["races"]:
                del race["course"]
        return plain


def cost(value: float | None, most: int) -> str:
    """Full-budget equivalents, or that most races did not get there."""
    return f"> {most}" if value is None else f"{value:.1f}"


def regret_chart(key: str, table: str, shared: bool, result: ReplayResult) -> Chart:
    """Median regret against what was spent, for the strategies with or without sharing."""
    mine = [item for item in result.standings if item.label == table and item.shared == shared]
    figure = blank(left=58, right=16, top=10, bottom=110)
    end = max([item.course[-1][0] for item in mine if item.course] + [2.0])
    for item in mine:
        _draw_course(figure, item, end)
    limit = 1000 * result.tolerance
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
    return Chart(key, _title(table, shared, mine, result), figure, _course_table(table, mine), height=430, share=3)


def _draw_course(figure: go.Figure, item: Standing, end: float) -> None:
    if not item.course:
        return
    dash = "dash" if item.warm_start else "dot" if "observation" in item.contestant else "solid"
    x = [spent for spent, _ in item.course] + [end]
    y = [1000 * regret for _, regret in item.course] + [1000 * item.course[-1][1]]
    color = COLORS.get(item.sampler, OTHER_COLOR)
    figure.add_scatter(
        x=x,
        y=y,
        name=item.contestant,
        mode="lines",
        line={"color": color, "width": 2.5 if item.sampler == "surface" else 1.6, "dash": dash, "shape": "hv"},
        hovertemplate=f"{item.contestant}<br>%{{x:.1f}} spent, regret %{{y:.2f}} mnats<extra></extra>",
    )


def _title(table: str, shared: bool, mine: Sequence[Standing], result: ReplayResult) -> str:
    how = "prefixes shared" if shared else "every run by itself"
    found = sorted((item for item in mine if item.median_spent is not None), key=lambda item: item.median_spent or 0.0)
    if not found:
        return f"{table}, {how}: no strategy finds a good cell within {result.trials} trials"
    cold = [item for item in found if not item.warm_start]
    best = cold[0] if cold else found[0]
    return (
        f"{table}, {how}: {best.contestant} needs {cost(best.median_spent, result.trials)} full budgets in the median"
    )


def _course_table(table: str, mine: Sequence[Standing]) -> Table:
    columns = (Column("Strategy", numeric=False), *(Column(f"at {spent}") for spent in (1, 2, 3, 4, 6, 8, 12, 16, 24)))

    def at(item: Standing, spent: int) -> str:
        known = [regret for place, regret in item.course if place <= spent]
        return f"{1000 * known[-1]:.2f}" if known else "–"

    rows = tuple((item.contestant, *(at(item, spent) for spent in (1, 2, 3, 4, 6, 8, 12, 16, 24))) for item in mine)
    return Table(f"Median regret on {table} in 0.001 nats, by full-budget equivalents spent", columns, rows)


def standings_table(table: str, result: ReplayResult) -> Table:
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
            item.contestant,
            "shared" if item.shared else "alone",
            cost(item.median_spent, result.trials),
            cost(item.median_held, result.trials),
            theme.percent(item.reached),
            f"{1000 * item.median_regret:.2f}",
            f"{1000 * item.median_raw_regret:.2f}",
        )
        for item in result.standings
        if item.label == table
    )
    return Table(f"{table}: medians over {result.seeds} seeds, in full-budget equivalents", columns, rows)


def render_races(result: ReplayResult, source: str, command: str) -> str:
    """The page as HTML. `source` names the tables, `command` makes the page again; the embedded JSON is without the single
    races, which would be most of the page."""
    numbers = result.to_json()
    numbers["standings"] = [{**standing, "races": []} for standing in numbers["standings"]]
    tables = list(dict.fromkeys(item.label for item in result.standings))
    top = Masthead(
        "Replay.",
        f"Losses are those of {source} plus seed noise of {result.seed_deviation:g} nats; nothing was trained.",
        "How much does each search strategy spend until it would recommend a good cell?",
        _headline(result, tables),
    )
    rule = (
        f"Found: the cell that the strategy would recommend by its own model is within {result.tolerance:g} nats of the "
        "best of the smoothed table (weights 1-2-1 along both axes; a single cell's minimum is luck too). Raw regret is "
        f"against the table as it stands. {result.seeds} seeds, at most {result.trials} trials a race; with shared prefixes, "
        "trials of one bag size and seed pay their common superposition phase once. Best observation: recommends its "
        "luckiest trial, as a plain tuner does."
    )
    sections = [
        DrawnSection("answer", "", side_by_side([Fragment("masthead.html.j2", top), Prose(rule, "note")])),
    ]
    for index, table in enumerate(tables):
        sharing = sorted({item.shared for item in result.standings if item.label == table}, reverse=True)
        blocks: list[Block] = [regret_chart(f"races-{index}-{int(way)}", table, way, result) for way in sharing]
        blocks.append(standings_table(table, result))
        sections.append(DrawnSection(f"table-{index}", table, side_by_side(blocks)))
    sections.append(DrawnSection("again", "This page again", side_by_side([Code(command)])))
    return render_sections("Replay: search strategies on published tables", "Replay", sections, numbers)


def _headline(result: ReplayResult, tables: Sequence[str]) -> str:
    """The best strategy without a warm start on each table."""
    parts = []
    for table in tables:
        mine = [item for item in result.standings if item.label == table and item.median_spent is not None]
        best = min(
            (item for item in mine if not item.warm_start), key=lambda item: item.median_spent or 0.0, default=None
        )
        if best is not None:
            parts.append(f"{cost(best.median_spent, result.trials)} on {table} ({best.contestant})")
    if not parts:
        return "No strategy finds a good cell."
    return f"Full budgets spent until a good cell is found: {', '.join(parts)}."
