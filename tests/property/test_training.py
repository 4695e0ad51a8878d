"""What training must be whatever the numbers: causal, exactly resumable, equal where methods are equal, countable."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import small
from trainers.contract.flops import flops_per_position
from trainers.contract.schedule import Phase, boundary_step, data_position, phase_at
from trainers.contract.stage import STATE
from trainers.methods import phases_of
from trainers.model.decoder import build_model
from trainers.step.batch import lane_position, read_batch
from trainers.step.optim import build_optimizer
from trainers.step.step import TrainingStep
from trainers.superposition import cut_batch
from trainers.training.checkpoint import TrainState
from trainers.training.loop import CHUNK_STEPS
from trainers.training.stage import PARTIAL, run_stage

CPU = torch.device("cpu")
bag_sizes = st.integers(1, 7)
step_ratios = st.sampled_from([0.0, 0.05, 0.2, 0.33, 0.5, 0.8, 1.0])


def weights_in(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    (file,) = folder.glob("state-*.safetensors")
    return load_file(file)


def assert_equal_states(first: Path, second: Path) -> None:
    """Weights, moments and counters, to the last bit."""
    left, right = weights_in(first), weights_in(second)
    assert left.keys() == right.keys()
    assert any(name.startswith("optimizer/exp_avg_sq/") for name in left)
    for name in left:
        assert torch.equal(left[name], right[name]), name


@settings(max_examples=12)
@given(bag_size=bag_sizes, position=st.integers(0, 7))
def test_no_position_sees_a_later_bag(bag_size: int, position: int) -> None:
    """The gradient of position j's output with respect to the bags after j is exactly zero."""
    model = build_model(small.SHAPE, 8, 0, CPU)
    tokens_BLS = torch.arange(2 * 8 * bag_size).reshape(2, 8, bag_size) % small.SHAPE.vocab_size
    embedded_BLD = model.embed(tokens_BLS).detach().requires_grad_()
    model.body(embedded_BLD)[:, position].square().sum().backward()
    gradient_BLD = embedded_BLD.grad
    assert gradient_BLD is not None
    assert torch.count_nonzero(gradient_BLD[:, position + 1 :]) == 0
    assert torch.count_nonzero(gradient_BLD[:, : position + 1]) > 0


@settings(max_examples=6)
@given(step_ratio=step_ratios, seed=st.integers(0, 5))
def test_a_bag_of_one_is_the_baseline_to_the_last_bit(step_ratio: float, seed: int) -> None:
    with TemporaryDirectory() as folder:
        store = Path(folder)
        plain = small.spec(seed=seed)
        bagged = small.spec("tst", seed=seed, bag_size=1, step_ratio=step_ratio)
        results = [run_stage(small.job(trial, store), small.corpus()) for trial in (plain, bagged)]
        assert results[0].points[-1].loss == results[1].points[-1].loss
        assert_equal_states(store / plain.spec_id / STATE, store / bagged.spec_id / STATE)


@pytest.mark.slow
@settings(max_examples=12)
@given(data=st.data())
def test_a_run_that_was_stopped_anywhere_ends_like_one_that_never_stopped(data: st.DataObject) -> None:
    trial = small.spec("tst", total_steps=40, decay_steps=10, bag_size=3, step_ratio=0.5)
    stops = sorted(data.draw(st.sets(st.integers(1, 7), min_size=1, max_size=3)))
    with TemporaryDirectory() as folder:
        whole, parts = Path(folder) / "whole", Path(folder) / "parts"
        straight = run_stage(small.job(trial, whole), small.corpus())
        (parts).mkdir()
        seen = 0
        for stop in stops:
            request = parts / "stop"

            def on_point(point: object, request: Path = request, stop: int = stop) -> None:
                nonlocal seen
                seen += 1
                if seen >= stop:
                    request.touch()

            interrupted = run_stage(small.job(trial, parts), small.corpus(), on_point)
            request.unlink(missing_ok=True)
            if interrupted.outcome is None:
                break
            assert (parts / trial.spec_id / PARTIAL).is_dir()
        resumed = run_stage(small.job(trial, parts), small.corpus())
        assert resumed.points == straight.points
        assert [t.steps for t in resumed.timings] == [t.steps for t in straight.timings]
        assert_equal_states(whole / trial.spec_id / STATE, parts / trial.spec_id / STATE)
        assert not (parts / trial.spec_id / PARTIAL).exists()


