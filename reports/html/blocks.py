"""What a section of the page is made of: prose, tables, charts, and a fragment with a template of its own.

A section decides what stands in a block; how a block looks in HTML is the page template's business. Nothing here
knows a study, and no block holds markup from outside: all text is escaped when it is written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True, slots=True)
class Link:
    """A table cell that leads somewhere. Only `http`, `https` and fragments become a link."""

    text: str
    address: str

    @property
    def safe(self) -> bool:
        """Whether the address may stand in the page."""
        return self.address.startswith(("https://", "http://", "#"))


Cell = str | Link


@dataclass(frozen=True, slots=True)
class Column:
    """A column's head; numbers stand to the right."""

    name: str
    numeric: bool = True


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells under `columns`. `folded`: behind a summary line that is opened for print when it is short."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    folded: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            assert len(row) == len(self.columns), (self.caption, row)

    kind = "table"


@dataclass(frozen=True, slots=True)
class Chart:
    """A Plotly figure under a title that states its finding, with its data as a table for those who cannot see it.

    `height` in CSS pixels. `share` is the part of the row that the chart takes where there is room, of six.
    """

    key: str
    title: str
    figure: go.Figure
    table: Table
    height: int = 380
    share: int = 6
    note: str = ""

    kind = "chart"


@dataclass(frozen=True, slots=True)
class Prose:
    """A paragraph; `tone` is `lead`, `plain`, `note` or `empty` (what to say where there is nothing to draw)."""

    text: str
    tone: str = "plain"

    kind = "prose"


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading inside a section."""

    text: str

    kind = "heading"


@dataclass(frozen=True, slots=True)
class Code:
    """Text in its own line breaks, in a fixed-width face."""

    text: str
    caption: str = ""
    folded: str = ""

    kind = "code"


@dataclass(frozen=True, slots=True)
class Fragment:
    """A template of this package, filled with `info` and escaped as everything else."""

    template: str
    info: Any

    kind = "fragment"


Block = Prose | Heading | Table | Chart | Code | Fragment
