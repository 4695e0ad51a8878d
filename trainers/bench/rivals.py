"""The steps that ours is held against, on the same decoder, optimizer and data: what the paper lists, what a user writes.

`paper`: s embedding look-ups added up, whole logits, s cross-entropies (the published formulation, in our words).
`plain`: next-token training with PyTorch's own cross-entropy and clipping, float32 weights under autocast.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from trainers.bench.subject import Subject
from trainers.contract.schedule import Phase
from trainers.contract.spec import TrialSpec
from trainers.model.decoder import Decoder
from trainers.planning.footprint import footprint
from trainers.step.batch import read_batch
from trainers.step.compiling import compiled

Forward = Callable[[Tensor, Tensor], Tensor]
LossOf = Callable[[Decoder, Tensor, Tensor], Tensor]


def paper_loss(model: Decoder, inputs_BLS: Tensor, targets_BLT: Tensor) -> Tensor:
    """Superposition as s look-ups and s cross-entropies on one set of whole logits."""
    bag = inputs_BLS.shape[-1]
    x_BLD = model.embedding(inputs_BLS[..., 0])
    for k in range(1, bag):
        x_BLD = x_BLD + model.embedding(inputs_BLS[..., k])
    logits_NV = model.head(model.body(x_BLD / bag)).flatten(0, 1).float()
    loss = torch.zeros((), device=logits_NV.device)
    for k in range(targets_BLT.shape[-1]):
        loss = loss + F.cross_entropy(logits_NV, targets_BLT[..., k].flatten())
    return loss / targets_BLT.shape[-1]


def plain_loss(model: Decoder, inputs_BLS: Tensor, targets_BLT: Tensor) -> Tensor:
    """Next-token cross-entropy from whole logits."""
    logits_NV = model.head(model.body(model.embedding(inputs_BLS[..., 0]))).flatten(0, 1)
    return F.cross_entropy(logits_NV.float(), targets_BLT[..., 0].flatten())


@dataclass(frozen=True, slots=True)
class Rival:
    """A formulation to be held against ours: `paper` at the bag size of the published 3B run, `plain` at next-token.

    `logit_bytes` are what an eager step of it keeps of a logit at once, counted over its operations.
    """

    name: str
    bag_size: int
    loss_of: LossOf
    logit_bytes: int


RIVALS: tuple[Rival, ...] = (Rival("paper", 6, paper_loss, 24), Rival("plain", 1, plain_loss, 16))


def bytes_of(rival: Rival, spec: TrialSpec, micro_sequences: int) -> int:
    """What an eager step of `rival` takes on a GPU, by arithmetic: ours, with whole logits in place of a chunk of them."""
    rows = micro_sequences * spec.context
    return footprint(spec, micro_sequences).total + rival.logit_bytes * rows * spec.shape.vocab_size


class RivalStep:
    """One optimizer step with `loss_of`, eager or compiled as one graph; its own fused AdamW over the same weights."""

    def __init__(self, subject: Subject, loss_of: LossOf, form: str) -> None:
        self.subject = subject
        model, kind, half = subject.model, subject.device.type, subject.spec.precision == "bf16"

        def forward(inputs_BLS: Tensor, targets_BLT: Tensor) -> Tensor:
            with torch.autocast(kind, dtype=torch.bfloat16, enabled=half):
                return loss_of(model, inputs_BLS, targets_BLT)

        self._forward: Forward = compiled(forward) if form == "compiled" else forward

    def run(self, step: int, phase: Phase) -> Tensor:
        """Read, forward, backward, clip, update. Returns the loss, a device scalar."""
        subject, spec = self.subject, self.subject.spec
        inputs, targets = read_batch(subject.stream, spec, subject.phases, phase, step, subject.device)
        parts = spec.sequences_per_step // subject.setting.micro_sequences
        total = torch.zeros((), device=subject.device)
        for micro_inputs, micro_targets in zip(inputs.chunk(parts), targets.chunk(parts), strict=True):
            loss = self._forward(micro_inputs, micro_targets) / parts
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(subject.model.parameters(), spec.optimizer.clip_norm)
        subject.optimizer.step()
        subject.optimizer.zero_grad(set_to_none=True)
        return total
