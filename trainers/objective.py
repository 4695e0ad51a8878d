"""What a step minimises, for every phase of every method: the model, its heads, and the loss against the phase's targets.

Eager, compiled and captured steps call this one function, so that they have one meaning. Which targets there are is
`batch`'s, how their cross-entropy is computed `losses`'s.

Shapes: B sequences, L latent positions, S tokens a bag, T targets a position, H output heads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trainers.losses import fused_linear_multi_hot
from trainers.model import Decoder


def objective(
    model: Decoder, inputs_BLS: Tensor, targets_BLT: Tensor, weights_T: Tensor, heads: int, precision: str
) -> Tensor:
    """Training loss of a batch in nats, float32 scalar; gradients flow to the model.

    One head is asked for all T targets with `weights_T`; T heads are asked for one target each, and the loss is the mean
    over heads. The heads' rows go through the unembedding together, so that no more logits exist at once than with one.
    """
    with torch.autocast(inputs_BLS.device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        hidden_BLD = model(inputs_BLS, heads)
    if heads > 1:
        targets_BLT = targets_BLT.permute(2, 0, 1).reshape(-1, targets_BLT.shape[1], 1)
        weights_T = torch.ones_like(weights_T[:1])
    head_VD = model.head.weight.to(hidden_BLD.dtype)
    return fused_linear_multi_hot(hidden_BLD.flatten(0, 1), head_VD, targets_BLT.flatten(0, 1), weights_T)
