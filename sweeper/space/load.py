"""Reading a search-space file: the way from its text to a `SearchSpace`, or to its mistakes.

`yaml_lines` reads text, `schema` says which keys and types there are, `rules` and `rules_axes` what values
may not mean together, `messages` and `errors` how a mistake is told. Reading a file runs no code.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from sweeper.space.errors import Problem, SearchSpaceError
from sweeper.space.findings import Draft, DraftArm
from sweeper.space.messages import problems_of, without_tags
from sweeper.space.rules import findings
from sweeper.space.schema import AxisOrConstant, Budgets, SearchSpace
from sweeper.space.yaml_lines import Document, Location, Plain, read_yaml

LARGEST_FILE = 1_000_000


def load_search_space(path: Path | str) -> SearchSpace:
    """Read and check a search-space file. Raises `SearchSpaceError` with every mistake, one line each."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise SearchSpaceError(path, [Problem(None, f"cannot be read: {reason}")]) from error
    if len(content) > LARGEST_FILE:
        raise SearchSpaceError(path, [Problem(None, f"is larger than {LARGEST_FILE:,} bytes")])
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise SearchSpaceError(path, [Problem(line, "is not UTF-8 text")]) from error
    return parse_search_space(text, path)


def parse_search_space(text: str, path: Path) -> SearchSpace:
    """Read and check the text of a search-space file; `path` only names it in messages.

    Raises `SearchSpaceError` with every mistake, one line each.
    """
    try:
        document, problems = read_yaml(text)
    except ValueError as error:
        (problem,) = error.args
        raise SearchSpaceError(path, [problem]) from error
    draft, more = _validate(document)
    told = [*problems, *more]
    told += [Problem(document.line_of(finding.location), finding.sentence) for finding in findings(draft)]
    if told:
        raise SearchSpaceError(path, told)
    return draft.space


def _validate(document: Document) -> tuple[Draft, tuple[Problem, ...]]:
    """The space, with what pydantic objects to left out of it."""
    try:
        space = SearchSpace.model_validate(document.value)
    except ValidationError as error:
        places = {without_tags(detail["loc"]) for detail in error.errors(include_url=False)}
        return _draft_without(places, document.value), problems_of(error, document)
    arms = (DraftArm(name, arm.budgets, arm.axes, tuple(arm.axes)) for name, arm in space.methods.items())
    return Draft(space, frozenset(), tuple(arms)), ()


def _draft_without(places: set[Location], value: Plain) -> Draft:
    """What is sound of a file's values when pydantic objects to `places`."""
    plain = _mapping(value)
    broken = {key for key in SearchSpace.model_fields if not _sound((key,), places)}
    if () in places:
        broken = set(SearchSpace.model_fields)
    elif not isinstance(plain.get("methods"), Mapping):
        broken.add("methods")
    else:
        broken.discard("methods")
    sound: dict[str, Any] = {
        key: _checked(field.annotation, plain[key])
        for key, field in SearchSpace.model_fields.items()
        if key in plain and key not in broken and key != "methods"
    }
    arms = _mapping(plain.get("methods")).items()
    return Draft(
        SearchSpace.model_construct(**sound),
        frozenset(broken),
        tuple(_arm_without(places, name, arm) for name, arm in arms),
    )


def _arm_without(places: set[Location], name: str, value: Plain) -> DraftArm:
    place, arm = ("methods", name), _mapping(value)
    axes = _mapping(arm.get("axes"))
    return DraftArm(
        name,
        _checked(Budgets, arm["budgets"]) if "budgets" in arm and _sound((*place, "budgets"), places) else None,
        {
            axis: _checked(AxisOrConstant, given)
            for axis, given in axes.items()
            if _sound((*place, "axes", axis), places)
        },
        tuple(axes),
    )


def _sound(place: Location, places: set[Location]) -> bool:
    return not any(other[: len(place)] == place for other in places)


def _checked(annotation: Any, value: Plain) -> Any:
    return TypeAdapter(annotation).validate_python(value)


def _mapping(value: Plain) -> Mapping[str, Plain]:
    return value if isinstance(value, Mapping) else {}
