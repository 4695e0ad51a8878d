"""One training step of K runs at once: small models leave a device idle, K of them of one shape fill it.

Every slice has its own seed, data, place in its schedule, learning rate, clip factor and NaN-skip; the slices share a shape,
a batch size, an objective and AdamW's constants (`stack_stage.stack_key`). Without a host synchronisation inside a step and
with fixed shapes, so that it can be captured. Which runs are stacked is the orchestrator's.

Shapes: K slices, B sequences, L latent positions, N = B*L, S tokens a bag, T targets, D width, V vocabulary, C a chunk of N.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from trainers.attention import forced_attention
from trainers.batch import TokenStream, read_batch
from trainers.checkpoint import TrainState
from trainers.evaluate import EVALUATION_POSITIONS
from trainers.footprint import chunk_rows
from trainers.losses import middle_pass, target_weights
from trainers.schedule import Phase, learning_rates, phase_at
from trainers.spec import Optimizer, TrialSpec
from trainers.stacked_model import StackedDecoder, StackedWeights
from trainers.step import StepResult


class _StackedLinearMultiHot(torch.autograd.Function):
    """`losses._FusedLinearMultiHot` with a slice dimension: gradients are formed in the forward, chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any, hidden_KND: Tensor, head_KVD: Tensor, targets_KNT: Tensor, weights_T: Tensor, chunk: int
    ) -> Tensor:
        width, rows = hidden_KND.shape[:2]
        loss_K = torch.zeros(width, dtype=torch.float32, device=hidden_KND.device)
        hidden_grad_KND = torch.empty_like(hidden_KND)
        head_grad_KVD = torch.zeros(head_KVD.shape, dtype=torch.float32, device=head_KVD.device)
        for start in range(0, rows, chunk):
            part = slice(start, min(start + chunk, rows))
            hidden_KCD = hidden_KND[:, part]
            logits = torch.bmm(hidden_KCD, head_KVD.transpose(1, 2)).flatten(0, 1)
            losses, grad = middle_pass(logits, targets_KNT[:, part].flatten(0, 1), weights_T, rows)
            loss_K += losses.view(width, -1).sum(1)
            grad_KCV = grad.view(width, -1, grad.shape[1])
            hidden_grad_KND[:, part] = torch.bmm(grad_KCV, head_KVD)
            if head_grad_KVD.dtype == grad_KCV.dtype:
                head_grad_KVD.baddbmm_(grad_KCV.transpose(1, 2), hidden_KCD)
            else:
                head_grad_KVD += torch.bmm(grad_KCV.transpose(1, 2), hidden_KCD)
        ctx.save_for_backward(hidden_grad_KND, head_grad_KVD.to(head_KVD.dtype))
        return loss_K / rows

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        hidden_grad_KND, head_grad_KVD = ctx.saved_tensors
        scale_K11 = grad_outputs[0][:, None, None].to(hidden_grad_KND.dtype)
        return hidden_grad_KND * scale_K11, head_grad_KVD * scale_K11, None, None, None


