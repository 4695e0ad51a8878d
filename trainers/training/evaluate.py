"""Validation loss: next-token cross-entropy on fixed tokens, the same for every method and in either phase."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from trainers.contract.record import TextScore
from trainers.model.attention import Kernels, forced_attention
from trainers.model.decoder import Decoder
from trainers.model.ranks import ALONE, Ranks
from trainers.training.sharding import release

EVALUATION_POSITIONS = 16_384
"""Positions a forward pass; bounds the memory of the activations."""
EVALUATION_LOGITS = 1 << 28
"""Logits that exist at once: 2,093 positions of a vocabulary of 128,256, at most ten bytes each (bfloat16, float32 and its
log-softmax), beside a training step that was sized to fill the device."""
PIECE_TOKENS = 1_024
PIECE_DIGITS = 4


@torch.no_grad()
def window_losses(
    model: Decoder,
    tokens: np.ndarray,
    context: int,
    device: torch.device,
    ranks: Ranks = ALONE,
    kernels: Kernels = (),
) -> np.ndarray:
    """Mean next-token loss in nats of each whole window of `context` positions in `tokens` `[N]`, float64 `[windows]`.

    `model` has the weights that compute. Bags of one token, as in ordinary training, whatever phase the model is in. May
    hold infinities or NaN for a diverged model. Each of several ranks reads every `size`-th window, and one for nothing
    where it has fewer than others. `kernels` are those of attention that work for the model, none for torch's own choice.
    """
    windows = (len(tokens) - 1) // context
    used = torch.from_numpy(np.array(tokens[: windows * context + 1], dtype=np.int64))
    inputs, targets = used[:-1].view(windows, context), used[1:].view(windows, context)
    found = torch.zeros(windows, dtype=torch.float64, device=device)
    rows = max(1, EVALUATION_POSITIONS // context)
    for start in range(0, windows, rows * ranks.size):
        mine = range(start + ranks.rank, min(start + rows * ranks.size, windows), ranks.size)
        # A rank without a window computes one for nothing: gathering the weights takes all of them.
        chosen = slice(mine.start, mine.stop, mine.step) if mine else slice(1)
        part, wanted = inputs[chosen, :, None].to(device), targets[chosen].to(device)
        with forced_attention(kernels):
            hidden = model(part)
        losses = _losses(model, hidden.flatten(0, 1), wanted.flatten()).view(len(part), context)
        if mine:
            found[chosen] = losses.double().mean(1)
    release(model, ranks)
    return np.asarray(ranks.total(found).cpu())


def _losses(model: Decoder, hidden_ND: Tensor, target_N: Tensor) -> Tensor:
    """Cross-entropy of each position, float32 `[N]`, from `EVALUATION_LOGITS` logits at a time."""
    rows = max(1, EVALUATION_LOGITS // model.shape.vocab_size)
    parts = zip(torch.split(hidden_ND, rows), torch.split(target_N, rows), strict=True)
    return torch.cat([F.cross_entropy(model.head(part).float(), wanted, reduction="none") for part, wanted in parts])


def mean_loss(losses: np.ndarray) -> float:
    """Nats per token over windows of equal length."""
    return float(losses.mean())


def score_of(losses: np.ndarray, context: int) -> TextScore | None:
    """The score of a text from the losses of its windows `[windows]`; None for a diverged model.

    A piece is as many whole windows as make 1,024 tokens, one at least.
    """
    if not np.isfinite(losses).all():
        return None
    windows = max(1, PIECE_TOKENS // context)
    whole = losses[: len(losses) // windows * windows].reshape(-1, windows).mean(1)
    pieces = tuple(round(float(piece), PIECE_DIGITS) for piece in whole)
    return TextScore(len(losses) * context, mean_loss(losses), windows * context, pieces)
