"""What a section of the report is: a title, what it takes out of the evidence, and how that is drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from reports.evidence.study import Study
from reports.html.blocks import Block
from reports.summary import Summary

Info = TypeVar("Info")


@dataclass(frozen=True, slots=True)
class Section(Generic[Info]):
    """One section of the page: `info` takes what it shows out of the evidence, `figure` draws it and decides nothing."""

    anchor: str
    title: str
    info: Callable[[Study, Summary], Info]
    figure: Callable[[Info], Sequence[Block]]
