"""Fast and slow forms of the multi-hot loss agree, in value and in both gradients, whatever the bag holds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from trainers.methods.parameters import WEIGHTINGS
from trainers.model.losses import fused_linear_multi_hot
from trainers.superposition import multi_hot_cross_entropy, multi_hot_reference, target_weights

torch.set_num_threads(1)


@dataclass(frozen=True)
class Case:
    """Hidden states, head, targets and weights of one loss; float64 where a number is exact."""

    hidden_ND: Tensor
    head_VD: Tensor
    targets_NS: Tensor
    weights_S: Tensor
    chunk: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Small vocabularies, so that bags hold duplicates; chunks that divide the rows, and that do not."""
    rows, bag = draw(st.integers(1, 9)), draw(st.integers(1, 7))
    width, vocabulary = draw(st.integers(1, 6)), draw(st.integers(1, 9))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    return Case(
        torch.randn(rows, width, generator=generator, dtype=torch.float64),
        torch.randn(vocabulary, width, generator=generator, dtype=torch.float64)
        * draw(st.sampled_from((0.1, 1.0, 5.0))),
        torch.randint(0, vocabulary, (rows, bag), generator=generator),
        torch.tensor(target_weights(draw(st.sampled_from(WEIGHTINGS)), bag), dtype=torch.float64),
        draw(st.integers(1, rows + 2)),
    )


def loss_and_gradients(loss: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
    return (loss.detach(), *torch.autograd.grad(loss, leaves))


@settings(max_examples=60)
@given(case=cases())
def test_the_fused_loss_is_the_reference(case: Case) -> None:
    hidden, head = (x.clone().requires_grad_() for x in (case.hidden_ND, case.head_VD))
    exact = loss_and_gradients(multi_hot_reference(hidden @ head.T, case.targets_NS, case.weights_S), hidden, head)
    hidden32, head32 = (x.float().requires_grad_() for x in (case.hidden_ND, case.head_VD))
    fused = fused_linear_multi_hot(hidden32, head32, case.targets_NS, case.weights_S.float(), case.chunk)
    for got, wanted in zip(loss_and_gradients(fused, hidden32, head32), exact, strict=True):
        torch.testing.assert_close(got, wanted.float(), rtol=2e-5, atol=2e-5)  # float32 sums of up to 60 products


@settings(max_examples=40)
@given(case=cases())
def test_chunks_change_no_value_beyond_rounding(case: Case) -> None:
    hidden, head = case.hidden_ND.float(), case.head_VD.float()
    whole = fused_linear_multi_hot(hidden, head, case.targets_NS, case.weights_S.float(), chunk=len(hidden))
    parts = fused_linear_multi_hot(hidden, head, case.targets_NS, case.weights_S.float(), chunk=case.chunk)
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-6)


@settings(max_examples=40)
@given(case=cases(), scale=st.floats(-4.0, 4.0))
def test_gradients_follow_what_comes_after_the_loss(case: Case, scale: float) -> None:
    """Micro-batches divide the loss: the gradient that was formed early must be scaled alike."""
    hidden = case.hidden_ND.float().requires_grad_()
    loss = fused_linear_multi_hot(hidden, case.head_VD.float(), case.targets_NS, case.weights_S.float(), case.chunk)
    (plain,) = torch.autograd.grad(loss, hidden, retain_graph=True)
    (scaled,) = torch.autograd.grad(loss * scale, hidden)
    torch.testing.assert_close(scaled, plain * scale, rtol=1e-5, atol=1e-6)


@settings(max_examples=60)
@given(case=cases())
def test_the_uniform_loss_is_the_mean_of_s_cross_entropies(case: Case) -> None:
    logits, bag = case.hidden_ND @ case.head_VD.T, case.targets_NS.shape[1]
    mean = sum(float(F.cross_entropy(logits, case.targets_NS[:, k])) for k in range(bag)) / bag
    uniform = torch.full((bag,), 1 / bag, dtype=torch.float64)
    assert math.isclose(float(multi_hot_reference(logits, case.targets_NS, uniform)), mean, rel_tol=1e-12)
    assert math.isclose(
        float(multi_hot_cross_entropy(logits, case.targets_NS, uniform.float())), mean, rel_tol=1e-4, abs_tol=1e-5
    )


@given(weighting=st.sampled_from(WEIGHTINGS), bag=st.integers(1, 64))
def test_weights_sum_to_one_and_never_rise_with_distance(weighting: str, bag: int) -> None:
    weights = target_weights(weighting, bag)
    assert len(weights) == bag
    assert math.isclose(math.fsum(weights), 1.0, rel_tol=1e-12)
    assert all(0 <= later <= earlier for earlier, later in pairwise(weights))
