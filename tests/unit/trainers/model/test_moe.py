"""The mixture of experts against a slow reference: what a position gets, what the balancing adds, what is counted."""

from __future__ import annotations

import copy
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.support.strategies import PROVENANCE
from tests.support.tiny_training import CORPUS, CPU, SHAPE, VOCABULARY, job_of, state_digest, tiny_spec, train_tiny
from trainers.contract.flops import count_parameters
from trainers.contract.record import record_from_dict, record_to_dict
from trainers.contract.scales import SCALES
from trainers.contract.schedule import phase_at
from trainers.contract.spec import ModelShape, TrialSpec
from trainers.methods import phases_of
from trainers.model import moe
from trainers.model.decoder import Decoder, build_model
from trainers.model.moe import BALANCE_COEFFICIENT, Mixture
from trainers.planning.assemble import assemble_record
from trainers.step.optim import build_optimizer
from trainers.step.step import TrainingStep
from trainers.training.execution import resolve_execution
from trainers.training.stage import PARTIAL

EXPERTS = replace(SHAPE, num_layers=2, qk_norm=True, num_experts=4, experts_per_token=2)
TWIN = replace(SCALES["nano-moe"].shape, vocab_size=VOCABULARY)


def mixture_of(shape: ModelShape = EXPERTS) -> Mixture:
    mixture = build_model(shape, 8, 0, CPU).blocks[0].mlp
    assert isinstance(mixture, Mixture)
    return mixture


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def reference(mixture: Mixture, x_BLD: Tensor) -> tuple[Tensor, Tensor]:
    """Position by position, expert by expert: the output, and the balancing loss of these positions."""
    rows, chosen, probabilities = [], [], []
    for x_D in x_BLD.flatten(0, 1):
        probability_X = (mixture.router.weight @ x_D).softmax(-1)
        best = probability_X.topk(mixture.chosen)
        total = torch.zeros_like(x_D)
        for value, expert in zip(best.values / best.values.sum(), best.indices, strict=True):
            gate_F, up_F = (mixture.gate_up[expert] @ x_D).chunk(2)
            total = total + value * (mixture.down[expert] @ (F.silu(gate_F) * up_F))
        rows.append(total)
        chosen.append(F.one_hot(best.indices, mixture.num_experts).sum(0))
        probabilities.append(probability_X)
    load_X = torch.stack(chosen).double().mean(0) / mixture.chosen
    balance = BALANCE_COEFFICIENT * mixture.num_experts * (load_X * torch.stack(probabilities).mean(0)).sum()
    return torch.stack(rows).view_as(x_BLD), balance


@pytest.mark.parametrize("shape", [EXPERTS, TWIN, replace(EXPERTS, num_experts=6, experts_per_token=1)])
def test_outputs_and_gradients_are_those_of_a_slow_float64_reference(shape: ModelShape) -> None:
    """The balancing loss included, though the output does not show it."""
    mixture = mixture_of(shape)
    exact = copy.deepcopy(mixture).double()
    x, seen = random(3, 7, shape.width).requires_grad_(), random(3, 7, shape.width, seed=1)
    exact_x = x.detach().double().requires_grad_()
    out = mixture(x)
    expected, balance = reference(exact, exact_x)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    (out * seen).sum().backward()
    ((expected * seen.double()).sum() + balance).backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad.double(), exact_x.grad, rtol=1e-4, atol=1e-4)
    for parameter, exactly in zip(mixture.parameters(), exact.parameters(), strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad.double(), exactly.grad, rtol=1e-4, atol=1e-4)


def test_the_balancing_loss_alone_is_the_gradient_that_is_injected() -> None:
    """With nothing asked of the output, what reaches the router is the balancing loss's gradient, in float32."""
    mixture = mixture_of().double()
    exact = copy.deepcopy(mixture)
    x = random(2, 9, EXPERTS.width).double()
    (mixture(x) * 0).sum().backward()
    reference(exact, x)[1].backward()
    torch.testing.assert_close(mixture.router.weight.grad, exact.router.weight.grad, rtol=1e-4, atol=1e-9)
    assert mixture.router.weight.grad is not None
    assert mixture.router.weight.grad.abs().max() > 1e-6


def test_every_expert_on_every_position_is_the_grouped_result(monkeypatch: pytest.MonkeyPatch) -> None:
    mixture, x = mixture_of(TWIN), random(2, 16, TWIN.width)
    grouped = mixture(x)
    monkeypatch.setattr(moe, "has_grouped_matmul", lambda device, kind: False)
    torch.testing.assert_close(mixture(x), grouped, rtol=1e-5, atol=1e-5)


