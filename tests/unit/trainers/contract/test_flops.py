"""Parameters and FLOPs by arithmetic, on shapes that a person can count."""

from __future__ import annotations

import pytest

from tests.support.tiny_training import SHAPE
from trainers.contract.flops import count_parameters, flops_per_position
from trainers.contract.spec import ModelShape


def test_parameters_of_one_layer_by_hand() -> None:
    # V=48 D=16, 2 heads and 1 kv head of 8, F=24
    embedding, query, key_value, output, mlp, gains = 48 * 16, 16 * 16, 2 * 16 * 8, 16 * 16, 3 * 16 * 24, 3 * 16
    count = count_parameters(SHAPE)
    assert count.total == 2 * embedding + query + key_value + output + mlp + gains
    assert (count.active, count.embedding) == (count.total, embedding)


def test_flops_of_a_position_by_hand() -> None:
    count = count_parameters(SHAPE)
    without_embedding = 6 * (count.total - 48 * 16)
    attention = 12 * 1 * (2 * 8) * 10 / 2  # layers, attention width, half of a context of 10
    assert flops_per_position(SHAPE, 10) == without_embedding + attention


def test_only_the_experts_in_use_are_active() -> None:
    dense = ModelShape(2, 16, 2, 1, 8, 24, 48)
    mixture = ModelShape(2, 16, 2, 1, 8, 24, 48, num_experts=5, experts_per_token=2)
    expert, router = 3 * 16 * 24, 5 * 16
    base, count = count_parameters(dense), count_parameters(mixture)
    assert count.active == base.total + 2 * (expert + router)
    assert count.total == count.active + 2 * 3 * expert
    assert flops_per_position(mixture, 8) - flops_per_position(dense, 8) == 6 * 2 * (expert + router)


@pytest.mark.parametrize("context", [1, 64, 2_048])
def test_attention_grows_with_the_context_and_nothing_else_does(context: int) -> None:
    assert flops_per_position(SHAPE, 2 * context) - flops_per_position(SHAPE, context) == 12 * 16 * context / 2
