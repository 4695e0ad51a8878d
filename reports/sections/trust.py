"""Can I trust this? The automatic checks in words, the ones to worry about first. Their judgement is not made here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reports.evidence.study import Study
from reports.html.blocks import Block, Fragment, Heading, Prose
from reports.sections.headline import MARKS
from reports.sections.section import Section
from reports.summary import Summary

WORDS = {"pass": "passed", "warn": "warning", "fail": "failed", "not_applicable": "does not apply"}
ORDER = ("fail", "warn", "pass", "not_applicable")


@dataclass(frozen=True, slots=True)
class CheckRow:
    """One check with its mark, and the mark's word for those who cannot see it."""

    status: str
    css: str
    mark: str
    word: str
    name: str
    number: str
    sentence: str


@dataclass(frozen=True, slots=True)
class TrustInfo:
    """Rows in the order of worry, the sentence over them, and what published figures cannot support."""

    rows: tuple[CheckRow, ...]
    lead: str
    limits: tuple[str, ...]


def info(study: Study, summary: Summary) -> TrustInfo:
    """The checks, failed ones first, otherwise in their own order."""
    ordered = sorted(summary.checks, key=lambda check: ORDER.index(check.status))
    rows = tuple(
        CheckRow(
            status=check.status,
            css="none" if check.status == "not_applicable" else check.status,
            mark=MARKS[check.status],
            word=WORDS[check.status],
            name=check.name,
            number=check.number,
            sentence=check.sentence,
        )
        for check in ordered
    )
    counted = {status: sum(row.status == status for row in rows) for status in ORDER}
    if counted["fail"]:
        lead = "Not as it stands: at least one rule that a claim needs is broken."
    elif counted["warn"]:
        lead = "No rule is broken. The warnings below say how far the number carries."
    elif rows:
        lead = "Every rule that could be checked was kept."
    else:
        lead = ""
    return TrustInfo(rows, lead, _limits(study))


def _limits(study: Study) -> tuple[str, ...]:
    if study.context.kind != "published":
        return ()
    from reports.published import LIMITS

    return LIMITS


def figure(shown: TrustInfo) -> Sequence[Block]:
    """The list."""
    if not shown.rows:
        return (Prose("There are no runs to check.", "empty"),)
    rules = (
        "The rules were fixed before the runs: only finished runs with a decayed learning rate enter; both arms are "
        "tuned with equal effort; the winners run again on fresh seeds and only those runs are reported; the words "
        "follow the interval."
    )
    limits: list[Block] = []
    if shown.limits:
        limits = [Heading("What the published figures cannot support"), *(Prose(text) for text in shown.limits)]
    return (Prose(shown.lead, "lead"), Fragment("checks.html.j2", shown), Prose(rules, "note"), *limits)


SECTION = Section("trust", "Can I trust this?", info, figure)
