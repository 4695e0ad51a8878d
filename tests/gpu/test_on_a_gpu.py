"""What only a GPU can show: replays against calls, the kernel of the loss against torch and float64, memory as it is stated.

Nothing here has run on a GPU yet.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.gpu.a_gpu import CUDA, NEEDS_A_GPU, SHAPE, for_a_gpu
from tests.support.tiny_training import CORPUS, job_of, tiny_spec, train_tiny
from trainers.contract.record import Stopped
from trainers.contract.schedule import phase_at
from trainers.contract.spec import ModelShape, TrialSpec
from trainers.contract.stage import StagePoint
from trainers.methods import phases_of
from trainers.model import losses
from trainers.model.attention import attention_backend
from trainers.model.decoder import build_model
from trainers.model.losses import chunk_rows, fused_linear_multi_hot
from trainers.step.captured import Calls
from trainers.step.optim import build_optimizer
from trainers.step.step import TrainingStep
from trainers.superposition import multi_hot_reference, target_weights
from trainers.training.execution import resolve_execution

pytestmark = NEEDS_A_GPU
EXPERTS = replace(SHAPE, qk_norm=True, num_experts=4, experts_per_token=2)
needs_triton = pytest.mark.skipif(not losses.HAS_TRITON, reason="needs a CUDA device with Triton")


def gpu_spec(method: str = "tst", precision: str = "bf16", **changes: object) -> TrialSpec:
    spec = tiny_spec(method, total_steps=20, step_ratio=0.5, sequences=4, **changes)  # type: ignore[arg-type]
    return for_a_gpu(spec, precision)


def step_of(spec: TrialSpec, execution: str, micro_sequences: int | None = None) -> TrainingStep:
    model = build_model(spec.shape, spec.context, spec.seed, CUDA)
    optimizer = build_optimizer(model, spec.optimizer)
    stream = CORPUS.stream(spec.seed, 128)
    return TrainingStep(spec, phases_of(spec), model, optimizer, stream, CUDA, execution, micro_sequences)


def readings(step: TrainingStep, steps: range) -> Tensor:
    """Losses and norms `[2, steps]`, float64."""
    results = [step.run(index, phase_at(step.phases, index)) for index in steps]
    return torch.tensor(step.look(results)(), dtype=torch.float64)


def called(spec: TrialSpec, micro_sequences: int | None) -> TrainingStep:
    """The captured step without its graphs: the same functions, called."""
    step = step_of(spec, "captured", micro_sequences)
    assert step._static is not None
    step._static.recorder = Calls()
    return step


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("micro_sequences", [4, 1])
def test_a_replay_is_the_call_that_it_recorded(precision: str, micro_sequences: int) -> None:
    """Over ten steps with a change of phase in them; bitwise where two calls are, else within twice their spread."""
    spec, steps = gpu_spec(precision=precision), range(5, 15)
    first, second = (readings(called(spec, micro_sequences), steps) for _ in range(2))
    replayed = readings(step_of(spec, "captured", micro_sequences), steps)
    spread = (first - second).abs().amax(1, keepdim=True)
    assert bool(((replayed - first).abs() <= 2 * spread).all())


def test_captured_training_is_eager_training_up_to_rounding() -> None:
    spec = gpu_spec(precision="fp32")
    eager, captured = (readings(step_of(spec, execution), range(20)) for execution in ("eager", "captured"))
    torch.testing.assert_close(captured, eager, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("shape", [SHAPE, EXPERTS], ids=["dense", "experts"])
def test_a_graph_holds_activations_that_are_computed_again(shape: ModelShape) -> None:
    """Compiled attention counts as random to the compiler, dropout or not: the graph must not ask for a generator."""
    spec = replace(gpu_spec(), shape=shape)
    kept = readings(step_of(spec, "captured"), range(5, 15))
    model = build_model(spec.shape, spec.context, spec.seed, CUDA)
    optimizer = build_optimizer(model, spec.optimizer)
    stream = CORPUS.stream(spec.seed, 128)
    again = TrainingStep(spec, phases_of(spec), model, optimizer, stream, CUDA, "captured", checkpoint_activations=True)
    torch.testing.assert_close(readings(again, range(5, 15)), kept, rtol=1e-2, atol=1e-2)
    if shape.num_experts:
        routing = again.working.routing(keep_load=True)
        assert routing is not None
        assert routing.dropped == 0


def test_auto_is_captured() -> None:
    assert resolve_execution("auto", CUDA) == "captured"


def test_bags_of_one_are_the_baseline() -> None:
    plain, bagged = gpu_spec("baseline"), gpu_spec(bag_size=1)
    first, second = (readings(step_of(plain, "captured"), range(20)) for _ in range(2))
    spread = (first - second).abs().amax(1, keepdim=True)
    assert bool(((readings(step_of(bagged, "captured"), range(20)) - first).abs() <= 2 * spread).all())


def test_a_stopped_run_goes_on_as_if_it_had_not(tmp_path: Path) -> None:
    spec = gpu_spec()
    points = [
        train_tiny(job_of(spec, tmp_path, node=name, device="cuda", execution="captured")).points for name in "ab"
    ]
    spread = max(abs(a.loss - b.loss) for a, b in zip(*points, strict=True))
    job = job_of(spec, tmp_path, node="stopped", device="cuda", execution="captured")

    def ask(point: StagePoint) -> None:
        if point.step == 12:
            Path(job.stop_file).touch()

    assert train_tiny(job, ask).outcome == Stopped(12, "stop requested")
    Path(job.stop_file).unlink()
    resumed = train_tiny(job).points
    assert [point.step for point in resumed] == [point.step for point in points[0]]
    assert max(abs(a.loss - b.loss) for a, b in zip(points[0], resumed, strict=True)) <= 2 * spread


def test_a_step_without_a_finite_gradient_changes_nothing() -> None:
    step = step_of(gpu_spec("baseline", precision="fp32"), "captured")
    readings(step, range(2))
    head = step.model.head.weight
    kept = head.detach().clone()
    with torch.no_grad():
        head.mul_(3e38)
    broken = [parameter.detach().clone() for parameter in step.model.parameters()]
    assert not bool(torch.isfinite(readings(step, range(2, 4))[1]).any())
    assert all(torch.equal(a, b) for a, b in zip(broken, step.model.parameters(), strict=True))
    with torch.no_grad():
        head.copy_(kept)
    assert bool(torch.isfinite(readings(step, range(4, 6))).all())


def inputs_for(vocabulary: int, positions: int, bag: int, dtype: torch.dtype, width: int = 64) -> tuple[Tensor, ...]:
    generator = torch.Generator(CUDA).manual_seed(0)
    hidden = torch.randn(positions, width, device=CUDA, generator=generator)
    head = torch.randn(vocabulary, width, device=CUDA, generator=generator) / 8
    targets = torch.randint(0, vocabulary, (positions, bag), device=CUDA, generator=generator)
    targets[:, 0], targets[0, -1] = vocabulary - 1, vocabulary - 1
    weights = torch.tensor(target_weights("power_law", bag), device=CUDA)
    return hidden.to(dtype).requires_grad_(), head.to(dtype).requires_grad_(), targets, weights


def loss_and_gradients(*inputs: Tensor, chunk: int) -> tuple[Tensor, ...]:
    loss = fused_linear_multi_hot(*inputs, chunk=chunk)  # type: ignore[arg-type]
    return (loss.detach(), *torch.autograd.grad(loss, inputs[:2]))


CASES = [(500, 1), (4_097, 3), (128_256, 1), (128_256, 32), (151_936, 16)]


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("vocabulary", "bag"), CASES)
def test_the_kernel_is_the_portable_pass(
    vocabulary: int, bag: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = inputs_for(vocabulary, 70, bag, dtype)
    fast = loss_and_gradients(*inputs, chunk=32)
    again = loss_and_gradients(*inputs, chunk=32)
    assert all(torch.equal(a, b) for a, b in zip(fast, again, strict=True)), "no atomics: the same bits every time"
    monkeypatch.setattr(losses, "HAS_TRITON", False)
    portable = loss_and_gradients(*inputs, chunk=32)
    tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-4
    for mine, theirs in zip(fast, portable, strict=True):
        assert float((mine.double() - theirs.double()).norm() / theirs.double().norm()) < tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("vocabulary", "bag"), CASES)
def test_gradients_are_those_of_double_precision(vocabulary: int, bag: int, dtype: torch.dtype) -> None:
    inputs = inputs_for(vocabulary, 20, bag, dtype)
    hidden, head = (x.detach().double().requires_grad_() for x in inputs[:2])
    exact = multi_hot_reference(hidden @ head.T, inputs[2], inputs[3].double())
    wanted = (exact.detach(), *torch.autograd.grad(exact, (hidden, head)))
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-3
    for mine, theirs in zip(loss_and_gradients(*inputs, chunk=8), wanted, strict=True):
        assert float((mine.double() - theirs).norm() / theirs.norm()) < tolerance


@needs_triton
@pytest.mark.parametrize("bag", [1, 8])
def test_the_memory_of_the_loss_is_that_of_one_chunk(bag: int) -> None:
    vocabulary, width = 128_256, 576
    rows = chunk_rows(vocabulary, 2)
    inputs = inputs_for(vocabulary, 4 * rows, bag, torch.bfloat16, width)
    fused_linear_multi_hot(*inputs).backward()  # type: ignore[no-untyped-call]
    inputs[0].grad = inputs[1].grad = None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    fused_linear_multi_hot(*inputs).backward()  # type: ignore[no-untyped-call]
    peak = torch.cuda.max_memory_allocated() - before
    gradients = 4 * vocabulary * width + 3 * 2 * (4 * rows + vocabulary) * width
    assert rows * vocabulary * 2 <= peak <= rows * vocabulary * 2 + gradients + (64 << 20)


def test_the_fast_attention_kernels_are_taken() -> None:
    assert attention_backend(SHAPE, 2_048, "bf16", CUDA) in ("cuDNN", "flash")
