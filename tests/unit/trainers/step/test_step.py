"""One training step: the same in parts, compiled or not, and harmless when the gradient is not finite."""

from __future__ import annotations

import gc
import math
import shutil
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tests.support.tiny_training import CORPUS, CPU, SHAPE, tiny_spec
from trainers.contract.spec import TrialSpec
from trainers.methods import phases_of
from trainers.model.decoder import Decoder, build_model
from trainers.model.losses import fused_linear_multi_hot
from trainers.step.batch import read_batch
from trainers.step.optim import build_optimizer
from trainers.step.step import TrainingStep
from trainers.superposition import multi_hot_reference, target_weights
from trainers.training.execution import first_that_works, resolve_execution
from trainers.training.probe import failure_elsewhere, failure_of, fault_in


def step_of(
    spec: TrialSpec,
    execution: str = "eager",
    micro_sequences: int | None = None,
    checkpoint_activations: bool = False,
) -> TrainingStep:
    model = build_model(spec.shape, spec.context, spec.seed, CPU)
    optimizer = build_optimizer(model, spec.optimizer)
    stream = CORPUS.stream(spec.seed, 32)
    return TrainingStep(
        spec, phases_of(spec), model, optimizer, stream, CPU, execution, micro_sequences, checkpoint_activations
    )


def weights_of(step: TrainingStep) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in step.model.parameters()]


def moments_of(step: TrainingStep) -> list[Tensor]:
    return [value.clone() for state in step.optimizer.state.values() for _, value in sorted(state.items())]


@pytest.mark.parametrize("weighting", ["uniform", "power_law"])
def test_the_loss_of_a_step_is_the_reference_on_its_batch(weighting: str) -> None:
    spec = tiny_spec(bag_size=3, bag_weighting=weighting)
    step = step_of(spec)
    phase = step.phases[0]
    inputs, targets = read_batch(step.stream, spec, step.phases, phase, 0, CPU)
    logits = step.model.head(step.model(inputs)).flatten(0, 1)
    expected = multi_hot_reference(logits, targets.flatten(0, 1), torch.tensor(target_weights(weighting, 3)))
    torch.testing.assert_close(step.run(0, phase).loss, expected.detach())


@pytest.mark.parametrize("micro_sequences", [1, 2])
def test_parts_of_a_batch_add_up_to_the_whole(micro_sequences: int) -> None:
    spec = tiny_spec(sequences=4)
    whole, parts = step_of(spec), step_of(spec, micro_sequences=micro_sequences)
    for index in range(3):
        full, summed = whole.run(index, whole.phases[0]), parts.run(index, parts.phases[0])
        torch.testing.assert_close(summed.loss, full.loss, rtol=1e-5, atol=0)
        torch.testing.assert_close(summed.gradient_norm, full.gradient_norm, rtol=1e-4, atol=0)


def test_parts_that_do_not_divide_the_batch_are_refused() -> None:
    with pytest.raises(ValueError, match="3 does not divide the 4 sequences"):
        step_of(tiny_spec(sequences=4), micro_sequences=3)


def test_a_step_follows_the_table_of_learning_rates() -> None:
    spec = tiny_spec("baseline", total_steps=6, warmup_steps=2, decay_steps=4, learning_rate=1.0)
    step = step_of(spec)
    used = []
    for index in range(6):
        step.run(index, step.phases[0])
        used.append(step.optimizer.param_groups[0]["lr"])
    assert used == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]


def test_a_gradient_that_is_not_finite_changes_nothing_and_the_next_step_goes_on() -> None:
    step = step_of(tiny_spec("baseline"))
    phase = step.phases[0]
    step.run(0, phase)
    head = step.model.head.weight
    kept = head.detach().clone()
    with torch.no_grad():
        head.mul_(3e38)
    weights, moments = weights_of(step), moments_of(step)
    result = step.run(1, phase)
    assert not math.isfinite(float(result.gradient_norm))
    assert all(torch.equal(a, b) for a, b in zip(weights, weights_of(step), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(moments, moments_of(step), strict=True))
    with torch.no_grad():
        head.copy_(kept)
    assert math.isfinite(float(step.run(1, phase).gradient_norm))
    assert not torch.equal(head.detach(), kept)


def test_execution_is_resolved_for_the_device() -> None:
    assert resolve_execution("auto", CPU) == "eager"
    assert resolve_execution("eager", CPU) == "eager"
    with pytest.raises(ValueError, match="'fast' is not one of auto, eager, compiled, captured"):
        resolve_execution("fast", CPU)


def test_compiling_is_refused_in_words_where_no_compiler_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match=r"needs a C\+\+ compiler"):
        resolve_execution("compiled", CPU)
    said: list[str] = []
    assert resolve_execution("auto", torch.device("cuda"), said.append) == "captured"
    assert said == [
        "execution: captured, without compiled kernels: they need Triton and a C++ compiler, which are not here"
    ]


