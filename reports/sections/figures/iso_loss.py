"""Draws one iso-loss chart: cost (log) against validation loss, ends bold, runs faint, the target dotted, S an arrow."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from reports.estimate.verdict import LadderCurve
from reports.html import theme
from reports.html.blocks import Column, Table
from reports.html.charts import blank, label, linear_axis, log_axis, padded_log

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True, slots=True)
class EndPoint:
    """One cell: mean cost and mean final loss of its seeds, and each seed's final loss (nats per token)."""

    method: str
    total_steps: int
    cost: float
    mean_loss: float
    losses: tuple[float, ...]


@dataclass(frozen=True, slots=True, eq=False)
class InRunCurve:
    """A run on its way: cost and loss before and after the phase boundary, float32 `[points]`, thinned."""

    method: str
    name: str
    early_cost: NDArray[np.float32]
    early_loss: NDArray[np.float32]
    late_cost: NDArray[np.float32]
    late_loss: NDArray[np.float32]
    boundary_cost: float | None


@dataclass(frozen=True, slots=True)
class IsoLoss:
    """All that one chart shows. `baseline_cost` is None where the baseline does not reach `target_loss`; `baseline_loss` is
    what it ends at there, where that is another loss."""

    clock_label: str
    loss_label: str
    methods: tuple[str, ...]
    points: tuple[EndPoint, ...]
    curves: tuple[InRunCurve, ...]
    ladders: tuple[LadderCurve, ...]
    target_loss: float | None
    baseline_cost: float | None
    method_cost: float | None
    arrow_text: str
    projected: bool
    baseline_loss: float | None = None


def draw(shown: IsoLoss) -> go.Figure:
    """The chart. The loss axis holds the decayed ends and a little of the way to them, not the first steep fall."""
    drawn = blank(left=66, right=92, top=18, bottom=56)
    cost_range, loss_range = _ranges(shown)
    _shade_first_phase(drawn, shown, cost_range, loss_range)
    # Many faint lines add up to a dark area: each gets fainter as they get more.
    opacity = 0.28 * min(1.0, 20 / max(len(shown.curves), 1)) ** 0.7
    for curve in shown.curves:
        _draw_curve(drawn, curve, opacity)
    for ladder in shown.ladders:
        _draw_ladder(drawn, ladder, cost_range)
    for method in shown.methods:
        _draw_ends(drawn, shown, method)
    _draw_target(drawn, shown, cost_range)
    drawn.update_layout(
        xaxis=log_axis(f"{shown.clock_label} (log scale)", *cost_range),
        yaxis=linear_axis(f"{shown.loss_label}, nats per token", *loss_range),
    )
    return drawn


def _ranges(shown: IsoLoss) -> tuple[tuple[float, float], tuple[float, float]]:
    costs = [point.cost for point in shown.points]
    costs += [cost for cost in (shown.baseline_cost, shown.method_cost) if cost is not None]
    low_cost, high_cost = padded_log(costs, 0.06)
    if shown.curves:
        # Far enough to the left to see how a run comes down, not so far that the ends crowd at the right.
        low_cost = min(low_cost, min(costs) / 4)
    losses = [loss for point in shown.points for loss in point.losses]
    losses += [] if shown.target_loss is None else [shown.target_loss]
    low, high = min(losses), max(losses)
    span = max(high - low, 0.01)
    return (low_cost, high_cost), (low - 0.14 * span, high + (0.9 if shown.curves else 0.2) * span)


def _shade_first_phase(
    drawn: go.Figure, shown: IsoLoss, cost_range: tuple[float, float], loss_range: tuple[float, float]
) -> None:
    ends = [curve.boundary_cost for curve in shown.curves if curve.boundary_cost is not None]
    if not ends or max(ends) <= cost_range[0]:
        return
    drawn.add_shape(
        type="rect",
        x0=cost_range[0],
        x1=max(ends),
        y0=0,
        y1=1,
        yref="y domain",
        fillcolor=theme.rgba(theme.ACCENT, 0.07),
        line={"width": 0},
        layer="below",
    )
    words = "before the boundary:<br>loss not comparable"
    at = math.log10(cost_range[0]) + 0.012
    drawn.add_annotation(
        **label(
            words,
            at,
            loss_range[0],
            theme.MUTED,
            yanchor="bottom",
            align="left",
            font={"size": 11.5, "color": theme.MUTED},
        )
    )


def _draw_curve(drawn: go.Figure, curve: InRunCurve, opacity: float) -> None:
    color = theme.method_style(curve.method).color
    for cost, loss, dash in (
        (curve.early_cost, curve.early_loss, "dot"),
        (curve.late_cost, curve.late_loss, "solid"),
    ):
        if len(cost) == 0:
            continue
        drawn.add_scatter(
            x=cost,
            y=loss,
            mode="lines",
            line={"color": theme.rgba(color, opacity), "width": 1, "dash": dash},
            name=curve.name,
            hoverinfo="skip",
        )


