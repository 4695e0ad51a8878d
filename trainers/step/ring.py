"""Training tokens on the device, ahead of the step that reads them, so that a replayed step needs nothing from the host.

The ring holds two windows of some steps' tokens of every lane. The device finds its place in it from its own step counter;
the host fills one window while the other is read. The tokens are those of `batch.read_batch`, position by position.

Shapes: B lanes (sequences of a step), W tokens of a lane's window, L latent positions, S tokens a bag, T targets.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from trainers.contract.schedule import Phase
from trainers.contract.spec import TrialSpec
from trainers.step.batch import TokenStream, lane_position
from trainers.superposition import cut_batch, window_tokens

WINDOW_TOKENS = 1 << 24
"""Most tokens of a window (64 MiB of int32), unless one step has more."""
WINDOW_STEPS = 64


class TokenRing:
    """The tokens of one phase on one device. All device work goes to the stream that is current."""

    def __init__(
        self, stream: TokenStream, spec: TrialSpec, phases: tuple[Phase, ...], phase: Phase, device: torch.device
    ) -> None:
        self._stream, self._spec, self._phases, self._phase = stream, spec, phases, phase
        lanes = spec.sequences_per_step
        count = window_tokens(spec.context, phase)
        self._advance = self._position(phase.start + 1, 0) - self._position(phase.start, 0)
        fits = WINDOW_TOKENS // (lanes * self._advance)
        self.window_steps = max(1, min(WINDOW_STEPS, fits, phase.end - phase.start))
        self._width = (self.window_steps - 1) * self._advance + count
        pinned = device.type == "cuda"
        # Tokens wait as int32, half of what a look-up takes: widening them in the graph is cheaper than sending them.
        self._staged = torch.empty(lanes, self._width, dtype=torch.int32, pin_memory=pinned)
        self._copied = torch.cuda.Event() if pinned else None  # type: ignore[no-untyped-call]
        self._windows = torch.empty(2, lanes, self._width, dtype=torch.int32, device=device)
        self._origin = torch.zeros(1, dtype=torch.int64, device=device)
        inputs_PLS, targets_PLT = cut_batch(torch.arange(count)[None], spec.context, phase)
        self._input_offsets, self._target_offsets = inputs_PLS.to(device), targets_PLT.to(device)
        self._first = self._staged_window = self._staged_lanes = 0

    def _position(self, step: int, lane: int) -> int:
        return lane_position(self._stream.tokens_per_epoch, self._spec, self._phases, step, lane)

    def place(self, step: int) -> None:
        """Start again at `step`: it and the steps up to the end of its window can be read."""
        self._first = step
        self._origin.fill_(step)
        self._begin(0)
        self._send()

    def keep_ahead(self, step: int) -> None:
        """Called before every step: read a share of the next window, and send it when the step that needs it has come."""
        window, inside = divmod(step - self._first, self.window_steps)
        if window == self._staged_window:
            self._send()
        elif inside:
            lanes = len(self._staged)
            self._stage(-(-lanes * inside // (self.window_steps - 1)))

    def _begin(self, window: int) -> None:
        self._staged_window, self._staged_lanes = window, 0

    def _stage(self, lanes: int) -> None:
        """Read the next window's tokens of the first `lanes` lanes, of which some may have been read already."""
        step = self._first + self._staged_window * self.window_steps
        if step >= self._phase.end or lanes <= self._staged_lanes:
            return
        if self._copied is not None:
            self._copied.synchronize()  # the copy of the window before: long done, unless a window is a single step
        for lane in range(self._staged_lanes, lanes):
            tokens_W = self._stream.read(self._position(step, lane), self._width)
            self._staged[lane] = torch.from_numpy(tokens_W.astype(np.int32))
        self._staged_lanes = lanes

    def _send(self) -> None:
        """Finish the window and copy it, in stream order: the steps that read what it overwrites were launched before."""
        self._stage(len(self._staged))
        self._windows[self._staged_window % 2].copy_(self._staged, non_blocking=True)
        if self._copied is not None:
            self._copied.record()
        self._begin(self._staged_window + 1)

    def batch(self, step_1: Tensor, part_1: Tensor, lanes: int) -> tuple[Tensor, Tensor]:
        """Inputs `[lanes, L, S]` and targets `[lanes, L, T]`, int64, of part `part_1` of step `step_1` (device, `[1]`).

        Nothing here looks at a value. A phase that cuts a lane into pieces has its pieces in the first dimension.
        """
        passed_1 = step_1 - self._origin
        # Windows are used by turns: while one is read, the host fills the other.
        slot_1 = passed_1.div(self.window_steps, rounding_mode="floor").remainder(2)
        lane_M = part_1 * lanes + torch.arange(lanes, device=part_1.device)
        start_M = (slot_1 * len(self._staged) + lane_M) * self._width
        start_M = start_M + passed_1.remainder(self.window_steps) * self._advance
        return self._take(start_M, self._input_offsets), self._take(start_M, self._target_offsets)

    def _take(self, start_M: Tensor, offsets_PLS: Tensor) -> Tensor:
        # Offsets into both windows as one row: a single gather, whatever lane and window a token lies in.
        return torch.take(self._windows, start_M.view(-1, 1, 1, 1) + offsets_PLS).flatten(0, 1).long()
