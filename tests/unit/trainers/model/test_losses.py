"""The loss as our step takes it: its edges, its memory, what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from tests.support.live_bytes import peak_of
from trainers.contract.flops import CHUNK_BYTES, CHUNK_ROWS, chunk_rows
from trainers.model.losses import fused_linear_multi_hot
from trainers.superposition import multi_hot_reference, target_weights


def test_large_logits_do_not_overflow() -> None:
    hidden, head = torch.full((2, 4), 100.0), torch.eye(4) * 100
    loss = fused_linear_multi_hot(hidden, head, torch.tensor([[1], [2]]), torch.tensor([1.0]))
    assert float(loss) == pytest.approx(math.log(4), rel=1e-6)


def test_a_second_derivative_is_refused() -> None:
    hidden = torch.randn(3, 4, requires_grad=True)
    loss = fused_linear_multi_hot(hidden, torch.randn(5, 4), torch.zeros(3, 1, dtype=torch.long), torch.ones(1))
    (first,) = torch.autograd.grad(loss, hidden, create_graph=True)
    with pytest.raises(RuntimeError):
        first.sum().backward()


def test_half_precision_is_summed_in_single_precision() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, head = (torch.randn(n, 32, generator=generator).bfloat16() for n in (64, 100))
    targets, weights = torch.randint(0, 100, (64, 3), generator=generator), torch.tensor(target_weights("uniform", 3))
    hidden.requires_grad_(), head.requires_grad_()
    loss = fused_linear_multi_hot(hidden, head, targets, weights, chunk=7)
    gradients = torch.autograd.grad(loss, (hidden, head))
    assert [x.dtype for x in (loss, *gradients)] == [torch.float32, torch.bfloat16, torch.bfloat16]
    exact_hidden, exact_head = (x.detach().double().requires_grad_() for x in (hidden, head))
    exact = multi_hot_reference(exact_hidden @ exact_head.T, targets, weights.double())
    exact_gradients = torch.autograd.grad(exact, (exact_hidden, exact_head))
    # one rounding to bfloat16 (2^-8) of the logits, and one of the gradient
    torch.testing.assert_close(loss.double(), exact, rtol=1e-2, atol=0)
    for got, wanted in zip(gradients, exact_gradients, strict=True):
        assert float(F.cosine_similarity(got.double().flatten(), wanted.flatten(), dim=0)) > 0.999


@pytest.mark.parametrize("vocabulary", [512, 128_256, 151_936])
@pytest.mark.parametrize("itemsize", [2, 4])
def test_a_chunk_is_as_long_as_its_bound_lets_it(vocabulary: int, itemsize: int) -> None:
    rows = chunk_rows(vocabulary, itemsize)
    assert rows % 64 == 0
    assert rows * vocabulary * itemsize <= CHUNK_BYTES
    assert rows == CHUNK_ROWS or (rows + 64) * vocabulary * itemsize > CHUNK_BYTES
    assert chunk_rows(128_256, 2) == CHUNK_ROWS


@pytest.mark.parametrize(("dtype", "bytes_a_logit"), [(torch.float32, 4), (torch.bfloat16, 8)])
@pytest.mark.parametrize(("positions", "bag", "chunk"), [(64, 1, 16), (512, 1, 16), (512, 32, 16), (512, 8, 64)])
def test_the_memory_is_that_of_one_chunk(
    dtype: torch.dtype, bytes_a_logit: int, positions: int, bag: int, chunk: int
) -> None:
    """Exactly what the docstring states, however many positions and targets there are."""
    vocabulary, width = 2_000, 4
    generator = torch.Generator().manual_seed(0)
    hidden, head = (torch.randn(n, width, generator=generator).to(dtype) for n in (positions, vocabulary))
    targets = torch.randint(0, vocabulary, (positions, bag), generator=generator)
    weights = torch.tensor(target_weights("uniform", bag))
    hidden.requires_grad_(), head.requires_grad_()
    peak = peak_of(lambda: fused_linear_multi_hot(hidden, head, targets, weights, chunk=chunk).backward())
    logits = chunk * vocabulary * bytes_a_logit
    of_gradients = 4 * vocabulary * width + 3 * (positions + vocabulary) * width * hidden.element_size()
    assert logits <= peak <= logits + of_gradients + 40 * chunk * bag + 1_000


@pytest.mark.parametrize(("vocabulary", "bag"), [(128_256, 32), (151_936, 8)])
def test_published_vocabularies_against_double_precision(vocabulary: int, bag: int) -> None:
    """Weighted targets of which some occur twice, at the edges of the vocabulary too. A float32 sum of 128,256 products is
    off by 4e-5 here, with torch's own cross-entropy too."""
    generator = torch.Generator().manual_seed(3)
    hidden, head = (torch.randn(n, 8, generator=generator) for n in (5, vocabulary))
    targets = torch.randint(0, vocabulary, (5, bag), generator=generator)
    targets[:, 0], targets[0, 1], targets[:, -1] = vocabulary - 1, vocabulary - 1, 0
    weights = target_weights("power_law", bag)
    hidden.requires_grad_(), head.requires_grad_()
    loss = fused_linear_multi_hot(hidden, head, targets, torch.tensor(weights), chunk=2)
    got = torch.autograd.grad(loss, (hidden, head))
    exact_hidden, exact_head = (x.detach().double().requires_grad_() for x in (hidden, head))
    exact = multi_hot_reference(exact_hidden @ exact_head.T, targets, torch.tensor(weights, dtype=torch.float64))
    assert float(loss.detach()) == pytest.approx(float(exact.detach()), rel=1e-6)
    for mine, wanted in zip(got, torch.autograd.grad(exact, (exact_hidden, exact_head)), strict=True):
        torch.testing.assert_close(mine, wanted.float(), rtol=1e-4, atol=1e-4)
