"""One update by hand, clipping, decay groups, and the step that is skipped."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.support.tiny_training import CPU, SHAPE
from trainers.contract.spec import Optimizer, Schedule
from trainers.model.decoder import build_model
from trainers.step.optim import build_optimizer, clipped_step, learning_rates


def test_warm_up_stable_decay_by_hand() -> None:
    rates = learning_rates(Schedule(total_steps=8, warmup_steps=2, decay_steps=4, learning_rate=1.0))
    assert rates.tolist() == [0.5, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25]
    assert rates.dtype == np.float32


def test_without_warm_up_and_decay_the_rate_is_the_peak() -> None:
    assert set(learning_rates(Schedule(5, 0, 0, 0.25)).tolist()) == {0.25}


def one_matrix(values: list[list[float]], settings: Optimizer) -> tuple[nn.Linear, torch.optim.AdamW]:
    layer = nn.Linear(len(values[0]), len(values), bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(values))
    return layer, build_optimizer(layer, settings)


def slow_adamw(weight: Tensor, gradients: list[Tensor], settings: Optimizer, rate: float) -> Tensor:
    """AdamW with clipping in float64, one gradient after the other."""
    weight, first, second = weight.double().clone(), torch.zeros(()).double(), torch.zeros(()).double()
    for step, gradient in enumerate(gradients, 1):
        gradient = gradient.double()
        gradient = gradient / max(1.0, float(gradient.norm()) / settings.clip_norm)
        first = settings.beta1 * first + (1 - settings.beta1) * gradient
        second = settings.beta2 * second + (1 - settings.beta2) * gradient**2
        unbiased = second / (1 - settings.beta2**step)
        weight = weight * (1 - rate * settings.weight_decay)
        weight = weight - rate * first / (1 - settings.beta1**step) / (unbiased.sqrt() + settings.epsilon)
    return weight


@pytest.mark.parametrize("scale", [0.01, 0.35, 1.0, 100.0])
def test_updates_are_clipped_adamw(scale: float) -> None:
    settings = Optimizer(weight_decay=0.3, clip_norm=0.7)
    layer, optimizer = one_matrix([[0.5, -1.0], [2.0, 0.0]], settings)
    start = layer.weight.detach().clone()
    generator = torch.Generator().manual_seed(0)
    sizes = (1.0, 0.3, 3.0, 0.6)  # AdamW does not see a scale that all gradients have in common
    gradients = [torch.randn(2, 2, generator=generator) * scale * size for size in sizes]
    for gradient in gradients:
        layer.weight.grad = gradient.clone()
        norm = clipped_step(optimizer, settings.clip_norm, 0.1)
        assert float(norm) == pytest.approx(float(gradient.norm()), rel=1e-6)
    torch.testing.assert_close(
        layer.weight.detach().double(), slow_adamw(start, gradients, settings, 0.1), rtol=1e-5, atol=1e-6
    )


def test_matrices_decay_and_gains_do_not() -> None:
    model = build_model(SHAPE, 8, 0, CPU)
    optimizer = build_optimizer(model, Optimizer(weight_decay=0.1))
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {name: decays[id(p)] for name, p in model.named_parameters()} == {
        name: 0.0 if "norm" in name else 0.1 for name, _ in model.named_parameters()
    }


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(bad: float) -> None:
    settings = Optimizer()
    layer, optimizer = one_matrix([[0.5, -1.0], [2.0, 0.0]], settings)
    layer.weight.grad = torch.ones(2, 2)
    clipped_step(optimizer, 1.0, 0.1)
    state = optimizer.state[layer.weight]
    before = [layer.weight.detach().clone(), *(state[key].clone() for key in sorted(state))]
    layer.weight.grad = torch.tensor([[1.0, bad], [0.0, 0.0]])
    assert not math.isfinite(float(clipped_step(optimizer, 1.0, 0.1)))
    after = [layer.weight.detach(), *(state[key] for key in sorted(state))]
    assert sorted(state) == ["exp_avg", "exp_avg_sq", "step"]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    layer.weight.grad = torch.ones(2, 2)
    clipped_step(optimizer, 1.0, 0.1)
    assert not torch.equal(layer.weight.detach(), before[0])
    assert float(state["step"]) == 2.0
