"""Parameters and model FLOPs by arithmetic, so that a plan can count what it will not build.

Convention, stated beside every utilisation figure: `6 * (active parameters without the input embedding)
+ 12 * layers * attention width * context / 2` model FLOPs per latent position (causal, forward and backward). `context` is
the length that a position's sequence has in its phase; an output head beside the ordinary one adds a layer and the
unembedding.
"""

from __future__ import annotations

from dataclasses import dataclass

from trainers.contract.schedule import Phase
from trainers.contract.spec import ModelShape, TrialSpec

CHUNK_ROWS = 8_192
CHUNK_BYTES = 2 << 30
"""The most positions, and the most bytes of them, whose logits exist at once: large enough to fill a GPU's matmuls, small
beside its memory."""


@dataclass(frozen=True, slots=True)
class ParameterCount:
    """`total` parameters, of which one position uses `active`; `embedding` is the input embedding's share of both."""

    total: int
    active: int
    embedding: int


def count_parameters(shape: ModelShape, heads: int = 1) -> ParameterCount:
    """Count the decoder's parameters: untied embeddings, bias-free projections, RMSNorm gains; a layer for each head
    beside the ordinary one."""
    embedding = shape.vocab_size * shape.width
    query_width, kv_width = shape.num_heads * shape.head_width, shape.num_kv_heads * shape.head_width
    attention = shape.width * (2 * query_width + 2 * kv_width) + (2 * shape.head_width if shape.qk_norm else 0)
    mlp = 3 * shape.width * shape.mlp_width
    norms = 2 * shape.width
    if shape.num_experts:
        router = shape.width * shape.num_experts
        total_layer = attention + norms + router + shape.num_experts * mlp
        active_layer = attention + norms + router + shape.experts_per_token * mlp
    else:
        total_layer = active_layer = attention + norms + mlp
    rest = 2 * embedding + shape.width
    layers = shape.num_layers + heads - 1
    return ParameterCount(layers * total_layer + rest, layers * active_layer + rest, embedding)


def flops_per_position(shape: ModelShape, context: int, heads: int = 1) -> float:
    """Model FLOPs of one latent position, forward and backward, at `context` positions a sequence. The unembedding, as
    large as the embedding, is multiplied once a head."""
    count = count_parameters(shape, heads)
    attention = 12 * (shape.num_layers + heads - 1) * shape.num_heads * shape.head_width * context / 2
    return 6.0 * (count.active - count.embedding + (heads - 1) * count.embedding) + attention


def flops_per_step(spec: TrialSpec, phase: Phase) -> float:
    """Model FLOPs of one step of `phase`."""
    length = phase.length(spec.context)
    return flops_per_position(spec.shape, length, phase.heads) * phase.positions(spec.tokens_per_step)


def flops_at(spec: TrialSpec, phases: tuple[Phase, ...], step: int) -> float:
    """Model FLOPs of the first `step` steps of a run."""
    return sum(
        flops_per_step(spec, phase) * (min(step, phase.end) - phase.start) for phase in phases if step > phase.start
    )


def chunk_rows(vocab_size: int, itemsize: int) -> int:
    """Positions a chunk where a logit has `itemsize` bytes: `CHUNK_ROWS`, or what `CHUNK_BYTES` hold, in whole 64s."""
    return min(CHUNK_ROWS, max(64, CHUNK_BYTES // (vocab_size * itemsize) // 64 * 64))
