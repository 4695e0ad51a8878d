"""One palette, one mark per method, one way to write a number: what makes all sections look like one report.

Colours are Okabe and Ito's, told apart by every common form of colour blindness, and each method has a dash and a
marker of its own beside its colour. Figures are built in the light palette; the page swaps each light colour for its
dark twin (`DARK_TWIN`) where the reader's system asks for it. What a chart says is the sections' business.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime

from trainers.methods import BASELINE, METHODS

INK = "#1B1C1E"
MUTED = "#5C6066"
RULE = "#DCDDDB"
PAPER = "#FDFDFB"
ACCENT = "#0072B2"
GREEN = "#009E73"
ORANGE = "#E69F00"
VERMILLION = "#D55E00"
PURPLE = "#CC79A7"
WINE = "#882255"
OLIVE = "#7A6C00"
SKY = "#56B4E9"
BLACK = "#000000"

DARK_TWIN: dict[str, str] = {
    INK: "#ECECE8",
    MUTED: "#A3A7AD",
    RULE: "#3A3D42",
    PAPER: "#141618",
    ACCENT: "#56B4E9",
    BLACK: "#F4F4F0",
    GREEN: "#2BB88D",
    VERMILLION: "#F0782A",
    WINE: "#C9609A",
    OLIVE: "#BFAE2A",
    "#08519C": "#7CC7F2",
    "#4292C6": "#4A9CCB",
    "#9ECAE1": "#33688A",
    "#DEEBF7": "#25404F",
    "#F7F7F4": "#202428",
    "#FFFFFE": "#0E1114",
    "#1A1B1D": "#E4E4E0",
}

FONT_STACK = '"Helvetica Neue", Helvetica, Arial, "Liberation Sans", sans-serif'

LOSS_SCALE: tuple[tuple[float, str], ...] = (
    (0.0, "#08519C"),
    (0.25, "#4292C6"),
    (0.5, "#9ECAE1"),
    (0.75, "#DEEBF7"),
    (1.0, "#F7F7F4"),
)
"""One hue from strong (low loss, good) to nearly paper, in the light and in the dark."""
ON_STRONG, ON_WEAK = "#FFFFFE", "#1A1B1D"
"""Text on the strong and on the weak end of `LOSS_SCALE`."""


@dataclass(frozen=True, slots=True)
class MethodStyle:
    """How a method looks in every chart. `dash` and `symbol` are Plotly's names."""

    label: str
    color: str
    dash: str
    symbol: str


_MARKS = (
    (ACCENT, "solid", "diamond"),
    (VERMILLION, "dash", "square"),
    (GREEN, "dashdot", "triangle-up"),
    (PURPLE, "dot", "cross"),
    (ORANGE, "longdash", "star"),
    (WINE, "dash", "hexagon"),
    (OLIVE, "dashdot", "triangle-down"),
    (SKY, "longdash", "pentagon"),
)
"""In the order of `METHODS` behind the baseline; beyond them colours come again with another dash."""
_FOREIGN_MARKS = 7
"""So many of them are for methods from elsewhere: a mark more for ours must not change theirs."""


ACRONYMS = frozenset({"ema", "gqa", "lora", "mla", "moe", "mtp", "mup", "sam", "sgd", "soap", "swa", "tst"})
"""Names of methods from elsewhere that are written in capitals; all others stay as they are."""


def method_label(method: str) -> str:
    """The method's name for people. Of names from elsewhere, known acronyms are capitals, others lose their underscores."""
    if method in METHODS:
        return METHODS[method].label
    return method.upper() if method in ACRONYMS else method.replace("_", " ")


