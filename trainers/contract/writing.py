"""How text leaves the program: a file is there whole or not at all, a terminal shows every character and obeys none.

Names, questions and reasons come from files and ledgers that others wrote. A control sequence in one of them could clear the
screen, set its title or hide what follows. Colours are the business of whoever draws (`sweeper.cli.console`). Standard library
only: every layer writes with it.
"""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path
from typing import Any

_SHOWN = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"} | {0x7F: 0x2421}
"""The control pictures of Unicode: `␛` for ESC."""
_HIDING = (
    *range(0x80, 0xA0),
    0x61C,
    0x200E,
    0x200F,
    0x2028,
    0x2029,
    *range(0x202A, 0x202F),
    *range(0x2066, 0x206A),
    0xFEFF,
)
"""Eight-bit controls, and marks that change the order in which the rest of a line is shown."""
_TABLE = _SHOWN | dict.fromkeys(_HIDING, 0xFFFD)


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` by `text`, UTF-8: readers see the old file or the new one, also after a crash. Makes its folder.

    Raises `OSError` where that cannot be done; nothing is left behind then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def printable(text: str) -> str:
    """The text with a visible sign for every character that a terminal would obey; line ends and tabs stay."""
    return text.translate(_TABLE)


class Shown:
    """A text stream whose readers see every character, and which replaces those that its encoding does not have."""

    def __init__(self, stream: Any) -> None:
        # Rich looks for this name and draws past us: what it writes is its own, and is cleaned before it is drawn.
        self.rich_proxied_file = stream
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")

    def write(self, text: str) -> int:
        """Like the stream's own."""
        return int(self.rich_proxied_file.write(printable(text)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)


def guard_terminal() -> None:
    """Let everything that this process prints go through `Shown`. For the main of a program."""
    sys.stdout, sys.stderr = Shown(sys.stdout), Shown(sys.stderr)
