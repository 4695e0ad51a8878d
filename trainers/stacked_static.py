"""The stacked step on static device state: `captured.StaticStep` for K runs, recorded as two graphs on a GPU.

Every slice reads its own token ring at its own device step counter and finds its learning rate in its own table, so that a
replay trains the next step of K runs without a word from the host. On a CPU the same two functions are called, and tests hold
them to the bits of the step that reads at once.

Shapes: K slices, H remembered steps, T target weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from trainers.captured import HISTORY, WARM_UP_STEPS, Calls, Graphs
from trainers.losses import target_weights
from trainers.ring import TokenRing
from trainers.schedule import phase_at
from trainers.stacked import StackedStep
from trainers.step import StepResult


class StaticStack:
    """Micro-batch and update of a stack. `enter` prepares the slices' present phases, `run` trains one step of each."""

    def __init__(self, step: StackedStep) -> None:
        self.stack, self.slices, self.device = step, step.slices, step.device
        self.recorder = Graphs(step.device) if step.device.type == "cuda" else Calls()
        longest = max(len(part.rates) for part in self.slices)
        rates = [np.pad(part.rates, (0, longest - len(part.rates))) for part in self.slices]
        self.rates_KT = torch.from_numpy(np.stack(rates)).to(step.device)
        self.steps_K = torch.zeros(len(self.slices), dtype=torch.int64, device=step.device)
        self.part_1 = torch.zeros(1, dtype=torch.int64, device=step.device)
        self.slot_1 = torch.zeros(1, dtype=torch.int64, device=step.device)
        self.loss_K = torch.zeros(len(self.slices), device=step.device)
        self.history_2HK = torch.zeros(2, HISTORY, len(self.slices), device=step.device)
        self._slot = self._next = 0

    def enter(self) -> None:
        """Leave the graphs of another phase and record those of the phases that the slices are in.

        The steps that warm up see gradients that are not finite, so that every slice's update skips itself.
        """
        self.recorder.release()
        with self.recorder.on_stream():
            phases = [phase_at(part.phases, part.state.step) for part in self.slices]
            self.rings = [
                TokenRing(part.stream, part.spec, part.phases, phase, self.device)
                for part, phase in zip(self.slices, phases, strict=True)
            ]
            weights = target_weights(phases[0].weighting, phases[0].target_size)
            self.weights_T = torch.tensor(weights, dtype=torch.float32, device=self.device)
            self._place(0)
            for _ in range(WARM_UP_STEPS):
                self.micro()
                self.stack.weights.gradients.fill_(float("nan"))
                self.update()
                self._stand_before(0)
            self._micro, self._update = self.recorder.record(self.micro, self.update)
            self._stand_before(0)

    def _place(self, ahead: int) -> None:
        """Go to the step `ahead` of the slices' counters, wherever the device was."""
        for ring, part in zip(self.rings, self.slices, strict=True):
            ring.place(part.state.step + ahead)
        self._stand_before(ahead)

    def _stand_before(self, ahead: int) -> None:
        """Device counters `ahead` of the slices' own, nothing accumulated."""
        self.steps_K.copy_(torch.tensor([part.state.step + ahead for part in self.slices]))
        self.part_1.zero_()
        self.slot_1.zero_()
        self.loss_K.zero_()
        self.stack.weights.refresh()
        self._slot, self._next = 0, self.slices[0].state.step + ahead

    def micro(self) -> None:
        """One micro-batch of every slice."""
        lanes = self.stack.micro_sequences
        pairs = [ring.batch(self.steps_K[k : k + 1], self.part_1, lanes) for k, ring in enumerate(self.rings)]
        inputs, targets = torch.stack([pair[0] for pair in pairs]), torch.stack([pair[1] for pair in pairs])
        self.loss_K += self.stack.micro(inputs, targets, self.weights_T)
        self.part_1 += 1

    @torch.no_grad()
    def update(self) -> None:
        """Clip and update every slice at its own learning rate, remember what is asked for later, go to the next step."""
        rate_K = self.rates_KT.gather(1, self.steps_K[:, None]).squeeze(1)
        norm_K = self.stack.update(rate_K)
        self.history_2HK.index_copy_(1, self.slot_1, torch.stack((self.loss_K, norm_K)).unsqueeze(1))
        self.loss_K.zero_()
        self.part_1.zero_()
        self.slot_1.add_(1).remainder_(HISTORY)
        self.steps_K += 1

    def run(self, ahead: int) -> StepResult:
        """Train the step `ahead` of the slices' counters; results `[K]` that the device has yet to write."""
        with self.recorder.on_stream():
            if self.slices[0].state.step + ahead != self._next:
                self._place(ahead)
            for ring, part in zip(self.rings, self.slices, strict=True):
                ring.keep_ahead(part.state.step + ahead)
            for _ in range(self.stack.parts):
                self._micro()
            self._update()
            loss_K, norm_K = self.history_2HK[:, self._slot]
        self._slot, self._next = (self._slot + 1) % HISTORY, self._next + 1
        return StepResult(loss_K, norm_K)

    def look(self, results: Sequence[StepResult]) -> tuple[list[list[float]], list[list[float]]]:
        """See `StackedStep.look`."""
        with self.recorder.on_stream():
            return self.stack.look(results)

    def close(self) -> None:
        """Give the graphs' memory back."""
        self.recorder.release()


def engine_of(step: StackedStep) -> StackedStep | StaticStack:
    """How a stack runs on its device: replayed as graphs on a GPU, operation by operation elsewhere. One meaning."""
    return StaticStack(step) if step.device.type == "cuda" else step
