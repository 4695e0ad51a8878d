"""Several ranks train as one does, stop and go on as one does, and read each other's states whatever their number."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.method_specs import method_spec
from tests.support.rank_training import (
    Steps,
    copy_here,
    run_ranks,
    skip_one_here,
    steps_here,
    train_and_kill,
    train_each,
)
from tests.support.tiny_training import CORPUS, CPU, job_of, tiny_spec, train_tiny
from trainers.contract.spec import ModelShape
from trainers.contract.stage import STATE, ParentLostError, StageResult, read_result
from trainers.methods import METHODS, phases_of
from trainers.model.decoder import build_model
from trainers.model.ranks import ALONE, Ranks
from trainers.step.optim import build_optimizer
from trainers.step.step import TrainingStep
from trainers.training.checkpoint import NOTE, CheckpointError
from trainers.training.stage import PARTIAL

# Nine rows leave the last of four ranks none, fifty and twenty-six do not divide by four either.
AWKWARD = ModelShape(
    num_layers=2,
    width=9,
    num_heads=2,
    num_kv_heads=1,
    head_width=4,
    mlp_width=13,
    vocab_size=50,
    qk_norm=True,
)
EXPERTS = replace(AWKWARD, width=16, head_width=8, mlp_width=8, num_experts=5, experts_per_token=2)
SPEC = tiny_spec(shape=AWKWARD, sequences=4)  # boundary at 5, decay from 8, end at 12
SUMS = {"rtol": 2e-6, "atol": 2e-6}
"""Losses of about 4 nats in float32, summed by ranks in another order: a few units in the last place."""


def losses_of(result: StageResult) -> torch.Tensor:
    return torch.tensor([point.loss for point in result.points], dtype=torch.float64)


def tensors_in(folder: Path) -> dict[str, torch.Tensor]:
    """The whole state, put together by a reader of its own."""
    header = json.loads((folder / NOTE).read_text(encoding="utf-8"))["checkpoint"]
    parts = [load_file(folder / name) for name in (header["file"], *(name for name, _ in header["others"]))]
    return {key: torch.cat([part[key] for part in parts]) if value.dim() else value for key, value in parts[0].items()}


def assert_states_close(first: Path, second: Path) -> None:
    a, b = tensors_in(first), tensors_in(second)
    assert a.keys() == b.keys()
    for key in a:
        # Adam divides by the root of the second moment: rounding of a gradient near zero grows to that of a weight.
        torch.testing.assert_close(a[key], b[key], rtol=1e-3, atol=2e-5, msg=lambda text, key=key: f"{key}: {text}")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[StageResult, Path]:
    """SPEC on one rank, and where."""
    store = tmp_path_factory.mktemp("alone")
    return train_tiny(job_of(SPEC, store, evaluate_every=1)), store


@pytest.fixture(scope="module")
def on_two(tmp_path_factory: pytest.TempPathFactory) -> tuple[StageResult, Path]:
    """SPEC on two ranks, undisturbed, and where."""
    store = tmp_path_factory.mktemp("two")
    first, _ = run_ranks(store, 2, train_tiny, job_of(SPEC, store, evaluate_every=1, devices=2))
    assert isinstance(first, StageResult), first
    return first, store


@pytest.mark.slow
def test_two_ranks_train_as_one(alone: tuple[StageResult, Path], on_two: tuple[StageResult, Path]) -> None:
    (one, where), (two, store) = alone, on_two
    torch.testing.assert_close(losses_of(two), losses_of(one), **SUMS)
    assert [point.step for point in two.points] == [point.step for point in one.points]
    assert [(t.phase, t.steps) for t in two.timings] == [(t.phase, t.steps) for t in one.timings]
    assert_states_close(store / "whole" / STATE, where / "whole" / STATE)
    assert read_result(store, "whole") == two
    assert two.devices == 2


def assert_same_steps(found: list[Steps], expected: Steps) -> None:
    assert [lane for steps in found for lane in steps.lanes] == list(expected.lanes)
    for steps in found:
        assert (steps.losses, steps.norms) == (found[0].losses, found[0].norms)
    torch.testing.assert_close(found[0].losses, expected.losses, **SUMS)
    torch.testing.assert_close(found[0].norms, expected.norms, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_four_ranks_take_the_steps_of_one(tmp_path: Path) -> None:
    assert_same_steps(run_ranks(tmp_path, 4, steps_here, SPEC, 7), steps_here(SPEC, 7))


def test_parts_of_a_rank_s_batch_and_activations_computed_again_change_nothing(tmp_path: Path) -> None:
    assert_same_steps(run_ranks(tmp_path, 2, steps_here, SPEC, 3, 1, True), steps_here(SPEC, 3))


def test_parts_that_do_not_divide_a_rank_s_batch_are_refused() -> None:
    model = build_model(SPEC.shape, SPEC.context, 0, CPU)
    optimizer, stream = build_optimizer(model, SPEC.optimizer), CORPUS.stream(0, 32)
    with pytest.raises(ValueError, match="4 does not divide the 2 sequences of a rank's step"):
        TrainingStep(SPEC, phases_of(SPEC), model, optimizer, stream, CPU, "eager", 4, ranks=Ranks(0, 2))


@pytest.mark.slow
def test_ranks_train_every_method_and_in_bf16_gather_weights_and_keep_exact_shards(tmp_path: Path) -> None:
    jobs = [job_of(method_spec(method, sequences=4), tmp_path, node=method, evaluate_every=1) for method in METHODS]
    jobs.append(job_of(replace(SPEC, precision="bf16"), tmp_path, node="bf16", evaluate_every=1))
    jobs.append(job_of(replace(SPEC, shape=EXPERTS), tmp_path, node="experts", evaluate_every=1))
    found, _ = run_ranks(tmp_path, 2, train_each, jobs)
    for job, result in zip(jobs, found, strict=True):
        expected = losses_of(train_tiny(replace(job, store=str(tmp_path / "alone"))))
        tolerance = {"rtol": 2e-3, "atol": 0} if job.node == "bf16" else SUMS  # bf16 has three digits
        torch.testing.assert_close(losses_of(result), expected, **tolerance)
    routing = [point.routing for point in found[-1].points]
    assert all(point is not None and point.dropped == 0 for point in routing), "counts of all ranks, each once"
    assert {tensor.dtype for tensor in tensors_in(tmp_path / "bf16" / STATE).values()} == {torch.float32}


@pytest.mark.slow
def test_a_killed_rank_goes_on_from_the_ranks_checkpoint(on_two: tuple[StageResult, Path], tmp_path: Path) -> None:
    job = job_of(SPEC, tmp_path, evaluate_every=1, checkpoint_seconds=1e-9, devices=2)
    survivor, killed = run_ranks(tmp_path, 2, train_and_kill, job, 1, 7)
    assert killed is None
    assert isinstance(survivor, Exception)
    assert read_result(tmp_path, "whole") is None
    first, second = run_ranks(tmp_path, 2, train_tiny, job)
    assert first.points == second.points == on_two[0].points
    whole, again = tensors_in(on_two[1] / "whole" / STATE), tensors_in(tmp_path / "whole" / STATE)
    assert all(torch.equal(whole[key], again[key]) for key in whole)
    assert not (tmp_path / "whole" / PARTIAL).exists()


@pytest.mark.slow
def test_any_number_of_ranks_reads_a_state_to_the_bit(alone: tuple[StageResult, Path], tmp_path: Path) -> None:
    source = alone[1] / "whole" / STATE
    exact = tensors_in(source)
    for size in (4, 2, 1):
        target = tmp_path / f"of-{size}"
        if size > 1:
            assert run_ranks(tmp_path, size, copy_here, SPEC, source, target) == [12] * size
        else:
            assert copy_here(SPEC, source, target) == 12
        assert len(list(target.glob("*.safetensors"))) == size
        copied = tensors_in(target)
        assert copied.keys() == exact.keys()
        assert all(torch.equal(copied[key], exact[key]) for key in exact)
        source = target


@pytest.mark.slow
def test_a_tree_of_stages_may_change_its_ranks(alone: tuple[StageResult, Path], tmp_path: Path) -> None:
    ends = [(1, None, 0, 3), (2, "at-3", 3, 7), (1, "at-7", 7, 9), (4, "at-9", 9, 12)]
    points = []
    for size, parent, start, end in ends:
        job = job_of(SPEC, tmp_path, node=f"at-{end}", parent=parent, start=start, end=end, evaluate_every=1)
        result = train_tiny(job) if size == 1 else run_ranks(tmp_path, size, train_tiny, job)[0]
        points += result.points
    found = torch.tensor([point.loss for point in points], dtype=torch.float64)
    torch.testing.assert_close(found, losses_of(alone[0]), **SUMS)
    assert_states_close(tmp_path / "at-12" / STATE, alone[1] / "whole" / STATE)


@pytest.mark.slow
def test_damage_that_one_rank_sees_is_seen_by_all(tmp_path: Path, on_two: tuple[StageResult, Path]) -> None:
    trunk = job_of(SPEC, tmp_path, node="trunk", end=5, evaluate_every=1, devices=2)
    run_ranks(tmp_path, 2, train_tiny, trunk)
    folder = tmp_path / "trunk" / STATE
    header = json.loads((folder / NOTE).read_text(encoding="utf-8"))["checkpoint"]
    file = folder / header["others"][0][0]
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    job = replace(trunk, node="end", parent="trunk", start=5, end=12)
    first, second = run_ranks(tmp_path, 2, train_tiny, job)
    assert isinstance(first, ParentLostError)
    assert isinstance(second, ParentLostError)
    assert "another rank" in str(first)
    assert "SHA-256 differs" in str(second)
    with pytest.raises(ParentLostError, match="SHA-256 differs"):
        train_tiny(job)


@pytest.mark.slow
def test_an_unfinished_stage_that_one_rank_cannot_read_is_begun_again_by_all(
    tmp_path: Path, on_two: tuple[StageResult, Path]
) -> None:
    job = job_of(SPEC, tmp_path, evaluate_every=1, checkpoint_seconds=1e-9, devices=2)
    run_ranks(tmp_path, 2, train_and_kill, job, 0, 7)
    partial = tmp_path / "whole" / PARTIAL
    name, _ = json.loads((partial / NOTE).read_text(encoding="utf-8"))["checkpoint"]["others"][0]
    (partial / name).unlink()
    first, second = run_ranks(tmp_path, 2, train_tiny, job)
    assert first.points == second.points == on_two[0].points
    assert [timing.steps for timing in first.timings] == [5, 7]


def test_a_step_that_one_rank_spoils_changes_nothing_anywhere(tmp_path: Path) -> None:
    for unchanged, norm in run_ranks(tmp_path, 2, skip_one_here, SPEC):
        assert unchanged
        assert not math.isfinite(norm)


def test_a_file_less_than_ranks_wrote_is_no_state(on_two: tuple[StageResult, Path], tmp_path: Path) -> None:
    source = on_two[1] / "whole" / STATE
    header = json.loads((source / NOTE).read_text(encoding="utf-8"))
    header["checkpoint"]["others"] = []
    for file in source.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / NOTE).write_text(json.dumps(header), encoding="utf-8")
    with pytest.raises(CheckpointError, match="another model"):
        copy_here(SPEC, tmp_path, tmp_path / "copy")


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_ranks_share_the_lanes_of_a_step(size: int) -> None:
    shares = [Ranks(rank, size).share(16) for rank in range(size)]
    assert [lane for share in shares for lane in share] == list(range(16))
    assert len({len(share) for share in shares}) == 1


def test_lanes_that_cannot_be_shared_are_refused() -> None:
    with pytest.raises(ValueError, match="ranks: 3 do not divide the 16 sequences of a step"):
        Ranks(0, 3).share(16)


def test_alone_everything_is_its_own() -> None:
    value = torch.tensor(3.0)
    assert ALONE.mean(value) is value
    assert ALONE.total(value) is value
    assert ALONE.gather("x") == ["x"]
    assert (ALONE.every(True), ALONE.first(False)) == (True, False)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch 2.13's compiler uses what torch deprecates
def test_compiled_ranks_train_as_eager_ones(on_two: tuple[StageResult, Path], tmp_path: Path) -> None:
    job = job_of(SPEC, tmp_path, evaluate_every=1, execution="compiled", devices=2)
    first, _ = run_ranks(tmp_path, 2, train_tiny, job)
    assert isinstance(first, StageResult), first
    torch.testing.assert_close(losses_of(first), losses_of(on_two[0]), rtol=1e-5, atol=1e-5)
