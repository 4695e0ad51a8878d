"""From a choice of the search to a trial's spec."""

from __future__ import annotations

from typing import Any

import pytest

from sweeper.space.load import load_own_space
from sweeper.space.schema import Scalar
from sweeper.space.trials import make_spec
from tests.support.places import SHIPPED
from trainers.contract.spec import Optimizer, TrialSpec

SPACE = load_own_space(SHIPPED / "tst-270m.yaml")
TST: dict[str, Scalar] = {"bag_size": 6, "step_ratio": 0.3, "bag_weighting": "uniform", "learning_rate": 0.002}


def make(**changes: Any) -> TrialSpec:
    given: dict[str, Any] = {
        "scale": "270m",
        "method": "tst",
        "parameters": TST,
        "total_steps": 20_000,
        "seed": 1_000,
        "corpus_fingerprint": "corpus",
        "tokenizer_fingerprint": "tokenizer",
        "vocab_size": 128_256,
    }
    return make_spec(SPACE, **(given | changes))


def test_a_spec_says_what_the_space_and_the_choice_say() -> None:
    spec = make(vocab_size=1_024)
    assert spec.parameters == (("bag_size", 6), ("bag_weighting", "uniform"), ("step_ratio", 0.3))
    assert (spec.context, spec.tokens_per_step, spec.validation_tokens) == (2_048, 2_097_152, 10_485_760)
    assert (spec.schedule.total_steps, spec.schedule.warmup_steps, spec.schedule.decay_steps) == (20_000, 2_000, 2_000)
    assert spec.schedule.learning_rate == 0.002
    assert (spec.shape.vocab_size, spec.shape.width, spec.shape.num_layers) == (1_024, 576, 30)
    assert spec.optimizer == Optimizer(0.9, 0.95, 1e-8, 0.1, 1.0)
    assert (spec.scale, spec.method, spec.seed, spec.precision) == ("270m", "tst", 1_000, "bf16")
    assert (spec.corpus_fingerprint, spec.tokenizer_fingerprint) == ("corpus", "tokenizer")


def test_the_baseline_has_no_parameter_of_its_own() -> None:
    assert make(method="baseline", parameters={"learning_rate": 0.001}).parameters == ()


def test_spelling_and_order_of_numbers_do_not_change_a_trial() -> None:
    whole: dict[str, Scalar] = {"learning_rate": 1, "step_ratio": 1, "bag_size": 6, "bag_weighting": "uniform"}
    real: dict[str, Scalar] = {"bag_weighting": "uniform", "bag_size": 6, "step_ratio": 1.0, "learning_rate": 1.0}
    assert make(parameters=whole).spec_id == make(parameters=real).spec_id


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"scale": "270M"}, "scale: '270M' is not one of"),
        ({"method": "magic"}, "method: 'magic' is not one of"),
        ({"parameters": {"bag_size": 6}}, "learning_rate: missing"),
        ({"parameters": {"learning_rate": 0.002}}, "parameters"),
        ({"parameters": {**TST, "patch_size": 2}}, "parameters"),
        ({"parameters": {**TST, "bag_size": 2.5}}, "bag_size: 2.5 is not a whole number"),
        ({"parameters": {**TST, "bag_size": True}}, "bag_size: True is not a whole number"),
        ({"parameters": {**TST, "step_ratio": "half"}}, "step_ratio: 'half' is not a number"),
        ({"parameters": {**TST, "step_ratio": 1.4}}, r"step_ratio: 1.4 is not in \[0, 1\]"),
        ({"parameters": {**TST, "bag_weighting": "equal"}}, "bag_weighting: 'equal' is not one of"),
        ({"parameters": {**TST, "learning_rate": 0}}, "learning_rate: 0.0 is not a positive number"),
        ({"total_steps": 2_100}, "shorter than warm-up plus decay"),
    ],
)
def test_an_impossible_choice_is_refused_by_name(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make(**changes)
