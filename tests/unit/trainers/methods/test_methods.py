"""What each method means, where an example says it: geometry, heads, fresh parameters, cost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from tests.support.method_specs import TWO_LAYERS, method_spec
from tests.support.tiny_training import CORPUS, CPU, job_of, train_tiny, validation_loss
from trainers.contract.flops import flops_at, flops_per_step
from trainers.contract.schedule import Phase, data_position
from trainers.methods import phases_of
from trainers.methods.tst_fresh_embedding import FRESH
from trainers.model.decoder import Decoder, build_model
from trainers.planning.lineage import path_of
from trainers.step.batch import read_batch
from trainers.step.objective import Objective
from trainers.step.optim import build_optimizer
from trainers.step.step import TrainingStep
from trainers.superposition import cut_batch
from trainers.training.checkpoint import CheckpointError, TrainState, load_checkpoint, save_checkpoint
from trainers.training.loop import begin_phase


def first_phase(method: str) -> Phase:
    return phases_of(method_spec(method))[0]


def test_bagged_input_is_asked_for_the_one_token_that_follows() -> None:
    inputs, targets = cut_batch(torch.arange(7)[None], 2, replace(first_phase("input_superposition"), bag_size=3))
    assert inputs.tolist() == [[[0, 1, 2], [3, 4, 5]]]
    assert targets.tolist() == [[[3], [6]]]


def test_single_tokens_are_asked_for_the_bag_that_follows() -> None:
    inputs, targets = cut_batch(torch.arange(5)[None], 2, replace(first_phase("output_superposition"), target_size=3))
    assert inputs.tolist() == [[[0], [1]]]
    assert targets.tolist() == [[[1, 2, 3], [2, 3, 4]]]


def test_a_patch_predicts_the_next_and_the_step_reads_what_it_always_reads() -> None:
    phase = first_phase("patch")
    inputs, targets = cut_batch(torch.arange(12)[None], 8, phase)
    assert inputs.tolist() == [[[0, 1, 2, 3], [4, 5, 6, 7]]]
    assert targets.tolist() == [[[4, 5, 6, 7], [8, 9, 10, 11]]]
    assert data_position((phase,), 16, 3) == 48


def test_pieces_are_short_sequences_of_the_same_tokens() -> None:
    inputs, targets = cut_batch(torch.arange(18).reshape(2, 9), 8, first_phase("length_warmup"))
    assert inputs.squeeze(-1).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [9, 10, 11, 12], [13, 14, 15, 16]]
    assert targets.squeeze(-1).tolist() == [[1, 2, 3, 4], [5, 6, 7, 8], [10, 11, 12, 13], [14, 15, 16, 17]]


@pytest.mark.parametrize(
    ("method", "parameters", "message"),
    [
        ("patch", {"patch_size": 3}, "patch_size: 3 does not divide the context of 8"),
        ("length_warmup", {"pieces": 5}, "pieces: 5 does not divide the context of 8"),
        ("multi_token", {"heads": 0}, "heads: 0 is not a positive integer"),
        ("patch", {"step_ratio": 1.5}, r"step_ratio: 1.5 is not in \[0, 1\]"),
        ("input_superposition", {"bag_size": 0}, "bag_size: 0"),
        ("output_superposition", {"bag_weighting": "linear"}, "'linear' is not one of"),
    ],
)
def test_what_cannot_be_cut_is_named(method: str, parameters: dict[str, float | int | str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        phases_of(method_spec(method, parameters))


# ---- heads ----------------------------------------------------------------------------------------------------------


def test_each_head_is_asked_for_the_token_at_its_distance() -> None:
    """Against the blocks called one by one: a trunk without its last block, a last block a head, one norm, one head."""
    spec = method_spec("multi_token")
    (phase,) = phases_of(spec)
    model = build_model(spec.shape, spec.context, 0, CPU, phase.heads)
    inputs, targets = read_batch(CORPUS.stream(0, 32), spec, (phase,), phase, 0, CPU)
    shared = model.blocks[0](model.embed(inputs), model.cosine_LE, model.sine_LE)
    losses = []
    for number, block in enumerate((model.blocks[1], *model.extra_blocks)):
        hidden = model.norm(block(shared, model.cosine_LE, model.sine_LE))
        losses.append(F.cross_entropy(model.head(hidden).flatten(0, 1), targets[..., number].flatten()))
    found = Objective(model, CPU)(inputs, targets, torch.full((3,), 1 / 3), phase.heads)
    assert found.item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-6)
    found.backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


def test_heads_begin_from_the_baseline_weights_and_evaluation_knows_the_ordinary_one_alone() -> None:
    plain = build_model(TWO_LAYERS, 8, 3, CPU)
    headed = build_model(TWO_LAYERS, 8, 3, CPU, heads=3)
    assert all(torch.equal(value, headed.state_dict()[name]) for name, value in plain.state_dict().items())
    before = validation_loss(headed, CORPUS.held_out, 8, CPU)
    assert before == validation_loss(plain, CORPUS.held_out, 8, CPU)
    with torch.no_grad():
        for parameter in headed.extra_blocks.parameters():
            parameter.add_(1.0)
    assert validation_loss(headed, CORPUS.held_out, 8, CPU) == before


def test_micro_batches_add_up_with_pieces_and_heads() -> None:
    for method in ("length_warmup", "multi_token", "patch"):
        spec = method_spec(method, sequences=4)
        phases = phases_of(spec)
        losses = []
        for micro in (4, 1):
            model = build_model(spec.shape, spec.context, 0, CPU, heads=phases[0].heads)
            optimizer = build_optimizer(model, spec.optimizer)
            step = TrainingStep(spec, phases, model, optimizer, CORPUS.stream(0, 32), CPU, "eager", micro)
            losses.append([float(step.run(index, phases[0]).loss) for index in range(3)])
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def state_of(model: Decoder) -> TrainState:
    return TrainState(model, build_optimizer(model, method_spec("baseline").optimizer))


def test_a_state_with_heads_is_that_of_another_model(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, state_of(build_model(TWO_LAYERS, 8, 0, CPU, heads=3)), {})
    for heads in (1, 2):
        with pytest.raises(CheckpointError, match="another model"):
            load_checkpoint(tmp_path, state_of(build_model(TWO_LAYERS, 8, 0, CPU, heads=heads)))
    again = build_model(TWO_LAYERS, 8, 9, CPU, heads=3)
    load_checkpoint(tmp_path, state_of(again))
    saved = build_model(TWO_LAYERS, 8, 0, CPU, heads=3)
    assert all(torch.equal(*pair) for pair in zip(saved.parameters(), again.parameters(), strict=True))


# ---- fresh parameters -----------------------------------------------------------------------------------------------


def test_fresh_parameters_are_drawn_from_seed_and_step_and_nothing_else_is_touched() -> None:
    spec = method_spec("tst_fresh_embedding")
    phases = phases_of(spec)
    drawn: list[torch.Tensor] = []
    for seed, start in ((0, 8), (0, 8), (1, 8), (0, 9)):
        state = state_of(build_model(spec.shape, spec.context, 0, CPU))
        step = TrainingStep(spec, phases, state.model, state.optimizer, CORPUS.stream(0, 32), CPU, "eager")
        step.run(0, phases[0])
        before = {name: parameter.detach().clone() for name, parameter in state.model.named_parameters()}
        begin_phase(state, replace(phases[1], start=start), seed)
        for name, parameter in state.model.named_parameters():
            moments = state.optimizer.state[parameter]
            assert torch.equal(before[name], parameter) == (name not in FRESH)
            assert all(bool(moment.any()) == (name not in FRESH) for moment in moments.values())
        drawn.append(state.model.embedding.weight.detach().clone())
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[3])
    assert not torch.equal(drawn[0], build_model(spec.shape, spec.context, 0, CPU).embedding.weight)
    assert drawn[0].std() == pytest.approx(1.0, abs=0.1)


def test_fresh_moments_are_zero_in_all_parameters_and_no_weight_is_touched() -> None:
    spec = method_spec("tst_fresh_moments")
    phases = phases_of(spec)
    state = state_of(build_model(spec.shape, spec.context, 0, CPU))
    step = TrainingStep(spec, phases, state.model, state.optimizer, CORPUS.stream(0, 32), CPU, "eager")
    step.run(0, phases[0])
    before = [parameter.detach().clone() for parameter in state.model.parameters()]
    assert any(bool(moment.any()) for held in state.optimizer.state.values() for moment in held.values())
    begin_phase(state, phases[1], spec.seed)
    assert all(torch.equal(*pair) for pair in zip(before, state.model.parameters(), strict=True))
    assert not any(bool(moment.any()) for held in state.optimizer.state.values() for moment in held.values())


@pytest.mark.parametrize("ablation", ["tst_fresh_embedding", "tst_fresh_moments"])
def test_an_ablation_shares_the_superposition_phase_with_tst_and_no_step_behind_it(ablation: str) -> None:
    plain, fresh = (path_of(method_spec(method), "eager") for method in ("tst", ablation))
    boundary = plain.phases[0].end
    assert 0 < boundary < plain.end - 1
    assert plain.node(boundary) == fresh.node(boundary)
    assert plain.node(boundary + 1) != fresh.node(boundary + 1)


def test_an_unknown_parameter_cannot_be_fresh() -> None:
    state = state_of(build_model(TWO_LAYERS, 8, 0, CPU))
    with pytest.raises(AssertionError, match="not all parameters"):
        begin_phase(state, Phase("next-token", 3, 9, fresh=("embeding.weight",)), 0)


# ---- sharing and cost -----------------------------------------------------------------------------------------------


def test_methods_share_only_what_they_train_alike() -> None:
    """At the same bag size and boundary no two of them have a state in common but TST and its ablation."""
    methods = (
        "tst",
        "input_superposition",
        "output_superposition",
        "patch",
        "multi_token",
        "length_warmup",
        "baseline",
    )
    nodes = [path_of(method_spec(method, {"bag_size": 4}), "eager").node(2) for method in methods]
    assert len(set(nodes)) == len(methods)


def test_one_head_is_the_baseline_from_its_first_step() -> None:
    one, baseline = method_spec("multi_token", {"heads": 1}), method_spec("baseline")
    assert path_of(one, "eager").node(12) == path_of(baseline, "eager").node(12)


def test_what_a_step_costs_beside_the_baselines() -> None:
    spec = replace(method_spec("baseline"), context=8)
    ordinary = flops_per_step(spec, phases_of(spec)[0])
    assert flops_per_step(spec, first_phase("input_superposition")) == ordinary
    assert flops_per_step(spec, first_phase("output_superposition")) == ordinary
    assert ordinary / 5 < flops_per_step(spec, first_phase("patch")) < ordinary / 4
    assert flops_per_step(spec, first_phase("length_warmup")) == ordinary - 16 * 12 * 2 * 16 * (8 - 4) / 2
    assert flops_per_step(spec, first_phase("multi_token")) > 1.9 * ordinary
    run = method_spec("patch")
    phases = phases_of(run)
    boundary = phases[0].end
    assert flops_at(run, phases, boundary + 2) - flops_at(run, phases, boundary) == 2 * ordinary


def test_the_clock_of_a_run_has_a_row_for_each_phase(tmp_path: Path) -> None:
    for method, names in (("patch", ["patches", "next-token"]), ("length_warmup", ["1/2 length", "next-token"])):
        result = train_tiny(job_of(method_spec(method), tmp_path, node=method, keep_state=False))
        assert [timing.phase for timing in result.timings] == names
