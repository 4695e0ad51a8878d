"""K runs in one step: each slice is its own run, to the last bit on a CPU, whatever its neighbours are and do."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.tiny_training import CORPUS, CPU, SHAPE, VALIDATION_TOKENS, tiny_spec
from trainers.checkpoint import TrainState
from trainers.evaluate import validation_loss
from trainers.losses import fused_linear_multi_hot, multi_hot_reference, target_weights
from trainers.methods import phases_of
from trainers.model import build_model
from trainers.optim import build_optimizer
from trainers.schedule import phase_at
from trainers.spec import ModelShape, TrialSpec
from trainers.stacked import Slice, StackedStep, stacked_linear_multi_hot, stacked_validation_losses
from trainers.stacked_static import StaticStack
from trainers.step import StepResult, TrainingStep

QK_NORM = replace(SHAPE, num_layers=2, qk_norm=True)
PICO = ModelShape(2, 32, 2, 2, 16, 88, 512)


def state_of(spec: TrialSpec) -> TrainState:
    model = build_model(spec.shape, spec.context, spec.seed, CPU)
    return TrainState(model, build_optimizer(model, spec.optimizer))


def slice_of(spec: TrialSpec, state: TrainState | None = None) -> Slice:
    return Slice.of(spec, phases_of(spec), CORPUS.stream(spec.seed, 32), state or state_of(spec))


def train_alone(spec: TrialSpec, state: TrainState, steps: int, micro_sequences: int | None = None) -> list[StepResult]:
    stream = CORPUS.stream(spec.seed, 32)
    step = TrainingStep(spec, phases_of(spec), state.model, state.optimizer, stream, CPU, "eager", micro_sequences)
    results = [step.run(t, phase_at(step.phases, t)) for t in range(state.step, state.step + steps)]
    state.step += steps
    return results


def train_stacked(step: StackedStep, steps: int) -> list[StepResult]:
    results = [step.run(ahead) for ahead in range(steps)]
    for part in step.slices:
        part.state.step += steps
    return results


def tensors_of(state: TrainState) -> dict[str, Tensor]:
    """Weights, moments and counters, copied."""
    found = {}
    for name, parameter in state.model.named_parameters():
        found[name] = parameter.detach().clone()
        for key, value in state.optimizer.state[parameter].items():
            found[f"{key} of {name}"] = value.clone()
    return found


def assert_same(left: TrainState, right: TrainState) -> None:
    ours, theirs = tensors_of(left), tensors_of(right)
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert not different


def three(**changes: object) -> list[TrialSpec]:
    """Runs that differ in seed, learning rate, warm-up and length."""
    return [
        tiny_spec(seed=0, learning_rate=0.01, total_steps=24, step_ratio=0.5, **changes),
        tiny_spec(seed=1, learning_rate=0.003, total_steps=24, step_ratio=0.5, warmup_steps=5, **changes),
        tiny_spec(seed=2, learning_rate=0.02, total_steps=40, step_ratio=0.3, decay_steps=8, **changes),
    ]


@pytest.mark.parametrize("shape", [SHAPE, QK_NORM, PICO], ids=["grouped", "qk-norm", "pico"])
@pytest.mark.parametrize("micro_sequences", [None, 1])
def test_slices_train_to_the_bits_of_separate_runs(shape: ModelShape, micro_sequences: int | None) -> None:
    """Float32 on a CPU, over a phase boundary; losses, norms, weights, moments, counters and the validation loss."""
    specs = three(shape=shape)
    step = StackedStep([slice_of(spec) for spec in specs], CPU, micro_sequences)
    stacked = train_stacked(step, 20)
    tokens = CORPUS.validation(VALIDATION_TOKENS)
    validations = stacked_validation_losses(step, tokens, [0, 1, 2])
    for index, spec in enumerate(specs):
        state = state_of(spec)
        alone = train_alone(spec, state, 20, micro_sequences)
        assert [float(result.gradient_norm[index]) for result in stacked] == [float(r.gradient_norm) for r in alone]
        losses = torch.tensor([float(result.loss[index]) for result in stacked])
        # The objective's own value is summed over a chunk in another order; its gradients are not.
        torch.testing.assert_close(losses, torch.tensor([float(r.loss) for r in alone]), rtol=1e-6, atol=0)
        assert_same(step.slices[index].state, state)
        assert validations[index] == validation_loss(state.model, tokens, spec.context, CPU)


@pytest.mark.parametrize("micro_sequences", [None, 1])
def test_the_static_form_is_the_step_to_the_bit(micro_sequences: int | None) -> None:
    """What a GPU replays, called on a CPU: over a phase boundary, in chunks, and back to a step that was trained before."""
    specs = [spec for spec in three() if spec.schedule.total_steps == 24]
    at_once = StackedStep([slice_of(spec) for spec in specs], CPU, micro_sequences)
    static = StaticStack(StackedStep([slice_of(spec) for spec in specs], CPU, micro_sequences))
    for steps in (1, 4, 7, 3, 9):  # the boundary is at 12
        static.enter()
        expected = at_once.look(train_stacked(at_once, steps))
        assert static.look([static.run(ahead) for ahead in range(steps)]) == expected
        for part in static.slices:
            part.state.step += steps
    for left, right in zip(at_once.slices, static.slices, strict=True):
        assert_same(left.state, right.state)


def test_some_slices_can_be_evaluated_without_the_others() -> None:
    step = StackedStep([slice_of(spec) for spec in three()], CPU)
    train_stacked(step, 3)
    tokens = CORPUS.validation(VALIDATION_TOKENS)
    whole = stacked_validation_losses(step, tokens, [0, 1, 2])
    assert len(set(whole)) == 3
    assert stacked_validation_losses(step, tokens, [2, 0]) == [whole[2], whole[0]]


def test_a_slice_does_not_depend_on_its_neighbours() -> None:
    """Alone in a stack, first of two, last of four: the same bits."""
    spec, others = three()[0], [tiny_spec(seed=seed, learning_rate=0.1, total_steps=30) for seed in (7, 8, 9)]
    ends = []
    for stack in ([spec], [spec, others[0]], [*others, spec]):
        step = StackedStep([slice_of(member) for member in stack], CPU)
        train_stacked(step, 10)
        ends.append(step.slices[stack.index(spec)].state)
    assert_same(ends[0], ends[1])
    assert_same(ends[0], ends[2])


def test_slices_may_be_at_different_places_of_their_schedules() -> None:
    specs = three()
    states = [state_of(spec) for spec in specs]
    for spec, state, steps in zip(specs, states, (0, 4, 9), strict=True):
        train_alone(spec, state, steps)
    step = StackedStep([slice_of(spec, state) for spec, state in zip(specs, states, strict=True)], CPU)
    train_stacked(step, 3)
    for spec, part, steps in zip(specs, step.slices, (3, 7, 12), strict=True):
        alone = state_of(spec)
        train_alone(spec, alone, steps)
        assert_same(part.state, alone)


def test_a_slice_goes_on_in_separate_training_and_comes_back() -> None:
    specs = three()
    step = StackedStep([slice_of(spec) for spec in specs], CPU)
    train_stacked(step, 4)
    train_alone(specs[1], step.slices[1].state, 5)
    again = StackedStep([step.slices[1], slice_of(specs[0])], CPU)
    train_stacked(again, 3)
    alone = state_of(specs[1])
    train_alone(specs[1], alone, 12)
    assert_same(again.slices[0].state, alone)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_slice_without_a_finite_gradient_skips_and_the_others_do_not(poison: float) -> None:
    specs = three()
    step = StackedStep([slice_of(spec) for spec in specs], CPU)
    train_stacked(step, 2)
    with torch.no_grad():
        step.weights.leaves["norm.weight"][1, 3] = poison
    before = tensors_of(step.slices[1].state)
    (result,) = train_stacked(step, 1)
    assert torch.isfinite(result.gradient_norm).tolist() == [True, False, True]
    after = tensors_of(step.slices[1].state)
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=0, atol=0, equal_nan=True)
    for index in (0, 2):
        alone = state_of(specs[index])
        train_alone(specs[index], alone, 3)
        assert_same(step.slices[index].state, alone)


def test_bf16_follows_separate_training_in_float32() -> None:
    """Working copies round to 8 bits: a loss is within 3 % of the exact one's, and masters keep what a copy cannot."""
    spec = tiny_spec("baseline", total_steps=24, precision="bf16")
    step = StackedStep([slice_of(spec), slice_of(replace(spec, seed=1))], CPU)
    stacked = train_stacked(step, 20)
    for index, seed in enumerate((0, 1)):
        exact = replace(spec, seed=seed, precision="fp32")
        alone = train_alone(exact, state_of(exact), 20)
        losses = torch.tensor([float(result.loss[index]) for result in stacked])
        torch.testing.assert_close(losses, torch.tensor([float(r.loss) for r in alone]), rtol=0.03, atol=0)
    master = step.slices[0].state.model.head.weight
    assert master.dtype == torch.float32
    assert not torch.equal(master, master.bfloat16().float())


