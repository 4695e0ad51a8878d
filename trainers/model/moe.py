"""A mixture of experts in place of a block's MLP, after Qwen3: top-k of a softmax router, no shared expert, nothing dropped.

Decides how positions are routed, how the experts' matmuls are grouped and how the load is kept even. The same code trains
eagerly, compiled and captured: shapes depend on shapes only, and nothing looks at a value. What a step counted is read
outside of it, by `routing_point`.

Shapes: N positions, D residual width, X experts, K experts a position, F expert width, A = N*K assignments, sorted by expert.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainers.contract.routing import RoutingPoint, summarise
from trainers.contract.spec import ModelShape

BALANCE_COEFFICIENT = 0.001
"""Weight of the load-balancing loss, Qwen3's (`router_aux_loss_coef` and `moe_aux_loss_coeff` of its configurations)."""


class _Spread(torch.autograd.Function):
    """Rows `[N, D]` to assignments `[A, D]` in the order of their experts. Both directions gather: no atomic additions,
    hence the same bits in every run."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, order_A: Tensor, place_A: Tensor) -> Tensor:
        ctx.save_for_backward(place_A)
        ctx.rows = x_ND.shape[0]
        return x_ND[order_A // (order_A.shape[0] // ctx.rows)]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (place_A,) = ctx.saved_tensors
        return gradients[0][place_A].view(ctx.rows, -1, gradients[0].shape[-1]).sum(1), None, None


class _Collect(torch.autograd.Function):
    """Assignments `[A, D]` back to their positions' order: the inverse permutation, its own inverse in the backward."""

    @staticmethod
    def forward(ctx: Any, y_AD: Tensor, order_A: Tensor, place_A: Tensor) -> Tensor:
        ctx.save_for_backward(order_A)
        return y_AD[place_A]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (order_A,) = ctx.saved_tensors
        return gradients[0][order_A], None, None


class _Balance(torch.autograd.Function):
    """The identity on the router's probabilities that adds the balancing loss's gradient on the way back.

    So the loss that a step reports stays the objective's own, comparable with a dense model's.
    """

    @staticmethod
    def forward(ctx: Any, probability_NX: Tensor, pull_X: Tensor) -> Tensor:
        ctx.save_for_backward(pull_X)
        return probability_NX.view_as(probability_NX)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (pull_X,) = ctx.saved_tensors
        return gradients[0] + pull_X, None


def has_grouped_matmul(device: torch.device, kind: torch.dtype) -> bool:
    """Whether torch's grouped matmul runs there without the host learning the groups' sizes.

    On a GPU that is bfloat16 from compute capability 8.0 on; for other types torch copies the sizes to the host, which a
    captured graph must not. On a CPU the sizes are on the host already, but torch traces bfloat16 only.
    """
    if device.type == "cuda":
        return kind == torch.bfloat16 and torch.cuda.get_device_capability(device) >= (8, 0)
    return kind == torch.bfloat16 or (kind == torch.float32 and not torch.compiler.is_compiling())