def method_style(method: str) -> MethodStyle:
    """The mark of a method, the same whichever other methods are on the page."""
    label = method_label(method)
    if method == BASELINE:
        return MethodStyle(label, BLACK, "solid", "circle")
    others = [name for name in METHODS if name != BASELINE]
    if method not in others:
        color, _, symbol = _MARKS[sum(map(ord, method)) % _FOREIGN_MARKS]
        return MethodStyle(label, color, "longdashdot", symbol)
    number = others.index(method)
    color, dash, symbol = _MARKS[number % len(_MARKS)]
    return MethodStyle(label, color, dash if number < len(_MARKS) else "longdashdot", symbol)


def rgba(color: str, opacity: float) -> str:
    """`#RRGGBB` with an opacity, in the spelling that the page's dark twin also understands."""
    red, green, blue = (int(color[start : start + 2], 16) for start in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity:g})"


def minus(text: str) -> str:
    """The minus sign of print where a number was written with a hyphen."""
    return text.replace("-", "\u2212")


def number(value: float | None, digits: int = 2) -> str:
    """`value` with so many decimals."""
    return "–" if value is None else minus(f"{value:.{digits}f}")


def interval(ends: tuple[float, float] | None) -> str:
    """`1.20 – 1.45` for a table; sentences write `1.20 to 1.45`."""
    return "–" if ends is None else f"{number(ends[0])} – {number(ends[1])}"


def significant(value: float | None, digits: int = 3) -> str:
    """`value` to so many significant digits, thousands separated, never in powers of ten between 1e-4 and 1e15."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return minus(f"{value:,.{min(decimals, 8)}f}")


def speedup(value: float | None) -> str:
    """A ratio of hours: two decimals and a multiplication sign."""
    return "–" if value is None else f"{number(value)}×"


def loss(value: float | None) -> str:
    """Nats per token, to the thousandth: the size of the noise between seeds of a small model."""
    return number(value, 3)


def hours(value: float | None, beside: float | None = None) -> str:
    """Device-hours with three significant digits; short ones in minutes or seconds, in the unit of the larger of
    `value` and `beside`."""
    if value is None:
        return "–"
    larger = max(value, beside or 0.0)
    if larger >= 1:
        return f"{significant(value)} h"
    return f"{significant(value * 60)} min" if larger * 60 >= 1 else f"{significant(value * 3600)} s"


def hours_to_hours(baseline: float | None, method: float | None) -> str:
    """`74.2 h → 34.0 h`, in one unit."""
    return f"{hours(baseline, method)} → {hours(method, baseline)}"


def count(value: float | None) -> str:
    """A large number of things in thousands, millions, billions or trillions."""
    if value is None:
        return "–"
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "K")):
        if abs(value) >= size:
            return f"{significant(value / (1e3 if unit == 'K' else size))} {unit}"
    return f"{value:,.0f}"


def learning_rate(value: float | None) -> str:
    """`4e-3`: the spelling of configuration files."""
    if value is None:
        return "–"
    mantissa, exponent = f"{value:.1e}".split("e")
    return minus(f"{mantissa.removesuffix('.0')}e{int(exponent)}")


def percent(fraction: float | None, digits: int = 0) -> str:
    """A fraction as a percentage with its own sign."""
    return "–" if fraction is None else f"{number(100 * fraction, digits)} %"


def money(value: float | None, currency: str) -> str:
    """An amount with three significant digits; the sign of the currency in front where it is a sign."""
    if value is None:
        return "–"
    size = abs(value)
    amount = f"{round(value):,}" if size >= 100 else f"{value:.2f}" if size >= 0.1 else significant(value)
    amount = minus(amount)
    symbol = {"USD": "$", "EUR": "€", "GBP": "£"}.get(currency.upper(), currency)
    if len(symbol) > 1:
        return f"{amount} {symbol}"
    return f"\u2212{symbol}{amount[1:]}" if amount.startswith("\u2212") else f"{symbol}{amount}"


def day(iso: str) -> str:
    """`24 November 2026` of an ISO date; a text that is no date stays as it is."""
    try:
        moment = datetime.fromisoformat(iso)
    except ValueError:
        return iso
    return f"{moment.day} {moment:%B %Y}"
