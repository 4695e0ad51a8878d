"""Validation loss: next-token cross-entropy on fixed tokens, the same for every method and in either phase."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from trainers.model import Decoder

EVALUATION_POSITIONS = 16_384
"""Positions a forward pass; bounds the memory of the logits."""


@torch.no_grad()
def validation_loss(model: Decoder, tokens: np.ndarray, context: int, device: torch.device, precision: str) -> float:
    """Mean next-token loss in nats over the whole windows of `context` positions in `tokens` `[N]`.

    Bags of one token, as in ordinary training, whatever phase the model is in. May be infinite or NaN for a diverged model.
    """
    windows = (len(tokens) - 1) // context
    used = torch.from_numpy(np.array(tokens[: windows * context + 1], dtype=np.int64))
    inputs, targets = used[:-1].view(windows, context), used[1:].view(windows, context)
    total, rows = 0.0, max(1, EVALUATION_POSITIONS // context)
    for start in range(0, windows, rows):
        part = inputs[start : start + rows, :, None].to(device)
        wanted = targets[start : start + rows].to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            logits = model.head(model(part))
        losses = F.cross_entropy(logits.flatten(0, 1).float(), wanted.flatten(), reduction="sum")
        total += float(losses)
    return total / (windows * context)
