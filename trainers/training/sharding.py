"""The model in shards over the ranks of a trial (FSDP2): how it is divided, and when what was gathered is given up.

What ranks do with shards is `trainers.model.ranks`'s.
"""

from __future__ import annotations

from typing import Any

import torch

from trainers.model.decoder import Decoder
from trainers.model.moe import Mixture
from trainers.model.ranks import Ranks
from trainers.step.compiling import compiled


def shard_model(model: Decoder, ranks: Ranks, precision: str, execution: str) -> None:
    """Divide every parameter by rows over the ranks, and gather a block's only while it computes.

    Shards, moments and reduced gradients are float32; in bf16 the gathered weights are bf16, as one device's working weights
    are. The root's parameters (embedding, head, last gain) stay gathered from the forward to the end of the backward, because
    the loss reads the head outside of the forward. A compiled run compiles each block: the gathering between them cannot be
    part of a graph. Nothing happens to a model that is trained alone.
    """
    if ranks.mesh is None:
        return
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if precision == "bf16" else None,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,  # rotary angles stay float32
    )
    for module in model.modules():
        if isinstance(module, Mixture):
            module.over_ranks = ranks.total
    for block in (*model.blocks, *model.extra_blocks):
        if execution == "compiled":
            block.forward = compiled(block.forward)
        fully_shard(block, mesh=ranks.mesh, mp_policy=policy)
    fully_shard(model, mesh=ranks.mesh, mp_policy=policy, reshard_after_forward=False)


def release(model: Decoder, ranks: Ranks) -> None:
    """Give up the gathered root after a forward without a backward, so that parameters are shards again."""
    if ranks.mesh is not None:
        sharded: Any = model
        sharded.reshard()
