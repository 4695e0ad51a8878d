"""YAML text to plain values, with the line on which each value stands. Nothing in a file can run code.

Only text, numbers, true/false, null, lists and mappings exist; every other tag is refused. Plain words are read as in
YAML 1.2: `1e-3` is a number, `no` is a word, `2026-05-07` is a word. Aliases (`*name`) are allowed, so that two arms
can share one axis, and expansion is bounded. What the values mean is left to `schema` and `rules`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field

import yaml

from sweeper.space.errors import Problem

Plain = int | float | str | bool | None | tuple["Plain", ...] | Mapping[str, "Plain"]
Location = tuple[str | int, ...]
"""Keys and list positions from the top of the file."""

MOST_VALUES = 10_000
DEEPEST = 20
_BREAKS = {ord("\n"): None, ord("\t"): None}


class _Loader(yaml.SafeLoader):
    """PyYAML's safe scanner, parser and composer, with the plain words of YAML 1.2."""

    yaml_implicit_resolvers = {}  # noqa: RUF012


_TAG = "tag:yaml.org,2002:"
_Loader.add_implicit_resolver(_TAG + "bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver(_TAG + "null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver(_TAG + "int", re.compile(r"^[-+]?[0-9]+(?:_[0-9]+)*$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    _TAG + "float",
    re.compile(
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+.0123456789"),
)


@dataclass(frozen=True, slots=True)
class Document:
    """A file's values. `lines` holds, from 1, where each key or list element is written; `unreadable` are the
    locations that a problem was reported for, and that hold None instead."""

    value: Plain
    lines: Mapping[Location, int]
    unreadable: frozenset[Location] = frozenset()

    def line_of(self, location: Location) -> int:
        """Line of a location, or of the nearest thing around it that exists."""
        while location not in self.lines:
            location = location[:-1]
        return self.lines[location]


def read_yaml(text: str) -> tuple[Document, tuple[Problem, ...]]:
    """Read one document. The problems are those that leave the rest readable (a key given twice, a foreign tag).

    Raises `ValueError` with one `Problem` as its argument when the text is not YAML at all.
    """
    try:
        root = yaml.compose(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        begun = error.context_mark.line + 1 if error.context_mark else line
        context = f"{error.context} that begins on line {begun}" if error.context and begun != line else error.context
        said = ", ".join(part for part in (context, error.problem) if part)
        raise ValueError(Problem(line, f"not valid YAML: {said}")) from error
    except yaml.YAMLError as error:
        raise ValueError(Problem(_line_of_bad_character(text, error), f"not valid YAML: {error}")) from error
    except RecursionError as error:
        raise ValueError(Problem(1, f"nested deeper than {DEEPEST} levels")) from error
    except (ValueError, OverflowError) as error:  # PyYAML lets an escape beyond Unicode through
        raise ValueError(Problem(1, f"not valid YAML: {error}")) from error
    if root is None:
        raise ValueError(Problem(1, "the file is empty; it needs at least name, question, scales, methods and search"))
    reader = _Reader()
    value = reader.read(root, (), root.start_mark.line + 1)
    return Document(value, reader.lines, frozenset(reader.unreadable)), tuple(reader.problems)


def _line_of_bad_character(text: str, error: yaml.YAMLError) -> int:
    position = getattr(error, "position", 0)
    return text.count("\n", 0, position) + 1


@dataclass(slots=True)
class _Reader:
    """Walks composed nodes once, collecting lines and problems."""

    lines: dict[Location, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    unreadable: set[Location] = field(default_factory=set)
    count: int = 0

    def read(self, node: yaml.Node, location: Location, line: int) -> Plain:
        self.lines[location] = line
        self.count += 1
        if self.count > MOST_VALUES:
            raise ValueError(Problem(line, f"the file expands to more than {MOST_VALUES:,} values"))
        if len(location) > DEEPEST:
            raise ValueError(Problem(line, f"nested deeper than {DEEPEST} levels"))
        if node.tag == _TAG + "map" and isinstance(node, yaml.MappingNode):
            return self._mapping(node, location)
        if node.tag == _TAG + "seq" and isinstance(node, yaml.SequenceNode):
            return tuple(
                self.read(child, (*location, index), child.start_mark.line + 1)
                for index, child in enumerate(node.value)
            )
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, location, line)
        self.unreadable.add(location)
        self.problems.append(Problem(line, f"tag {_short(node.tag)} is not allowed; only plain values are read"))
        return None

    def _mapping(self, node: yaml.MappingNode, location: Location) -> Mapping[str, Plain]:
        values: dict[str, Plain] = {}
        for key, child in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                self.problems.append(Problem(line, "a key that is a list or a mapping; keys are words"))
                continue
            name = str(key.value)
            if name in values:
                first = self.lines[(*location, name)]
                self.problems.append(Problem(line, f"{name}: given twice; first on line {first}"))
                continue
            values[name] = self.read(child, (*location, name), line)
        return values

    def _scalar(self, node: yaml.ScalarNode, location: Location, line: int) -> Plain:
        text: str = node.value
        try:
            match node.tag.removeprefix(_TAG):
                case "str":
                    if any(unicodedata.category(character) in ("Cc", "Cs") for character in text.translate(_BREAKS)):
                        raise ValueError(f"{text!r} holds a control character")
                    return text
                case "int":
                    return int(text)
                case "float":
                    return float(re.sub(r"\.(?=inf|nan)", "", text.lower()))
                case "bool":
                    return {"true": True, "false": False}[text.lower()]
                case "null":
                    return None
                case tag:
                    raise ValueError(f"tag {_short(tag)} is not allowed; only plain values are read")
        except (ValueError, KeyError) as error:
            said = str(error) if isinstance(error, ValueError) else f"{text!r} is not true or false"
            self.unreadable.add(location)
            self.problems.append(Problem(line, said))
            return None


def _short(tag: str) -> str:
    return "!!" + tag.removeprefix(_TAG) if tag.startswith(_TAG) else tag
