"""Files that others may have touched: whatever stands in any place of them is read equal, or is one line of a `UserError`."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeper.ledger.about import about_from_dict, about_to_dict
from sweeper.lock import LOCK, current_driver
from tests.support import small
from tests.support.ledger_factory import about_of
from tests.support.strategies import record_of
from tests.support.tiny_training import tiny_spec
from trainers.contract.errors import UserError
from trainers.contract.reading import json_value, value_of
from trainers.contract.record import record_from_dict, record_to_dict
from trainers.contract.record_lines import read_records, records_to_text
from trainers.contract.schedule import LATER
from trainers.contract.spec import ModelShape, fingerprint, plain_of, spec_from_dict, spec_to_dict
from trainers.data.manifest import MANIFEST_FILE, read_manifest

Value = TypeVar("Value")
STRANGE = st.sampled_from(
    [None, True, False, 0, -1, 2, 10**19, 10**400, 0.5, -1e308, 1e300, "", "0", "NaN", [], [1], {}, {"a": 1}, [[[]]]]
)


def places(plain: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value inside `plain`."""
    yield at
    if isinstance(plain, dict | list):
        for key in plain if isinstance(plain, dict) else range(len(plain)):
            yield from places(plain[key], (*at, key))


def changed(plain: Any, at: tuple[Any, ...], value: Any) -> Any:
    if not at:
        return value
    made = copy.deepcopy(plain)
    inner = made
    for key in at[:-1]:
        inner = inner[key]
    inner[at[-1]] = value
    return made


def read_or_refused(read: Callable[[], Value]) -> Value | None:
    """What was read; None where that was refused as it should be, in one line."""
    try:
        return read()
    except UserError as error:
        said = str(error)
    assert said
    assert "\n" not in said
    return None


def damaged(draw: st.DataObject, plain: Any) -> Any:
    """One value of `plain` replaced by a strange one, or a strange key added."""
    at = draw.draw(st.sampled_from(list(places(plain))))
    return changed(plain, at, draw.draw(STRANGE))


RECORD = json.loads(json.dumps(record_to_dict(record_of(tiny_spec()))))
ABOUT = json.loads(json.dumps(about_to_dict(about_of("x"))))


@settings(max_examples=300)
@given(data=st.data())
def test_a_damaged_record_is_read_as_it_stands_or_refused_in_one_line(data: st.DataObject) -> None:
    plain = damaged(data, RECORD)
    record = read_or_refused(lambda: record_from_dict(plain))
    if record is not None:
        back = json.loads(json.dumps(record_to_dict(record)))
        assert record_from_dict(back) == record
        assert back == plain or plain["spec"]["optimizer"] == {}, "defaults may be left out"
        assert len(record.spec.spec_id) == 16


@settings(max_examples=200)
@given(data=st.data())
def test_so_is_a_damaged_description_of_a_sweep(data: st.DataObject) -> None:
    plain = damaged(data, ABOUT)
    found = read_or_refused(lambda: about_from_dict(plain))
    assert found is None or json.loads(json.dumps(about_to_dict(found))) == plain


@settings(max_examples=100)
@given(text=st.text(max_size=40) | st.just("[" * 10_000) | st.just("NaN") | st.just("1e999") | st.just('{"a":' * 5_000))
def test_any_text_is_json_or_one_line(text: str) -> None:
    value = read_or_refused(lambda: json_value(text))
    assert value is None or value == json.loads(text)


@settings(max_examples=100)
@given(data=st.data())
def test_a_strange_lock_is_nobody_s(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("lock")
    plain = damaged(data, {"host": "elsewhere", "pid": 1, "started": 1.0})
    (folder / LOCK).write_text(json.dumps(plain))
    driver = current_driver(folder)
    assert driver is None or isinstance(plain["host"], str)


@settings(max_examples=60)
@given(data=st.data())
def test_a_manifest_says_what_its_files_hold_or_is_refused(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("corpus")
    home = small.corpus().directory
    for file in home.iterdir():
        (folder / file.name).symlink_to(file)
    plain = json.loads((home / MANIFEST_FILE).read_text())
    strange = damaged(data, plain)
    (folder / MANIFEST_FILE).unlink()
    (folder / MANIFEST_FILE).write_text(json.dumps(strange))
    manifest = read_or_refused(lambda: read_manifest(folder))
    if manifest is not None:
        for name in ("train_tokens", "validation_tokens", "train_documents", "validation_documents"):
            assert getattr(manifest, name) == strange[name] == plain[name]


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (("provenance", "versions"), {"torch": None}),
        (("provenance", "started_at"), 0),
        (("spec", "seed"), []),
        (("spec", "scale"), 0),
        (("spec", "scale"), []),
        (("curve", "points", 0, "seconds"), 10**19),
        (("timing", "devices"), 0),
        (("spec", "shape", "width"), True),
        (("spec", "shape", "colour"), "blue"),
        ((), []),
    ],
    ids=str,
)
def test_a_bad_line_of_records_is_named_and_the_others_are_not_taken(
    tmp_path: Path, at: tuple[Any, ...], value: Any
) -> None:
    file = tmp_path / "records.jsonl"
    good = records_to_text([record_of(tiny_spec())])
    file.write_text(good + json.dumps(changed(RECORD, at, value)) + "\n")
    with pytest.raises(UserError, match=r"^records\.jsonl:2: [^\n]+$"):
        read_records(file)


def test_a_record_without_later_fields_is_read() -> None:
    plain = copy.deepcopy(RECORD)
    for name in ("rope_theta", "norm_epsilon", "qk_norm", "num_experts", "experts_per_token"):
        del plain["spec"]["shape"][name]
    assert record_from_dict(plain).spec.shape.rope_theta == ModelShape(1, 8, 1, 1, 8, 8, 8).rope_theta


@dataclass(frozen=True, slots=True)
class Grown:
    """A value that has got a field."""

    width: int
    tied: bool = field(default=False, metadata={LATER: True})


def test_a_later_field_at_its_default_moves_no_identity() -> None:
    assert fingerprint(plain_of(Grown(8))) == fingerprint({"width": 8})
    assert fingerprint(plain_of(Grown(8, tied=True))) == fingerprint({"width": 8, "tied": True})
    assert value_of(Grown, {"width": 8}, "a value") == Grown(8)
    assert spec_to_dict(tiny_spec())["shape"]["qk_norm"] is False, "what was always there stays"
    assert spec_from_dict(spec_to_dict(tiny_spec())) == tiny_spec()
