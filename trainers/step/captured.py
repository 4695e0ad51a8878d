"""The step on static device state: two functions, `micro` and `update`, that read and write tensors which stay in their place.

A GPU records both as graphs on one stream and one pool and replays them: A micro-batches and one update are A + 1 launches.
Where there is no GPU the same functions are called, so that a CPU can hold them against the eager step bit by bit. Step,
part, learning rate, tokens and histories are the device's own; the host only keeps the token ring filled. What a step
computes is decided by the objective that is handed in and by `optim`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

from trainers.contract.schedule import Phase
from trainers.contract.spec import TrialSpec
from trainers.step.batch import TokenStream
from trainers.step.optim import allocate, clipped_step, learning_rates
from trainers.step.precision import WorkingWeights
from trainers.step.ring import TokenRing

HISTORY = 4_096
"""Steps whose loss and gradient norm stay on the device. They have to be looked at before as many more have run."""
WARM_UP_STEPS = 3

Action = Callable[[], None]


class CaptureError(RuntimeError):
    """The device would not record the step. Nothing was trained; the other forms compute the same."""


def refusal_of(error: RuntimeError) -> RuntimeError:
    """What a failed recording is told as: out of memory as itself, so that a smaller micro-batch is advised, else
    `CaptureError`.

    Ending a capture that failed raises an error of its own, which hides the first one in its context.
    """
    first: BaseException = error
    while first.__context__ is not None and not isinstance(first, torch.OutOfMemoryError):
        first = first.__context__
    if isinstance(first, torch.OutOfMemoryError):
        return first
    reason = (str(first).splitlines() or [type(first).__name__])[0]
    return CaptureError(f"execution: captured failed here ({reason}); use compiled or eager")


class Calls:
    """Actions run when they are called: what a CPU does, and the twin that replays are held against."""

    def __init__(self) -> None:
        self.stream: torch.cuda.Stream | None = None

    def on_stream(self) -> AbstractContextManager[object]:
        """The stream that actions run on; the only one here."""
        return nullcontext()

    def record(self, *actions: Action) -> tuple[Action, ...]:
        """The actions themselves."""
        return actions

    def release(self) -> None:
        """Nothing is held."""


class Graphs:
    """Actions recorded once as CUDA graphs and replayed, all on one side stream and from one memory pool.

    Graphs are destroyed together, after everything has run and before anything is recorded anew: destroying one while
    another lives can take the matmuls' workspace from under it.
    """

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._device = device
        self._graphs: list[torch.cuda.CUDAGraph] = []

    def on_stream(self) -> AbstractContextManager[object]:
        """Work inside goes to the stream of the graphs, after what the caller's stream has been given so far."""
        self.stream.wait_stream(torch.cuda.current_stream(self._device))
        return torch.cuda.stream(self.stream)

    def record(self, *actions: Action) -> tuple[Action, ...]:
        """Record each action, which has run on this stream before; nothing is executed. Returns their replays.

        Raises `CaptureError` in one line where the device refuses, `OutOfMemoryError` where its memory does not suffice.
        """
        # One pool for both: the update may use what the micro-batch's activations have left.
        pool = torch.cuda.graph_pool_handle()
        for action in actions:
            graph = torch.cuda.CUDAGraph()
            try:
                # Only this thread's calls are watched: another one may read a file and pin memory meanwhile.
                with torch.cuda.graph(graph, pool=pool, stream=self.stream, capture_error_mode="thread_local"):
                    action()
            except RuntimeError as error:
                raise refusal_of(error) from error
            self._graphs.append(graph)
        return tuple(graph.replay for graph in self._graphs)

    def release(self) -> None:
        """Destroy the graphs and give their memory back."""
        if not self._graphs:
            return
        torch.cuda.synchronize(self._device)
        for graph in self._graphs:
            graph.reset()
        self._graphs.clear()
        # cuBLAS keeps a workspace in the pool of the graph that asked first; the next recording must not be given it.
        torch._C._cuda_clearCublasWorkspaces()
        torch.cuda.empty_cache()


@contextmanager
def _capturable(optimizer: torch.optim.AdamW) -> Iterator[None]:
    """AdamW refuses to be recorded without this word and warns when it runs with it; the fused kernel does not care."""
    for group in optimizer.param_groups:
        group["capturable"] = True
    try:
        yield
    finally:
        for group in optimizer.param_groups:
            group["capturable"] = False
        optimizer.grad_scale = optimizer.found_inf = None  # type: ignore[attr-defined]  # the graph's own memory


def _closed() -> None:
    raise AssertionError("a step that was closed has to enter a phase before it runs")


