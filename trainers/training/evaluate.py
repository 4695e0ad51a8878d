"""Validation loss: next-token cross-entropy on fixed tokens, the same for every method and in either phase."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from trainers.contract.flops import chunk_rows
from trainers.model.attention import Kernels, forced_attention
from trainers.model.decoder import Decoder
from trainers.model.ranks import ALONE, Ranks
from trainers.training.sharding import release

EVALUATION_POSITIONS = 16_384
"""Positions a forward pass; bounds the memory of the activations."""
EVALUATION_LOGITS = 1 << 28
"""Logits that exist at once: 2,093 positions of a vocabulary of 128,256, at most ten bytes each (bfloat16, float32 and its
log-softmax), beside a training step that was sized to fill the device."""


@torch.no_grad()
def validation_loss(
    model: Decoder,
    tokens: np.ndarray,
    context: int,
    device: torch.device,
    ranks: Ranks = ALONE,
    kernels: Kernels = (),
) -> float:
    """Mean next-token loss in nats over the whole windows of `context` positions in `tokens` `[N]`.

    `model` has the weights that compute. Bags of one token, as in ordinary training, whatever phase the model is in. May be
    infinite or NaN for a diverged model. Each of several ranks reads every `size`-th window, and one for nothing where it
    has fewer than others. `kernels` are those of attention that work for the model, none for torch's own choice.
    """
    windows = (len(tokens) - 1) // context
    used = torch.from_numpy(np.array(tokens[: windows * context + 1], dtype=np.int64))
    inputs, targets = used[:-1].view(windows, context), used[1:].view(windows, context)
    # Not by the memory that is free: the same windows go together wherever a model is evaluated.
    positions = min(EVALUATION_POSITIONS, 2 * chunk_rows(model.shape.vocab_size, 4))
    total, rows = 0.0, max(1, positions // context)
    for start in range(0, windows, rows * ranks.size):
        mine = range(start + ranks.rank, min(start + rows * ranks.size, windows), ranks.size)
        # A rank without a window computes one for nothing: gathering the weights takes all of them.
        chosen = slice(mine.start, mine.stop, mine.step) if mine else slice(1)
        part, wanted = inputs[chosen, :, None].to(device), targets[chosen].to(device)
        with forced_attention(kernels):
            hidden_BLD = model(part)
        total += _summed_loss(model, hidden_BLD.flatten(0, 1), wanted.flatten()) if mine else 0.0
    release(model, ranks)
    return float(ranks.total(torch.tensor(total, dtype=torch.float64, device=device))) / (windows * context)


def _summed_loss(model: Decoder, hidden_ND: Tensor, wanted_N: Tensor) -> float:
    """Sum of the positions' losses, from `EVALUATION_LOGITS` logits at a time."""
    rows, total = max(1, EVALUATION_LOGITS // model.shape.vocab_size), 0.0
    for start in range(0, len(wanted_N), rows):
        logits_CV = model.head(hidden_ND[start : start + rows])
        total += float(F.cross_entropy(logits_CV.float(), wanted_N[start : start + rows], reduction="sum"))
    return total
