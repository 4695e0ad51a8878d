"""K decoders of one shape as one: every weight has a leading slice dimension, every matmul is a batched one.

Decides how the weights and moments of K runs lie in memory, and the forward pass over them. What a slice computes is what
`model.Decoder` computes, operation by operation; no operation mixes slices, so that no slice can see its neighbours or be
hurt by their NaNs. Each slice's `TrainState` keeps working: its parameters and moments become views into the stack.

Shapes: K slices, B sequences, L latent positions, N = B*L, S tokens a bag, D residual width, H heads, E head width,
F features, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from trainers.checkpoint import TrainState
from trainers.model import mean_of_bags, rotary_table, rotate
from trainers.spec import ModelShape


class StackedWeights:
    """Weights, gradients, moments and step counters of K runs, float32, and the leaves that a forward pass reads.

    Each kind lies in one flat buffer, a parameter's K slices side by side, so that zeroing and casting are one operation.
    `leaves` maps the decoder's parameter names to `[K, ...]` tensors: the weights themselves, or (with `precision` bf16)
    working copies whose gradients `collect` adds to the float32 ones. `states` are bound: they see what the stack trains.
    """

    def __init__(self, states: Sequence[TrainState], precision: str) -> None:
        named = dict(states[0].model.named_parameters())
        self.device, self.states = next(iter(named.values())).device, tuple(states)
        self.shapes = {name: (len(states), *parameter.shape) for name, parameter in named.items()}
        self.values, self.gradients = self._buffer(), self._buffer()
        self.first, self.second = self._buffer(), self._buffer()
        self.counts_PK = torch.zeros(len(named), len(states), device=self.device)
        for index, state in enumerate(self.states):
            self._bind(index, state)
        self._working, self._working_gradients = self.values, self.gradients
        if precision == "bf16":
            self._working, self._working_gradients = self._buffer(torch.bfloat16), self._buffer(torch.bfloat16)
        self.leaves = {name: leaf.requires_grad_() for name, leaf in self.views(self._working).items()}
        for name, gradient in self.views(self._working_gradients).items():
            self.leaves[name].grad = gradient
        self.refresh()

    def _buffer(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(sum(map(math.prod, self.shapes.values())), dtype=dtype, device=self.device)

    def views(self, buffer: Tensor) -> dict[str, Tensor]:
        """The parameters `[K, ...]` of a buffer, without history, in the decoder's order."""
        pieces = torch.split(buffer.detach(), [math.prod(shape) for shape in self.shapes.values()])
        return {name: piece.view(shape) for (name, shape), piece in zip(self.shapes.items(), pieces, strict=True)}

    @torch.no_grad()
    def _bind(self, index: int, state: TrainState) -> None:
        """Copy a run's weights and moments into its slice and let the run look there from now on."""
        values, first, second = self.views(self.values), self.views(self.first), self.views(self.second)
        for count_K, (name, parameter) in zip(self.counts_PK, state.model.named_parameters(), strict=True):
            moments = {"step": count_K[index], "exp_avg": first[name][index], "exp_avg_sq": second[name][index]}
            for key, before in state.optimizer.state.get(parameter, {}).items():
                moments[key].copy_(before)
            parameter.data = values[name][index].copy_(parameter)
            state.optimizer.state[parameter] = moments

    @torch.no_grad()
    def collect(self) -> None:
        """After a backward pass: what the leaves' gradients hold goes to the float32 ones."""
        if self._working_gradients is not self.gradients:
            self.gradients.add_(self._working_gradients)
            self._working_gradients.zero_()

    @torch.no_grad()
    def refresh(self) -> None:
        """After an update: working copies follow the weights, gradients start from zero."""
        self.gradients.zero_()
        if self._working is not self.values:
            self._working.copy_(self.values)


