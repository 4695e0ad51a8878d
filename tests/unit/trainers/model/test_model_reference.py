"""The decoder against a slow form of itself, one head and one position after the other, and its initialisation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.support.tiny_training import CPU, SHAPE
from trainers.contract.flops import count_parameters
from trainers.contract.spec import ModelShape
from trainers.model.decoder import Attention, Decoder, build_model, rotary_table, rotate

SHAPES = [
    SHAPE,
    ModelShape(2, 12, 4, 4, 6, 20, 30),
    ModelShape(1, 16, 4, 2, 4, 8, 30, rope_theta=500.0, norm_epsilon=1e-6, qk_norm=True),
]


def slow_norm(x: Tensor, gain: Tensor, epsilon: float) -> Tensor:
    return x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + epsilon) * gain


def slow_turn(vector: Tensor, position: int, theta: float) -> Tensor:
    half = len(vector) // 2
    turned = vector.clone()
    for i in range(half):
        angle = position * theta ** (-2 * i / len(vector))
        a, b = vector[i], vector[i + half]
        turned[i] = a * math.cos(angle) - b * math.sin(angle)
        turned[i + half] = b * math.cos(angle) + a * math.sin(angle)
    return turned


def slow_attention(attention: Attention, x_LD: Tensor) -> Tensor:
    """One head and one position after the other."""
    shape = attention.shape
    heads, kv, width = shape.num_heads, shape.num_kv_heads, shape.head_width
    joined = (x_LD @ attention.query_key_value.weight.T).view(len(x_LD), heads + 2 * kv, width)
    outputs = torch.zeros(len(x_LD), heads, width, dtype=x_LD.dtype)

    def normed(vector: Tensor, which: str) -> Tensor:
        if not shape.qk_norm:
            return vector
        return slow_norm(vector, getattr(attention, which).weight, shape.norm_epsilon)

    for head in range(heads):
        group = head // (heads // kv)
        for i in range(len(x_LD)):
            query = slow_turn(normed(joined[i, head], "query_norm"), i, shape.rope_theta)
            keys = [slow_turn(normed(joined[j, heads + group], "key_norm"), j, shape.rope_theta) for j in range(i + 1)]
            weights = torch.stack([query @ key / math.sqrt(width) for key in keys]).softmax(0)
            outputs[i, head] = sum(weights[j] * joined[j, heads + kv + group] for j in range(i + 1))
    return outputs.flatten(1) @ attention.output.weight.T


def slow_decoder(model: Decoder, bags_LS: Tensor) -> Tensor:
    epsilon = model.shape.norm_epsilon
    x_LD = torch.stack([sum(model.embedding.weight[token] for token in bag) / len(bag) for bag in bags_LS])
    for block in model.blocks:
        x_LD = x_LD + slow_attention(block.attention, slow_norm(x_LD, block.attention_norm.weight, epsilon))
        y_LD = slow_norm(x_LD, block.mlp_norm.weight, epsilon)
        gate, up = (y_LD @ block.mlp.gate_up.weight.T).chunk(2, -1)
        x_LD = x_LD + (gate * torch.sigmoid(gate) * up) @ block.mlp.down.weight.T
    return slow_norm(x_LD, model.norm.weight, epsilon)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bag", [1, 3])
def test_the_decoder_is_its_slow_form(shape: ModelShape, bag: int) -> None:
    model = build_model(shape, 5, 0, CPU)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():  # gains too: ones would hide a gain that is left out
            parameter.mul_(1 + 0.3 * torch.randn(parameter.shape, generator=generator))
    bags = torch.randint(0, shape.vocab_size, (5, bag), generator=generator)
    fast = model(bags[None])[0]
    slow = slow_decoder(build_double(model), bags)
    torch.testing.assert_close(fast.double(), slow, rtol=1e-4, atol=1e-5)  # float32 against float64


def build_double(model: Decoder) -> Decoder:
    """A float64 twin."""
    twin = Decoder(model.shape, 5).double()
    twin.load_state_dict({name: value.double() for name, value in model.state_dict().items()})
    return twin


def test_attention_sees_distances_and_not_positions() -> None:
    cosine, sine = rotary_table(12, 8, 10_000.0)
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(8, generator=generator), torch.randn(8, generator=generator)
    turned_query, turned_key = rotate(query.expand(12, 8), cosine, sine), rotate(key.expand(12, 8), cosine, sine)
    torch.testing.assert_close(turned_query[5] @ turned_key[2], turned_query[11] @ turned_key[8])
    assert not torch.isclose(turned_query[5] @ turned_key[2], turned_query[5] @ turned_key[3])


def test_qk_norm_is_counted() -> None:
    shape = SHAPES[2]
    assert sum(p.numel() for p in Decoder(shape, 4).parameters()) == count_parameters(shape).total


def test_a_bag_of_one_is_its_embedding_to_the_last_bit() -> None:
    model = build_model(SHAPE, 4, 0, CPU)
    tokens = torch.tensor([[3, 1, 4, 1]])
    assert torch.equal(model.embed(tokens[..., None]), model.embedding.weight[tokens])


def test_order_within_a_bag_does_not_matter_and_order_of_bags_does() -> None:
    model = build_model(SHAPE, 4, 0, CPU)
    bags = torch.tensor([[[1, 2], [3, 4]]])
    torch.testing.assert_close(model(bags.flip(-1)), model(bags))
    assert not torch.allclose(model(bags.flip(1))[0, -1], model(bags)[0, -1])


def test_a_token_twice_in_a_bag_counts_twice() -> None:
    model = build_model(SHAPE, 4, 0, CPU)
    embedding = model.embedding.weight
    torch.testing.assert_close(model.embed(torch.tensor([[[5, 5, 9]]]))[0, 0], (2 * embedding[5] + embedding[9]) / 3)


def test_the_seed_decides_every_weight() -> None:
    first, again, other = (build_model(SHAPE, 4, seed, CPU).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["embedding.weight"], other["embedding.weight"])


def test_the_context_has_no_part_in_the_weights() -> None:
    short, long = (build_model(SHAPE, context, 0, CPU).state_dict() for context in (4, 40))
    assert all(torch.equal(short[name], long[name]) for name in short)


def test_initial_weights_have_the_deviations_that_are_stated() -> None:
    shape = ModelShape(2, 64, 4, 4, 16, 128, 500)
    weights = dict(build_model(shape, 4, 0, CPU).named_parameters())
    expected = {
        "embedding.weight": 1.0,
        "head.weight": 1 / 8,
        "blocks.0.attention.query_key_value.weight": 1 / 8,
        "blocks.1.attention.output.weight": 1 / 8 / 2,
        "blocks.1.mlp.gate_up.weight": 1 / 8,
        "blocks.0.mlp.down.weight": 1 / math.sqrt(128) / 2,
    }
    for name, deviation in expected.items():
        assert float(weights[name].detach().std()) == pytest.approx(deviation, rel=0.05)
    assert bool((weights["norm.weight"] == 1).all())


def test_an_untrained_model_guesses() -> None:
    model = build_model(SHAPE, 8, 0, CPU)
    tokens = torch.randint(0, SHAPE.vocab_size, (16, 8), generator=torch.Generator().manual_seed(0))
    loss = F.cross_entropy(model.head(model(tokens[..., None])).flatten(0, 1), tokens.flatten())
    assert float(loss.detach()) == pytest.approx(math.log(SHAPE.vocab_size) + 0.5, abs=0.5)