def test_several_ranks_are_never_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="captured runs on one rank and trials here have 2; use auto or compiled"):
        resolve_execution("captured", torch.device("cuda"), ranks=2)
    assert resolve_execution("auto", CPU, ranks=2) == "eager"
    monkeypatch.setenv("PATH", "")
    said: list[str] = []
    assert resolve_execution("auto", torch.device("cuda"), said.append, ranks=2) == "eager"
    assert said == ["execution: eager: compiling for ranks needs Triton and a C++ compiler, which are not here"]


def test_graphs_are_refused_in_words_where_no_gpu_is() -> None:
    with pytest.raises(ValueError, match="captured needs a CUDA device"):
        resolve_execution("captured", CPU)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch 2.13's compiler uses what torch deprecates
@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor"
)  # it asks every input, and hides the answer itself
def test_the_compiled_step_is_the_eager_step_up_to_rounding() -> None:
    if not (shutil.which("g++") or shutil.which("clang++")):
        with pytest.raises(ValueError, match=r"needs a C\+\+ compiler"):
            resolve_execution("compiled", CPU)
        return
    from torch._dynamo.utils import counters

    spec = tiny_spec(total_steps=4, warmup_steps=0, decay_steps=1, step_ratio=0.5)
    eager, compiled = step_of(spec), step_of(spec, resolve_execution("compiled", CPU))
    graphs = []
    for index, phase in enumerate((eager.phases[0], eager.phases[0], eager.phases[1], eager.phases[1])):
        a, b = eager.run(index, phase), compiled.run(index, phase)
        torch.testing.assert_close(
            b.loss, a.loss, rtol=1e-4, atol=1e-5
        )  # fused kernels round once where eager rounds twice
        torch.testing.assert_close(b.gradient_norm, a.gradient_norm, rtol=1e-3, atol=1e-5)
        graphs.append(counters["stats"]["unique_graphs"])
    # embedding, body and loss; another bag size needs another embedding and loss, and no other body
    assert [count - graphs[0] for count in graphs] == [0, 0, 2, 2]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch 2.13's compiler uses what torch deprecates
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # as above
def test_a_compiled_step_may_compute_its_activations_again() -> None:
    if not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("needs a C++ compiler")
    from torch._dynamo.utils import counters

    spec = replace(tiny_spec("baseline"), shape=replace(SHAPE, num_layers=3))
    kept, again = step_of(spec, "eager"), step_of(spec, "compiled", checkpoint_activations=True)
    torch.compiler.reset()  # what other tests have compiled would not be counted
    before = counters["stats"]["unique_graphs"]
    for index in range(2):
        a, b = kept.run(index, kept.phases[0]), again.run(index, kept.phases[0])
        torch.testing.assert_close(b.loss, a.loss, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(b.gradient_norm, a.gradient_norm, rtol=1e-3, atol=1e-5)
    assert counters["stats"]["unique_graphs"] - before == 3, "embedding, a block for all three of them, loss"


def test_activations_are_computed_again_from_outside_of_compiled_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside of it the compiler would ask for random generators on a GPU, and compile each block for itself."""
    inside: list[str] = []
    entered: list[str] = []
    checkpointed_in: list[str] = []

    def compiled(function: Callable[..., Tensor], unrolled: int | None = None) -> Callable[..., Tensor]:
        def call(*arguments: Any) -> Tensor:
            entered.append(function.__qualname__)
            inside.append(function.__qualname__)
            try:
                return function(*arguments)
            finally:
                inside.pop()

        return call

    def noted(*arguments: Any, **options: Any) -> Any:
        checkpointed_in.extend(inside or ["nothing"])
        return checkpoint(*arguments, **options)

    monkeypatch.setattr("trainers.step.objective.compiled", compiled)
    monkeypatch.setattr("trainers.model.decoder.checkpoint", noted)
    spec = replace(tiny_spec("baseline"), shape=replace(SHAPE, num_layers=3))
    step = step_of(spec, "compiled", checkpoint_activations=True)
    step.run(0, step.phases[0])
    assert checkpointed_in == ["nothing"] * 3
    assert entered.count("Block.forward") == 6, "three blocks, and each of them again"


def test_auto_takes_the_first_form_that_works_and_says_why_not_those_before_it() -> None:
    said: list[str] = []
    reasons = {"captured": "the device refuses", "compiled": None, "eager": None}
    assert first_that_works(("captured", "compiled"), reasons.__getitem__, said.append) == "compiled"
    assert said == ["execution: captured does not work here: the device refuses"]
    assert first_that_works(("captured",), reasons.__getitem__, said.append) == "eager"
    assert len(said) == 2


def test_a_machine_on_which_nothing_works_is_told_before_training_fails() -> None:
    said: list[str] = []
    assert first_that_works(("compiled",), lambda form: "no kernel image", said.append) == "eager"
    assert said[-1] == "execution: eager does not work here: no kernel image"


@pytest.mark.parametrize("form", ["eager", "captured"])
def test_a_form_that_works_is_found_to_work(form: str) -> None:
    assert failure_of(form, CPU) is None


def test_losses_alone_do_not_make_a_form_work() -> None:
    """With NaN gradients every step is skipped: finite losses, and a model that stays as it was."""
    step = step_of(tiny_spec("baseline"))
    before = weights_of(step)
    broken = step.model.blocks[0].attention.output.weight
    broken.register_hook(lambda gradient: torch.full_like(gradient, math.nan))
    losses, norms = step.look([step.run(index, step.phases[0]) for index in range(3)])()
    assert all(map(math.isfinite, losses))
    assert "its gradient norms are [nan" in str(fault_in(losses, norms, before, step.model))
    assert "embedding.weight" in str(fault_in(losses, [1.0], before, step.model))
    assert fault_in([math.inf], [1.0], before, step.model) == "its losses are [inf]"


@pytest.mark.parametrize("execution", ["eager", "captured"])
def test_a_closed_step_is_gone_with_its_last_name(execution: str) -> None:
    """Weights, ring and graphs do not wait for the cycle collector, which knows nothing of a device's memory."""
    step = step_of(tiny_spec(precision="bf16"), execution)
    step.run(0, step.phases[0])
    working = weakref.ref(step.working.head.weight)
    gc.collect()
    gc.disable()
    try:
        step.close()
        del step
        assert working() is None
    finally:
        gc.enable()


def test_three_parts_of_a_step_in_bfloat16_add_up_to_its_gradient() -> None:
    """A third is no bfloat16 number: dividing there would make every gradient 0.2 % too large."""
    generator = torch.Generator().manual_seed(0)
    hidden, head = (torch.randn(n, 32, generator=generator).bfloat16().requires_grad_() for n in (256, 128))
    targets = torch.randint(128, (256, 2), generator=generator)
    whole, third = (
        torch.autograd.grad(
            fused_linear_multi_hot(hidden, head, targets, torch.tensor([0.5, 0.5])) / parts, (hidden, head)
        )
        for parts in (1, 3)
    )
    for got, want in zip(third, (gradient.double() for gradient in whole), strict=True):
        scale = float((3 * got.double() * want).sum() / want.square().sum())
        assert scale == pytest.approx(1.0, abs=2e-4)


@pytest.mark.slow
def test_why_a_form_does_not_work_is_brought_from_another_process_in_one_line() -> None:
    assert failure_elsewhere("eager", "cpu") is None
    reason = failure_elsewhere("eager", "nonsense")
    assert reason is not None
    assert "nonsense" in reason


def test_a_form_whose_gradients_are_broken_does_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """As attention's may be on some device: the probe's own model, finite in every loss."""

    def broken(*arguments: Any) -> Decoder:
        model = build_model(*arguments)
        weight = model.blocks[0].attention.output.weight
        weight.register_hook(lambda gradient: torch.full_like(gradient, math.nan))
        return model

    monkeypatch.setattr("trainers.training.probe.build_model", broken)
    assert str(failure_of("eager", CPU)).startswith("its gradient norms are [nan, nan,")
