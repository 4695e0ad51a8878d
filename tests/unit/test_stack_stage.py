"""Stages that run stacked leave what they leave alone: results, states, partial checkpoints, divergences, costs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.method_specs import method_spec
from tests.tiny_training import CORPUS, SHAPE, job_of, state_digest, tiny_spec, train_tiny
from trainers.loop import StagePoint
from trainers.methods import METHODS
from trainers.record import Diverged, Stopped
from trainers.spec import TrialSpec
from trainers.stack_stage import STACKED, can_stack, run_stack, stack_key
from trainers.stage import PARTIAL, ParentLostError, StageJob, StageResult, read_result

SPECS = [
    tiny_spec(total_steps=24, step_ratio=0.5, seed=0, learning_rate=0.01),
    tiny_spec(total_steps=24, step_ratio=0.5, seed=1, learning_rate=0.003, warmup_steps=5),
    tiny_spec(total_steps=24, step_ratio=0.5, seed=2, learning_rate=0.02, decay_steps=6),
]


def jobs_of(specs: list[TrialSpec], store: Path, **changes: object) -> list[StageJob]:
    return [job_of(s, store, node=f"run-{i}", execution=STACKED, **changes) for i, s in enumerate(specs)]


def alone(spec: TrialSpec, store: Path, **changes: object) -> StageResult:
    """The same stage in the ordinary eager form."""
    return train_tiny(job_of(spec, store, node="alone", **changes))


def assert_like_alone(result: StageResult, spec: TrialSpec, stacked: Path, store: Path, **changes: object) -> None:
    expected = alone(spec, store, **changes)
    assert (result.points, result.outcome) == (expected.points, expected.outcome)
    assert result.skipped_steps == expected.skipped_steps
    steps = [(t.phase, t.bag_size, t.steps) for t in result.timings]
    assert steps == [(t.phase, t.bag_size, t.steps) for t in expected.timings]
    if expected.outcome is None:
        assert state_digest(stacked, result.node) == state_digest(store, "alone")


def test_a_stack_leaves_what_its_stages_leave_alone(tmp_path: Path) -> None:
    seen: list[tuple[str, int]] = []
    jobs = jobs_of(SPECS, tmp_path / "s")
    results = run_stack(jobs, CORPUS, lambda job, point: seen.append((job.node, point.step)))
    for index, (spec, result) in enumerate(zip(SPECS, results, strict=True)):
        assert_like_alone(result, spec, tmp_path / "s", tmp_path / str(index))
        assert read_result(tmp_path / "s", result.node) == result
        assert result.execution == STACKED
        assert [step for node, step in seen if node == result.node] == [point.step for point in result.points]
        assert all(timing.median_step_seconds > 0 for timing in result.timings)


@pytest.mark.parametrize("method", [m for m in METHODS if can_stack(method_spec(m))])
def test_every_method_of_one_head_can_be_stacked(tmp_path: Path, method: str) -> None:
    specs = [method_spec(method, total_steps=20, seed=seed) for seed in (0, 1)]
    for index, result in enumerate(run_stack(jobs_of(specs, tmp_path / "s"), CORPUS)):
        assert_like_alone(result, specs[index], tmp_path / "s", tmp_path / str(index))


def test_the_wall_time_is_shared_out(tmp_path: Path) -> None:
    """The parts of equal companions are equal, up to what is saved after the first of them has left."""
    results = run_stack(jobs_of(SPECS, tmp_path, keep_state=False), CORPUS)
    busy = [result.busy_seconds for result in results]
    assert max(busy) == pytest.approx(min(busy))
    assert all(0 < result.busy_seconds < result.billed_seconds for result in results)


def test_stages_of_different_lengths_and_starts_drop_out_one_by_one(tmp_path: Path) -> None:
    """Trunks of a superposition phase of 3, 12 and 20 steps, and one that goes on from a state at step 5."""
    specs = [tiny_spec(total_steps=40, step_ratio=0.5, seed=seed) for seed in range(4)]
    train_tiny(job_of(specs[3], tmp_path, node="trunk", end=5))
    ends = (3, 12, 20, 11)
    jobs = [replace(job, end=end) for job, end in zip(jobs_of(specs, tmp_path), ends, strict=True)]
    jobs[3] = replace(jobs[3], parent="trunk", start=5)
    order: list[str] = []
    results = run_stack(jobs, CORPUS, on_end=lambda result: order.append(result.node))
    assert order == ["run-0", "run-3", "run-1", "run-2"]
    assert [result.node for result in results] == [job.node for job in jobs]
    for index in range(3):
        assert_like_alone(results[index], specs[index], tmp_path, tmp_path / str(index), end=ends[index])
    train_tiny(job_of(specs[3], tmp_path / "3", node="trunk", end=5))
    assert_like_alone(results[3], specs[3], tmp_path, tmp_path / "3", parent="trunk", start=5, end=11)


def test_a_state_goes_from_a_stack_to_an_ordinary_stage_and_back(tmp_path: Path) -> None:
    first = [replace(job, end=8) for job in jobs_of(SPECS, tmp_path)]
    run_stack(first, CORPUS)
    train_tiny(job_of(SPECS[1], tmp_path, node="middle", parent="run-1", start=8, end=17))
    last = jobs_of([SPECS[1]], tmp_path)[0]
    (result,) = run_stack([replace(last, node="end", parent="middle", start=17)], CORPUS)
    expected = alone(SPECS[1], tmp_path / "alone")
    assert result.points == tuple(point for point in expected.points if point.step > 17)
    assert state_digest(tmp_path, "end") == state_digest(tmp_path / "alone", "alone")


@pytest.mark.parametrize("step", [4, 12, 16])
def test_a_stop_leaves_a_partial_checkpoint_of_every_slice(tmp_path: Path, step: int) -> None:
    (tmp_path / "s").mkdir()
    jobs = jobs_of(SPECS, tmp_path / "s")

    def stop(job: StageJob, point: StagePoint) -> None:
        if point.step >= step:
            Path(job.stop_file).touch()

    stopped = run_stack(jobs, CORPUS, stop)
    assert [result.outcome for result in stopped] == [Stopped(step, "stop requested")] * 3
    assert all((tmp_path / "s" / job.node / PARTIAL).is_dir() for job in jobs)
    assert not any(read_result(tmp_path / "s", job.node) for job in jobs)
    Path(jobs[0].stop_file).unlink()
    results = [*run_stack(jobs[:1], CORPUS), *run_stack(jobs[1:], CORPUS)]
    for index, (spec, result) in enumerate(zip(SPECS, results, strict=True)):
        assert_like_alone(result, spec, tmp_path / "s", tmp_path / str(index))
        assert not (tmp_path / "s" / result.node / PARTIAL).exists()


def test_a_crash_goes_on_from_the_last_checkpoints(tmp_path: Path) -> None:
    jobs = jobs_of(SPECS, tmp_path / "s", checkpoint_seconds=1e-9)

    def crash(job: StageJob, point: StagePoint) -> None:
        if point.step >= 12:
            raise OSError("the machine is gone")

    with pytest.raises(OSError, match="the machine is gone"):
        run_stack(jobs, CORPUS, crash)
    trained: list[int] = []
    results = run_stack(jobs, CORPUS, lambda job, point: trained.append(point.step))
    assert min(trained) == 12
    for index, (spec, result) in enumerate(zip(SPECS, results, strict=True)):
        assert_like_alone(result, spec, tmp_path / "s", tmp_path / str(index))


@pytest.mark.parametrize("learning_rate", [1e30, 1e15, 50.0])
def test_a_slice_that_diverges_leaves_the_others_alone(tmp_path: Path, learning_rate: float) -> None:
    """No finite gradient, a validation loss that is no number, one beyond all bounds."""
    wild = tiny_spec("baseline", total_steps=60, warmup_steps=0, learning_rate=learning_rate, seed=1)
    calm = [tiny_spec("baseline", total_steps=60, seed=seed) for seed in (0, 2)]
    specs = [calm[0], wild, calm[1]]
    every = 0 if learning_rate == 1e30 else 3
    results = run_stack(jobs_of(specs, tmp_path / "s", evaluate_every=every), CORPUS)
    assert isinstance(results[1].outcome, Diverged)
    for index, (spec, result) in enumerate(zip(specs, results, strict=True)):
        assert_like_alone(result, spec, tmp_path / "s", tmp_path / str(index), evaluate_every=every)


def test_a_finished_slice_is_not_trained_again(tmp_path: Path) -> None:
    jobs = jobs_of(SPECS, tmp_path)
    first = run_stack(jobs[:1], CORPUS)
    trained: set[str] = set()
    again = run_stack(jobs, CORPUS, lambda job, point: trained.add(job.node))
    assert again[0] == first[0]
    assert trained == {"run-1", "run-2"}


def test_a_lost_parent_is_told_before_anything_is_trained(tmp_path: Path) -> None:
    jobs = jobs_of(SPECS, tmp_path)
    jobs[2] = replace(jobs[2], parent="never-trained", start=5)
    jobs = [replace(job, end=12) for job in jobs]
    with pytest.raises(ParentLostError, match="run-2 cannot start"):
        run_stack(jobs, CORPUS)
    assert not list(tmp_path.glob("run-*"))


def test_what_may_differ_between_companions(tmp_path: Path) -> None:
    job = job_of(tiny_spec(total_steps=40, step_ratio=0.5), tmp_path, end=20)
    other = tiny_spec(
        total_steps=60, step_ratio=0.5, seed=3, learning_rate=0.5, warmup_steps=7, decay_steps=1, bag_size=3
    )
    twin = job_of(other, tmp_path, node="other", booked_by="x", end=25, keep_state=False)
    assert stack_key(job) == stack_key(twin)
    recovery = job_of(tiny_spec(total_steps=40, step_ratio=0.5), tmp_path, start=20, parent="p")
    baseline = job_of(tiny_spec("baseline", total_steps=30), tmp_path)
    assert stack_key(recovery) == stack_key(baseline), "ordinary training is ordinary training in every method"


def test_what_may_not(tmp_path: Path) -> None:
    spec = tiny_spec(total_steps=40, step_ratio=0.5)
    job = job_of(spec, tmp_path, end=20)
    others = [
        job_of(tiny_spec(total_steps=40, step_ratio=0.5, bag_size=4), tmp_path, end=20),
        job_of(tiny_spec(total_steps=40, step_ratio=0.5, bag_weighting="power_law"), tmp_path, end=20),
        job_of(spec, tmp_path),  # goes over the boundary
        job_of(spec, tmp_path, start=20, parent="p"),
        job_of(replace(spec, precision="bf16"), tmp_path, end=20),
        job_of(replace(spec, shape=replace(SHAPE, width=32)), tmp_path, end=20),
        job_of(replace(spec, optimizer=replace(spec.optimizer, beta2=0.99)), tmp_path, end=20),
        replace(job, evaluate_every=5),
    ]
    assert all(stack_key(other) != stack_key(job) for other in others)
    with pytest.raises(ValueError, match="cannot be stacked"):
        run_stack([job, replace(others[0], node="other")], CORPUS)


def test_large_models_and_experts_are_not_stacked() -> None:
    assert can_stack(tiny_spec())
    assert not can_stack(method_spec("multi_token"))
    assert not can_stack(tiny_spec(shape=replace(SHAPE, num_experts=4, experts_per_token=2)))
    assert not can_stack(tiny_spec(shape=replace(SHAPE, vocab_size=500_000, width=32, num_heads=4)))
