"""Files and messages back into values, with strict types: a text becomes plain JSON values, these become a dataclass.

A file may be cut, edited or of another program. Whatever does not fit is one line that names the place and the type;
nothing is converted, guessed or dropped. The library is msgspec: one wheel without dependencies, so that a bare machine
needs no more than it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from functools import cache
from typing import Any, TypeVar, get_type_hints

from trainers.contract.errors import InputError

Value = TypeVar("Value")


def json_value(text: str | bytes, what: str = "JSON") -> Any:
    """The plain values of a JSON text. Raises `InputError` for anything else, numbers that JSON lacks among it."""
    import msgspec

    try:
        return msgspec.json.decode(text.encode() if isinstance(text, str) else text)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise InputError(f"not {what}: {_said(error)}") from None


def value_of(kind: type[Value], plain: Any, what: str, **ready: Any) -> Value:
    """The dataclass `kind` from its plain JSON values, where a list may stand for a tuple.

    Keys have to be those of its fields, types theirs; a whole number is a `float`, too, and true is no `int`. Fields with a
    default may be missing. `ready` are fields that are values already. Raises `InputError` beginning with `not {what}`.
    """
    import msgspec

    if not isinstance(plain, Mapping):
        raise InputError(f"not {what}: {_type_name(plain)} instead of an object")
    described: Any = kind
    of_name, hints = _fields_of(described)
    unknown = [str(name) for name in plain if name not in of_name or name in ready]
    if unknown:
        raise InputError(f"not {what}: unknown {', '.join(sorted(unknown))}")
    missing = [name for name, field in of_name.items() if _needed(field) and name not in plain and name not in ready]
    if missing:
        raise InputError(f"not {what}: {', '.join(missing)} missing")
    values = {}
    for name, value in plain.items():
        try:
            values[name] = msgspec.convert(value, hints[name])
            _refuse_dropped(value, msgspec.to_builtins(values[name]), name)
        except (msgspec.ValidationError, RecursionError, ValueError) as error:
            raise InputError(f"not {what}: {name}: {_said(error)}") from None
    try:
        return kind(**values, **ready)
    except (TypeError, ValueError) as error:
        raise InputError(f"not {what}: {_said(error)}") from None


@cache
def _fields_of(kind: Any) -> tuple[Mapping[str, Field[Any]], Mapping[str, Any]]:
    return {field.name: field for field in fields(kind) if field.init}, get_type_hints(kind)


def _needed(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _refuse_dropped(given: Any, kept: Any, where: str) -> None:
    """Raise `ValueError` for a key that the conversion has left out: msgspec ignores what a dataclass lacks.

    A record of a later version would otherwise read as another trial's.
    """
    if isinstance(given, Mapping) and isinstance(kept, Mapping):
        if unknown := [str(key) for key in given if key not in kept]:
            raise ValueError(f"unknown {', '.join(sorted(unknown))} in {where}")
        for key, value in given.items():
            if isinstance(value, dict | list):
                _refuse_dropped(value, kept[key], f"{where}.{key}")
    elif isinstance(given, list) and isinstance(kept, list | tuple):
        for index, (value, other) in enumerate(zip(given, kept, strict=False)):
            if isinstance(value, dict | list):
                _refuse_dropped(value, other, f"{where}[{index}]")


def pairs_of(plain: Any, what: str) -> list[list[Any]]:
    """A JSON object as the sorted pairs that a frozen dataclass holds it as. Raises `InputError` for another value."""
    if not isinstance(plain, Mapping):
        raise InputError(f"not {what}: {_type_name(plain)} instead of an object")
    return [[name, plain[name]] for name in sorted(plain)]


def _type_name(plain: Any) -> str:
    return {type(None): "null", list: "a list", str: "a text", bool: "true or false"}.get(type(plain), "a number")


def _said(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
