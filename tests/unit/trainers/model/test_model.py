"""The decoder's parts against their definitions, and every scale's size against the model that is built from it."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.support import small
from trainers.contract.flops import count_parameters
from trainers.contract.scales import SCALES
from trainers.model.decoder import Attention, Decoder, build_model, initialise, rotary_table, rotate
from trainers.superposition import mean_of_bags

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", SCALES)
def test_parameter_count_of_a_scale_is_that_of_its_model(name: str) -> None:
    shape = SCALES[name].shape
    with torch.device("meta"):
        model = Decoder(shape, context=64)
    count = count_parameters(shape)
    assert sum(parameter.numel() for parameter in model.parameters()) == count.total
    assert model.embedding.weight.numel() == count.embedding


def test_mixture_of_experts_has_its_published_sizes() -> None:
    count = count_parameters(SCALES["10b-a1b"].shape)
    assert count.total == pytest.approx(10e9, rel=0.05)
    assert count.active == pytest.approx(1e9, rel=0.05)


@pytest.mark.parametrize(("name", "published"), [("270m", 0.27e9), ("600m", 0.6e9), ("3b", 3e9)])
def test_dense_scales_have_about_their_published_sizes(name: str, published: float) -> None:
    assert count_parameters(SCALES[name].shape).total == pytest.approx(published, rel=0.12)


def turned_before_the_transposition(attention: Attention, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Attention with the heads in front of the positions from the start, queries and keys turned together."""
    shape = attention.shape
    heads, kv_heads, (batch, length, _) = shape.num_heads, shape.num_kv_heads, x.shape
    joined = attention.query_key_value(x).view(batch, length, heads + 2 * kv_heads, shape.head_width).transpose(1, 2)
    turning, value = joined.split((heads + kv_heads, kv_heads), dim=1)
    if shape.qk_norm:
        query, key = turning.split((heads, kv_heads), dim=1)
        turning = torch.cat((attention.query_norm(query), attention.key_norm(key)), dim=1)
    query, key = rotate(turning, cosine, sine).split((heads, kv_heads), dim=1)
    mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=heads != kv_heads)
    return attention.output(mixed.transpose(1, 2).reshape(batch, length, heads * shape.head_width))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", ["pico", "25m", "nano-moe"])
def test_the_layout_in_which_positions_are_turned_changes_no_bit(scale: str, dtype: torch.dtype) -> None:
    """With grouped queries and with normalised ones; the weights' gradients too."""
    shape = SCALES[scale].shape
    attention = build_model(shape, 32, 0, CPU).blocks[0].attention.to(dtype)
    cosine, sine = rotary_table(32, shape.head_width, shape.rope_theta)
    x = torch.randn(3, 32, shape.width, dtype=dtype)
    weights = list(attention.parameters())
    found = [form(x, cosine, sine) for form in (attention, partial(turned_before_the_transposition, attention))]
    assert torch.equal(*found)
    ours, theirs = (torch.autograd.grad(out.float().square().sum(), weights) for out in found)
    for got, want in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-2)


def test_rotation_is_a_complex_product_that_depends_on_distance_alone() -> None:
    cosine_LE, sine_LE = rotary_table(16, 8, 10_000.0)
    x_LE = torch.randn(16, 8)
    turned = rotate(x_LE, cosine_LE, sine_LE)
    angle = torch.outer(torch.arange(16.0), 10_000.0 ** (-torch.arange(0, 8, 2) / 8))
    exact = torch.complex(x_LE[:, :4], x_LE[:, 4:]) * torch.polar(torch.ones_like(angle), angle)
    torch.testing.assert_close(turned, torch.cat((exact.real, exact.imag), -1), rtol=1e-5, atol=1e-5)
    same = torch.randn(8)
    scores = rotate(same.expand(16, 8), cosine_LE, sine_LE) @ rotate(same.expand(16, 8), cosine_LE, sine_LE).T
    torch.testing.assert_close(scores[3, 1], scores[12, 10], rtol=1e-4, atol=1e-4)


def test_a_bag_is_the_mean_of_its_embeddings_and_order_in_it_does_not_matter() -> None:
    model = build_model(small.SHAPE, 8, 0, CPU)
    tokens = torch.randint(0, small.SHAPE.vocab_size, (1, 8, 4))
    embedded = model.embed(tokens)
    torch.testing.assert_close(embedded[0, 0], model.embedding.weight[tokens[0, 0]].mean(0))
    torch.testing.assert_close(model(tokens), model(tokens.flip(-1)), rtol=1e-4, atol=1e-5)


def test_initial_weights_depend_on_the_seed_alone() -> None:
    first, second, other = (build_model(small.SHAPE, 8, seed, CPU) for seed in (3, 3, 4))
    pairs = list(zip(first.parameters(), second.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert any(not torch.equal(a, c) for a, _, c in pairs)
    torch.manual_seed(0)
    initialise(second, 3)
    assert all(torch.equal(a, b) for a, b, _ in pairs)


def test_an_untrained_model_guesses() -> None:
    """Its loss is near that of a uniform guess, so that the first steps do not undo an initial opinion."""
    from tests.support.tiny_training import validation_loss

    model = build_model(small.SHAPE, 8, 0, CPU)
    loss = validation_loss(model, small.corpus().validation(257), 8, CPU)
    assert loss == pytest.approx(torch.log(torch.tensor(float(small.SHAPE.vocab_size))).item(), rel=0.12)


@pytest.mark.parametrize("bag", [1, 3, 16])
def test_the_table_s_gradient_is_torch_s_in_float32_and_is_rounded_once_in_bfloat16(bag: int) -> None:
    generator = torch.Generator().manual_seed(bag)
    tokens = torch.randint(0, 9, (4, 10, bag), generator=generator)
    grad = torch.randn(4, 10, 6, generator=generator)

    def ours(table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        table = table.clone().requires_grad_()
        mean = mean_of_bags(tokens, table)
        mean.backward(grad.to(table.dtype))
        assert table.grad is not None
        return mean.detach(), table.grad

    table = torch.randn(12, 6, generator=generator).requires_grad_()
    mean = torch.nn.functional.embedding(tokens, table).mean(-2)
    mean.backward(grad)
    assert table.grad is not None
    if bag == 1:
        assert torch.equal(ours(table.detach())[0], mean)
    torch.testing.assert_close(ours(table.detach())[0], mean, rtol=1e-6, atol=1e-6)
    assert torch.equal(ours(table.detach())[1], table.grad)
    share = (grad.bfloat16().float() / bag).bfloat16().float()
    exact = torch.zeros(12, 6).index_add_(0, tokens.flatten(), share.flatten(0, 1).repeat_interleave(bag, 0))
    assert torch.equal(ours(table.detach().bfloat16())[1], exact.bfloat16())