class StackedDecoder:
    """The decoder's forward pass over `StackedWeights.leaves`."""

    def __init__(self, shape: ModelShape, context: int, leaves: dict[str, Tensor]) -> None:
        if shape.num_experts:
            raise ValueError(f"shape.num_experts: {shape.num_experts}; only dense decoders can be stacked")
        self.shape, self.context, self.leaves = shape, context, leaves
        table = leaves["embedding.weight"]
        self.width = table.shape[0]
        cosine_LE, sine_LE = rotary_table(context, shape.head_width, shape.rope_theta)
        self.cosine_LE, self.sine_LE = cosine_LE.to(table.device), sine_LE.to(table.device)
        self.row_offsets_K = torch.arange(self.width, device=table.device) * shape.vocab_size

    def of(self, slices: Sequence[int]) -> StackedDecoder:
        """The decoder of some slices only, for evaluation: itself for all of them, else on copies."""
        if len(slices) == self.width:
            return self
        chosen = {name: leaf.detach()[list(slices)] for name, leaf in self.leaves.items()}
        return StackedDecoder(self.shape, self.context, chosen)

    @property
    def heads(self) -> Tensor:
        """The output heads."""
        return self.leaves["head.weight"]

    def _norm(self, x_KND: Tensor, name: str) -> Tensor:
        gain_K1D = self.leaves[name].unsqueeze(1)
        return gain_K1D * F.rms_norm(x_KND, (x_KND.shape[-1],), None, self.shape.norm_epsilon)

    def _linear(self, x_KND: Tensor, name: str) -> Tensor:
        return torch.bmm(x_KND, self.leaves[name].transpose(1, 2))

    def _head_norm(self, x_BHLE: Tensor, name: str) -> Tensor:
        """QK-norm: the slices are folded into the batch here, the gains are not."""
        scaled = F.rms_norm(x_BHLE, (x_BHLE.shape[-1],), None, self.shape.norm_epsilon)
        gain_K111E = self.leaves[name][:, None, None, None, :]
        scaled_KBHLE = scaled.view(self.width, -1, *scaled.shape[1:])
        return (gain_K111E * scaled_KBHLE).flatten(0, 1)

    def _attention(self, x_KND: Tensor, prefix: str, length: int) -> Tensor:
        shape = self.shape
        heads, kv_heads, num_slices = shape.num_heads, shape.num_kv_heads, self.width
        joined = self._linear(x_KND, f"{prefix}.query_key_value.weight")
        joined = joined.view(-1, length, heads + 2 * kv_heads, shape.head_width)
        turning, value = torch.split(joined.transpose(1, 2), [heads + kv_heads, kv_heads], dim=1)
        if shape.qk_norm:
            query, key = torch.split(turning, [heads, kv_heads], dim=1)
            query = self._head_norm(query, f"{prefix}.query_norm.weight")
            turning = torch.cat((query, self._head_norm(key, f"{prefix}.key_norm.weight")), dim=1)
        turned = rotate(turning, self.cosine_LE[:length], self.sine_LE[:length])
        query, key = torch.split(turned, [heads, kv_heads], dim=1)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=heads != kv_heads)
        mixed_KND = mixed.transpose(1, 2).reshape(num_slices, -1, heads * shape.head_width)
        return self._linear(mixed_KND, f"{prefix}.output.weight")

    def _mlp(self, x_KND: Tensor, prefix: str) -> Tensor:
        gate_KNF, up_KNF = self._linear(x_KND, f"{prefix}.gate_up.weight").chunk(2, dim=-1)
        return self._linear(F.silu(gate_KNF) * up_KNF, f"{prefix}.down.weight")

    def embed(self, tokens_KBLS: Tensor) -> Tensor:
        """Mean embedding of each bag `[K, N, D]`: one look-up in a table of K*V rows, summed in float32."""
        rows_KBLS = tokens_KBLS + self.row_offsets_K[:, None, None, None]
        return mean_of_bags(rows_KBLS, self.leaves["embedding.weight"].flatten(0, 1)).flatten(1, 2)

    def __call__(self, tokens_KBLS: Tensor) -> Tensor:
        """Bags of token ids to normalised hidden states `[K, N, D]`; position j of a sequence sees bags 0..j of it only."""
        length = tokens_KBLS.shape[2]
        x_KND = self.embed(tokens_KBLS)
        for index in range(self.shape.num_layers):
            block = f"blocks.{index}"
            normed = self._norm(x_KND, f"{block}.attention_norm.weight")
            x_KND = x_KND + self._attention(normed, f"{block}.attention", length)
            x_KND = x_KND + self._mlp(self._norm(x_KND, f"{block}.mlp_norm.weight"), f"{block}.mlp")
        return self._norm(x_KND, "norm.weight")