class Mixture(nn.Module):
    """`y(x) = sum over the K chosen experts of p_e / (sum of the chosen p) * SwiGLU_e(x)`, p the softmax over all experts.

    Balancing loss of a layer: `0.001 * X * sum_e f_e * mean_n p_ne`, with f the load over the whole step so far, all its
    micro-batches and ranks (global-batch balance, arXiv 2501.11873), sum f = 1; layers add up. Early micro-batches know the
    load of those before them only, so that how a step is cut moves this small pull a little, and nothing else.
    """

    this_step: Tensor
    last_step: Tensor

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.num_experts, self.chosen = shape.num_experts, shape.experts_per_token
        self.router = nn.Linear(shape.width, shape.num_experts, bias=False)
        self.gate_up = nn.Parameter(torch.empty(shape.num_experts, 2 * shape.mlp_width, shape.width))
        self.down = nn.Parameter(torch.empty(shape.num_experts, shape.width, shape.mlp_width))
        # Assignments of every expert, and positions last; not trained, not saved.
        for name in ("this_step", "last_step"):
            self.register_buffer(name, torch.zeros(shape.num_experts + 1, dtype=torch.int64), persistent=False)
        self.micro_batches = 1
        self.over_ranks: Callable[[Tensor], Tensor] | None = None

    def forward(self, x_BLD: Tensor, counted: Tensor | None = None) -> Tensor:
        """Every position through its K experts; `[B, L, D]` in the input's type.

        `counted` is an integer scalar, 0 where this forward repeats one whose assignments have been counted; None: it counts.
        """
        x_ND = x_BLD.flatten(0, 1)
        share_NK, expert_NK, counts_X = self._route(x_ND, counted)
        experts = self._grouped if has_grouped_matmul(x_ND.device, x_ND.dtype) else self._every_expert
        return experts(x_ND, share_NK.to(x_ND.dtype), expert_NK, counts_X).view_as(x_BLD)

    def _route(self, x_ND: Tensor, counted: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Shares `[N, K]` float32, experts `[N, K]` and how many assignments each expert got `[X]`, router in float32."""
        # In float32: rounded scores tie, and a tie is decided by the order of the experts.
        probability_NX = F.linear(x_ND.float(), self.router.weight.float()).softmax(-1)
        expert_NK = probability_NX.detach().topk(self.chosen, dim=-1).indices
        # Not `bincount`, whose result has a length that the host would have to wait for.
        one = torch.ones_like(expert_NK).flatten()
        counts_X = torch.zeros_like(self.this_step[:-1]).scatter_add_(0, expert_NK.flatten(), one)
        if torch.is_grad_enabled():
            probability_NX = self._balanced(probability_NX, counts_X, counted)
        chosen_NK = probability_NX.gather(-1, expert_NK)
        return chosen_NK / chosen_NK.sum(-1, keepdim=True), expert_NK, counts_X

    def _balanced(self, probability_NX: Tensor, counts_X: Tensor, counted: Tensor | None) -> Tensor:
        """Count the assignments once a micro-batch, and let the load so far pull on the probabilities."""
        # Positions are counted beside the assignments: what was dropped is their difference, and has to be zero.
        seen = F.pad(counts_X, (0, 1), value=probability_NX.shape[0])
        if counted is not None:
            seen = seen * counted
        self.this_step.add_(seen if self.over_ranks is None else self.over_ranks(seen))
        load_X = self.this_step[:-1] / self.this_step[:-1].sum()
        weight = BALANCE_COEFFICIENT * self.num_experts / (probability_NX.shape[0] * self.micro_batches)
        balanced: Tensor = _Balance.apply(probability_NX, load_X * weight)  # type: ignore[no-untyped-call]
        return balanced

    def _grouped(self, x_ND: Tensor, share_NK: Tensor, expert_NK: Tensor, counts_X: Tensor) -> Tensor:
        """Sort the assignments by expert, then one grouped matmul a projection: no padding, no capacity, no host."""
        # Stable, so that positions of one expert keep their order and their sums keep their bits.
        order_A = expert_NK.flatten().argsort(stable=True)
        place_A = torch.empty_like(order_A).scatter_(0, order_A, torch.arange(len(order_A), device=order_A.device))
        ends_X = counts_X.cumsum(0).to(torch.int32)
        x_AD: Tensor = _Spread.apply(x_ND, order_A, place_A)  # type: ignore[no-untyped-call]
        gate_AF, up_AF = F.grouped_mm(x_AD, self.gate_up.transpose(-2, -1), offs=ends_X).chunk(2, dim=-1)
        y_AD = F.grouped_mm(F.silu(gate_AF) * up_AF, self.down.transpose(-2, -1), offs=ends_X)
        y_AD = _Collect.apply(y_AD, order_A, place_A)  # type: ignore[no-untyped-call]
        out_ND: Tensor = (y_AD.view(*expert_NK.shape, -1) * share_NK[..., None]).sum(1)
        return out_ND

    def _every_expert(self, x_ND: Tensor, share_NK: Tensor, expert_NK: Tensor, counts_X: Tensor) -> Tensor:
        """Every expert on every position, weighted by 0 where it was not chosen: X/K times the work, for small twins where
        no grouped matmul can be captured or traced (float32)."""
        # A share of zero switches an expert off without a shape that depends on a value.
        share_NX = torch.zeros(len(x_ND), self.num_experts, dtype=x_ND.dtype, device=x_ND.device)
        share_NX = share_NX.scatter(1, expert_NK, share_NK)
        gate_NXF, up_NXF = torch.einsum("nd,xfd->nxf", x_ND, self.gate_up).chunk(2, dim=-1)
        inner_NXF = F.silu(gate_NXF) * up_NXF * share_NX[..., None]
        out_ND: Tensor = torch.einsum("nxf,xdf->nd", inner_NXF, self.down)
        return out_ND

    @torch.no_grad()
    def end_step(self) -> None:
        """Keep the step's counts for whoever asks, and begin the next step's. On the device, in place: may be captured."""
        self.last_step.copy_(self.this_step)
        self.this_step.zero_()


def routing_point(mixtures: list[Mixture], *, keep_load: bool) -> RoutingPoint:
    """What the last optimizer step's routing was in these layers. Waits for the device."""
    counted = torch.stack([mixture.last_step for mixture in mixtures]).tolist()
    dropped = sum(
        positions * mixture.chosen - sum(counts)
        for mixture, (*counts, positions) in zip(mixtures, counted, strict=True)
    )
    return summarise([layer[:-1] for layer in counted], dropped, keep_load=keep_load)