class StaticStep:
    """The micro-batch and the update of one run; `enter` prepares a phase, `run` trains one of its steps."""

    def __init__(
        self,
        spec: TrialSpec,
        phases: tuple[Phase, ...],
        weights: WorkingWeights,
        optimizer: torch.optim.AdamW,
        stream: TokenStream,
        device: torch.device,
        parts: int,
    ) -> None:
        self.spec, self.phases, self.weights, self.optimizer = spec, phases, weights, optimizer
        self.stream, self.device, self.parts = stream, device, parts
        self.recorder = Graphs(device) if device.type == "cuda" else Calls()
        self.rates = torch.from_numpy(learning_rates(spec.schedule)).to(device)
        self.learning_rate = torch.zeros((), dtype=torch.float32, device=device)
        self.step_1 = torch.zeros(1, dtype=torch.int64, device=device)
        self.part_1 = torch.zeros(1, dtype=torch.int64, device=device)
        self.loss = torch.zeros((), dtype=torch.float32, device=device)
        self.history_2H = torch.zeros(2, HISTORY, dtype=torch.float32, device=device)
        self._next: int | None = None

    def enter(self, phase: Phase, step: int, objective: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Leave the graphs of another phase and record those of this one, to go on with `step`.

        `objective` gives the mean loss of inputs and targets. The steps that warm up see a gradient that is not finite,
        so that the update skips itself: weights and moments stay as they are, without a copy of them. What the phase does
        not use (another phase's heads) gets no gradient from the first of them, and no memory and no update after it.
        """
        self.recorder.release()
        self.objective = objective
        with self.recorder.on_stream():
            # On this stream: replays of the phase before may still be reading the weights.
            self.weights.refresh()
            self.ring = TokenRing(self.stream, self.spec, self.phases, phase, self.device)
            self.ring.place(step)
            # Forwards that warm up count experts' loads, which are the run's own from the first real step on.
            buffers = list(self.weights.model.buffers())
            kept = [buffer.clone() for buffer in buffers]
            self.optimizer.zero_grad(set_to_none=True)
            self.step_1.fill_(step)
            self.part_1.zero_()
            self.micro()
            self.gradients = allocate(self.optimizer)
            self._stand_before(step)
            for _ in range(WARM_UP_STEPS):
                self.micro()
                self.gradients[0].fill_(float("nan"))
                self.update()
                self._stand_before(step)
            with _capturable(self.optimizer):
                self._micro, self._update = self.recorder.record(self.micro, self.update)
            self._stand_before(step)
            for buffer, before in zip(buffers, kept, strict=True):
                buffer.copy_(before)

    def _stand_before(self, step: int) -> None:
        """Counters at `step`, nothing accumulated."""
        self.step_1.fill_(step)
        self.part_1.zero_()
        self.loss.zero_()
        torch._foreach_zero_(self.gradients)
        self._next = step

    def micro(self) -> None:
        """One micro-batch: tokens, forward, loss, backward; its gradient is added to the masters'."""
        inputs, targets = self.ring.batch(self.step_1, self.part_1, self.spec.sequences_per_step // self.parts)
        loss = self.objective(inputs, targets) / self.parts
        loss.backward()  # type: ignore[no-untyped-call]
        self.weights.collect()
        self.loss += loss.detach()
        self.part_1 += 1

    @torch.no_grad()
    def update(self) -> None:
        """Clip, AdamW, working weights, histories; then everything stands as before the next step."""
        # By the device's own step: a replay cannot be handed a number.
        self.learning_rate.copy_(self.rates.index_select(0, self.step_1).squeeze(0))
        norm = clipped_step(self.optimizer, self.spec.optimizer.clip_norm, self.learning_rate)
        self.weights.refresh()
        self.weights.model.end_step()
        torch._foreach_zero_(self.gradients)
        self.history_2H.index_copy_(1, self.step_1.remainder(HISTORY), torch.stack((self.loss, norm)).unsqueeze(1))
        self.loss.zero_()
        self.part_1.zero_()
        self.step_1 += 1

    def close(self) -> None:
        """Give the graphs' memory back. Nothing can be run after it but `enter`."""
        self.recorder.release()
        # Where nothing is recorded these are methods of this very object: it would live until the cycle collector comes by.
        self._micro = self._update = _closed

    def run(self, step: int) -> tuple[Tensor, Tensor]:
        """Train `step`; its loss and gradient norm are device scalars that the device has yet to write."""
        with self.recorder.on_stream():
            # A run that goes on, or a bench that repeats a step: the device's counters are somewhere else.
            if step != self._next:
                self.ring.place(step)
                self._stand_before(step)
            self.ring.keep_ahead(step)
            for _ in range(self.parts):
                self._micro()
            self._update()
        self._next = step + 1
        # Views of device memory: whoever wants numbers asks `look`, in one copy for many steps.
        loss, norm = self.history_2H[:, step % HISTORY]
        return loss, norm
