"""Cross-entropy against a weighted bag of targets: one loss for every method.

With weights w over the S targets of a position, `loss(z, y) = logsumexp(z) - sum_k w_k z[y_k]`: the weighted mean of S
ordinary cross-entropies (arXiv 2605.06546). S = 1 is next-token cross-entropy. A target that occurs twice counts
twice. Decides how it is computed; which targets and weights is the method's.

Shapes: N positions, S targets, D width, V vocabulary.
"""

from __future__ import annotations

import math
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from trainers.contract.flops import chunk_rows


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


def _portable_pass(logits_CV: Tensor, targets_CS: Tensor, weights_S: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Losses `[C]`, and the gradient of the mean over `rows` positions, in the logits' type. May consume the logits.

    Everything between is float32. In operations of torch alone: eager anywhere, and for Inductor to fuse.
    """
    exact_CV = logits_CV.float()
    # Before the softmax, which is written where the logits are.
    picked_CS = exact_CV.gather(1, targets_CS) - exact_CV.amax(-1, keepdim=True)
    softmax_CV = torch.softmax(exact_CV, -1, out=exact_CV)
    log_normaliser_C1 = -softmax_CV.amax(-1, keepdim=True).log()  # the largest logit's probability is one over it
    losses_C = (log_normaliser_C1 - (picked_CS * weights_S).sum(-1, keepdim=True)).squeeze(-1)
    grad_CV = softmax_CV.mul_(1 / rows)
    # Adds, because a target that occurs twice in a bag has the weight of both.
    grad_CV.scatter_add_(1, targets_CS, (-weights_S / rows).expand_as(targets_CS))
    return losses_C, grad_CV.to(logits_CV.dtype)


def _fast_pass(logits_CV: Tensor, targets_CS: Tensor, weights_S: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """`_portable_pass` as one kernel that turns the logits into their gradient where they lie."""
    from trainers.model.losses_triton import softmax_less_targets

    return softmax_less_targets(logits_CV, targets_CS, weights_S, 1 / rows), logits_CV


HAS_TRITON = find_spec("triton") is not None


def has_fast_pass(device_type: str) -> bool:
    """Whether the middle pass runs as a Triton kernel: on a GPU, where Triton is installed."""
    return HAS_TRITON and device_type == "cuda"


def middle_pass(logits_CV: Tensor, targets_CS: Tensor, weights_S: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Losses of the positions, float32 `[C]`, and the gradient of the mean over `rows` of them, where the logits were."""
    one_pass = _fast_pass if has_fast_pass(logits_CV.device.type) else _portable_pass
    return one_pass(logits_CV, targets_CS, weights_S, rows)


def _add_head_gradient(head_grad_VD: Tensor, grad_CV: Tensor, hidden_CD: Tensor) -> None:
    """`head_grad += grad.T @ hidden`, summed in float32 whatever the factors are; on a CPU a chunk of bfloat16 rounds once."""
    if grad_CV.dtype == head_grad_VD.dtype:
        head_grad_VD.addmm_(grad_CV.T, hidden_CD)
    elif grad_CV.is_cuda:
        # cuBLAS adds bfloat16 products to a float32 matrix by itself: no float32 copy of a chunk's gradient is made.
        torch.addmm(head_grad_VD, grad_CV.T, hidden_CD, out_dtype=head_grad_VD.dtype, out=head_grad_VD)
    else:
        head_grad_VD += torch.matmul(grad_CV.T, hidden_CD)


def _scaled(gradient: Tensor, scale_1: Tensor) -> Tensor:
    """Their product, formed in float32 and rounded once. A scale of one dimension takes part in the choice of the type, where
    a scalar would be rounded first: a third of a step is no bfloat16 number, and every gradient would be 0.2 % too large."""
    return torch.mul(gradient, scale_1, out=torch.empty_like(gradient))


class _FusedLinearMultiHot(torch.autograd.Function):
    """Head matmul and loss together, chunk by chunk; gradients are formed in the forward and kept, the logits are not."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, head_VD: Tensor, targets_NS: Tensor, weights_S: Tensor, chunk: int
    ) -> Tensor:
        rows = hidden_ND.shape[0]
        loss = torch.zeros((), dtype=torch.float32, device=hidden_ND.device)
        hidden_grad_ND = torch.empty_like(hidden_ND)
        # Chunks add up here: in bfloat16 the later ones would round away beside the sum of the earlier ones.
        head_grad_VD = torch.zeros(head_VD.shape, dtype=torch.float32, device=head_VD.device)
        for start in range(0, rows, chunk):
            stop = min(start + chunk, rows)
            hidden_CD = hidden_ND[start:stop]
            logits_CV = torch.matmul(hidden_CD, head_VD.T)
            # Gradients are formed now, while the chunk's logits exist: the backward would have to multiply them once more.
            losses_C, grad_CV = middle_pass(logits_CV, targets_NS[start:stop], weights_S, rows)
            loss += losses_C.sum()
            torch.matmul(grad_CV, head_VD, out=hidden_grad_ND[start:stop])
            _add_head_gradient(head_grad_VD, grad_CV, hidden_CD)
            del logits_CV, grad_CV  # the next chunk's logits take their place
        # Rounded to the head's type before it waits: half the bytes between forward and backward.
        ctx.save_for_backward(hidden_grad_ND, head_grad_VD.to(head_VD.dtype))
        return loss / rows

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        hidden_grad_ND, head_grad_VD = ctx.saved_tensors
        scale_1 = grad_outputs[0].view(1)
        scaled = (_scaled(gradient, scale_1) for gradient in (hidden_grad_ND, head_grad_VD))
        return *scaled, None, None, None


def fused_linear_multi_hot(
    hidden_ND: Tensor, head_VD: Tensor, targets_NS: Tensor, weights_S: Tensor, chunk: int | None = None
) -> Tensor:
    """Mean loss of `hidden @ head.T` against weighted bags of targets, float32 scalar.

    `targets_NS` int64, `weights_S` float32 summing to one; `chunk` positions at a time, `chunk_rows` of them by default.
    Gradients flow to `hidden_ND` and `head_VD`; a second derivative is refused.

    Memory beyond the inputs and their gradients, whatever N and S are: the head's gradient in float32 (`4*V*D` bytes), and
    of one chunk the logits: `chunk*V` times their own size where `has_fast_pass`, times four (float32) or eight bytes
    (bfloat16: the logits, their float32 form, the gradient) elsewhere, and `O(chunk*S)`. The backward has the gradients
    twice while it scales them.
    """
    rows = chunk or chunk_rows(head_VD.shape[0], hidden_ND.element_size())
    loss: Tensor = _FusedLinearMultiHot.apply(  # type: ignore[no-untyped-call]
        hidden_ND, head_VD, targets_NS, weights_S, rows
    )
    return loss
