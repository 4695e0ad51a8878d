"""The method as parts to take home: superposition for a trainer of your own. Needs torch and nothing else.

Bags of tokens go in as the mean of their embeddings, and each position is asked for the whole next bag: Token-Superposition
Training (arXiv 2605.06546). A step of another trainer is, as ours is,

    phases = superposition_phases(total_steps, boundary_step(0.3, total_steps), bag_size=8)
    phase = phase_at(phases, step)
    tokens_BN = ...                     # window_tokens(context, phase) neighbouring tokens of each sequence
    bags_BLS, targets_BLT = cut_batch(tokens_BN, context, phase)
    hidden_BLD = body(mean_of_bags(bags_BLS, embedding.weight))
    loss = chunked_multi_hot(hidden_BLD.flatten(0, 1), head.weight, targets_BLT.flatten(0, 1), weights_of(phase, device))

Our own trainer is made of these functions. What they leave to others: the model, the optimizer, where tokens come from, and
which kernel turns logits into losses (`trainers.model.losses` has one for GPUs). To take the file along, take
`contract/schedule.py`, which needs nothing but Python, and mend the one import that names it.

Shapes: B sequences, L latent positions of one, S tokens a bag, T targets a position, N = B*L positions, C positions of a
chunk, D width, V vocabulary. Losses are in nats.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from trainers.contract.schedule import Phase, boundary_step, data_position, phase_at, superposition_phases

__all__ = [
    "Phase",
    "boundary_step",
    "chunked_multi_hot",
    "cut_batch",
    "data_position",
    "mean_of_bags",
    "multi_hot_cross_entropy",
    "multi_hot_reference",
    "phase_at",
    "portable_pass",
    "superposition_phases",
    "target_weights",
    "weights_of",
    "window_tokens",
]

CHUNK = 1_024
"""Positions whose logits exist at once, where nobody says."""

Pass = Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]]
"""Logits, targets, weights and the number of rows to losses and gradient: `portable_pass`, or a kernel that does the same."""


# the window of data


def window_tokens(context: int, phase: Phase) -> int:
    """Neighbouring tokens that a step needs of each sequence: those of its bags, and the targets of the last bag.

    `context` is in latent positions. The next step of the sequence begins `T` tokens before the window's end.
    """
    return phase.positions(context) * phase.bag_size + phase.target_size


def cut_batch(tokens_BN: Tensor, context: int, phase: Phase) -> tuple[Tensor, Tensor]:
    """Inputs `[B, L, S]` and targets `[B, L, T]` from the `L*S + T` neighbouring tokens of each sequence, as copies.

    Position j holds bag j of its sequence and is asked for the T tokens that follow that bag, the last position too
    (arXiv 2605.06546). `context` is that of an ordinary step. A phase that cuts sequences into pieces has its pieces in the
    first dimension; the last position of a piece is asked for tokens of the next one.
    """
    bag, length, piece = phase.bag_size, phase.positions(context), phase.length(context)
    following_BLT = tokens_BN[:, bag:].unfold(1, phase.target_size, bag)[:, :length]
    # Copies: targets of neighbouring positions are one overlapping view of the tokens.
    inputs, targets = tokens_BN[:, : length * bag].clone(), following_BLT.contiguous()
    return inputs.view(-1, piece, bag), targets.view(-1, piece, phase.target_size)


# the bag embedding


def _added_rows(tokens: Tensor, grad_ND: Tensor, vocab_size: int) -> Tensor:
    """The table's gradient `[V, D]`, float32: the rows of its tokens, added up one after the other in the tokens' order."""
    # A table of zeros and one addition a row: a quarter of the time of torch's own backward on a CPU, to the same bits.
    sum_VD = grad_ND.new_zeros(vocab_size, grad_ND.shape[1], dtype=torch.float32)
    return sum_VD.index_add_(0, tokens.flatten(), grad_ND.float())


class _LookUp(torch.autograd.Function):
    """Rows of a table."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, table_VD: Tensor) -> Tensor:
        ctx.save_for_backward(tokens)
        ctx.vocab_size, ctx.dtype = table_VD.shape[0], table_VD.dtype
        return F.embedding(tokens, table_VD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (tokens,) = ctx.saved_tensors
        grad_ND = grad_outputs[0].reshape(tokens.numel(), -1)
        return None, _added_rows(tokens, grad_ND, ctx.vocab_size).to(ctx.dtype)


class _BagMean(torch.autograd.Function):
    """Mean row of each bag `[..., S]` in float32, without the rows in between: two large buffers less in the forward."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, table_VD: Tensor) -> Tensor:
        ctx.save_for_backward(tokens)
        ctx.vocab_size = table_VD.shape[0]
        mean_ND = F.embedding_bag(tokens.flatten(0, -2), table_VD, mode="mean")
        return mean_ND.view(*tokens.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (tokens,) = ctx.saved_tensors
        bag = tokens.shape[-1]
        # Divided before it is spread over the bag: once a position instead of once a token.
        share_ND = (grad_outputs[0] / bag).flatten(0, -2).repeat_interleave(bag, 0)
        return None, _added_rows(tokens, share_ND, ctx.vocab_size)


def mean_of_bags(tokens: Tensor, table_VD: Tensor) -> Tensor:
    """Mean row of each bag `[..., S]`, `[..., D]`, summed in float32, in the table's type; a bag of one is its row exactly.

    On a CPU the gradient is our own: torch's kernel takes four times as long for bags of many tokens and adds bfloat16 up in
    bfloat16; in float32 the two are equal to the last bit. On a GPU torch's kernel sorts and needs no help. Compiled code
    fuses the mean by itself, and torch's kernel of the mean rounds bfloat16 on the way.
    """
    on_cpu, bag = table_VD.device.type == "cpu", tokens.shape[-1]
    if on_cpu and bag > 1 and table_VD.dtype == torch.float32 and not torch.compiler.is_compiling():
        mean: Tensor = _BagMean.apply(tokens, table_VD)  # type: ignore[no-untyped-call]
        return mean
    rows: Tensor = (
        _LookUp.apply(tokens, table_VD)  # type: ignore[no-untyped-call]
        if on_cpu
        else F.embedding(tokens, table_VD)
    )
    return rows.squeeze(-2) if bag == 1 else rows.mean(-2, dtype=torch.float32).to(table_VD.dtype)


# the loss


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


def weights_of(phase: Phase, device: torch.device) -> Tensor:
    """Target weights of a phase, float32 `[T]` on the device."""
    return torch.tensor(target_weights(phase.weighting, phase.target_size), dtype=torch.float32, device=device)


def multi_hot_reference(logits_NV: Tensor, targets_NS: Tensor, weights_S: Tensor) -> Tensor:
    """The slow, readable form: a weighted mean of S cross-entropies, averaged over positions. Scalar."""
    terms = [F.cross_entropy(logits_NV, targets_NS[:, k]) * weights_S[k] for k in range(targets_NS.shape[1])]
    return torch.stack(terms).sum()


def portable_pass(logits_CV: Tensor, targets_CS: Tensor, weights_S: Tensor, rows: int) -> tuple[Tensor, Tensor]:
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


def _scaled(gradient: Tensor, scale_1: Tensor) -> Tensor:
    """Their product, formed in float32 and rounded once. A scale of one dimension takes part in the choice of the type, where
    a scalar would be rounded first: a third of a step is no bfloat16 number, and every gradient would be 0.2 % too large."""
    return torch.mul(gradient, scale_1, out=torch.empty_like(gradient))


class _MultiHot(torch.autograd.Function):
    """The pass over whole logits: the gradient is formed in the forward and kept in their place."""

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, targets_NS: Tensor, weights_S: Tensor) -> Tensor:
        # A copy, because the pass writes where it reads, and the caller may still want its logits.
        losses_N, grad_NV = portable_pass(logits_NV.clone(), targets_NS, weights_S, logits_NV.shape[0])
        ctx.save_for_backward(grad_NV)
        return losses_N.mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad_NV,) = ctx.saved_tensors
        return _scaled(grad_NV, grad_outputs[0].view(1)), None, None


def multi_hot_cross_entropy(logits_NV: Tensor, targets_NS: Tensor, weights_S: Tensor | None = None) -> Tensor:
    """Mean loss of whole logits against weighted bags of targets, float32 scalar: for a model that hands out its logits.

    `targets_NS` int64, `weights_S` float32 summing to one, None for equal ones. The logits stay as they are; a second
    derivative is refused. One more buffer of their size is kept until the backward, whatever S is. `chunked_multi_hot` does
    without the logits.
    """
    if weights_S is None:
        weights_S = torch.full(targets_NS.shape[1:], 1 / targets_NS.shape[1], device=targets_NS.device)
    loss: Tensor = _MultiHot.apply(logits_NV, targets_NS, weights_S)  # type: ignore[no-untyped-call]
    return loss


def _add_head_gradient(head_grad_VD: Tensor, grad_CV: Tensor, hidden_CD: Tensor) -> None:
    """`head_grad += grad.T @ hidden`, summed in float32 whatever the factors are; on a CPU a chunk of bfloat16 rounds once."""
    if grad_CV.dtype == head_grad_VD.dtype:
        head_grad_VD.addmm_(grad_CV.T, hidden_CD)
    elif grad_CV.is_cuda:
        # cuBLAS adds bfloat16 products to a float32 matrix by itself: no float32 copy of a chunk's gradient is made.
        torch.addmm(head_grad_VD, grad_CV.T, hidden_CD, out_dtype=head_grad_VD.dtype, out=head_grad_VD)
    else:
        head_grad_VD += torch.matmul(grad_CV.T, hidden_CD)


class _ChunkedMultiHot(torch.autograd.Function):
    """Head matmul and loss together, chunk by chunk; gradients are formed in the forward and kept, the logits are not."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, head_VD: Tensor, targets_NS: Tensor, weights_S: Tensor, chunk: int, one_pass: Pass
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
            losses_C, grad_CV = one_pass(logits_CV, targets_NS[start:stop], weights_S, rows)
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
        return *scaled, None, None, None, None


def chunked_multi_hot(
    hidden_ND: Tensor,
    head_VD: Tensor,
    targets_NS: Tensor,
    weights_S: Tensor,
    chunk: int = CHUNK,
    one_pass: Pass = portable_pass,
) -> Tensor:
    """Mean loss of `hidden @ head.T` against weighted bags of targets, float32 scalar, without the logits of all positions.

    `targets_NS` int64, `weights_S` float32 summing to one; `chunk` positions at a time. Gradients flow to `hidden_ND` and
    `head_VD`, in their types; a second derivative is refused. Under autocast the matmuls have its type.

    Memory beyond the inputs and their gradients, whatever N and S are: the head's gradient in float32 (`4*V*D` bytes), and
    of one chunk what `one_pass` takes: four (float32) or eight bytes (bfloat16: the logits, their float32 form, the gradient)
    a logit, and `O(chunk*S)`. The backward has the gradients twice while it scales them.
    """
    device = hidden_ND.device.type
    if torch.is_autocast_enabled(device):
        # Autocast does not reach products that are written in their place: cast before, and out of its sight.
        half = torch.get_autocast_dtype(device)
        with torch.autocast(device, enabled=False):
            return chunked_multi_hot(hidden_ND.to(half), head_VD.to(half), targets_NS, weights_S, chunk, one_pass)
    loss: Tensor = _ChunkedMultiHot.apply(  # type: ignore[no-untyped-call]
        hidden_ND, head_VD, targets_NS, weights_S, chunk, one_pass
    )
    return loss
