"""One training step, with one meaning in every form: read, forward, loss, backward, clip, update.

Forms: `eager` runs operation by operation; `compiled` has the forward and the loss compiled as one graph; `captured` will
replay a CUDA graph. `auto` takes what the device and the length of the run deserve, and says which it took.
Decides how a step runs, never what it computes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from trainers.batch import TokenStream, read_batch
from trainers.losses import target_weights
from trainers.model import Decoder
from trainers.objective import objective
from trainers.optim import clipped_step
from trainers.schedule import Phase, learning_rates
from trainers.spec import TrialSpec

EXECUTIONS: tuple[str, ...] = ("auto", "eager", "compiled")
"""What may be asked for. The captured form takes its place here when it exists."""

LossFunction = Callable[[Tensor, Tensor, Tensor, int], Tensor]


def resolve_execution(wanted: str, device: torch.device) -> str:
    """`eager` or `compiled`. Raises `ValueError` when a form is asked for that this machine cannot run.

    On a CPU `auto` is eager: small models, for which compiling costs more than it brings, are what a CPU is for.
    On a GPU `auto` compiles where a C++ compiler is installed.
    """
    if wanted not in EXECUTIONS:
        raise ValueError(f"execution: {wanted!r} is not one of {', '.join(EXECUTIONS)}")
    compiler = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++") or shutil.which("clang++")
    if wanted == "auto":
        return "compiled" if compiler and device.type == "cuda" else "eager"
    if wanted == "compiled" and not compiler:
        raise ValueError("execution: compiled needs a C++ compiler and none is installed; use eager or auto")
    return wanted


@dataclass(frozen=True, slots=True)
class StepResult:
    """Device scalars, float32: the training loss of the step's own objective, the gradient norm before clipping."""

    loss: Tensor
    gradient_norm: Tensor


class TrainingStep:
    """The step of one run on one device. `micro_sequences` of the batch go through the model at a time."""

    def __init__(
        self,
        spec: TrialSpec,
        phases: tuple[Phase, ...],
        model: Decoder,
        optimizer: torch.optim.AdamW,
        stream: TokenStream,
        device: torch.device,
        execution: str,
        micro_sequences: int | None = None,
    ) -> None:
        self.spec, self.phases, self.model, self.optimizer = spec, phases, model, optimizer
        self.stream, self.device, self.execution = stream, device, execution
        self.micro_sequences = micro_sequences or spec.sequences_per_step
        if spec.sequences_per_step % self.micro_sequences:
            raise ValueError(
                f"micro_sequences: {self.micro_sequences} does not divide the {spec.sequences_per_step} sequences of a step"
            )
        self.learning_rates = learning_rates(spec.schedule)
        self._loss = self._compiled_loss() if execution == "compiled" else self._eager_loss

    def _eager_loss(self, inputs_BLS: Tensor, targets_BLT: Tensor, weights_T: Tensor, heads: int) -> Tensor:
        return objective(self.model, inputs_BLS, targets_BLT, weights_T, heads, self.spec.precision)

    def _compiled_loss(self) -> LossFunction:
        return torch.compile(self._eager_loss, fullgraph=True, dynamic=False)

    def weights(self, phase: Phase) -> Tensor:
        """Target weights of a phase, float32 `[T]` on the device."""
        return torch.tensor(target_weights(phase.weighting, phase.target_size), dtype=torch.float32, device=self.device)

    def run(self, step: int, phase: Phase) -> StepResult:
        """Train one step. A step whose gradient norm is not finite changes nothing."""
        inputs, targets = read_batch(self.stream, self.spec, self.phases, phase, step, self.device)
        weights_T = self.weights(phase)
        loss = torch.zeros((), device=self.device)
        parts = self.spec.sequences_per_step // self.micro_sequences
        for micro_inputs, micro_targets in zip(inputs.chunk(parts), targets.chunk(parts), strict=True):
            micro_loss = self._loss(micro_inputs, micro_targets, weights_T, phase.heads) / parts
            micro_loss.backward()  # type: ignore[no-untyped-call]
            loss += micro_loss.detach()
        norm = clipped_step(self.optimizer, self.spec.optimizer.clip_norm, float(self.learning_rates[step]))
        self.optimizer.zero_grad(set_to_none=True)
        return StepResult(loss, norm)
