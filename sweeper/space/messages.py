"""What pydantic found wrong with a file, said in the words of this project: given, allowed, where.

One mistake makes one sentence: a misspelt key is not also a missing one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, get_args, get_origin

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from sweeper.space.errors import Problem, choose_from, closest, shown
from sweeper.space.foreign_schema import ForeignSpace
from sweeper.space.schema import AXIS_TAGS, CONSTANT_TAG, RUNGS_TAG, STEPS_TAG, Model, SearchSpace
from sweeper.space.yaml_lines import Document, Location

_AXIS_KEYS = tuple(tag.strip("<>") for tag in AXIS_TAGS)
"""Left out of names: `step_ratio`, not `step_ratio.uniform`."""
_TAGS = (*AXIS_TAGS, CONSTANT_TAG, STEPS_TAG, RUNGS_TAG)

_PHRASES = {
    "int_type": "is not a whole number",
    "int_from_float": "is not a whole number",
    "float_type": "is not a number",
    "finite_number": "is not a finite number",
    "string_type": "is not text; put it in quotes",
    "string_pattern_mismatch": "is not a name of at most 64 letters, digits, dots, dashes and underscores",
    "bool_type": "is neither true nor false",
    "tuple_type": "is not a list; write [a, b]",
    "dict_type": "is not a mapping of keys to values",
    "model_type": "is not a mapping of keys to values",
    "greater_than": "is not greater than {gt:g}",
    "greater_than_equal": "is less than {ge}",
    "less_than": "is not less than {lt:g}",
    "less_than_equal": "is greater than {le}",
    "string_too_short": "is empty",
    "string_too_long": "is longer than {max_length} characters",
    "too_short": "is empty; give at least one value",
    "too_long": "has {actual_length} values; {max_length} are allowed",
}


def label(location: Location) -> str:
    """A place as messages name it: the parameter's name inside an axis, elsewhere the path of keys."""
    if len(location) > 3 and location[0] == "methods" and location[2] == "axes":
        return ".".join(str(part) for part in location[3:] if part not in _AXIS_KEYS and isinstance(part, str))
    return ".".join(str(part) for part in location if isinstance(part, str))


def without_tags(location: Iterable[str | int]) -> Location:
    """A pydantic location without the names of union members, which no file holds."""
    return tuple(part for part in location if part not in _TAGS)


def problems_of(error: ValidationError, document: Document, root: type[Model]) -> tuple[Problem, ...]:
    """The problems of one failed validation of a `root`. Places that could not be read at all were reported before."""
    details = [
        detail
        for detail in error.errors(include_url=False)
        if not any(without_tags(detail["loc"])[: len(place)] == place for place in document.unreadable)
        and not (detail["type"] == "too_short" and detail["input"])  # pydantic counts the sound elements only
    ]
    misspelt = set(_misspelt(details, root))
    return tuple(
        _problem(detail, document, root)
        for detail in details
        if detail["type"] != "missing" or without_tags(detail["loc"]) not in misspelt
    )


def _misspelt(details: list[ErrorDetails], root: type[Model]) -> Iterator[Location]:
    for detail in details:
        if detail["type"] == "extra_forbidden":
            parent, key = detail["loc"][:-1], str(detail["loc"][-1])
            meant = closest(key, _keys_at(parent, root))
            if meant is not None:
                yield (*without_tags(parent), meant)


def _problem(detail: ErrorDetails, document: Document, root: type[Model]) -> Problem:
    location, kind = without_tags(detail["loc"]), detail["type"]
    where = label(location)
    line = document.line_of(location)
    if kind == "extra_forbidden":
        key = str(location[-1])
        name = ".".join(part for part in (label(location[:-1]), key) if part)
        if len(location) == 1 and root is ForeignSpace and key in SearchSpace.model_fields:
            return Problem(line, f"{name}: is for the built-in trainer; beside trainer: it says nothing, leave it out")
        return Problem(line, f"{name}: unknown key; {choose_from(key, _keys_at(detail['loc'][:-1], root))}")
    if kind == "missing" and isinstance(location[-1], int):
        return Problem(document.line_of(location[:-1]), f"{label(location[:-1])}: one value given; write [low, high]")
    if kind == "missing":
        return Problem(line, f"{where}: missing{_described(detail['loc'], root)}")
    phrase = _PHRASES.get(kind, detail["msg"]).format(**detail.get("ctx", {}))
    if kind == "literal_error":
        allowed = re.findall(r"'([^']*)'", str(detail.get("ctx", {}).get("expected", "")))
        phrase = f"is not one of {', '.join(allowed)}"
    given = shown(detail["input"])
    return Problem(line, f"{where}: {given} {phrase}" if where else f"the file {phrase}")


def _keys_at(location: Iterable[str | int], root: type[Model]) -> tuple[str, ...]:
    return tuple(_model_at(location, root).model_fields)


def _described(location: tuple[str | int, ...], root: type[Model]) -> str:
    described = _model_at(location[:-1], root).model_fields[str(location[-1])].description
    return f"; {described[0].lower()}{described[1:].rstrip('.')}" if described else ""


def _model_at(location: Iterable[str | int], root: type[Model]) -> type[Model]:
    """The model whose keys stand at a pydantic location; names inside `methods` and `axes` are passed over."""
    model = root
    is_name = False
    for part in location:
        if is_name:
            # Also one that is a key elsewhere: an arm without its name leaves `budgets` in the name's place.
            is_name = False
        elif part in AXIS_TAGS:
            model = AXIS_TAGS[str(part)]
        elif part in model.model_fields:
            annotation = model.model_fields[str(part)].annotation
            is_name = get_origin(annotation) is dict
            model = next(_models_in(annotation), model)
    return model


def _models_in(annotation: Any) -> Iterator[type[Model]]:
    if isinstance(annotation, type) and issubclass(annotation, Model):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)