@given(
    total=st.integers(1, 400),
    step_ratio=st.floats(0, 1),
    bag_size=bag_sizes,
    step=st.integers(0, 400),
)
def test_the_data_cursor_in_closed_form_equals_counting(
    total: int, step_ratio: float, bag_size: int, step: int
) -> None:
    step = min(step, total)
    trial = small.spec(
        "tst", total_steps=total, decay_steps=0, warmup_steps=0, bag_size=bag_size, step_ratio=step_ratio
    )
    phases = phases_of(trial)
    counted = sum(trial.context * phase_at(phases, index).bag_size for index in range(step))
    boundary = boundary_step(step_ratio, total)
    closed = trial.context * (bag_size * min(step, boundary) + max(step - boundary, 0))
    assert data_position(phases, trial.context, step) == counted == closed
    assert data_position(phases, trial.tokens_per_step, step) == counted * trial.sequences_per_step
    starts = [lane_position(1_001, trial, phases, step, lane) for lane in range(trial.sequences_per_step)]
    assert starts == [lane * (1_001 // trial.sequences_per_step) + counted for lane in range(trial.sequences_per_step)]


@given(bag=st.integers(1, 5), targets=st.integers(1, 5), context=st.integers(1, 6), sequences=st.integers(1, 3))
def test_targets_are_the_tokens_that_follow_the_bag(bag: int, targets: int, context: int, sequences: int) -> None:
    """Also where input and target differ in width: bagged input alone, bagged output alone."""
    length = context * bag + targets
    tokens_BN = torch.arange(sequences * length).reshape(sequences, length)
    inputs, wanted = cut_batch(tokens_BN, context, Phase("any", 0, 1, bag_size=bag, target_size=targets))
    for sequence in range(sequences):
        for j in range(context):
            assert inputs[sequence, j].tolist() == tokens_BN[sequence, j * bag : (j + 1) * bag].tolist()
            assert wanted[sequence, j].tolist() == tokens_BN[sequence, (j + 1) * bag : (j + 1) * bag + targets].tolist()


def test_every_method_reads_the_same_stream_in_order() -> None:
    """After the phases a lane has read its stretch of the stream once, without a gap, whatever the bag size."""
    trial = small.spec("tst", total_steps=6, decay_steps=0, bag_size=3, step_ratio=0.5, seed=4)
    stream, phases = small.corpus().stream(4), phases_of(trial)
    read = [
        read_batch(stream, trial, phases, phase_at(phases, step), step, CPU)[0].reshape(trial.sequences_per_step, -1)
        for step in range(6)
    ]
    lanes = torch.cat(read, dim=1)
    for lane in range(trial.sequences_per_step):
        start = lane_position(stream.tokens_per_epoch, trial, phases, 0, lane)
        assert lanes[lane].tolist() == stream.read(start, lanes.shape[1]).tolist()
    assert lanes.numel() == data_position(phases, trial.tokens_per_step, 6)


def test_flops_of_a_position_match_an_independent_count() -> None:
    shape = small.SHAPE
    model = build_model(shape, 8, 0, CPU)
    matrices = sum(p.numel() for name, p in model.named_parameters() if not name.startswith("embedding"))
    attention = shape.num_layers * 2 * 2 * (8 / 2) * shape.num_heads * shape.head_width
    assert flops_per_position(shape, 8) == 3 * (2 * matrices + attention)


def test_spec_id_is_the_same_in_another_process() -> None:
    trial = small.spec("tst", bag_size=3, step_ratio=0.25)
    code = (
        "import json, sys; from trainers.contract.spec import spec_from_dict; "
        "print(spec_from_dict(json.load(sys.stdin)).spec_id)"
    )
    import json

    from trainers.contract.spec import spec_to_dict

    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            input=json.dumps(dict(reversed(spec_to_dict(trial).items()))),
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": hash_seed},
        )
        assert done.stdout.strip() == trial.spec_id


def test_a_step_without_a_finite_gradient_changes_nothing_and_is_counted() -> None:
    trial = small.spec(total_steps=CHUNK_STEPS, decay_steps=0)
    model = build_model(trial.shape, trial.context, 0, CPU)
    state = TrainState(model, build_optimizer(model, trial.optimizer))
    step = TrainingStep(trial, phases_of(trial), model, state.optimizer, small.corpus().stream(0), CPU, "eager")
    step.run(0, step.phases[0])
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    counts = [int(state.optimizer.state[p]["step"]) for p in model.parameters()]
    handle = model.norm.register_forward_hook(lambda module, inputs, output: output * float("nan"))
    result = step.run(1, step.phases[0])
    handle.remove()
    assert not torch.isfinite(result.gradient_norm)
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())
    assert [int(state.optimizer.state[p]["step"]) for p in model.parameters()] == counts


def test_divergence_is_an_outcome(tmp_path: Path) -> None:
    from trainers.contract.record import Diverged

    trial = small.spec(total_steps=60, decay_steps=0, warmup_steps=0, learning_rate=1e6)
    result = run_stage(small.job(trial, tmp_path), small.corpus())
    assert isinstance(result.outcome, Diverged)
    assert result.outcome.step < 60
    assert not (tmp_path / trial.spec_id / STATE).exists()


def test_micro_batches_add_up_to_the_batch() -> None:
    trial = small.spec(sequences=4)
    losses = []
    for micro in (4, 1):
        model = build_model(trial.shape, trial.context, 0, CPU)
        optimizer = build_optimizer(model, trial.optimizer)
        step = TrainingStep(trial, phases_of(trial), model, optimizer, small.corpus().stream(0), CPU, "eager", micro)
        losses.append([float(step.run(index, step.phases[0]).loss) for index in range(5)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
