"""The table of model sizes against what was published, and in an order that a sweep can climb."""

from __future__ import annotations

import pytest

from trainers.contract.flops import count_parameters
from trainers.contract.scales import LLAMA3_VOCABULARY, QWEN3_VOCABULARY, SCALES


@pytest.mark.parametrize(
    ("name", "layers", "width", "heads", "kv_heads", "mlp"),
    [
        ("270m", 30, 576, 9, 3, 1_536),
        ("600m", 32, 960, 15, 5, 2_560),
        ("3b", 36, 2_048, 16, 4, 11_008),
    ],
)
def test_published_shapes(name: str, layers: int, width: int, heads: int, kv_heads: int, mlp: int) -> None:
    shape = SCALES[name].shape
    assert (shape.num_layers, shape.width, shape.num_heads) == (layers, width, heads)
    assert (shape.num_kv_heads, shape.mlp_width, shape.vocab_size) == (kv_heads, mlp, LLAMA3_VOCABULARY)


def test_published_shapes_have_the_rotary_base_and_epsilon_of_their_families() -> None:
    """SmolLM2-135M and 360M, SmolLM3-3B, Qwen3; the rows that are ours keep the defaults."""
    found = {name: (scale.shape.rope_theta, scale.shape.norm_epsilon) for name, scale in SCALES.items()}
    published = {"270m": (1e5, 1e-5), "600m": (1e5, 1e-5), "3b": (5e6, 1e-6), "10b-a1b": (1e6, 1e-6)}
    assert found == {**dict.fromkeys(SCALES, (1e4, 1e-5)), **published}


@pytest.mark.parametrize(("name", "millions"), [("270m", 254), ("600m", 561), ("3b", 3_338)])
def test_published_sizes(name: str, millions: float) -> None:
    """Untied embeddings of 128,256 tokens: the names are the paper's round figures."""
    assert count_parameters(SCALES[name].shape).total / 1e6 == pytest.approx(millions, rel=0.01)


def test_the_mixture_of_experts_has_ten_billion_parameters_and_one_active() -> None:
    count = count_parameters(SCALES["10b-a1b"].shape)
    assert count.total == pytest.approx(10e9, rel=0.05)
    assert count.active == pytest.approx(1e9, rel=0.05)
    assert SCALES["10b-a1b"].shape.vocab_size == QWEN3_VOCABULARY


def test_scales_rise_in_size_and_say_where_they_come_from() -> None:
    sizes = [count_parameters(scale.shape).total for scale in SCALES.values()]
    assert sizes == sorted(sizes)
    assert all(scale.origin and scale.name == name for name, scale in SCALES.items())


def test_the_tokenizer_in_use_decides_the_vocabulary() -> None:
    shape = SCALES["nano"].with_vocabulary(300)
    assert shape.vocab_size == 300
    assert count_parameters(SCALES["nano"].shape).total - count_parameters(shape).total == 2 * 48 * (512 - 300)
