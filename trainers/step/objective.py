"""What a step minimises, for every phase of every method: the model, its heads, and the loss against the phase's targets.

Eager, compiled and captured steps call this, so that they have one meaning. Which targets there are is `batch`'s, what their
cross-entropy is `superposition`'s, by which pass it is taken `losses`'s, how code is compiled `compiling`'s.

Shapes: B sequences, L latent positions, S tokens a bag, T targets a position, H output heads.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from trainers.model.decoder import Decoder
from trainers.model.losses import fused_linear_multi_hot, has_fast_pass
from trainers.model.ranks import is_sharded
from trainers.step.compiling import compiled

UNROLLED_BAG = 64
"""Largest bag whose mean is written out term by term in compiled code for a CPU: a loop of 8 look-ups takes 2.6 times as long,
one of 16 1.9 times, because Inductor does not vectorise it (torch 2.13, one Zen 4 core)."""


class Objective:
    """Training loss of a batch in nats, float32 scalar; gradients flow to the model.

    Bag embedding, body and loss are compiled apart where that is asked for: the body does not know the bag size, so that all
    phases and trials of a shape share its code. On a GPU with Triton the loss is matmuls and one kernel of our own, which
    leaves nothing to compile. A model that ranks hold in shards is gathered by its forward, and has its blocks compiled.
    """

    def __init__(self, model: Decoder, device: torch.device, *, compile_parts: bool = False) -> None:
        self._model, self._sharded = model, is_sharded(model.head.weight)
        self._embed: Callable[[Tensor], Tensor] = model.embed
        self._body: Callable[..., Tensor] = model.body
        self._loss: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] = fused_linear_multi_hot
        if compile_parts:
            if not self._sharded:
                unrolled = UNROLLED_BAG if device.type == "cpu" else None
                self._embed = compiled(model.embed, unrolled)
                if model.checkpoint_activations:
                    # Compiled with its checkpoints inside, the body would ask for random generators on a GPU: to the compiler
                    # attention is random, with dropout or without. So each block is compiled, and checkpointed from outside.
                    insides = {block: compiled(block.forward) for block in (*model.blocks, *model.extra_blocks)}
                    self._body = partial(model.body, insides=insides)
                else:
                    self._body = compiled(model.body)
            if not has_fast_pass(device.type):
                self._loss = compiled(fused_linear_multi_hot)

    def __call__(self, inputs_BLS: Tensor, targets_BLT: Tensor, weights_T: Tensor, heads: int) -> Tensor:
        """One head is asked for all T targets with `weights_T`; T heads are asked for one target each, and the loss is the
        mean over heads. Their rows go through the unembedding together, so that no more logits exist at once than with one.
        """
        sharded = self._sharded
        hidden_BLD = self._model(inputs_BLS, heads) if sharded else self._body(self._embed(inputs_BLS), heads)
        if heads > 1:
            targets_BLT = targets_BLT.permute(2, 0, 1).reshape(-1, targets_BLT.shape[1], 1)
            weights_T = torch.ones_like(weights_T[:1])
        return self._loss(hidden_BLD.flatten(0, 1), self._model.head.weight, targets_BLT.flatten(0, 1), weights_T)
