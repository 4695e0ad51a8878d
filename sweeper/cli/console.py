"""The console that every command draws on: text from outside is neither markup nor a control sequence."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from trainers.contract.writing import printable


class PlainConsole(Console):
    """Rich's console without markup, emoji codes and guesses at what is a number."""

    def __init__(self, *, stderr: bool = False) -> None:
        stream = sys.stderr if stderr else sys.stdout
        # Past `Shown`, also while a live display has put its own stream before it.
        file = getattr(stream, "rich_proxied_file", stream)
        super().__init__(file=file, markup=False, emoji=False, highlight=False)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """As drawn by Rich; only its own control sequences stay."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else printable(text), style, control)