def test_experts_that_no_position_chose_take_no_part() -> None:
    mixture = mixture_of()
    with torch.no_grad():
        mixture.router.weight.zero_()
        mixture.router.weight[1:3] = 1.0
    x = random(1, 8, EXPERTS.width).abs()
    mixture(x).sum().backward()
    assert mixture.this_step.tolist() == [0, 8, 8, 0, 8]
    assert mixture.down.grad is not None
    assert [bool(part.any()) for part in mixture.down.grad] == [False, True, True, False]


def test_in_bfloat16_the_router_computes_in_float32() -> None:
    """The same choices as a float32 layer with the same, rounded numbers; a bfloat16 softmax would choose otherwise."""
    half = mixture_of(TWIN).bfloat16()
    exact = copy.deepcopy(half).float()
    x = random(8, 64, TWIN.width).bfloat16()
    rounded, full = half(x), exact(x.float())
    assert rounded.dtype == torch.bfloat16
    assert torch.equal(half.this_step, exact.this_step)
    torch.testing.assert_close(rounded.float(), full, rtol=0.05, atol=0.02)
    coarse = (x.flatten(0, 1) @ half.router.weight.T).softmax(-1).topk(half.chosen).indices
    assert not torch.equal(coarse.flatten().bincount(minlength=half.num_experts), half.this_step[:-1])


def step_of(
    spec: TrialSpec, micro_sequences: int | None = None, execution: str = "eager", again: bool = False
) -> TrainingStep:
    model = build_model(spec.shape, spec.context, spec.seed, CPU)
    optimizer = build_optimizer(model, spec.optimizer)
    stream = CORPUS.stream(spec.seed, 32)
    return TrainingStep(spec, phases_of(spec), model, optimizer, stream, CPU, execution, micro_sequences, again)


def spec_of(method: str = "tst", **changes: object) -> TrialSpec:
    return tiny_spec(method, shape=EXPERTS, **changes)  # type: ignore[arg-type]


def test_the_reported_loss_is_the_objective_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of()
    with_balance = step_of(spec)
    first = with_balance.run(0, with_balance.phases[0])
    monkeypatch.setattr(moe, "BALANCE_COEFFICIENT", 0.0)
    without = step_of(spec)
    second = without.run(0, without.phases[0])
    assert torch.equal(first.loss, second.loss)
    assert not torch.equal(first.gradient_norm, second.gradient_norm)


