"""One training step, with one meaning in every form: read, forward, loss, backward, clip, update.

Forms: `eager` runs operation by operation; `compiled` has embedding, body and loss compiled; `captured` replays the compiled
step as CUDA graphs. Decides how a step runs, never what it computes; which form a run takes is `execution`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from trainers.contract.schedule import Phase
from trainers.contract.spec import TrialSpec
from trainers.model.attention import attention_kernels, forced_attention
from trainers.model.decoder import Decoder
from trainers.model.ranks import ALONE, Ranks
from trainers.step.batch import TokenStream, read_batch
from trainers.step.captured import StaticStep
from trainers.step.compiling import can_compile
from trainers.step.fit import chosen_micro_sequences
from trainers.step.objective import Objective
from trainers.step.optim import clipped_step, learning_rates
from trainers.step.precision import WorkingWeights
from trainers.superposition import weights_of


@dataclass(frozen=True, slots=True)
class StepResult:
    """Device scalars, float32: the training loss of the step's own objective, the gradient norm before clipping.

    Perhaps not written yet, and overwritten some thousand steps later: `TrainingStep.look` brings them to the host.
    """

    loss: Tensor
    gradient_norm: Tensor


class TrainingStep:
    """The step of one run on one device, or on this rank's. `micro_sequences` of its batch go through the model at a time;
    None: all on a CPU, as many as should fit on a GPU. `model` holds the master weights, `working` those that compute.
    """

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
        checkpoint_activations: bool = False,
        ranks: Ranks = ALONE,
    ) -> None:
        self.spec, self.phases, self.model, self.optimizer = spec, phases, model, optimizer
        self.stream, self.device, self.execution = stream, device, execution
        model.checkpoint_activations = checkpoint_activations
        self.ranks, self.lanes = ranks, ranks.share(spec.sequences_per_step)
        self.micro_sequences = micro_sequences or chosen_micro_sequences(
            spec, device, checkpoint_activations, ranks.size
        )
        if len(self.lanes) % self.micro_sequences:
            whose = "a step" if ranks.size == 1 else "a rank's step"
            raise ValueError(
                f"micro_sequences: {self.micro_sequences} does not divide the {len(self.lanes)} sequences of {whose}"
            )
        self.parts = len(self.lanes) // self.micro_sequences
        self.attention = attention_kernels(spec.shape, spec.context, spec.precision, device)
        # Tried now, before the step fills the device, and at every length: a kernel may work at one and fail at another.
        self._attention = {
            phase: attention_kernels(spec.shape, phase.length(spec.context), spec.precision, device) for phase in phases
        }
        self.learning_rates = learning_rates(spec.schedule)
        # What ranks gather is in the working precision already; their shards are the masters.
        self._weights = WorkingWeights(model, spec.precision if ranks.size == 1 else "fp32")
        self.working = self._weights.model
        self.working.set_micro_batches(self.parts)
        # On a CPU the captured form is the twin that replays are compared with: it calls what a GPU records.
        compile_parts = execution == "compiled" or (
            execution == "captured" and device.type == "cuda" and can_compile(device)
        )
        self._objective = Objective(self.working, device, compile_parts=compile_parts)
        self._phase: Phase | None = None
        self._loss: Callable[[Tensor, Tensor], Tensor]
        self._static: StaticStep | None = None
        if execution == "captured":
            assert ranks.size == 1, "resolve_execution captures no step of several ranks"
            self._static = StaticStep(spec, phases, self._weights, optimizer, stream, device, self.parts)

    def run(self, step: int, phase: Phase) -> StepResult:
        """Train one step, of which every rank has its part. A step whose gradient norm is not finite changes nothing."""
        with forced_attention(self._attention[phase]):
            if phase != self._phase:
                self._enter(phase, step)
            if self._static is not None:
                return StepResult(*self._static.run(step))
            return self._run_at_once(step, phase)

    def _enter(self, phase: Phase, step: int) -> None:
        """What a phase needs before its first step here; the masters may have been changed since the last one."""
        # None until it is ready: a phase that could not be captured is entered anew when it is asked for again.
        self._phase = None
        # Without `self`: a step that held itself would keep its weights and graphs until the cycle collector comes by.
        self._loss = partial(self._objective, weights_T=weights_of(phase, self.device), heads=phase.heads)
        if self._static is not None:
            self._static.enter(phase, step, self._loss)
        else:
            self._weights.refresh()
        self._phase = phase

    def _run_at_once(self, step: int, phase: Phase) -> StepResult:
        inputs, targets = read_batch(self.stream, self.spec, self.phases, phase, step, self.device, self.lanes)
        loss = torch.zeros((), device=self.device)
        for micro_inputs, micro_targets in zip(inputs.chunk(self.parts), targets.chunk(self.parts), strict=True):
            micro_loss = self._loss(micro_inputs, micro_targets) / self.parts
            micro_loss.backward()  # type: ignore[no-untyped-call]
            self._weights.collect()
            loss += micro_loss.detach()
        norm = clipped_step(self.optimizer, self.spec.optimizer.clip_norm, float(self.learning_rates[step]))
        # Their memory is the activations' until the next backward.
        self.optimizer.zero_grad(set_to_none=True)
        self._weights.refresh()
        self.working.end_step()
        # Ranks have equal shares of the batch, so the mean of their means is the batch's; the norm is of the whole gradient.
        return StepResult(self.ranks.mean(loss), norm)

    def look(self, results: list[StepResult]) -> Callable[[], tuple[list[float], list[float]]]:
        """Begin to bring losses and gradient norms to the host; the function that is returned waits for them.

        Once it has returned, the device has done all steps up to these.
        """
        with self._static.recorder.on_stream() if self._static is not None else nullcontext():
            both_2N = torch.stack(
                [torch.stack([r.loss for r in results]), torch.stack([r.gradient_norm for r in results])]
            )
            if self.device.type == "cuda":
                # Pinned, because a copy to pageable memory would make the host wait for all steps before it.
                host_2N = torch.empty(both_2N.shape, pin_memory=True)
                host_2N.copy_(both_2N, non_blocking=True)
                done = torch.cuda.Event()  # type: ignore[no-untyped-call]
                done.record()
            else:
                host_2N, done = both_2N, None

        def wait() -> tuple[list[float], list[float]]:
            if done is not None:
                done.synchronize()
            losses, norms = host_2N.tolist()
            return losses, norms

        return wait

    @property
    def replay_stream(self) -> torch.cuda.Stream | None:
        """The stream that a captured step replays on, which is not the caller's; None for the other forms."""
        return None if self._static is None else self._static.recorder.stream

    @property
    def looks_ahead(self) -> bool:
        """Whether the device should have the next steps at hand before the last ones are looked at."""
        return self._static is not None

    def close(self) -> None:
        """Give back what only this step needs of the device."""
        if self._static is not None:
            self._static.close()
