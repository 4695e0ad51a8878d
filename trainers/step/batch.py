"""From a token stream to one step's inputs and targets: a pure function of the phase and the step.

The B sequences of a step read the stream in B *lanes* that start evenly spaced over an epoch and move on together, as the
data-parallel readers of a large run do: neighbours in a batch come from different documents, and a sequence goes on where
the last step's left off. A step of a small model would otherwise come from a single file.

Shapes: B sequences, L latent positions of one, S tokens a bag, T targets a position; a phase may cut each sequence into P
pieces.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from trainers.contract.schedule import Phase, data_position
from trainers.contract.spec import TrialSpec
from trainers.superposition import cut_batch, window_tokens


class TokenStream(Protocol):
    """An endless sequence of token ids in which every position has one fixed value."""

    @property
    def tokens_per_epoch(self) -> int:
        """Tokens after which the stream has read everything once."""
        ...

    def read(self, position: int, count: int) -> np.ndarray:
        """Tokens `[position, position + count)`, integers `[count]`."""
        ...


def lane_position(tokens_per_epoch: int, spec: TrialSpec, phases: tuple[Phase, ...], step: int, lane: int) -> int:
    """Stream position of the first token that sequence `lane` reads at `step`.

    `lane * floor(epoch / B) + L * (s*min(t, b) + max(t - b, 0))` for TST with its boundary at step b.
    """
    stride = tokens_per_epoch // spec.sequences_per_step
    return lane * stride + data_position(phases, spec.context, step)


def read_batch(
    stream: TokenStream,
    spec: TrialSpec,
    phases: tuple[Phase, ...],
    phase: Phase,
    step: int,
    device: torch.device,
    lanes: range | None = None,
) -> tuple[Tensor, Tensor]:
    """Inputs and targets of `step`, int64 on `device`, of all sequences or those of `lanes`: as `cut_batch` gives them."""
    count = window_tokens(spec.context, phase)
    sequences = [
        stream.read(lane_position(stream.tokens_per_epoch, spec, phases, step, lane), count)
        for lane in lanes or range(spec.sequences_per_step)
    ]
    tokens_BN = torch.from_numpy(np.stack(sequences).astype(np.int64, copy=False))
    pair = cut_batch(tokens_BN, spec.context, phase)
    if device.type == "cuda":
        return tuple(part.pin_memory().to(device, non_blocking=True) for part in pair)  # type: ignore[return-value]
    return pair
