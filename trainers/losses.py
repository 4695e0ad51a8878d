"""Cross-entropy against a weighted bag of targets: one loss for every method.

With weights w over the S targets of a position, `loss(z, y) = logsumexp(z) - sum_k w_k z[y_k]`: the weighted mean of S
ordinary cross-entropies (METHOD: multi-hot loss). S = 1 is next-token cross-entropy. A target that occurs twice counts
twice. Decides how it is computed; which targets and weights is the method's.

Shapes: N positions, S targets, D width, V vocabulary.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

CHUNK_ROWS = 8_192
"""Positions whose logits exist at once. Peak memory is this times V, whatever N is."""


def target_weights(weighting: str, target_size: int) -> tuple[float, ...]:
    """Weights of the targets at distance 1..S, summing to one. Raises `ValueError` for an unknown weighting.

    `uniform`: 1; `power_law`: 1/i; `exponential`: exp(-i); `first_token`: the next token alone (arXiv 2605.06546).
    """
    positions = range(1, target_size + 1)
    match weighting:
        case "uniform":
            raw = [1.0 for _ in positions]
        case "power_law":
            raw = [1.0 / i for i in positions]
        case "exponential":
            raw = [math.exp(-i) for i in positions]
        case "first_token":
            raw = [1.0 if i == 1 else 0.0 for i in positions]
        case _:
            raise ValueError(f"weighting: {weighting!r} is not one of uniform, power_law, exponential, first_token")
    total = math.fsum(raw)
    return tuple(value / total for value in raw)


def multi_hot_reference(logits_NV: Tensor, targets_NS: Tensor, weights_S: Tensor) -> Tensor:
    """The slow, readable form: a weighted mean of S cross-entropies, averaged over positions. Scalar."""
    terms = [F.cross_entropy(logits_NV, targets_NS[:, k]) * weights_S[k] for k in range(targets_NS.shape[1])]
    return torch.stack(terms).sum()


def multi_hot_cross_entropy(logits_NV: Tensor, targets_NS: Tensor, weights_S: Tensor) -> Tensor:
    """Loss from whole logits, in float32, averaged over positions: for evaluation, and where the logits are small."""
    logits_NV = logits_NV.float()
    picked_N = (logits_NV.gather(1, targets_NS) * weights_S).sum(-1)
    return (torch.logsumexp(logits_NV, dim=-1) - picked_N).mean()


class _FusedLinearMultiHot(torch.autograd.Function):
    """Head matmul and loss together, chunk by chunk; gradients are formed in the forward and kept, the logits are not."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, head_VD: Tensor, targets_NS: Tensor, weights_S: Tensor, chunk: int
    ) -> Tensor:
        rows = hidden_ND.shape[0]
        loss = torch.zeros((), dtype=torch.float32, device=hidden_ND.device)
        hidden_grad_ND = torch.empty_like(hidden_ND)
        head_grad_VD = torch.zeros(head_VD.shape, dtype=torch.float32, device=head_VD.device)
        for start in range(0, rows, chunk):
            stop = min(start + chunk, rows)
            hidden_CD, targets_CS = hidden_ND[start:stop], targets_NS[start:stop]
            logits_CV = torch.matmul(hidden_CD, head_VD.T).float()
            largest_C1 = logits_CV.amax(-1, keepdim=True)
            picked_CS = logits_CV.gather(1, targets_CS) - largest_C1
            softmax_CV = logits_CV.sub_(largest_C1).exp_()
            normaliser_C1 = softmax_CV.sum(-1, keepdim=True)
            loss += (normaliser_C1.log() - (picked_CS * weights_S).sum(-1, keepdim=True)).sum()
            grad_CV = softmax_CV.mul_(1 / (normaliser_C1 * rows))
            grad_CV.scatter_add_(1, targets_CS, (-weights_S / rows).expand_as(targets_CS))
            grad_CV = grad_CV.to(hidden_ND.dtype)
            torch.matmul(grad_CV, head_VD, out=hidden_grad_ND[start:stop])
            if head_grad_VD.dtype == grad_CV.dtype:
                head_grad_VD.addmm_(grad_CV.T, hidden_CD)
            else:
                head_grad_VD += torch.matmul(grad_CV.T, hidden_CD)
        ctx.save_for_backward(hidden_grad_ND, head_grad_VD.to(head_VD.dtype))
        return loss / rows

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        hidden_grad_ND, head_grad_VD = ctx.saved_tensors
        scale = grad_outputs[0]
        return (
            hidden_grad_ND * scale.to(hidden_grad_ND.dtype),
            head_grad_VD * scale.to(head_grad_VD.dtype),
            None,
            None,
            None,
        )


def fused_linear_multi_hot(
    hidden_ND: Tensor, head_VD: Tensor, targets_NS: Tensor, weights_S: Tensor, chunk: int = CHUNK_ROWS
) -> Tensor:
    """Mean loss of `hidden @ head.T` against weighted bags of targets, float32 scalar.

    `targets_NS` int64, `weights_S` float32 summing to one. Peak memory beyond inputs and gradients is two float32 chunks of
    `chunk * V`, independent of N. Gradients flow to `hidden_ND` and `head_VD`; a second derivative is refused.
    """
    loss: Tensor = _FusedLinearMultiHot.apply(  # type: ignore[no-untyped-call]
        hidden_ND, head_VD, targets_NS, weights_S, chunk
    )
    return loss
