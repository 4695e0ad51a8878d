"""The model sizes that a search-space file can name: one row each.

The published rows follow the models that the paper names for their shape (SmolLM2-135M, SmolLM2-360M, SmolLM3-3B,
Qwen3's mixture of experts), with their rotary base and the epsilon of their norms; the small rows are ours, for machines
without a GPU and for extrapolation over size.
Where the paper is silent, the row says what was chosen.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from trainers.contract.spec import ModelShape

LLAMA3_VOCABULARY = 128_256
QWEN3_VOCABULARY = 151_936
SMOLLM2 = {"rope_theta": 100_000.0}
SMOLLM3 = {"rope_theta": 5_000_000.0, "norm_epsilon": 1e-6}
UNLIKE_SMOLLM3 = "untied embeddings, rotary embedding in every layer where SmolLM3 has it in three of four"


@dataclass(frozen=True, slots=True)
class Scale:
    """A row. `shape.vocab_size` is the published tokenizer's, replaced by the tokenizer in use."""

    name: str
    shape: ModelShape
    origin: str

    def with_vocabulary(self, vocab_size: int) -> ModelShape:
        """The shape with the vocabulary of the tokenizer that the sweep uses."""
        return replace(self.shape, vocab_size=vocab_size)


def _dense(
    name: str,
    layers: int,
    width: int,
    heads: int,
    kv_heads: int,
    mlp: int,
    vocabulary: int,
    origin: str,
    **family: float,
) -> Scale:
    """`family` holds `rope_theta` and `norm_epsilon` where the model that gave the shape has another value than ours."""
    shape = ModelShape(layers, width, heads, kv_heads, width // heads, mlp, vocabulary, **family)  # type: ignore[arg-type]
    return Scale(name, shape, origin)


_ROWS = (
    _dense("pico", 2, 32, 2, 2, 88, 512, "sees a hundred tokens a parameter within two minutes on one CPU core"),
    _dense("nano", 2, 48, 3, 3, 128, 512, "two layers: shows the effect on one CPU core within minutes"),
    _dense("micro", 2, 64, 4, 4, 172, 512, "nano, wider"),
    Scale(
        "nano-moe",
        ModelShape(2, 48, 3, 3, 16, 64, 512, qk_norm=True, num_experts=8, experts_per_token=2),
        "the small twin of 10b-a1b: nano with eight experts, two of which see a position",
    ),
    _dense("mini", 4, 96, 6, 6, 256, 1_024, "twice the depth and width of nano"),
    _dense("1m", 4, 128, 4, 4, 344, 2_048, "a million parameters"),
    _dense("5m", 6, 256, 4, 4, 688, 4_096, "an hour on a few CPU cores"),
    _dense("25m", 8, 512, 8, 4, 1_376, 8_192, "minutes on one GPU"),
    _dense("50m", 12, 576, 9, 3, 1_536, 16_384, "the width of 270m, fewer layers"),
    _dense("270m", 30, 576, 9, 3, 1_536, LLAMA3_VOCABULARY, "published; SmolLM2-135M, untied embeddings", **SMOLLM2),
    _dense("600m", 32, 960, 15, 5, 2_560, LLAMA3_VOCABULARY, "published; SmolLM2-360M, untied embeddings", **SMOLLM2),
    _dense("3b", 36, 2_048, 16, 4, 11_008, LLAMA3_VOCABULARY, f"published; SmolLM3-3B, {UNLIKE_SMOLLM3}", **SMOLLM3),
    Scale(
        "10b-a1b",
        ModelShape(
            num_layers=24,
            width=1_024,
            num_heads=16,
            num_kv_heads=4,
            head_width=128,
            mlp_width=1_024,
            vocab_size=QWEN3_VOCABULARY,
            rope_theta=1_000_000.0,
            norm_epsilon=1e-6,
            qk_norm=True,
            num_experts=128,
            experts_per_token=8,
        ),
        "published total and active size; inner shape ours, in the proportions of Qwen3's mixture of experts",
    ),
)

SCALES: dict[str, Scale] = {row.name: row for row in _ROWS}
