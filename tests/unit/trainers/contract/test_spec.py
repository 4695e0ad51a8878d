"""What a spec refuses, and that its identity holds what changes the result and nothing else."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from tests.support.tiny_training import SHAPE, tiny_spec
from trainers.contract.spec import Optimizer, Schedule, TrialSpec, fingerprint, spec_from_dict, spec_to_dict


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context": 5}, "tokens_per_step: 16 is not a multiple of the context length 5"),
        ({"context": 0}, "not a multiple"),
        ({"validation_tokens": 7}, "7 is less than one context of 8"),
        ({"precision": "fp8"}, "'fp8' is not one of fp32, bf16"),
        (
            {"parameters": (("bag_size", "../x"),)},
            "parameters.bag_size: '../x' is not a whole number from 1 to 1,000,000",
        ),
        ({"parameters": (("bag_size", 10**19),)}, "parameters.bag_size: 10000000000000000000 is not a whole"),
        ({"parameters": (("bag_size", 2.5),)}, "parameters.bag_size: 2.5 is not a whole"),
        ({"parameters": (("bag_size", True),)}, "parameters.bag_size: True is not a whole"),
        ({"parameters": (("step_ratio", ""),)}, "parameters.step_ratio: '' is not in"),
        ({"parameters": (("step_ratio", -1),)}, "parameters.step_ratio: -1 is not in"),
    ],
)
def test_impossible_trials_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_spec(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 0}, "shape.width: 0 is not a positive integer"),
        ({"num_heads": 3, "num_kv_heads": 2}, "2 does not divide num_heads = 3"),
        ({"head_width": 7}, "head_width: 7 is odd"),
        ({"num_experts": 4}, "0 of 4 experts is impossible"),
        ({"num_experts": 2, "experts_per_token": 3}, "3 of 2 experts is impossible"),
    ],
)
def test_impossible_shapes_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SHAPE, **changes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0, 0, 1.0), "negative or empty"),
        ((10, -1, 0, 1.0), "negative or empty"),
        ((10, 6, 5, 1.0), r"10 is shorter than warm-up plus decay \(6 \+ 5\)"),
        ((10, 0, 0, 0.0), "0.0 is not a positive number"),
        ((10, 0, 0, float("inf")), "inf is not a positive number"),
        ((10, 0, 0, float("nan")), "nan is not a positive number"),
    ],
)
def test_impossible_schedules_are_named(arguments: tuple[int, int, int, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Schedule(*arguments)


CHANGES: list[dict[str, Any]] = [
    {"scale": "other"},
    {"shape": replace(SHAPE, width=32)},
    {"method": "baseline", "parameters": ()},
    {"parameters": (("bag_size", 4), ("bag_weighting", "uniform"), ("step_ratio", 0.4))},
    {"corpus_fingerprint": "other"},
    {"tokenizer_fingerprint": "other"},
    {"context": 16},
    {"tokens_per_step": 24},
    {"validation_tokens": 34},
    {"schedule": Schedule(13, 2, 4, 0.01)},
    {"schedule": Schedule(12, 2, 4, 0.02)},
    {"optimizer": Optimizer(beta2=0.99)},
    {"precision": "bf16"},
    {"seed": 1},
    {"numerics": 1},
]


@pytest.mark.parametrize("changes", CHANGES, ids=[" ".join(change) for change in CHANGES])
def test_everything_that_changes_the_result_changes_the_identity(changes: dict[str, Any]) -> None:
    spec = tiny_spec()
    assert replace(spec, **changes).spec_id != spec.spec_id


def test_the_order_of_parameters_is_no_part_of_the_identity() -> None:
    spec = tiny_spec()
    turned = replace(spec, parameters=spec.parameters[::-1])
    assert (turned, turned.spec_id) == (spec, spec.spec_id)


def test_the_identity_of_a_known_trial_never_changes() -> None:
    """Ledgers and published records hold it: a change of this value makes every finished trial a stranger."""
    assert tiny_spec().spec_id == "57d5cecf23a6ad0a"


def test_accessors_default_to_a_run_without_bags() -> None:
    baseline, tst = tiny_spec("baseline", sequences=3), tiny_spec(bag_size=5, step_ratio=0.25)
    assert (baseline.bag_size, baseline.step_ratio, baseline.sequences_per_step) == (1, 0.0, 3)
    assert (tst.bag_size, tst.step_ratio) == (5, 0.25)


def broken(**changes: Any) -> dict[str, Any]:
    return {**spec_to_dict(tiny_spec()), **changes}


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        ({}, "not a trial spec: scale, shape, .* missing"),
        (broken(colour="blue"), "colour"),
        (broken(shape={"width": 3}), "not a trial spec"),
        (broken(schedule=None), "not a trial spec"),
    ],
)
def test_what_is_no_spec_is_refused(plain: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spec_from_dict(plain)


def test_a_spec_survives_json() -> None:
    spec = tiny_spec()
    back: TrialSpec = spec_from_dict(json.loads(json.dumps(spec_to_dict(spec))))
    assert (back, back.spec_id) == (spec, spec.spec_id)


def test_a_fingerprint_ignores_the_order_of_keys_and_holds_no_nan() -> None:
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        fingerprint(float("nan"))
