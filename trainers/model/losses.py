"""How our own step takes the loss of `trainers.superposition`: by which pass, and how many positions at a time.

The pass over a chunk's logits is a kernel of our own on a GPU with Triton, operations of torch elsewhere.

Shapes: N positions, C of a chunk, S targets, D width, V vocabulary.
"""

from __future__ import annotations

from importlib.util import find_spec

from torch import Tensor

from trainers.contract.flops import chunk_rows
from trainers.superposition import chunked_multi_hot, portable_pass

HAS_TRITON = find_spec("triton") is not None


def has_fast_pass(device_type: str) -> bool:
    """Whether the pass runs as a Triton kernel: on a GPU, where Triton is installed."""
    return HAS_TRITON and device_type == "cuda"


def _fast_pass(logits_CV: Tensor, targets_CS: Tensor, weights_S: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """`portable_pass` as one kernel that turns the logits into their gradient where they lie."""
    from trainers.model.losses_triton import softmax_less_targets

    return softmax_less_targets(logits_CV, targets_CS, weights_S, 1 / rows), logits_CV


def middle_pass(logits_CV: Tensor, targets_CS: Tensor, weights_S: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Losses of the positions, float32 `[C]`, and the gradient of the mean over `rows` of them, where the logits were."""
    one_pass = _fast_pass if has_fast_pass(logits_CV.device.type) else portable_pass
    return one_pass(logits_CV, targets_CS, weights_S, rows)


def fused_linear_multi_hot(
    hidden_ND: Tensor, head_VD: Tensor, targets_NS: Tensor, weights_S: Tensor, chunk: int | None = None
) -> Tensor:
    """`chunked_multi_hot` by `middle_pass`, `chunk` positions at a time, `chunk_rows` of them by default.

    Where `has_fast_pass`, a chunk takes as much memory as its logits alone.
    """
    rows = chunk or chunk_rows(head_VD.shape[0], hidden_ND.element_size())
    return chunked_multi_hot(hidden_ND, head_VD, targets_NS, weights_S, rows, middle_pass)
