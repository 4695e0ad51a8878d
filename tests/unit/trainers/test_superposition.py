"""The parts to take home: each against its slow form, and all of them where nothing but torch is."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from tests.support.places import ROOT
from trainers.contract.schedule import Phase, data_position
from trainers.methods.parameters import WEIGHTINGS
from trainers.superposition import (
    chunked_multi_hot,
    cut_batch,
    mean_of_bags,
    multi_hot_cross_entropy,
    multi_hot_reference,
    phase_at,
    superposition_phases,
    target_weights,
    weights_of,
    window_tokens,
)

CPU = torch.device("cpu")


# the schedule


def test_bags_up_to_the_boundary_then_single_tokens() -> None:
    phases = superposition_phases(10, 3, 4, "power_law")
    assert phases == (
        Phase("superposition", 0, 3, bag_size=4, target_size=4, weighting="power_law"),
        Phase("next-token", 3, 10),
    )
    assert [phase_at(phases, step).bag_size for step in range(10)] == [4, 4, 4, *[1] * 7]


@pytest.mark.parametrize(("boundary", "bags"), [(0, [1, 1, 1]), (3, [2, 2, 2])])
def test_a_run_of_one_phase_never_enters_the_other(boundary: int, bags: list[int]) -> None:
    phases = superposition_phases(3, boundary, 2)
    assert [phase_at(phases, step).bag_size for step in range(3)] == bags
    assert data_position(phases, 5, 3) == 5 * sum(bags)


@pytest.mark.parametrize(
    ("boundary", "bag", "message"),
    [(11, 2, r"boundary: 11 is not in \[0, 10\]"), (-1, 2, "boundary: -1"), (5, 0, "bag_size: 0 is not a positive")],
)
def test_an_impossible_schedule_is_named(boundary: int, bag: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        superposition_phases(10, boundary, bag)


# the window of data


def slow_cut(tokens: list[int], context: int, bag: int, num_targets: int) -> tuple[list[list[int]], list[list[int]]]:
    """One sequence, one position after the other."""
    inputs = [[tokens[j * bag + k] for k in range(bag)] for j in range(context)]
    targets = [[tokens[(j + 1) * bag + k] for k in range(num_targets)] for j in range(context)]
    return inputs, targets


@pytest.mark.parametrize(
    ("bag", "num_targets"), [(1, 1), (3, 3), (5, 5), pytest.param(3, 1, id="input"), pytest.param(1, 4, id="output")]
)
def test_targets_are_the_tokens_that_follow_the_bag(bag: int, num_targets: int) -> None:
    context, phase = 4, Phase("any", 0, 1, bag_size=bag, target_size=num_targets)
    tokens = torch.randint(0, 1_000, (2, window_tokens(context, phase)), generator=torch.Generator().manual_seed(0))
    assert tokens.shape[1] == context * bag + num_targets
    inputs, targets = cut_batch(tokens, context, phase)
    for row in range(2):
        slow = slow_cut(tokens[row].tolist(), context, bag, num_targets)
        assert (inputs[row].tolist(), targets[row].tolist()) == slow


def test_superposition_is_asked_for_the_whole_next_bag() -> None:
    inputs, targets = cut_batch(torch.arange(12)[None], 3, Phase("superposition", 0, 1, bag_size=3, target_size=3))
    assert inputs.tolist() == [[[0, 1, 2], [3, 4, 5], [6, 7, 8]]]
    assert targets.tolist() == [[[3, 4, 5], [6, 7, 8], [9, 10, 11]]]


def test_windows_of_neighbouring_steps_overlap_by_the_last_targets() -> None:
    phases, tokens, read = superposition_phases(4, 2, 3), torch.arange(100), []
    for step in range(4):
        phase = phase_at(phases, step)
        start = data_position(phases, 5, step)
        inputs, targets = cut_batch(tokens[start:][: window_tokens(5, phase)][None], 5, phase)
        assert targets.flatten()[-1] == inputs.flatten()[-1] + phase.bag_size
        read += inputs.flatten().tolist()
    assert read == list(range(2 * 15 + 2 * 5))


# the bag embedding


@pytest.mark.parametrize("bag", [1, 2, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_bag_is_the_mean_of_its_look_ups(bag: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(bag)
    table = torch.randn(11, 6, generator=generator).to(dtype).requires_grad_()
    tokens, grad = torch.randint(0, 11, (2, 4, bag), generator=generator), torch.randn(2, 4, 6, generator=generator)
    mean = mean_of_bags(tokens, table)
    (found,) = torch.autograd.grad(mean, table, grad.to(dtype))
    slow = sum(table.float()[tokens[..., k]] for k in range(bag)) / bag
    (wanted,) = torch.autograd.grad(slow, table, grad.to(dtype).float())
    assert (mean.dtype, found.dtype) == (dtype, dtype)
    rounding = 1e-6 if dtype == torch.float32 else 2**-7
    torch.testing.assert_close(mean.float(), slow, rtol=rounding, atol=1e-6)
    # in bfloat16 each share of a position is rounded before the shares are summed
    torch.testing.assert_close(found.float(), wanted.float(), rtol=rounding, atol=1e-6 if bag == 1 else rounding)


# the loss


@pytest.mark.parametrize(
    ("weighting", "expected"),
    [
        ("uniform", (1 / 3, 1 / 3, 1 / 3)),
        ("power_law", (6 / 11, 3 / 11, 2 / 11)),
        ("first_token", (1.0, 0.0, 0.0)),
    ],
)
def test_weights_of_three_targets(weighting: str, expected: tuple[float, ...]) -> None:
    assert target_weights(weighting, 3) == pytest.approx(expected, rel=1e-12)


def test_exponential_weights_fall_by_e() -> None:
    weights = target_weights("exponential", 4)
    assert [later / earlier for earlier, later in pairwise(weights)] == pytest.approx([math.exp(-1)] * 3)


def test_every_weighting_of_one_target_is_one() -> None:
    assert {target_weights(weighting, 1) for weighting in WEIGHTINGS} == {(1.0,)}


def test_an_unknown_weighting_is_named() -> None:
    with pytest.raises(ValueError, match="'linear' is not one of uniform"):
        target_weights("linear", 2)


def test_uniform_logits_cost_the_logarithm_of_the_vocabulary() -> None:
    logits, targets, weights = torch.zeros(4, 50), torch.zeros(4, 2, dtype=torch.long), torch.tensor([0.5, 0.5])
    assert float(multi_hot_cross_entropy(logits, targets, weights)) == pytest.approx(math.log(50), rel=1e-6)


def test_the_gradient_is_softmax_less_the_weighted_targets() -> None:
    logits = torch.tensor([[0.3, -1.0, 2.0, 0.0]], requires_grad=True)
    multi_hot_cross_entropy(logits, torch.tensor([[2, 2, 0]]), torch.full((3,), 1 / 3)).backward()
    assert logits.grad is not None
    expected = logits.detach().softmax(-1) - torch.tensor([[1 / 3, 0.0, 2 / 3, 0.0]])
    torch.testing.assert_close(logits.grad, expected)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_loss_of_logits_is_the_reference_and_leaves_the_logits(weighting: str, dtype: torch.dtype) -> None:
    generator, phase = torch.Generator().manual_seed(2), Phase("bags", 0, 1, 5, 5, weighting)
    logits = torch.randn(7, 9, generator=generator).to(dtype).requires_grad_()
    targets, before = torch.randint(0, 9, (7, 5), generator=generator), logits.detach().clone()
    loss = multi_hot_cross_entropy(logits, targets, weights_of(phase, CPU))
    (found,) = torch.autograd.grad(loss / 3, logits)
    exact = logits.detach().double().requires_grad_()
    slow = multi_hot_reference(exact, targets, weights_of(phase, CPU).double())
    (wanted,) = torch.autograd.grad(slow / 3, exact)
    assert torch.equal(logits, before)
    assert (loss.dtype, found.dtype) == (torch.float32, dtype)
    torch.testing.assert_close(loss.double(), slow, rtol=1e-6, atol=0)
    rounding = 1e-5 if dtype == torch.float32 else 2**-7
    torch.testing.assert_close(found.double(), wanted, rtol=rounding, atol=1e-6)


def test_chunks_are_the_loss_of_the_logits() -> None:
    generator = torch.Generator().manual_seed(3)
    hidden, head = torch.randn(10, 6, generator=generator), torch.randn(9, 6, generator=generator)
    targets, weights = torch.randint(0, 9, (10, 4), generator=generator), torch.full((4,), 0.25)
    whole = multi_hot_cross_entropy(hidden @ head.T, targets, weights)
    torch.testing.assert_close(chunked_multi_hot(hidden, head, targets, weights, chunk=3), whole)


def test_under_autocast_the_products_are_half_and_the_gradients_are_whole() -> None:
    generator = torch.Generator().manual_seed(4)
    hidden, head = (torch.randn(n, 6, generator=generator).requires_grad_() for n in (10, 9))
    targets, weights = torch.randint(0, 9, (10, 4), generator=generator), torch.full((4,), 0.25)
    half = [tensor.detach().bfloat16().requires_grad_() for tensor in (hidden, head)]
    wanted = torch.autograd.grad(chunked_multi_hot(half[0], half[1], targets, weights), half)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = chunked_multi_hot(hidden, head, targets, weights)
    for found, expected in zip(torch.autograd.grad(loss, (hidden, head)), wanted, strict=True):
        assert found.dtype == torch.float32
        assert torch.equal(found, expected.float())


# taken home


AT_HOME = """
import sys
for name in ("trainers", "numpy", "msgspec", "safetensors"):
    sys.modules[name] = None
