"""The common ground of all charts: margins, axes, ticks, labels. What is drawn is decided by the sections.

Every axis is a decision of ours, so that a chart reads the same at any width: ticks are few and round, the grid is
horizontal or vertical but faint, and names stand at the ends of lines instead of in a legend.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from reports.html import theme

if TYPE_CHECKING:
    from collections.abc import Sequence

    import plotly.graph_objects as go


def blank(left: int = 62, right: int = 24, top: int = 14, bottom: int = 52) -> go.Figure:
    """An empty figure in the page's type, transparent, without a legend; margins in pixels."""
    import plotly.graph_objects as go

    figure = go.Figure()
    figure.update_layout(
        template=None,
        font={"family": theme.FONT_STACK, "size": 13, "color": theme.INK},
        margin={"l": left, "r": right, "t": top, "b": bottom},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        showlegend=False,
        hovermode="closest",
        hoverlabel={
            "bgcolor": theme.PAPER,
            "bordercolor": theme.MUTED,
            "font": {"color": theme.INK, "family": theme.FONT_STACK, "size": 12.5},
            "align": "left",
        },
        dragmode=False,
    )
    return figure


def axis(title: str, *, grid: bool = True, **more: Any) -> dict[str, Any]:
    """Settings of one axis: `title` with its unit. `more` are Plotly's own."""
    return {
        "title": {"text": title, "font": {"size": 12.5, "color": theme.MUTED}, "standoff": 10},
        "tickfont": {"size": 12, "color": theme.MUTED},
        "showgrid": grid,
        "gridcolor": theme.RULE,
        "gridwidth": 1,
        "zeroline": False,
        "showline": not grid,
        "linecolor": theme.MUTED,
        "ticks": "" if grid else "outside",
        "tickcolor": theme.MUTED,
        "ticklen": 4,
        "automargin": False,
        "fixedrange": True,
    } | more


def log_axis(title: str, low: float, high: float, *, grid: bool = False, suffix: str = "") -> dict[str, Any]:
    """A logarithmic axis over `[low, high]`, both positive and in the axis's unit."""
    ticks = round_ticks(low, high)
    # Between two powers of ten Plotly writes the first digit only: a 2 that stands for 20. Over a narrow range its ticks
    # are those of a linear axis, and good.
    own = {"tickvals": ticks, "ticktext": [plain(tick) + suffix for tick in ticks]}
    chosen = own if len(ticks) > 2 else {"nticks": 6, "ticksuffix": suffix}
    return axis(title, grid=grid, type="log", range=[math.log10(low), math.log10(high)], **chosen)


def linear_axis(title: str, low: float, high: float, *, grid: bool = True, **more: Any) -> dict[str, Any]:
    """A linear axis over `[low, high]` with Plotly's ticks, written in full up to a million."""
    full = {"separatethousands": True, "exponentformat": "SI", "minexponent": 6}
    return axis(title, grid=grid, range=[low, high], nticks=8, **full, **more)


def round_ticks(low: float, high: float, most: int = 7) -> list[float]:
    """Round positive numbers within `[low, high]` for a logarithmic axis, at most `most`, the same in every decade."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    inside: list[float] = []
    for mantissas in (
        (1, 1.1, 1.2, 1.3, 1.4, 1.5, 2, 3, 4, 5, 6, 7, 8, 9),
        (1, 1.2, 1.5, 2, 3, 4, 5, 6, 8),
        (1, 1.5, 2, 3, 5, 7),
        (1, 2, 5),
        (1, 3),
        (1,),
    ):
        ticks = [float(f"{mantissa}e{decade}") for decade in range(first, last + 1) for mantissa in mantissas]
        inside = [tick for tick in ticks if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]
        if len(inside) <= most:
            return inside
    return inside[:: math.ceil(len(inside) / most)]


def plain(value: float) -> str:
    """A tick in as few characters as it takes: `0.02`, `1.5`, `250`, `12 K`, `3 M`."""
    if value == 0:
        return "0"
    for size, unit in ((1e12, " T"), (1e9, " B"), (1e6, " M"), (1e4, " K")):
        if abs(value) >= size:
            return f"{value / (1e3 if size == 1e4 else size):.4g}{unit}"
    return f"{value:,.6f}".rstrip("0").rstrip(".") if abs(value) < 1000 else f"{value:,.0f}"


def label(text: str, x: float, y: float, color: str = theme.INK, **more: Any) -> dict[str, Any]:
    """An annotation without an arrow; coordinates as Plotly takes them (log10 on a logarithmic axis)."""
    return {
        "text": text,
        "x": x,
        "y": y,
        "showarrow": False,
        "font": {"color": color, "size": 12.5},
        "xanchor": "left",
        "yanchor": "middle",
    } | more


def padded(values: Sequence[float], share: float = 0.08) -> tuple[float, float]:
    """The range of `values`, wider by `share` of itself on either side; never empty."""
    low, high = min(values), max(values)
    pad = (high - low) * share or abs(high) * share or 1.0
    return low - pad, high + pad


def padded_log(values: Sequence[float], share: float = 0.08) -> tuple[float, float]:
    """As `padded`, in logarithms, for positive values."""
    low, high = padded([math.log(value) for value in values], share)
    return math.exp(low), math.exp(high)
