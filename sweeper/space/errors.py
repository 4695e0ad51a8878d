"""What a reader of a bad search-space file is told: one line a mistake, with the file and the line it stands on.

Only the form of the sentences, and the list of them, is decided here. What counts as a mistake is not.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from trainers.contract.errors import InputError, first_lines


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake: the line (from 1; None for the file as a whole) and one sentence without a line break."""

    line: int | None
    message: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "message", _in_one_line(self.message))


class SearchSpaceError(InputError):
    """A search-space file that cannot be used. `problems` are in line order, at least one.

    As text it is one line for each of the first, `quickstart.yaml:14: step_ratio: 1.4 is not in [0, 1]`; `path`, `line`
    and `message` are those of the very first.
    """

    def __init__(self, path: Path, problems: Iterable[Problem]) -> None:
        unique = dict.fromkeys(problems)
        self.problems = tuple(sorted(unique, key=lambda problem: problem.line or 0))
        assert self.problems, "an error without a problem"
        self.path = path
        self.line = self.problems[0].line
        self.message = self.problems[0].message
        super().__init__(first_lines(self.lines))

    @property
    def lines(self) -> tuple[str, ...]:
        """One line of text for each problem."""
        name = _in_one_line(str(self.path))
        return tuple(
            f"{name}: {problem.message}" if problem.line is None else f"{name}:{problem.line}: {problem.message}"
            for problem in self.problems
        )


def shown(value: object, longest: int = 60) -> str:
    """A value from a file as a message quotes it, cut to about `longest` characters."""
    match value:
        case None:
            return "nothing"
        case bool():
            return str(value).lower()
        case str():
            text = repr(value)
        case Mapping():
            text = "{" + ", ".join(f"{key}: {shown(inner, longest)}" for key, inner in list(value.items())[:8]) + "}"
        case tuple() | list():
            text = "[" + ", ".join(shown(inner, 20) for inner in value[:16]) + "]"
        case _:
            text = _number(value)
    return text if len(text) <= longest else text[: longest - 3] + "..."


def closest(given: str, allowed: Iterable[str]) -> str | None:
    """The allowed word that `given` probably meant, upper and lower case aside."""
    by_folded = {word.casefold(): word for word in allowed}
    matches = difflib.get_close_matches(given.casefold(), by_folded, n=1)
    return by_folded[matches[0]] if matches else None


def choose_from(given: str, allowed: Iterable[str]) -> str:
    """The end of a sentence about an unknown word: what was probably meant, and all that is allowed."""
    words = tuple(allowed)
    meant = closest(given, words)
    return (f"did you mean {meant}? " if meant else "") + f"allowed: {', '.join(words)}"


def _number(value: object) -> str:
    try:
        return repr(value)
    except ValueError:  # more digits than Python writes
        return "a number of thousands of digits"


def _in_one_line(text: str) -> str:
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in " ".join(text.split())
    )