import torch
from superposition import *

torch.manual_seed(0)
embedding, body, head = torch.nn.Embedding(7, 8), torch.nn.Linear(8, 8), torch.nn.Linear(8, 7, bias=False)
tokens, phases = torch.randint(0, 7, (2, 200)), superposition_phases(6, 3, bag_size=3)
for step in range(6):
    phase, start = phase_at(phases, step), data_position(phases, 4, step)
    bags, targets = cut_batch(tokens[:, start:][:, : window_tokens(4, phase)], 4, phase)
    hidden = body(mean_of_bags(bags, embedding.weight)).flatten(0, 1)
    weights, targets = weights_of(phase, hidden.device), targets.flatten(0, 1)
    loss = chunked_multi_hot(hidden, head.weight, targets, weights)
    slow = multi_hot_reference(head(hidden), targets, weights)
    assert abs(loss - slow) < 1e-5 and abs(multi_hot_cross_entropy(head(hidden), targets, weights) - slow) < 1e-5
    loss.backward()
print(len(sys.modules["superposition"].__all__))
"""


def test_two_files_train_where_nothing_but_torch_is(tmp_path: Path) -> None:
    """As the module's first words say: this file, the schedule beside it, and one import that is mended."""
    source = (ROOT / "trainers" / "superposition.py").read_text("utf-8")
    assert source.count("trainers.contract") == 1
    (tmp_path / "superposition.py").write_text(source.replace("trainers.contract.schedule", "schedule"), "utf-8")
    shutil.copy(ROOT / "trainers" / "contract" / "schedule.py", tmp_path)
    done = subprocess.run(
        [sys.executable, "-P", "-c", AT_HOME],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == 14
