"""Reading a search-space file: the way from its text to a `SearchSpace`, or to its mistakes.

`yaml_lines` reads text, `schema` says which keys and types there are, `rules` (for another trainer `foreign_rules`) what
values may not mean together, `messages` and `errors` how a mistake is told. Reading a file runs no code.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from sweeper.space.errors import Problem, SearchSpaceError
from sweeper.space.foreign_rules import FOREIGN_RULES
from sweeper.space.foreign_schema import AnySpace, Command, ForeignSpace
from sweeper.space.messages import label, problems_of, without_tags
from sweeper.space.rules import RULES, SoundArm, findings
from sweeper.space.schema import Axis, AxisOrConstant, Budgets, Scalar, SearchSpace, Space
from sweeper.space.yaml_lines import Location, Plain, read_yaml
from trainers.contract.errors import InputError

LARGEST_FILE = 1_000_000
_AXIS: TypeAdapter[Axis | Scalar] = TypeAdapter(AxisOrConstant)
_COMMAND: TypeAdapter[tuple[str, ...] | None] = TypeAdapter(Command | None)


def load_search_space(path: Path | str) -> AnySpace:
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
    return parse_search_space(text, path, path.parent)


def load_own_space(path: Path | str) -> SearchSpace:
    """The same for what only the built-in trainer can do. Raises `InputError` for a file of another trainer, too."""
    space = load_search_space(path)
    if not isinstance(space, SearchSpace):
        raise InputError(f"{path}: trainer: this is for the built-in trainer, and the file has one of its own")
    return space


def parse_search_space(text: str, path: Path, folder: Path | None = None) -> AnySpace:
    """Read and check the text of a search-space file; `path` only names it in messages. What it says of files is checked
    where their `folder` is given.

    Raises `SearchSpaceError` with every mistake, one line each.
    """
    try:
        document, problems = read_yaml(text)
    except ValueError as error:
        (problem,) = error.args
        raise SearchSpaceError(path, [problem]) from error
    foreign = isinstance(document.value, Mapping) and "trainer" in document.value
    root: type[SearchSpace | ForeignSpace] = ForeignSpace if foreign else SearchSpace
    unsound: set[Location] = set()
    space = None
    try:
        space = root.model_validate(document.value)
    except ValidationError as error:
        problems = (*problems, *problems_of(error, document, root))
        unsound = {without_tags(detail["loc"]) for detail in error.errors(include_url=False)}
    sound = _sound_parts(document.value, unsound, root)
    if foreign:
        found = findings({**sound, **({} if folder is None else {"folder": folder})}, FOREIGN_RULES)
    else:
        found = findings(sound, RULES)
    problems = (*problems, *(Problem(document.line_of(place), f"{label(place)}: {said}") for place, said in found))
    if problems or space is None:
        raise SearchSpaceError(path, problems)
    return space


def refusal(path: Path, place: Location, said: str) -> SearchSpaceError:
    """The mistake of a file that could be read, which only the machine that is to run it finds."""
    document, _ = read_yaml(path.read_text("utf-8-sig"))
    return SearchSpaceError(path, [Problem(document.line_of(place), f"{label(place)}: {said}")])


def _sound_parts(value: Plain, unsound: set[Location], root: type[Space]) -> dict[str, Any]:
    """Every top-level key that pydantic does not object to, checked, or its default where the file leaves it out. Of
    `methods` each arm is there, as far as it is sound."""
    if not isinstance(value, Mapping):
        return {}
    parts: dict[str, Any] = {}
    for key, field in root.model_fields.items():
        if key == "methods":
            if isinstance(arms := value.get(key), Mapping):
                parts[key] = {name: _sound_arm(name, _mapping(arm), unsound) for name, arm in arms.items()}
        elif key not in value and not field.is_required():
            parts[key] = field.default
        elif key in value and _is_sound((key,), unsound):
            annotation: Any = field.annotation
            parts[key] = TypeAdapter(annotation).validate_python(value[key])
    return parts


def _sound_arm(name: str, arm: Mapping[str, Plain], unsound: set[Location]) -> SoundArm:
    place = ("methods", name)
    budgets = "budgets" in arm and _is_sound((*place, "budgets"), unsound)
    return SoundArm(
        Budgets.model_validate(arm["budgets"]) if budgets else None,
        {
            axis: _AXIS.validate_python(given) if _is_sound((*place, "axes", axis), unsound) else None
            for axis, given in _mapping(arm.get("axes")).items()
        },
        _COMMAND.validate_python(arm["command"])
        if "command" in arm and _is_sound((*place, "command"), unsound)
        else None,
    )


def _is_sound(place: Location, unsound: set[Location]) -> bool:
    return all(other[: len(place)] != place for other in unsound)


def _mapping(value: Plain) -> Mapping[str, Plain]:
    return value if isinstance(value, Mapping) else {}
