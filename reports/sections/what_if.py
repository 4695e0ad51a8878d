"""What if this factor held for the reader's plan: sliders, and what they give at both ends of the interval.

The arithmetic lives twice on purpose, in `plan` and in the page's script; a browser test holds them together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from reports.evidence.study import Study
from reports.html import theme
from reports.html.blocks import Block, Fragment, Prose
from reports.html.embed import json_in_html
from reports.sections import plan
from reports.sections.section import Section
from reports.summary import Summary


@dataclass(frozen=True, slots=True)
class Control:
    """A slider. `scale` is `linear` or `log` (positions in powers of ten); `typed` ones have a number field too."""

    name: str
    label: str
    unit: str
    shown: str
    low: float
    high: float
    step: float
    start: float
    scale: str
    typed: bool


@dataclass(frozen=True, slots=True)
class End:
    """A column: the low end, the estimate or the high end of the interval."""

    name: str
    label: str


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table; the script fills it."""

    name: str
    label: str


@dataclass(frozen=True, slots=True)
class WhatIfInfo:
    """Everything that the template and the script need; `controls` empty where there is no factor to apply."""

    controls: tuple[Control, ...]
    ends: tuple[End, ...]
    rows: tuple[Row, ...]
    caption: str
    note: str
    data_json: Markup


def info(study: Study, summary: Summary) -> WhatIfInfo:
    """The plan that the sliders start from."""
    worth, clock = plan.worth(study, summary), study.clock_label
    if worth is None or summary.main is None:
        return WhatIfInfo((), (), (), "", "", Markup("null"))
    names = {"low": "low end", "middle": "estimate", "high": "high end"}
    if worth.middle is None:
        names |= {"low": "at least", "high": "at most"}
    factors = {"low": worth.low, "middle": worth.middle, "high": worth.high}
    scale, spent = summary.main.scale, worth.spent_hours
    took = (
        "What the sweep took is not known" if spent is None else f"The sweep itself took {theme.hours(spent)} ({clock})"
    )
    payback = () if spent is None else (Row("payback", f"Baseline {clock} until the sweep is paid for"),)
    return WhatIfInfo(
        controls=_controls(worth, clock),
        ends=tuple(End(name, f"{names[name]}, {theme.speedup(factor)}") for name, factor in factors.items() if factor),
        rows=(
            Row("money", "Money saved"),
            Row("hours", f"{clock} saved"),
            Row("time", "Wall-clock time saved"),
            Row("energy", "Energy saved, kWh"),
            *payback,
        ),
        caption=f"If the factor measured at {scale} holds for the planned run",
        note=(
            f"{took}. Power per device is an assumption that "
            "includes its share of host and cooling; negative figures are losses."
            + ("" if worth.price_is_given else " The sweep named no price: the one shown is a placeholder.")
        ),
        data_json=json_in_html({"speedups": factors, "currency": worth.currency, "spentHours": spent}),
    )


def _controls(worth: plan.Worth, clock: str) -> tuple[Control, ...]:
    top_price = max(10.0, 4 * worth.price) if worth.price >= 1 else max(1.0, 4 * worth.price)
    return (
        # In powers of ten: plans reach from one GPU for an hour to a cluster for a month.
        Control(
            name="hours",
            label=f"Planned baseline {clock}",
            unit="",
            shown=theme.count(worth.plan_hours),
            low=0,
            high=7,
            step=0.05,
            start=3,
            scale="log",
            typed=False,
        ),
        Control(
            name="price",
            label=f"Price a {clock.removesuffix('s')}",
            unit=worth.currency,
            shown=f"{worth.price:g}",
            low=0,
            high=top_price,
            step=top_price / 400,
            start=worth.price,
            scale="linear",
            typed=True,
        ),
        Control(
            name="devices",
            label="Devices at work",
            unit="",
            shown=str(worth.devices),
            low=1,
            high=max(1024, worth.devices),
            step=1,
            start=worth.devices,
            scale="linear",
            typed=False,
        ),
        Control(
            name="power",
            label="Power per device",
            unit="kW",
            shown=f"{worth.kilowatts:g}",
            low=0,
            high=3 * worth.kilowatts,
            step=worth.kilowatts / 100,
            start=worth.kilowatts,
            scale="linear",
            typed=True,
        ),
    )


def figure(shown: WhatIfInfo) -> Sequence[Block]:
    """The sliders, or why there are none."""
    if not shown.controls:
        return (Prose("These runs give no factor to apply to a plan.", "empty"),)
    return (
        Prose("Move the plan to yours. All figures follow from the interval above, nothing else.", "lead"),
        Fragment("what_if.html.j2", shown),
    )


SECTION = Section("what-if", "What if you trained with it?", info, figure)
