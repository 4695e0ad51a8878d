"""S drawn four ways: over the target loss, the method's budgets, the clocks, and the size of the model."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from reports.estimate.scaling import SizeTrend
from reports.estimate.verdict import COUNTED_CLOCKS, Reached, ScaleVerdict, Speedup
from reports.html import theme
from reports.html.blocks import Chart, Column, Table
from reports.html.charts import blank, label, linear_axis, log_axis, padded, padded_log
from reports.sections.figures import forest

if TYPE_CHECKING:
    import plotly.graph_objects as go


def over_target(key: str, verdict: ScaleVerdict) -> Chart:
    """S as a function of the target loss; lower losses, and so longer runs, to the right."""
    curve = verdict.speedup_curve
    assert curve is not None
    style = theme.method_style(verdict.method)
    drawn = blank(left=56, right=20, top=18, bottom=56)
    edges = [*curve.speedup.tolist(), 1.0]
    if curve.low is not None and curve.high is not None:
        drawn.add_scatter(
            x=np.concatenate([curve.target, curve.target[::-1]]),
            y=np.concatenate([curve.high, curve.low[::-1]]),
            fill="toself",
            fillcolor=theme.rgba(style.color, 0.14),
            line={"width": 0},
            mode="lines",
            hoverinfo="skip",
        )
        edges += [*curve.low.tolist(), *curve.high.tolist()]
    drawn.add_scatter(
        x=curve.target,
        y=curve.speedup,
        mode="lines",
        line={"color": style.color, "width": 2.6, "dash": style.dash},
        hovertemplate="target %{x:.3f}<br>%{y:.2f}×<extra></extra>",
    )
    low, high = padded_log(edges)
    if isinstance(verdict.speedup, Reached) and verdict.target_loss is not None:
        mark = {"symbol": style.symbol, "size": 12, "color": style.color, "line": {"width": 1.5, "color": theme.PAPER}}
        drawn.add_scatter(
            x=[verdict.target_loss], y=[verdict.speedup.speedup], mode="markers", marker=mark, hoverinfo="skip"
        )
    _line_at_one(drawn)
    first, last = padded(curve.target.tolist(), 0.06)
    drawn.update_layout(
        xaxis=linear_axis("target loss (lower to the right)", first, last, grid=False) | {"range": [last, first]},
        yaxis=log_axis("speedup (log scale)", low, high, grid=True, suffix="×"),
    )
    columns = (Column("Target loss"), Column("Speedup"), Column("95 % low"), Column("95 % high"))
    keep = np.unique(np.linspace(0, len(curve.target) - 1, 12).round().astype(int))
    rows = tuple(
        (
            f"{curve.target[index]:.4f}",
            f"{curve.speedup[index]:.3f}",
            "–" if curve.low is None else theme.number(curve.low[index], 3),
            "–" if curve.high is None else theme.number(curve.high[index], 3),
        )
        for index in keep
    )
    title = _trend_title(float(curve.speedup[np.argmax(curve.target)]), float(curve.speedup[np.argmin(curve.target)]))
    return Chart(key, title, drawn, Table("Speedup by target loss", columns, rows), height=500, share=2)


def over_size(key: str, trend: SizeTrend, verdicts: tuple[ScaleVerdict, ...]) -> Chart:
    """S of each scale over its parameters, with the line and the 95 % prediction band; the target size as a ring."""
    style = theme.method_style(trend.method)
    found = [
        (verdict, verdict.params, verdict.speedup)
        for verdict in verdicts
        if verdict.method == trend.method and verdict.params is not None and isinstance(verdict.speedup, Reached)
    ]
    drawn = blank(left=62, right=20, top=18, bottom=56)
    drawn.add_scatter(
        x=np.concatenate([trend.params, trend.params[::-1]]),
        y=np.concatenate([trend.high, trend.low[::-1]]),
        fill="toself",
        fillcolor=theme.rgba(style.color, 0.12),
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
    )
    line = {"color": style.color, "width": 1.8, "dash": "dash"}
    drawn.add_scatter(x=trend.params, y=trend.speedup, mode="lines", line=line, hoverinfo="skip")
    for verdict, params, reached in found:
        if reached.interval is not None:
            span = {"color": style.color, "width": 2.5}
            drawn.add_scatter(x=[params] * 2, y=list(reached.interval), mode="lines", line=span, hoverinfo="skip")
        mark = {"symbol": style.symbol, "size": 12, "color": style.color}
        hover = f"{verdict.scale}<br>{theme.speedup(reached.speedup)}<extra></extra>"
        drawn.add_scatter(x=[params], y=[reached.speedup], mode="markers", marker=mark, hovertemplate=hover)
        drawn.add_annotation(
            **label(verdict.scale, math.log10(params), math.log10(reached.speedup), xshift=10, yshift=-12)
        )
    if trend.at_target is not None and trend.target_params is not None:
        ring = {"symbol": "circle-open", "size": 14, "color": theme.VERMILLION, "line": {"width": 2.5}}
        drawn.add_scatter(x=[trend.target_params], y=[trend.at_target[0]], mode="markers", marker=ring)
    _line_at_one(drawn)
    sizes = trend.params.tolist() + ([trend.target_params] if trend.target_params is not None else [])
    low, high = padded_log([*trend.low.tolist(), *trend.high.tolist(), 1.0])
    low_size, high_size = padded_log(sizes, 0.06)
    drawn.update_layout(
        xaxis=log_axis("parameters of the model (log scale)", low_size, high_size),
        yaxis=log_axis("speedup (log scale)", low, high, grid=True, suffix="×"),
    )
    columns = (Column("Scale", numeric=False), Column("Parameters"), Column("Speedup"))
    rows = tuple((v.scale, theme.count(params), f"{reached.speedup:.3f}") for v, params, reached in found)
    low_slope, high_slope = trend.slope_interval
    if low_slope > 0 or high_slope < 0:
        title = f"The factor {'grows' if trend.slope > 0 else 'shrinks'} with the size of the model"
    else:
        title = "No trend over the size of the model is detected"
    note = "Dashed: ln S as a line in ln N, with the 95 % prediction interval of one more scale."
    return Chart(key, title, drawn, Table("Speedup by size", columns, rows), height=400, note=note)


def _trend_title(early: float, late: float) -> str:
    ends = f"from {theme.speedup(early)} to {theme.speedup(late)}"
    if abs(math.log(late / early)) < 0.03:
        return f"The factor is the same for every target, {theme.speedup(late)}"
    return f"The estimate {'grows' if late > early else 'shrinks'} {ends} as the target gets harder"


def _line_at_one(drawn: go.Figure) -> None:
    drawn.add_shape(
        type="line", x0=0, x1=1, xref="x domain", y0=1, y1=1, line={"color": theme.INK, "width": 1, "dash": "dash"}
    )


def _estimate(speedup: Speedup | None) -> float | None:
    return speedup.speedup if isinstance(speedup, Reached) else None


def by_budget(key: str, verdict: ScaleVerdict) -> Chart | None:
    """S with each budget of the method as the target; None with fewer than two."""
    found = [budget for budget in verdict.budgets if budget.speedup is not None]
    if len(found) < 2:
        return None
    first, last = _estimate(found[0].speedup), _estimate(found[-1].speedup)
    if first is None or last is None:
        title = "At its largest budget the method ends below anything that the baseline reached"
        title = title if last is None else "Does it hold as the budget grows?"
    elif abs(math.log(last / first)) < 0.05:
        title = "It holds as the budget grows"
    else:
        title = f"As the budget grows, the estimate {'rises' if last > first else 'falls'}"
        title += f" from {theme.speedup(first)} to {theme.speedup(last)}"
    lines = [
        (f"{budget.total_steps:,} steps, loss {theme.loss(budget.target_loss)}", budget.speedup) for budget in found
    ]
    return _rows_chart(key, title, "Budget of the method", lines, verdict)


def by_clock(key: str, verdict: ScaleVerdict) -> Chart | None:
    """S on every clock that the runs know; None where there is only one."""
    names = {**COUNTED_CLOCKS, "gpu_hours": verdict.clock_label}
    if len(verdict.by_clock) < 2:
        return None
    values = {clock: _estimate(speedup) for clock, speedup in verdict.by_clock}
    hours, tokens = values.get("gpu_hours"), values.get("tokens")
    title = "The same comparison on every clock"
    if hours is not None and tokens is not None and tokens < 1 < hours:
        title = "Cheaper in compute, dearer in text: more tokens are read for the same loss"
    return _rows_chart(key, title, "Clock", [(names[clock], speedup) for clock, speedup in verdict.by_clock], verdict)


def _rows_chart(
    key: str, title: str, name: str, lines: list[tuple[str, Speedup | None]], verdict: ScaleVerdict
) -> Chart:
    made = (forest.row_of(text, verdict.method, speedup) for text, speedup in lines)
    rows = tuple(row for row in made if row is not None)
    table = forest.table(title, name, rows)
    return Chart(key, title, forest.draw(rows, ""), table, height=forest.height(rows), share=3)
