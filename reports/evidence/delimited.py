"""A table as text: its encoding, its separator, its header, its rows with their lines, and the numbers in its cells.

Commas, semicolons and tabs are told apart by the names in the header, never by the data. Whatever else a file looks like
is named in one line. What the columns mean is `importing`'s and `points`'s.
"""

from __future__ import annotations

import codecs
import csv
import io
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainers.contract.errors import InputError, first_lines
from trainers.contract.record import MOST_FLOPS, MOST_LOSS

SEPARATORS = (",", ";", "\t")
LEAST, MOST = 1e-12, 1e18
MOST_OF: Mapping[str, float] = {"loss": MOST_LOSS, "final_loss": MOST_LOSS, "flops": MOST_FLOPS, "bag_size": 1e6}
"""No run has a number outside these; beyond them a fit or a chart would overflow."""
_INFINITY_IN_SQL = 0.99 * sys.float_info.max
"""MLflow's databases keep an infinite loss as the largest number, and exports may cut its last digits."""
LONGEST_CELL = 60
"""Characters of a cell in a message about it."""
_SAMPLE = 1_000
"""Bytes from the beginning that tell what a file is."""
_SEPARATOR_LINE = re.compile(r'\A"?sep=([,;:|^~\t])"?(?:\r\n|\r|\n)', re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong in one line of a file (line 1 is the first)."""

    source: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.source}:{self.line}: {self.message}"


class RunImportError(InputError):
    """A file that cannot be imported: its first problems, one line each in the order of the file, and how many more."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__(first_lines([str(problem) for problem in self.problems]))


class BadValueError(ValueError):
    """One cell that does not hold what its column asks for."""


def read_text(path: Path) -> str:
    """A file's text: UTF-8, or UTF-16 where it begins with the mark of that. Raises `InputError` for anything else."""
    data = path.read_bytes()
    if data.startswith(b"PK\x03\x04"):
        raise InputError(f"{path}: looks like a spreadsheet or another archive; save it as CSV")
    sixteen = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    if not sixteen and b"\0" in data[:_SAMPLE]:
        raise InputError(f"{path}: holds zero bytes, as UTF-16 without its mark does; save it as UTF-8")
    try:
        # No translation of line ends: inside quotes they belong to the cell.
        return data.decode("utf-16" if sixteen else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not a CSV file in UTF-8 (byte {error.start})") from error


@dataclass(frozen=True, slots=True)
class Rows:
    """(line on which it begins, fields under our names) of every row that is as long as the header, and the problems."""

    header: tuple[str, ...]
    rows: list[tuple[int, Mapping[str, str]]]
    problems: list[Problem]


def read_rows(source: str, text: str, theirs: Mapping[str, str], needed: Sequence[str]) -> Rows:
    """Read a table. `theirs` maps our column names to those of the file; `needed` are ours that must be there.

    Raises `RunImportError` for a bad header.
    """
    marked = _SEPARATOR_LINE.match(text)
    top = 1 + bool(marked)
    body = text[marked.end() :] if marked else text
    separator = marked.group(1) if marked else _separator(body, theirs.values())
    reader = csv.reader(io.StringIO(body, newline=""), delimiter=separator)
    try:
        header = tuple(name.strip() for name in next(reader, []))
        if wrong := _header_problem(header, body, theirs, needed):
            raise RunImportError([Problem(source, top, wrong)])
        return _rows_below(source, reader, header, theirs, top)
    except csv.Error as error:
        raise RunImportError([Problem(source, reader.line_num + top - 1, f"is not a CSV file: {error}")]) from error


def _rows_below(source: str, reader: Any, header: tuple[str, ...], theirs: Mapping[str, str], top: int) -> Rows:
    """The rows that `reader` still has; `top` is the line of the header."""
    rows: list[tuple[int, Mapping[str, str]]] = []
    problems: list[Problem] = []
    line = reader.line_num + top
    for cells in reader:
        if any(cell.strip() for cell in cells):
            if len(cells) != len(header):
                problems.append(Problem(source, line, f"{len(cells)} cells, the header has {len(header)}"))
            else:
                given = dict(zip(header, cells, strict=True))
                rows.append((line, {ours: given[name] for ours, name in theirs.items() if name in given}))
        line = reader.line_num + top
    return Rows(header, rows, problems)


def header_of(text: str, names: Iterable[str]) -> tuple[str, ...]:
    """The cells of the first line, by the separator that finds most of `names`; none where it is no line of a table."""
    marked = _SEPARATOR_LINE.match(text)
    body = text[marked.end() :] if marked else text
    return _first_cells(body, marked.group(1) if marked else _separator(body, names))


def _first_cells(text: str, separator: str) -> tuple[str, ...]:
    # Of the first line alone: in a text that is no table a quote may open anywhere, and never close.
    try:
        return tuple(name.strip() for name in next(csv.reader([_first_line(text)], delimiter=separator), []))
    except csv.Error:
        return ()


def _first_line(text: str) -> str:
    return re.split(r"[\r\n]", text, maxsplit=1)[0]


def _separator(text: str, names: Iterable[str]) -> str:
    wanted = set(names)
    return max(SEPARATORS, key=lambda separator: len(wanted.intersection(_first_cells(text, separator))))


def _header_problem(header: Sequence[str], text: str, theirs: Mapping[str, str], needed: Sequence[str]) -> str:
    """What is wrong with a header, in words; empty where nothing is."""
    missing = [theirs[name] for name in needed if theirs[name] not in header]
    if missing:
        many = "s" * (len(missing) > 1)
        return f"missing column{many} {', '.join(missing)}; needed are {', '.join(needed)}{_looks_like(text)}"
    for name in dict.fromkeys(theirs.values()):
        places = [str(place) for place, cell in enumerate(header, 1) if cell == name]
        if len(places) > 1:
            return f"columns {' and '.join(places)} are both called {name}; one of them has to go"
    return ""


def _looks_like(text: str) -> str:
    first = _first_line(text.lstrip())
    if first[:1] in ("{", "["):
        return "; the file looks like JSON, not like a table"
    if first.count("|") > first.count(","):
        return "; columns seem to be separated by |, read are commas, semicolons and tabs"
    return f"; the first line is {first[:80]!r}"


def is_number(text: str) -> bool:
    """Whether a cell reads as a number, also as NaN or an infinity."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def is_no_number(text: str) -> bool:
    """NaN or an infinity, in any spelling of another tool, also as a database of MLflow keeps it."""
    try:
        value = float(text)
    except ValueError:
        return False
    return not math.isfinite(value) or abs(value) >= _INFINITY_IN_SQL


def number(
    fields: Mapping[str, str], name: str, allowed: str, holds: Callable[[float], bool], most: float | None = None
) -> float | None:
    """A number that must hold a condition; None where the cell is empty. Raises `BadValueError`."""
    text = fields.get(name, "").strip().replace("_", "")
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        comma = f"; a comma may be of thousands or of decimals: write {_without_comma(text)}" if "," in text else ""
        raise BadValueError(f"{name}: {_short(text)!r} is not {allowed}{comma}") from None
    if not math.isfinite(value) or not holds(value):
        raise BadValueError(f"{name}: {_short(text)} is not {allowed}")
    top = MOST_OF.get(name, MOST) if most is None else most
    if value > top or 0 < value < LEAST:
        raise BadValueError(f"{name}: {_short(text)} is not {allowed} between {LEAST:g} and {top:g}")
    return value


def _short(text: str) -> str:
    """A cell as a message shows it."""
    return text if len(text) <= LONGEST_CELL else f"{text[:LONGEST_CELL]}..."


def _without_comma(text: str) -> str:
    """What a cell with commas may mean, as it is read: `1000 or 1.000` for `1,000`; in general words where it is no number."""
    meant = [text.replace(",", ""), *([text.replace(",", ".")] if text.count(",") == 1 and "." not in text else ())]
    # Digits in threes are what a comma of thousands has behind it: any other can be of decimals alone.
    if len(meant) > 1 and not re.search(r",\d{3}$", text):
        meant = meant[1:]
    return " or ".join(meant) if all(map(is_number, meant)) else "it without"


def positive(fields: Mapping[str, str], name: str) -> float | None:
    """A number above 0; None where the cell is empty."""
    return number(fields, name, "a positive number", lambda value: value > 0)


def whole(fields: Mapping[str, str], name: str, allowed: str, least: int) -> int | None:
    """A whole number from `least` up; None where the cell is empty."""
    value = number(fields, name, allowed, lambda given: given >= least and given == int(given))
    return None if value is None else int(value)


def choice(fields: Mapping[str, str], name: str, allowed: tuple[str, ...], default: str) -> str:
    """One of the words, or the default where the cell is empty."""
    text = fields.get(name, "").strip().lower() or default
    if text not in allowed:
        raise BadValueError(f"{name}: {_short(text)!r} is not one of {', '.join(allowed)}")
    return text


def word(fields: Mapping[str, str], name: str) -> str:
    """A text that must be there."""
    text = fields.get(name, "").strip()
    if not text:
        raise BadValueError(f"{name}: empty; it is needed")
    return text
