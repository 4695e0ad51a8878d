"""Any page of ours as one self-contained HTML file: how blocks become rows and rows become a page.

What stands on a page is decided in `reports.pages`. A page asks no network for anything and computes no statistics.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from reports.html import theme
from reports.html.blocks import Block, Chart
from reports.html.embed import chart_library, figure_json, json_in_html

if TYPE_CHECKING:
    import jinja2


@dataclass(frozen=True, slots=True)
class DrawnSection:
    """A section ready for the template: rows of blocks that stand side by side where there is room."""

    anchor: str
    title: str
    rows: tuple[tuple[Block, ...], ...]


@dataclass(frozen=True, slots=True)
class Masthead:
    """The top of a page that is no report: what kind of page it is, the question, one sentence."""

    kind: str
    warning: str
    question: str
    sentence: str


def render_sections(title: str, name: str, sections: Sequence[DrawnSection], numbers: Mapping[str, Any]) -> str:
    """Any page of ours as HTML: `name` stands over the contents, `numbers` travel as JSON in the page's `#summary`."""
    charts = [block for section in sections for row in section.rows for block in row if isinstance(block, Chart)]
    return _environment().get_template("page.html.j2").render(
        title=title,
        study_name=name,
        sections=sections,
        figures={chart.key: figure_json(chart.figure) for chart in charts},
        summary_json=json_in_html(numbers),
        dark_twins=json_in_html(theme.DARK_TWIN),
        chart_library=chart_library() if charts else "",
        style=_own_text("page.css"),
        script=_own_text("page.js"),
    )  # fmt: skip


def side_by_side(blocks: Sequence[Block]) -> tuple[tuple[Block, ...], ...]:
    """Neighbouring charts share a row as long as their shares of it add up to six at most."""
    rows: list[list[Block]] = []
    room = 0
    for block in blocks:
        share = block.share if isinstance(block, Chart) else 6
        if share <= room:
            rows[-1].append(block)
            room -= share
        else:
            rows.append([block])
            room = 6 - share
    return tuple(tuple(row) for row in rows)


@functools.cache
def _environment() -> jinja2.Environment:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.PackageLoader("reports.html", package_path="."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _own_text(name: str) -> Markup:
    """A file of this package, put into the page as it is."""
    return Markup(resources.files("reports.html").joinpath(name).read_text(encoding="utf-8"))
