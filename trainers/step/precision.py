"""The weights that compute and the weights that learn.

In float32 they are the same. In bf16 the decoder works with bfloat16 weights, while optimizer, moments and gradients see
float32 masters: an update far smaller than a bfloat16 step would otherwise be lost. Every form of the step works so; bytes
a parameter: 4 master, 8 moments, 4 gradient, and in bf16 2 working weight and 2 of its gradient.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from trainers.model.decoder import Decoder


class WorkingWeights:
    """`masters` is what checkpoints hold and the optimizer updates, `model` what computes: the same object in float32."""

    def __init__(self, masters: Decoder, precision: str) -> None:
        self.masters = masters
        self.model = masters if precision == "fp32" else _in_bfloat16(masters)
        self._master: list[Tensor] = list(masters.parameters())
        self._working: list[Tensor] = list(self.model.parameters())

    @property
    def shared(self) -> bool:
        """Whether masters and working weights are the same tensors."""
        return self.model is self.masters

    @torch.no_grad()
    def refresh(self) -> None:
        """Round the masters into the working weights: after every update, and after whatever else changes the masters."""
        if not self.shared:
            torch._foreach_copy_(self._working, self._master)

    @torch.no_grad()
    def collect(self) -> None:
        """Add the working weights' gradients to the masters' float32 gradients and drop them: after every backward."""
        if self.shared:
            return
        sums: list[Tensor] = []
        terms: list[Tensor] = []
        for master, working in zip(self._master, self._working, strict=True):
            if working.grad is None:
                continue
            if master.grad is None:
                master.grad = working.grad.float()
            else:
                sums.append(master.grad)
                terms.append(working.grad)
            # Dropped, so that the next backward writes and never adds: sums of micro-batches are float32 only.
            working.grad = None
        if sums:
            torch._foreach_add_(sums, terms)


def _in_bfloat16(masters: Decoder) -> Decoder:
    """A copy whose parameters are bfloat16; buffers (the rotary tables) keep their type. No float32 copy is made."""
    # `deepcopy` takes these for copies that it has already made.
    memo = {id(p): nn.Parameter(p.detach().to(torch.bfloat16)) for p in masters.parameters()}
    return copy.deepcopy(masters, memo)
