"""Speedups as rows on one logarithmic axis: the name over the row at the left, its number at the right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from reports.estimate.verdict import MatchedPair, NotReached, Reached, ScaleVerdict, Speedup
from reports.html import theme
from reports.html.blocks import Column, Table
from reports.html.charts import axis, blank, label, log_axis, padded_log

if TYPE_CHECKING:
    import plotly.graph_objects as go

ROW_HEIGHT = 60
CLOSE_NATS = 0.02
"""Two runs further apart than this do not have the same quality, and their hours are no speedup."""


@dataclass(frozen=True, slots=True)
class ForestRow:
    """One row. `kind`: `measured`, `bound` (only a lower bound, in `low`), `ceiling` (only an upper bound, in `high`),
    `pair` (two runs side by side, no interval), `published`, `mean` (geometric mean over scales)."""

    label: str
    method: str
    kind: str
    value: float | None
    low: float | None
    high: float | None
    extrapolated: bool = False

    @property
    def text(self) -> str:
        """The row's number as it is printed at its end."""
        if self.kind == "bound":
            return f"not reached, > {self.low:.2f}×" if self.low is not None else "not reached"
        if self.kind == "ceiling":
            return f"< {self.high:.2f}×"
        interval = (
            f"  ({theme.interval((self.low, self.high))})" if self.low is not None and self.high is not None else ""
        )
        kind = {"pair": "two runs", "published": "published"}.get(self.kind, "")
        more = ("projected" if self.extrapolated else "") or kind
        return f"<b>{theme.speedup(self.value)}</b>{interval}" + (f"  {more}" if more else "")


def row_of(name: str, method: str, speedup: Speedup | None) -> ForestRow | None:
    """The row of one estimate; None where there is none."""
    match speedup:
        case Reached(value, interval):
            low, high = interval if interval is not None else (None, None)
            return ForestRow(name, method, "measured", value, low, high, extrapolated=speedup.extrapolated)
        case NotReached(bound, _):
            return ForestRow(name, method, "bound", None, bound, None)
        case None:
            return None


def close_pair(verdict: ScaleVerdict) -> MatchedPair | None:
    """The two runs side by side, where their losses nearly meet."""
    pair = verdict.matched_pair
    if pair is None or abs(pair.baseline_loss - pair.method_loss) > CLOSE_NATS:
        return None
    return pair


def row_of_verdict(verdict: ScaleVerdict) -> ForestRow | None:
    """The best that a verdict has to show: an estimate, a bound, or two runs side by side."""
    name = f"{verdict.scale}, {theme.method_label(verdict.method)}"
    if verdict.speedup is None and verdict.upper_bound is not None:
        return ForestRow(name, verdict.method, "ceiling", None, None, verdict.upper_bound)
    if verdict.speedup is None and (pair := close_pair(verdict)) is not None:
        return ForestRow(name, verdict.method, "pair", pair.speedup, None, None)
    return row_of(name, verdict.method, verdict.speedup)


def height(rows: tuple[ForestRow, ...]) -> int:
    """Height of the chart in pixels."""
    return 78 + ROW_HEIGHT * len(rows)


def draw(rows: tuple[ForestRow, ...], clock: str) -> go.Figure:
    """The chart; `clock` for the axis, empty where the rows are on different ones."""
    drawn = blank(left=14, right=14, top=24, bottom=54)
    # The axis always holds 1, "no difference", and some room to either side of it, so that a small effect looks
    # small.
    numbers = [number for row in rows for number in (row.value, row.low, row.high) if number is not None]
    low, high = padded_log([*numbers, 0.92, 1.15], 0.06)
    for position, row in enumerate(rows):
        if row.kind in ("bound", "ceiling"):
            _arrow(drawn, row, position, low, high)
        else:
            _mark(drawn, row, position)
        for text, at, anchor in ((row.label, 0.0, "left"), (row.text, 1.0, "right")):
            drawn.add_annotation(
                **label(text, at, position, xref="paper", xanchor=anchor, yshift=18, bgcolor=theme.PAPER)
            )
        if position:
            drawn.add_shape(
                type="line",
                x0=0,
                x1=1,
                xref="x domain",
                y0=position - 0.66,
                y1=position - 0.66,
                line={"color": theme.RULE, "width": 1},
                layer="below",
            )
    bottom = len(rows) - 0.6
    drawn.add_shape(
        type="line",
        x0=1,
        x1=1,
        y0=-0.66,
        y1=bottom,
        line={"color": theme.MUTED, "width": 1, "dash": "dash"},
        layer="below",
    )
    drawn.add_annotation(
        **label("no difference", 0.0, -0.66, theme.MUTED, xanchor="center", yanchor="bottom")
        | {"font": {"size": 11.5, "color": theme.MUTED}}
    )
    on = f" on the {clock} clock" if clock else ""
    drawn.update_layout(
        xaxis=log_axis(f"speedup{on} (log scale)", low, high, suffix="×"),
        yaxis=axis("", grid=False, range=[bottom, -0.66], tickvals=[], showline=False, ticks=""),
    )
    return drawn


def _arrow(drawn: go.Figure, row: ForestRow, position: int, left_end: float, right_end: float) -> None:
    """From the only known bound to the end of the axis."""
    color = theme.method_style(row.method).color
    start, end, head = row.low, right_end, "triangle-right"
    if row.kind == "ceiling":
        start, end, head = row.high, left_end, "triangle-left"
    if start is None:
        return
    drawn.add_scatter(
        x=[start, end],
        y=[position, position],
        mode="lines+markers",
        line={"color": color, "width": 2.5},
        marker={"symbol": ["line-ns-open", head], "size": [12, 11], "color": color},
        cliponaxis=False,
        hoverinfo="skip",
    )


def _mark(drawn: go.Figure, row: ForestRow, position: int) -> None:
    style = theme.method_style(row.method)
    if row.low is not None and row.high is not None:
        drawn.add_scatter(
            x=[row.low, row.high],
            y=[position, position],
            mode="lines",
            line={"color": style.color, "width": 3, "dash": "dot" if row.extrapolated else "solid"},
            hoverinfo="skip",
        )
    hollow = row.kind in ("published", "pair")
    symbol = "diamond-wide" if row.kind == "mean" else style.symbol
    drawn.add_scatter(
        x=[row.value],
        y=[position],
        mode="markers",
        marker={
            "symbol": symbol + ("-open" if hollow else ""),
            "size": 16 if row.kind == "mean" else 13,
            "color": style.color,
            "line": {"width": 2 if hollow else 0, "color": style.color},
        },
        hovertemplate=f"{row.label}<br>{row.text}<extra></extra>",
    )


def table(caption: str, first: str, rows: tuple[ForestRow, ...]) -> Table:
    """The rows as numbers."""
    columns = (
        Column(first, numeric=False),
        Column("Kind", numeric=False),
        Column("Speedup"),
        Column("95 % low"),
        Column("95 % high"),
    )
    lines = tuple(
        (row.label, row.kind, *(theme.number(value, 3) for value in (row.value, row.low, row.high))) for row in rows
    )
    return Table(caption, columns, lines)
