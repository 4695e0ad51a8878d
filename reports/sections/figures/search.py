"""Draws the search: the loss over (s, r), each axis by itself, and the best loss against what it had cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from reports.html import theme
from reports.html.blocks import Chart, Column, Table
from reports.html.charts import axis, blank, label, linear_axis, padded, plain, round_ticks
from trainers.contract.spec import Scalar
from trainers.methods import LEARNING_RATE, parameter_of, symbol_of

if TYPE_CHECKING:
    import plotly.graph_objects as go

_RATIO = parameter_of("step_ratio").words
MOST_GRID_VALUES = 18
"""More values than this on an axis, and the map shows points instead of cells."""


@dataclass(frozen=True, slots=True)
class LossMap:
    """Best mean final loss (over learning rates) of each (value of `axis`, step ratio), and how many trials it rests on.

    `axis` is the method's whole-number parameter: the bag size of TST.
    """

    method: str
    axis: str
    total_steps: int
    losses: Mapping[tuple[int, float], float]
    trials: Mapping[tuple[int, float], int]
    baseline_best: float | None
    confirmed: tuple[int, float] | None

    @property
    def symbol(self) -> str:
        """The axis in a formula: `s`."""
        return symbol_of(self.axis)


@dataclass(frozen=True, slots=True)
class Slice:
    """Trials of one arm over one axis; `share` is the part of the variance that the axis explains alone."""

    method: str
    axis: str
    title: str
    values: tuple[Scalar, ...]
    losses: tuple[float, ...]
    share: float | None


@dataclass(frozen=True, slots=True)
class Spending:
    """Best loss so far of one arm, after each trial, against device-hours spent."""

    method: str
    hours: tuple[float, ...]
    losses: tuple[float, ...]


def map_chart(key: str, shown: LossMap, named: bool) -> Chart:
    """The loss over (s, r); cells coloured up to a little above the worst useful loss, so that the valley shows. `named`
    puts the method in front, where there are several."""
    best_at, best = min(shown.losses.items(), key=lambda item: item[1])
    title = f"{theme.method_label(shown.method)}: best" if named else "Best"
    title += f" at {shown.symbol} = {best_at[0]}, r = {best_at[1]:g}: a loss of {theme.loss(best)}"
    if shown.baseline_best is not None:
        difference = shown.baseline_best - best
        side = "below" if difference > 0 else "above"
        title += f", {abs(difference):.3f} {side} the best baseline trial"
    bags = sorted({bag for bag, _ in shown.losses})
    ratios = sorted({ratio for _, ratio in shown.losses})
    is_grid = len(bags) <= MOST_GRID_VALUES and len(ratios) <= MOST_GRID_VALUES
    drawn = _grid_map(shown, bags, ratios) if is_grid else _point_map(shown)
    note = f"Tuning runs of {shown.total_steps:,} steps; each cell at its best learning rate."
    if shown.confirmed is not None:
        note += " The frame marks the settings that were confirmed: the best of the search's own model, not of one run."
    name = parameter_of(shown.axis).words
    columns = (Column(name.capitalize()), Column(_RATIO.capitalize()), Column("Loss"), Column("Trials"))
    rows = tuple(
        (str(bag), f"{ratio:g}", f"{loss:.4f}", str(shown.trials[(bag, ratio)]))
        for (bag, ratio), loss in shown.losses.items()
    )
    return Chart(
        key,
        title,
        drawn,
        Table(f"Loss over ({shown.symbol}, r)", columns, rows),
        height=map_height(shown),
        share=3,
        note=note,
    )


def map_height(shown: LossMap) -> int:
    """Height in pixels: room for a number in every cell."""
    return min(max(380, 80 + 44 * len({ratio for _, ratio in shown.losses})), 760)


def _colour_range(losses: list[float]) -> tuple[float, float]:
    ordered = sorted(losses)
    # Good cells differ by thousandths, bad ones by tenths: colours for the whole range would show the cliffs and hide
    # the valley.
    low, typical = ordered[0], ordered[int(0.7 * (len(ordered) - 1))]
    return low, max(typical, low + 1e-3)


def _grid_map(shown: LossMap, bags: list[int], ratios: list[float]) -> go.Figure:
    drawn = blank(left=58, right=14, top=8, bottom=52)
    low, high = _colour_range(list(shown.losses.values()))
    grid = [[shown.losses.get((bag, ratio)) for bag in bags] for ratio in ratios]
    drawn.add_heatmap(
        x=list(range(len(bags))),
        y=list(range(len(ratios))),
        z=grid,
        zmin=low,
        zmax=high,
        colorscale=[list(stop) for stop in theme.LOSS_SCALE],
        showscale=False,
        xgap=2,
        ygap=2,
        customdata=[[[bag, f"{ratio:g}"] for bag in bags] for ratio in ratios],
        hovertemplate=f"{shown.symbol} = " + "%{customdata[0]}, r = %{customdata[1]}<br>loss %{z:.4f}<extra></extra>",
    )
    digits = 3 if len(bags) <= 10 else 2
    for row, ratio in enumerate(ratios):
        for column, bag in enumerate(bags):
            loss = shown.losses.get((bag, ratio))
            if loss is None:
                continue
            strong = (loss - low) / (high - low) < 0.4
            font = {"size": 12 if len(bags) <= 10 else 10, "color": theme.ON_STRONG if strong else theme.ON_WEAK}
            drawn.add_annotation(**label(f"{loss:.{digits}f}", column, row, xanchor="center") | {"font": font})
    if shown.confirmed is not None and shown.confirmed[0] in bags:
        near = min(ratios, key=lambda ratio: abs(ratio - shown.confirmed[1]))  # type: ignore[index]
        if abs(near - shown.confirmed[1]) < 1e-6:
            column, row = bags.index(shown.confirmed[0]), ratios.index(near)
            frame: dict[str, Any] = {"color": theme.VERMILLION, "width": 2.5}
            drawn.add_shape(type="rect", x0=column - 0.49, x1=column + 0.49, y0=row - 0.48, y1=row + 0.48, line=frame)
    ticks: dict[str, Any] = {"grid": False, "showline": False, "ticks": ""}
    drawn.update_layout(
        xaxis=axis(
            parameter_of(shown.axis).words,
            tickvals=list(range(len(bags))),
            ticktext=[str(bag) for bag in bags],
            **ticks,
        ),
        yaxis=axis(_RATIO, tickvals=list(range(len(ratios))), ticktext=[f"{ratio:g}" for ratio in ratios], **ticks),
    )
    return drawn


def _point_map(shown: LossMap) -> go.Figure:
    drawn = blank(left=58, right=20, top=12, bottom=52)
    low, high = _colour_range(list(shown.losses.values()))
    places = list(shown.losses)
    drawn.add_scatter(
        x=[bag for bag, _ in places],
        y=[ratio for _, ratio in places],
        mode="markers",
        marker={
            "size": 15,
            "color": list(shown.losses.values()),
            "cmin": low,
            "cmax": high,
            "colorscale": [list(stop) for stop in theme.LOSS_SCALE],
            "line": {"width": 1, "color": theme.MUTED},
        },
        hovertemplate=f"{shown.symbol} = " + "%{x}, r = %{y:g}<br>loss %{marker.color:.4f}<extra></extra>",
    )
    if shown.confirmed is not None:
        ring = {"symbol": "circle-open", "size": 22, "color": theme.VERMILLION, "line": {"width": 2.5}}
        drawn.add_scatter(x=[shown.confirmed[0]], y=[shown.confirmed[1]], mode="markers", marker=ring, hoverinfo="skip")
    bags = sorted({bag for bag, _ in places})
    ticks = round_ticks(bags[0], bags[-1], 8)
    drawn.update_layout(
        xaxis=axis(
            f"{parameter_of(shown.axis).words} (log scale)",
            type="log",
            tickvals=ticks,
            ticktext=[plain(t) for t in ticks],
        ),
        yaxis=axis(_RATIO),
    )
    return drawn


def spending_chart(key: str, arms: tuple[Spending, ...], clock: str, height: int) -> Chart:
    """Best-so-far as steps; a line that still falls at its end was not searched to the bottom."""
    unit, factor = (
        (clock, 1.0) if max(arm.hours[-1] for arm in arms) >= 1 else (clock.replace("hours", "minutes"), 60.0)
    )
    drawn = blank(left=66, right=84, top=12, bottom=52)
    for arm in arms:
        style = theme.method_style(arm.method)
        hours = [factor * spent for spent in arm.hours]
        drawn.add_scatter(
            x=hours,
            y=arm.losses,
            mode="lines",
            line={"color": style.color, "width": 2.4, "shape": "hv", "dash": style.dash},
            hovertemplate=f"{style.label}<br>%{{x:.3~g}} {unit}<br>best %{{y:.4f}}<extra></extra>",
        )
        drawn.add_scatter(
            x=hours[-1:],
            y=arm.losses[-1:],
            mode="markers",
            marker={"symbol": style.symbol, "size": 10, "color": style.color},
            hoverinfo="skip",
        )
        drawn.add_annotation(**label(f"<b>{style.label}</b>", hours[-1], arm.losses[-1], style.color, xshift=11))
    low, high = padded([loss for arm in arms for loss in arm.losses], 0.12)
    most = factor * max(arm.hours[-1] for arm in arms)
    drawn.update_layout(
        xaxis=axis(
            f"{unit} spent on the arm's search", grid=False, range=[0, 1.04 * most], rangemode="tozero", nticks=6
        ),
        yaxis=linear_axis("best final loss so far, nats per token", low, high),
    )
    columns = (Column("Method", numeric=False), Column(f"{clock} spent"), Column("Best loss"))
    rows = tuple((theme.method_label(arm.method), f"{arm.hours[-1]:.4g}", f"{arm.losses[-1]:.4f}") for arm in arms)
    return Chart(
        key,
        _spending_title(arms, clock),
        drawn,
        Table("At the end of the search", columns, rows),
        height=height,
        share=3,
    )


def _spending_title(arms: tuple[Spending, ...], clock: str) -> str:
    if len(arms) < 2:
        return f"One arm was searched, for {theme.hours(arms[0].hours[-1])}"
    first, last = arms[0], min(arms[1:], key=lambda arm: arm.losses[-1])
    names = f"{theme.method_label(first.method)} and {theme.method_label(last.method)}"
    ratio = last.hours[-1] / first.hours[-1]
    if 0.8 <= ratio <= 1.25:
        return f"{names} were searched for about as many {clock}"
    more = last if ratio > 1 else first
    return f"{theme.method_label(more.method)} was searched for {max(ratio, 1 / ratio):.1f} times the {clock}"


def slices_chart(key: str, slices: tuple[Slice, ...]) -> Chart:
    """Every trial over each axis: one panel an axis, both arms in the panel of the learning rate."""
    axes = list(dict.fromkeys(cut.axis for cut in slices))
    drawn = blank(left=66, right=20, top=30, bottom=54)
    ordered = sorted(loss for cut in slices for loss in cut.losses)
    # A diverging trial's loss would flatten all the others; the highest eight in a hundred may leave the panel.
    low, high = ordered[0], ordered[int(0.92 * (len(ordered) - 1))]
    low, high = padded([low, high], 0.1)
    width = 1 / len(axes)
    for number, name in enumerate(axes):
        suffix = "" if number == 0 else str(number + 1)
        cuts = [cut for cut in slices if cut.axis == name]
        for cut in cuts:
            _draw_slice(drawn, cut, suffix)
        domain = [number * width + (0.035 if number else 0), (number + 1) * width - 0.01]
        drawn.update_layout({f"xaxis{suffix}": _slice_axis(cuts, domain)})
        loss_axis = linear_axis("final loss, nats per token" if number == 0 else "", low, high)
        drawn.update_layout({f"yaxis{suffix}": loss_axis | {"anchor": f"x{suffix}", "showticklabels": number == 0}})
        explained = ", ".join(
            f"{theme.method_label(cut.method)} {theme.percent(cut.share)}" for cut in cuts if cut.share is not None
        )
        text = f"explains alone: {explained}" if explained else ""
        drawn.add_annotation(
            **label(text, domain[0], 1.0, theme.MUTED, xref="paper", yref="paper", yanchor="bottom", yshift=8)
        )
    columns = (
        Column("Method", numeric=False),
        Column("Axis", numeric=False),
        Column("Value"),
        Column("Trials"),
        Column("Mean loss"),
        Column("Best loss"),
        Column("Explained alone"),
    )
    table = Table("Tuning runs by axis", columns, tuple(row for cut in slices for row in _slice_rows(cut)))
    note = "Each dot is a tuning run. The percentage is the axis's importance by Optuna's fANOVA: the part of the variance "
    note += "between trials, as a random forest sees it, that it explains without the others. With few trials it holds chance."
    return Chart(key, _slices_title(slices), drawn, table, height=330, note=note)


def _slices_title(slices: tuple[Slice, ...]) -> str:
    known = [cut for cut in slices if cut.share is not None and cut.method != "baseline"]
    if not known:
        return "The trials over each axis"
    most = max(known, key=lambda cut: cut.share or 0.0)
    if (most.share or 0.0) < 0.1:
        return f"No single axis decides the loss of {theme.method_label(most.method)}"
    return f"For {theme.method_label(most.method)} the {most.title} matters most"


def _position(value: Scalar) -> float | str:
    return value if isinstance(value, str) else float(value)


def _draw_slice(drawn: go.Figure, cut: Slice, suffix: str) -> None:
    style = theme.method_style(cut.method)
    drawn.add_scatter(
        x=[_position(value) for value in cut.values],
        y=cut.losses,
        xaxis=f"x{suffix}",
        yaxis=f"y{suffix}",
        mode="markers",
        marker={"symbol": style.symbol, "size": 8, "color": theme.rgba(style.color, 0.55)},
        hovertemplate=f"{style.label}<br>%{{x}}<br>loss %{{y:.4f}}<extra></extra>",
    )


def _slice_axis(cuts: list[Slice], domain: list[float]) -> dict[str, Any]:
    values = sorted({value for cut in cuts for value in cut.values if not isinstance(value, str)})
    if not values:
        return axis(cuts[0].title, grid=False, domain=domain, type="category")
    if cuts[0].axis == LEARNING_RATE:
        ticks = values if len(values) <= 5 else round_ticks(values[0], values[-1], 5)
        low, high = padded([math.log10(value) for value in values], 0.1)
        text = [theme.learning_rate(tick) for tick in ticks]
        title = f"{cuts[0].title} (log scale)"
        return axis(title, grid=False, domain=domain, type="log", range=[low, high], tickvals=ticks, ticktext=text)
    low, high = padded(values, 0.1)
    few = {"tickvals": values} if len(values) <= 8 else {"nticks": 6}
    return axis(cuts[0].title, grid=False, domain=domain, range=[low, high], **few)


def _slice_rows(cut: Slice) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for value in sorted(set(cut.values), key=lambda value: (isinstance(value, str), value)):
        losses = [loss for at, loss in zip(cut.values, cut.losses, strict=True) if at == value]
        shown = value if isinstance(value, str) else f"{value:g}"
        mean = sum(losses) / len(losses)
        rows.append(
            (
                theme.method_label(cut.method),
                cut.title,
                shown,
                str(len(losses)),
                f"{mean:.4f}",
                f"{min(losses):.4f}",
                theme.percent(cut.share),
            )
        )
    return rows
