"""On a GPU: the estimate of memory against the allocator's peak, and experts whose grouped matmuls a graph can hold."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from tests.gpu.a_gpu import NEEDS_A_GPU
from tests.support.tiny_training import tiny_spec
from trainers.contract.scales import SCALES
from trainers.contract.spec import ModelShape
from trainers.methods import phases_of
from trainers.model import moe
from trainers.model.decoder import build_model
from trainers.model.moe import Mixture
from trainers.planning.footprint import footprint
from trainers.step.optim import build_optimizer
from trainers.step.step import TrainingStep

pytestmark = NEEDS_A_GPU
TWIN = ModelShape(4, 512, 8, 4, 64, 512, 8_192, qk_norm=True, num_experts=16, experts_per_token=4)


class Counting:
    """A stream without end of every token in turn."""

    tokens_per_epoch = 1 << 24

    def read(self, position: int, count: int) -> np.ndarray:
        return np.arange(position, position + count) % 8_192


@pytest.mark.parametrize("shape", [SCALES["25m"].shape, TWIN], ids=["dense", "experts"])
@pytest.mark.parametrize("micro_sequences", [8, 32])
def test_the_estimate_is_within_a_tenth_of_the_allocator_s_peak(shape: ModelShape, micro_sequences: int) -> None:
    device = torch.device("cuda")
    spec = tiny_spec(
        "baseline", shape=shape, context=1_024, tokens_per_step=32 * 1_024, validation_tokens=1_024, precision="bf16"
    )
    before = torch.cuda.memory_allocated()
    model = build_model(shape, spec.context, spec.seed, device)
    optimizer = build_optimizer(model, spec.optimizer)
    step = TrainingStep(spec, phases_of(spec), model, optimizer, Counting(), device, "eager", micro_sequences)
    step.run(0, step.phases[0])
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    step.run(1, step.phases[0])
    torch.cuda.synchronize()
    estimate = footprint(spec, micro_sequences, gradients_stay=micro_sequences < 32)
    assert estimate.total == pytest.approx(torch.cuda.max_memory_allocated() - before, rel=0.1)


def mixture() -> Mixture:
    found = build_model(TWIN, 64, 0, torch.device("cpu")).blocks[0].mlp
    assert isinstance(found, Mixture)
    return found.to("cuda", torch.bfloat16)


def test_grouped_experts_are_every_expert_s_result(monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("needs a GPU of compute capability 8.0 for the grouped matmul")
    grouped, every = mixture(), mixture()
    x = torch.randn(4, 64, TWIN.width, device="cuda", dtype=torch.bfloat16)
    first = grouped(x)
    first.float().square().mean().backward()
    monkeypatch.setattr(moe, "has_grouped_matmul", lambda device, kind: False)
    second = every(x)
    second.float().square().mean().backward()
    torch.testing.assert_close(first, second, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(grouped.down.grad, every.down.grad, rtol=5e-2, atol=2e-3)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float32])
def test_a_graph_of_the_experts_counts_and_computes_as_calls_do(kind: torch.dtype) -> None:
    """Grouped in bfloat16, every expert in float32: in neither may the host wait for a value."""
    layer = mixture().to(kind)
    called = copy.deepcopy(layer)
    x = torch.randn(4, 64, TWIN.width, device="cuda", dtype=kind)

    def run(module: Mixture) -> None:
        module(x).float().square().mean().backward()

    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run(layer)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    layer.zero_grad(set_to_none=False)
    layer.this_step.zero_()
    with torch.cuda.graph(graph):
        run(layer)
    layer.zero_grad(set_to_none=False)
    layer.this_step.zero_()
    x.copy_(torch.randn_like(x))
    graph.replay()
    run(called)
    assert torch.equal(layer.this_step, called.this_step)
    torch.testing.assert_close(layer.router.weight.grad, called.router.weight.grad, rtol=2e-2, atol=1e-4)