def stacked_linear_multi_hot(
    hidden_KND: Tensor, head_KVD: Tensor, targets_KNT: Tensor, weights_T: Tensor, most_rows: int | None = None
) -> Tensor:
    """Mean loss of every slice, float32 `[K]`: `losses.fused_linear_multi_hot` slice by slice, in one pass.

    The logits of at most `most_rows` positions, over all slices, exist at once: `footprint.chunk_rows` of them by default.
    """
    rows = most_rows or chunk_rows(head_KVD.shape[1], hidden_KND.element_size())
    chunk = max(1, rows // hidden_KND.shape[0])
    loss_K: Tensor = _StackedLinearMultiHot.apply(  # type: ignore[no-untyped-call]
        hidden_KND, head_KVD, targets_KNT, weights_T, chunk
    )
    return loss_K


class StackedAdamW:
    """Clipping and AdamW for every slice of a stack by itself: a norm, a learning rate, a clip factor, a skip each.

    The update is torch's own fused AdamW, once a slice: the arithmetic of separate training, without a host
    synchronisation on a GPU.
    """

    def __init__(self, weights: StackedWeights, settings: Optimizer) -> None:
        self.counts_PK, self.settings, self.num_slices = weights.counts_PK, settings, len(weights.states)
        buffers = (weights.values, weights.gradients, weights.first, weights.second)
        kinds = [*(list(weights.views(buffer).values()) for buffer in buffers), list(weights.counts_PK)]
        matrices = [place for place, leaf in enumerate(kinds[0]) if leaf.dim() > 2]
        gains = [place for place, leaf in enumerate(kinds[0]) if leaf.dim() == 2]
        self.groups = [
            (index, [[leaves[place][index] for place in places] for leaves in kinds], decay)
            for index in range(self.num_slices)
            for places, decay in ((matrices, settings.weight_decay), (gains, 0.0))
        ]
        self.pieces = [gradient for _, (_, gradients, *_), _ in self.groups for gradient in gradients]

    @torch.no_grad()
    def step(self, learning_rate_K: Tensor) -> Tensor:
        """Clip and update; returns the gradient norms before clipping `[K]`. The gradients are consumed.

        A slice whose norm is not finite keeps weights, moments and step counter.
        """
        norm_KP = torch.stack(torch._foreach_norm(self.pieces)).view(self.num_slices, -1)
        norm_K: Tensor = torch.linalg.vector_norm(norm_KP, dim=1)
        scale_K = torch.clamp((norm_K + 1e-6) / self.settings.clip_norm, min=1.0)
        skip_K = (~torch.isfinite(norm_K)).to(torch.float32)
        self.counts_PK += 1.0 - skip_K
        for index, (values, gradients, first, second, counts), decay in self.groups:
            torch._fused_adamw_(
                values,
                gradients,
                first,
                second,
                [],
                counts,
                lr=learning_rate_K[index],
                beta1=self.settings.beta1,
                beta2=self.settings.beta2,
                weight_decay=decay,
                eps=self.settings.epsilon,
                amsgrad=False,
                maximize=False,
                grad_scale=scale_K[index],
                found_inf=skip_K[index],
            )
        return norm_K


@dataclass(frozen=True, slots=True)
class Slice:
    """One run of a stack. `state` counts its steps and holds its weights, bound to the stack's."""

    spec: TrialSpec
    phases: tuple[Phase, ...]
    stream: TokenStream
    state: TrainState
    rates: np.ndarray

    @staticmethod
    def of(spec: TrialSpec, phases: tuple[Phase, ...], stream: TokenStream, state: TrainState) -> Slice:
        """With the learning rate of every step of its schedule."""
        return Slice(spec, phases, stream, state, learning_rates(spec.schedule))


class StackedStep:
    """The step of K runs on one device, `micro_sequences` of each run's batch at a time."""

    def __init__(self, slices: Sequence[Slice], device: torch.device, micro_sequences: int | None = None) -> None:
        spec = slices[0].spec
        self.slices, self.spec, self.device = tuple(slices), spec, device
        self.micro_sequences = micro_sequences or spec.sequences_per_step
        if spec.sequences_per_step % self.micro_sequences:
            raise ValueError(
                f"micro_sequences: {self.micro_sequences} does not divide the {spec.sequences_per_step} sequences of a step"
            )
        self.parts = spec.sequences_per_step // self.micro_sequences
        self.weights = StackedWeights([part.state for part in slices], spec.precision)
        self.optimizer = StackedAdamW(self.weights, spec.optimizer)
        self.decoder = StackedDecoder(spec.shape, spec.context, self.weights.leaves)

    def read(self, ahead: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What the step `ahead` of the slices' own counters needs: inputs `[K, B, L, S]`, targets `[K, B, L, T]`, target
        weights `[T]` and learning rates `[K]`."""
        steps = [part.state.step + ahead for part in self.slices]
        phases = [phase_at(part.phases, step) for part, step in zip(self.slices, steps, strict=True)]
        batches = [
            read_batch(part.stream, part.spec, part.phases, phase, step, self.device)
            for part, phase, step in zip(self.slices, phases, steps, strict=True)
        ]
        rates = [float(part.rates[step]) for part, step in zip(self.slices, steps, strict=True)]
        weights = target_weights(phases[0].weighting, phases[0].target_size)
        return (
            torch.stack([inputs for inputs, _ in batches]),
            torch.stack([targets for _, targets in batches]),
            torch.tensor(weights, dtype=torch.float32, device=self.device),
            torch.tensor(rates, dtype=torch.float32, device=self.device),
        )

    def micro(self, inputs_KBLS: Tensor, targets_KBLT: Tensor, weights_T: Tensor) -> Tensor:
        """Forward, loss and backward of a part of the batch; gradients add up. Losses `[K]`, their part of the batch's."""
        with forced_attention(self.device):
            hidden_KND = self.decoder(inputs_KBLS)
            loss_K = stacked_linear_multi_hot(hidden_KND, self.decoder.heads, targets_KBLT.flatten(1, 2), weights_T)
            loss_K = loss_K / self.parts
            loss_K.sum().backward()  # type: ignore[no-untyped-call]
        self.weights.collect()
        return loss_K.detach()

    def update(self, learning_rate_K: Tensor) -> Tensor:
        """Clip, update and make ready for the next step; gradient norms before clipping `[K]`."""
        norm_K = self.optimizer.step(learning_rate_K)
        self.weights.refresh()
        return norm_K

    def enter(self) -> None:
        """Get ready for the phases that the slices are in; the weights may have been changed from outside."""
        self.weights.refresh()

    def run(self, ahead: int = 0) -> StepResult:
        """Train the step `ahead` of the slices' counters, which stay as they are. Losses and norms are `[K]`."""
        inputs, targets, weights_T, rates_K = self.read(ahead)
        loss_K = torch.zeros(len(self.slices), device=self.device)
        for micro_inputs, micro_targets in zip(inputs.chunk(self.parts, 1), targets.chunk(self.parts, 1), strict=True):
            loss_K += self.micro(micro_inputs, micro_targets, weights_T)
        return StepResult(loss_K, self.update(rates_K))

    def look(self, results: Sequence[StepResult]) -> tuple[list[list[float]], list[list[float]]]:
        """Losses and gradient norms `[K][N]` of N steps on the host. The device has done these steps then."""
        losses = torch.stack([result.loss for result in results], 1).tolist()
        norms = torch.stack([result.gradient_norm for result in results], 1).tolist()
        return losses, norms

    def close(self) -> None:
        """Nothing is held but weights."""


@torch.no_grad()
def stacked_validation_losses(step: StackedStep, tokens: np.ndarray, chosen: Sequence[int]) -> list[float]:
    """`evaluate.validation_loss` of the `chosen` slices, on the same tokens `[N]`. May be infinite or NaN.

    The bodies run stacked; heads and losses, which hold the memory and need few operations, run slice by slice.
    """
    context, decoder = step.spec.context, step.decoder.of(chosen)
    windows = (len(tokens) - 1) // context
    used = torch.from_numpy(np.array(tokens[: windows * context + 1], dtype=np.int64))
    inputs, targets = used[:-1].view(windows, context), used[1:].view(windows, context)
    positions = min(EVALUATION_POSITIONS, 2 * chunk_rows(step.spec.shape.vocab_size, 4))
    totals, rows = [0.0] * decoder.width, max(1, positions // context)
    for start in range(0, windows, rows):
        part = inputs[start : start + rows, :, None].to(step.device)
        wanted = targets[start : start + rows].to(step.device).flatten()
        with forced_attention(step.device):
            hidden_KND = decoder(part.expand(decoder.width, -1, -1, -1))
        for index, (hidden_ND, head_VD) in enumerate(zip(hidden_KND, decoder.heads, strict=True)):
            losses = F.cross_entropy(torch.mm(hidden_ND, head_VD.T).float(), wanted, reduction="sum")
            totals[index] += float(losses)
    return [total / (windows * context) for total in totals]
