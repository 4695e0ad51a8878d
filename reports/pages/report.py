"""The report of a sweep, from study and summary to its page: which sections there are, and in which order.

What a section says is its own file's business; to add one, write the file and add a line to `SECTIONS`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from reports.evidence.study import Study
from reports.html.layout import DrawnSection, render_sections, side_by_side
from reports.sections import appendix, factors, headline, iso_loss, search, trust, verdict, what_if
from reports.sections.section import Section
from reports.summary import Summary, summary_to_json
from trainers.contract.writing import write_atomically

SECTIONS: tuple[Section[Any], ...] = (
    headline.SECTION,
    verdict.SECTION,
    iso_loss.SECTION,
    what_if.SECTION,
    trust.SECTION,
    factors.SECTION,
    search.SECTION,
    appendix.SECTION,
)


def render_page(study: Study, summary: Summary) -> str:
    """The report as HTML. Every text from outside is escaped, also inside the embedded JSON."""
    sections = tuple(
        DrawnSection(section.anchor, section.title, side_by_side(section.figure(section.info(study, summary))))
        for section in SECTIONS
    )
    title = f"{study.context.name}: {summary.headline}"
    return render_sections(title, study.context.name, sections, summary_to_json(summary))


def write_report(study: Study, summary: Summary, path: Path) -> None:
    """Write the page to `path`, whole or not at all. Raises `OSError` where that cannot be done."""
    write_atomically(path, render_page(study, summary))