@pytest.mark.parametrize(("weighting", "targets"), [("uniform", 1), ("uniform", 4), ("power_law", 3)])
@pytest.mark.parametrize("chunk_rows", [8_192, 12])
def test_the_loss_is_every_slices_own(weighting: str, targets: int, chunk_rows: int) -> None:
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(3, 10, 8, generator=generator, requires_grad=True)
    head = torch.randn(3, 20, 8, generator=generator, requires_grad=True)
    wanted = torch.randint(0, 20, (3, 10, targets), generator=generator)
    wanted[:, ::2] = wanted[:, ::2, :1]  # a target that occurs several times counts several times
    weights = torch.tensor(target_weights(weighting, targets))
    losses = stacked_linear_multi_hot(hidden, head, wanted, weights, chunk_rows)
    (losses * torch.tensor([1.0, 0.5, 2.0])).sum().backward()
    for index, scale in enumerate((1.0, 0.5, 2.0)):
        exact_hidden = hidden[index].detach().double().requires_grad_()
        exact_head = head[index].detach().double().requires_grad_()
        exact = multi_hot_reference(exact_hidden @ exact_head.T, wanted[index], weights.double())
        (exact * scale).backward()
        own = fused_linear_multi_hot(hidden[index].detach(), head[index].detach(), wanted[index], weights)
        torch.testing.assert_close(losses[index], own)
        assert hidden.grad is not None
        assert head.grad is not None
        torch.testing.assert_close(hidden.grad[index].double(), exact_hidden.grad, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(head.grad[index].double(), exact_head.grad, rtol=1e-5, atol=1e-6)


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="micro_sequences: 3 does not divide the 2 sequences"):
        StackedStep([slice_of(tiny_spec())], CPU, 3)
