"""The published speedups that ours stand beside, worked out from the published tables when a page is made."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from reports.sections.figures.forest import close_pair


@dataclass(frozen=True, slots=True)
class PublishedValue:
    """The matched-pair speedup of one published scale."""

    scale: str
    speedup: float


@functools.cache
def published_values() -> tuple[PublishedValue, ...]:
    """Matched pairs of the published table in which the two losses nearly meet: the comparisons its authors make.

    Pairs further apart compare runs of unequal quality and are left out.
    """
    from reports.published import published_study
    from reports.summary import summarize

    return tuple(
        PublishedValue(verdict.scale, pair.speedup)
        for verdict in summarize(published_study()).verdicts
        if verdict.method == "tst" and (pair := close_pair(verdict)) is not None
    )
