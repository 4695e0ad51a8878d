"""The middle pass of the multi-hot loss as one Triton kernel: logits in, losses out, the gradient where the logits were.

One program a row: an online softmax over V in blocks, a second sweep that writes `softmax * scale`, then the target
entries, formed in float32 from the logits that were there and rounded once. No atomics: the same bits every time. Imported
only where there is a GPU with Triton; `losses` decides when. Not timed by us yet on any GPU.

Shapes: C rows of a chunk, S targets, V vocabulary.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4_096
"""Most entries of a row that a program holds at once."""
NUM_WARPS = 8


@triton.jit  # type: ignore[untyped-decorator]
def _softmax_less_targets(  # type: ignore[no-untyped-def]
    logits, targets, weights, losses, row_stride, vocab_size, num_targets, scale, BLOCK: tl.constexpr, BAG: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    base = logits + row * row_stride

    # The targets' logits are read before anything is written. Unused lanes hold -1, which no target is.
    lane = tl.arange(0, BAG)
    used = lane < num_targets
    target = tl.load(targets + row * num_targets + lane, mask=used, other=-1)
    weight = tl.load(weights + lane, mask=used, other=0.0)
    picked = tl.load(base + target, mask=used, other=0.0).to(tl.float32)

    largest = tl.full((), float("-inf"), tl.float32)
    normaliser = tl.full((), 0.0, tl.float32)
    for start in range(0, vocab_size, BLOCK):
        column = start + tl.arange(0, BLOCK)
        z = tl.load(base + column, mask=column < vocab_size, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(largest, tl.max(z, 0))
        normaliser = normaliser * tl.exp(largest - higher) + tl.sum(tl.exp(z - higher), 0)
        largest = higher
    log_normaliser = largest + tl.log(normaliser)
    tl.store(losses + row, log_normaliser - tl.sum(picked * weight, 0))

    # Every warp has read its share of the row, and all of them the targets, before one of them writes.
    tl.debug_barrier()
    for start in range(0, vocab_size, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < vocab_size
        z = tl.load(base + column, mask=inside, other=float("-inf")).to(tl.float32)
        tl.store(base + column, (tl.exp(z - log_normaliser) * scale).to(logits.dtype.element_ty), mask=inside)

    # A target that occurs twice has the weight of both, and both lanes write that same number.
    same = target[:, None] == target[None, :]
    together = tl.sum(tl.where(same, weight[None, :], 0.0), 1)
    gradient = (tl.exp(picked - log_normaliser) - together) * scale
    tl.debug_barrier()
    tl.store(base + target, gradient.to(logits.dtype.element_ty), mask=used)


@torch.library.custom_op("tst_sweeper::softmax_less_targets", mutates_args={"logits_CV"})
def softmax_less_targets(logits_CV: Tensor, targets_CS: Tensor, weights_S: Tensor, scale: float) -> Tensor:
    """Losses of the rows, float32 `[C]`; `logits_CV` becomes `scale * (softmax - weights at the targets)` in its own type.

    Rows of `logits_CV` are contiguous, `targets_CS` int64, `weights_S` float32. An operator, so that `torch.compile` and
    graph capture take it as one step.
    """
    rows, vocab_size = logits_CV.shape
    num_targets = targets_CS.shape[1]
    assert logits_CV.stride(1) == 1, "rows of logits are contiguous"
    losses_C = torch.empty(rows, dtype=torch.float32, device=logits_CV.device)
    _softmax_less_targets[(rows,)](
        logits_CV,
        targets_CS.contiguous(),
        weights_S.contiguous(),
        losses_C,
        logits_CV.stride(0),
        vocab_size,
        num_targets,
        scale,
        BLOCK=min(BLOCK, triton.next_power_of_2(vocab_size)),
        BAG=triton.next_power_of_2(num_targets),
        num_warps=NUM_WARPS,
    )
    return losses_C


@softmax_less_targets.register_fake
def _(logits_CV: Tensor, targets_CS: Tensor, weights_S: Tensor, scale: float) -> Tensor:
    return torch.empty(logits_CV.shape[0], dtype=torch.float32, device=logits_CV.device)