def test_parts_of_a_batch_count_as_the_whole_and_pull_as_hard() -> None:
    """Loss and load are the whole batch's; the pull is the load so far, so that parts agree with it nearly."""
    spec = spec_of(sequences=4)
    whole, parts = step_of(spec), step_of(spec, micro_sequences=1)
    full, summed = whole.run(0, whole.phases[0]), parts.run(0, parts.phases[0])
    torch.testing.assert_close(summed.loss, full.loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(summed.gradient_norm, full.gradient_norm, rtol=1e-3, atol=0)
    assert parts.working.routing(keep_load=True) == whole.working.routing(keep_load=True)


def test_counts_are_of_one_step_and_of_training_alone() -> None:
    spec = spec_of("baseline")
    step = step_of(spec)
    assert isinstance(mixture := step.working.blocks[1].mlp, Mixture)
    for index in range(2):
        step.run(index, step.phases[0])
        with torch.no_grad():
            step.model(torch.zeros(1, 4, 1, dtype=torch.int64))
        assert mixture.last_step.sum() == spec.tokens_per_step * (EXPERTS.experts_per_token + 1)
        assert not mixture.this_step.any()


def test_recomputed_activations_change_no_bit_and_count_once() -> None:
    tokens = torch.arange(16).view(2, 8, 1)
    plain, saving = build_model(EXPERTS, 8, 0, CPU), build_model(EXPERTS, 8, 0, CPU)
    saving.checkpoint_activations = True
    for _ in range(2):  # the second micro-batch is pulled by the load of both
        for model in (plain, saving):
            model(tokens).pow(2).mean().backward()
    for first, second in zip(plain.blocks.parameters(), saving.blocks.parameters(), strict=True):
        assert torch.equal(first.grad, second.grad)  # type: ignore[arg-type]
    assert torch.equal(plain.blocks[0].mlp.this_step, saving.blocks[0].mlp.this_step)  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("micro_sequences", [4, 1])
def test_on_static_state_experts_train_and_count_to_the_eager_bits(precision: str, micro_sequences: int) -> None:
    """Across the phase boundary; what a captured step replays is this."""
    spec = spec_of(sequences=4, precision=precision)
    eager, static = (step_of(spec, micro_sequences, execution) for execution in ("eager", "captured"))
    for index in range(spec.schedule.total_steps):
        phase = phase_at(eager.phases, index)
        first, second = eager.run(index, phase), static.run(index, phase)
        assert torch.equal(first.loss, second.loss)
        assert torch.equal(first.gradient_norm, second.gradient_norm)
        assert static.working.routing(keep_load=True) == eager.working.routing(keep_load=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch 2.13's compiler uses what torch deprecates
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # and looks at all inputs' gradients
@pytest.mark.parametrize("again", [False, True], ids=["kept", "computed again"])
def test_the_compiled_step_trains_and_counts_as_the_eager_one_does(again: bool) -> None:
    if not (shutil.which("g++") or shutil.which("clang++")):
        with pytest.raises(ValueError, match=r"needs a C\+\+ compiler"):
            resolve_execution("compiled", CPU)
        return
    spec = spec_of(sequences=4)
    eager, compiled = step_of(spec, 2), step_of(spec, 2, "compiled", again)
    for index in range(2):
        first, second = eager.run(index, eager.phases[0]), compiled.run(index, compiled.phases[0])
        torch.testing.assert_close(second.loss, first.loss, rtol=1e-5, atol=0)
        torch.testing.assert_close(second.gradient_norm, first.gradient_norm, rtol=1e-4, atol=0)
    assert compiled.working.routing(keep_load=True) == eager.working.routing(keep_load=True)


@pytest.mark.parametrize("shape", [EXPERTS, TWIN, SCALES["10b-a1b"].shape])
def test_parameters_and_those_in_use_are_counted(shape: ModelShape) -> None:
    with torch.device("meta"):
        model = Decoder(shape, 8)
    count = count_parameters(shape)
    assert sum(parameter.numel() for parameter in model.parameters()) == count.total
    experts = sum(
        mixture.gate_up.numel() + mixture.down.numel() for mixture in model.modules() if isinstance(mixture, Mixture)
    )
    idle = experts * (shape.num_experts - shape.experts_per_token) // shape.num_experts
    assert count.active == count.total - idle


def test_experts_start_as_a_dense_mlp_does() -> None:
    weights = {name: weight.detach() for name, weight in build_model(TWIN, 8, 0, CPU).named_parameters()}
    width, inner, layers = TWIN.width, TWIN.mlp_width, TWIN.num_layers
    assert float(weights["blocks.0.mlp.gate_up"].std()) == pytest.approx(width**-0.5, rel=0.05)
    assert float(weights["blocks.0.mlp.down"].std()) == pytest.approx((inner * 2 * layers) ** -0.5, rel=0.05)


# ---- through a stage -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["baseline", "tst"])
def test_the_twin_trains_through_a_stage_and_its_record_tells_the_routing(tmp_path: Path, method: str) -> None:
    spec = tiny_spec(method, shape=TWIN, total_steps=24, step_ratio=0.25)
    result = train_tiny(job_of(spec, tmp_path, evaluate_every=4))
    record = assemble_record(
        spec, "confirmation", [result], PROVENANCE, devices=1, corpus_tokens=1_000, evaluate_every=4
    )
    points = record.curve.points
    assert points[-1].loss < points[0].loss
    routing = [point.routing for point in points]
    assert all(known is not None and known.dropped == 0 and len(known.entropy) == 2 for known in routing)
    kept = [point.step for point in points if point.routing is not None and point.routing.load]
    assert kept == ([24] if method == "baseline" else [6, 8, 24])
    shifts = record.curve.routing_shifts
    assert [(shift.boundary, shift.step) for shift in shifts] == ([] if method == "baseline" else [(6, 8)])
    assert all(0 < shift.distance < 1 for shift in shifts)
    assert record_from_dict(record_to_dict(record)) == record


def test_a_shared_prefix_ends_at_the_same_bits_and_the_same_routing(tmp_path: Path) -> None:
    spec = tiny_spec("tst", shape=TWIN, total_steps=16, step_ratio=0.5)
    alone = train_tiny(job_of(spec, tmp_path / "alone"))
    first = train_tiny(job_of(spec, tmp_path, node="trunk", end=6, evaluate_every=0))
    second = train_tiny(job_of(spec, tmp_path, node="end", parent="trunk", start=6))
    assert state_digest(tmp_path, "end") == state_digest(tmp_path / "alone", "whole")
    points = {point.step: point for point in (*first.points, *second.points)}
    assert [points[point.step] for point in alone.points if point.step > 6] == [
        point for point in alone.points if point.step > 6
    ]


def test_a_stopped_run_goes_on_to_the_same_points(tmp_path: Path) -> None:
    spec = tiny_spec("tst", shape=TWIN, total_steps=12)
    whole = train_tiny(job_of(spec, tmp_path / "whole"))
    job = job_of(spec, tmp_path)
    train_tiny(job, lambda point: Path(job.stop_file).touch())
    assert (tmp_path / job.node / PARTIAL).exists()
    Path(job.stop_file).unlink()
    assert train_tiny(job).points == whole.points