def _draw_ladder(drawn: go.Figure, ladder: LadderCurve, cost_range: tuple[float, float]) -> None:
    style = theme.method_style(ladder.method)
    # The axes are fixed by the measured ends; a projection that leaves them must not squeeze those.
    inside = (ladder.cost >= cost_range[0]) & (ladder.cost <= cost_range[1] * 1.001)
    cost, loss = ladder.cost[inside], ladder.loss[inside]
    measured = ladder.measured[inside] > 0
    if ladder.low is not None and ladder.high is not None:
        low, high = ladder.low[inside], ladder.high[inside]
        drawn.add_scatter(
            x=np.concatenate([cost, cost[::-1]]),
            y=np.concatenate([high, low[::-1]]),
            fill="toself",
            fillcolor=theme.rgba(style.color, 0.12),
            line={"width": 0},
            mode="lines",
            hoverinfo="skip",
        )
    for part, dash, width in ((np.ones_like(measured), "dash", 1.4), (measured, "solid", 2.6)):
        drawn.add_scatter(
            x=cost[part],
            y=loss[part],
            mode="lines",
            line={"color": style.color, "width": width, "dash": dash},
            hoverinfo="skip",
        )


def _draw_ends(drawn: go.Figure, shown: IsoLoss, method: str) -> None:
    style = theme.method_style(method)
    points = [point for point in shown.points if point.method == method]
    if not points:
        return
    drawn.add_scatter(
        x=[point.cost for point in points for _ in point.losses],
        y=[loss for point in points for loss in point.losses],
        mode="markers",
        marker={"symbol": style.symbol + "-open", "size": 6, "color": style.color, "line": {"width": 1}},
        hoverinfo="skip",
    )
    drawn.add_scatter(
        x=[point.cost for point in points],
        y=[point.mean_loss for point in points],
        mode="markers",
        marker={"symbol": style.symbol, "size": 12, "color": style.color, "line": {"width": 1.5, "color": theme.PAPER}},
        customdata=[[f"{point.total_steps:,}", len(point.losses)] for point in points],
        hovertemplate=(
            f"<b>{style.label}</b><br>loss %{{y:.4f}}<br>%{{x:.4~g}} {shown.clock_label}"
            "<br>%{customdata[0]} steps, seeds: %{customdata[1]}<extra></extra>"
        ),
    )
    last = max(points, key=lambda point: point.cost)
    first = min(points, key=lambda point: point.cost)
    # The name stands where no arrow is: the arrow runs from the method's cost to the baseline's.
    leftward = shown.baseline_cost is not None and (shown.method_cost or 0) > shown.baseline_cost
    is_right = last.cost >= max(point.cost for point in shown.points) or (leftward and method != shown.methods[0])
    at = last if is_right else first
    shift: dict[str, Any] = {"xshift": 12} if is_right else {"xshift": -12, "xanchor": "right", "yshift": -4}
    shift |= {"bgcolor": theme.rgba(theme.PAPER, 0.85)}
    drawn.add_annotation(
        **label(
            f"<b>{style.label}</b>",
            math.log10(at.cost),
            at.mean_loss,
            style.color,
            font={"size": 14, "color": style.color},
        )
        | shift
    )


def _draw_target(drawn: go.Figure, shown: IsoLoss, cost_range: tuple[float, float]) -> None:
    target = shown.target_loss
    if target is None:
        return
    drawn.add_shape(
        type="line",
        x0=cost_range[0],
        x1=cost_range[1],
        y0=target,
        y1=target,
        line={"color": theme.MUTED, "width": 1, "dash": "dot"},
        layer="below",
    )
    drawn.add_annotation(
        **label(
            f"target<br>{theme.loss(target)}",
            1.008,
            target,
            theme.MUTED,
            xref="paper",
            font={"size": 12, "color": theme.MUTED},
            align="left",
        )
    )
    if shown.method_cost is None or not shown.arrow_text:
        return
    end = shown.baseline_cost if shown.baseline_cost is not None else cost_range[1]
    start_x, end_x = math.log10(shown.method_cost), math.log10(end)
    end_y = target if shown.baseline_loss is None else shown.baseline_loss
    # An arrow without length has no direction; equal costs need none.
    if abs(end_x - start_x) > 1e-3:
        drawn.add_annotation(
            x=end_x, y=end_y, ax=start_x, ay=target, xref="x", yref="y", axref="x", ayref="y", text="",
            showarrow=True, arrowhead=2, arrowsize=1.1, arrowwidth=2, arrowcolor=theme.VERMILLION, standoff=3, startstandoff=8,
        )  # fmt: skip
    drawn.add_annotation(
        **label(
            f"<b>{shown.arrow_text}</b>",
            (start_x + end_x) / 2,
            (target + end_y) / 2,
            theme.VERMILLION,
            xanchor="center",
            yanchor="top",
            yshift=-8 if end_y == target else -28,  # below a slanted arrow, too
            bgcolor=theme.rgba(theme.PAPER, 0.8),
            font={"size": 15, "color": theme.VERMILLION},
        )
    )


def table(shown: IsoLoss) -> Table:
    """The end points in rows: the numbers that the claim rests on."""
    rows = tuple(
        (
            theme.method_label(point.method),
            f"{point.total_steps:,}",
            f"{point.cost:.6g}",
            f"{point.mean_loss:.4f}",
            ", ".join(f"{loss:.4f}" for loss in point.losses),
        )
        for point in shown.points
    )
    columns = (
        Column("Method", numeric=False),
        Column("Steps"),
        Column(shown.clock_label),
        Column("Mean final loss"),
        Column("Each seed"),
    )
    return Table("Decayed ends of the confirmation runs", columns, rows)
