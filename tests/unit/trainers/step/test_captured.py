"""The step on static state against the eager step, bit by bit, where both are called: what a replay repeats is this."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.tiny_training import CORPUS, CPU, VALIDATION_TOKENS, job_of, state_digest, tiny_spec, train_tiny
from trainers.contract.record import Diverged, Stopped
from trainers.contract.schedule import phase_at
from trainers.contract.spec import TrialSpec
from trainers.contract.stage import StagePoint
from trainers.methods import phases_of
from trainers.model.decoder import build_model
from trainers.step import captured, ring
from trainers.step.optim import build_optimizer
from trainers.step.step import TrainingStep
from trainers.training.checkpoint import TrainState
from trainers.training.loop import LoopArguments, Progress, train


def step_of(spec: TrialSpec, execution: str, micro_sequences: int | None = None) -> TrainingStep:
    model = build_model(spec.shape, spec.context, spec.seed, CPU)
    stream = CORPUS.stream(spec.seed, 32)
    return TrainingStep(
        spec,
        phases_of(spec),
        model,
        build_optimizer(model, spec.optimizer),
        stream,
        CPU,
        execution,
        micro_sequences,
    )


def readings(step: TrainingStep, steps: range) -> list[tuple[float, float]]:
    """Loss and norm of each step, looked at one by one."""
    found = []
    for index in steps:
        losses, norms = step.look([step.run(index, phase_at(step.phases, index))])()
        found.append((losses[0], norms[0]))
    return found


def assert_equal_steps(first: TrainingStep, second: TrainingStep) -> None:
    for (name, left), right in zip(first.model.named_parameters(), second.model.parameters(), strict=True):
        assert torch.equal(left, right), name
        for key, value in first.optimizer.state[left].items():
            assert torch.equal(value, second.optimizer.state[right][key]), (name, key)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("micro_sequences", [4, 2, 1])
@pytest.mark.parametrize("weighting", ["uniform", "power_law"])
def test_static_state_trains_to_the_eager_bits(precision: str, micro_sequences: int, weighting: str) -> None:
    """Across the phase boundary, with gradient accumulation, through warm-up and decay of the learning rate."""
    spec = tiny_spec(sequences=4, precision=precision, bag_weighting=weighting)
    eager, static = (step_of(spec, execution, micro_sequences) for execution in ("eager", "captured"))
    assert readings(static, range(12)) == readings(eager, range(12))
    assert_equal_steps(static, eager)


@pytest.mark.parametrize(("tokens", "steps"), [(1, 64), (200, 64), (1 << 20, 2), (1 << 20, 5)])
def test_how_far_the_ring_reads_ahead_changes_no_token(
    monkeypatch: pytest.MonkeyPatch, tokens: int, steps: int
) -> None:
    monkeypatch.setattr(ring, "WINDOW_TOKENS", tokens)
    monkeypatch.setattr(ring, "WINDOW_STEPS", steps)
    spec = tiny_spec(total_steps=24, sequences=3)
    assert readings(step_of(spec, "captured"), range(24)) == readings(step_of(spec, "eager"), range(24))


def test_steps_may_be_run_in_any_order() -> None:
    """A script that times one step again and again gets that step, and its learning rate, each time."""
    spec = tiny_spec(total_steps=20, sequences=2)
    order = [0, 0, 3, 4, 1, 12, 11, 11]
    eager, static = step_of(spec, "eager"), step_of(spec, "captured")
    for index in order:
        steps = range(index, index + 1)
        assert readings(static, steps) == readings(eager, steps)


def test_histories_go_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captured, "HISTORY", 4)
    spec = tiny_spec(total_steps=12)
    assert readings(step_of(spec, "captured"), range(12)) == readings(step_of(spec, "eager"), range(12))


def test_a_gradient_that_is_not_finite_is_skipped_and_counted_alike() -> None:
    """Weights that overflow for some steps: nothing changes but the counter, and training goes on."""
    found = []
    for execution in ("eager", "captured"):
        step = step_of(tiny_spec("baseline"), execution)
        before = readings(step, range(2))
        head = step.model.head.weight
        kept = head.detach().clone()
        with torch.no_grad():
            head.mul_(3e38)
        broken = readings(step, range(2, 4))
        assert not any(math.isfinite(norm) for _, norm in broken)
        with torch.no_grad():
            head.copy_(kept)
        found.append((before, readings(step, range(4, 12))))
    assert found[0] == found[1]


@pytest.mark.parametrize("changes", [{}, {"micro_sequences": 1}])
@pytest.mark.parametrize("spec", [tiny_spec(), tiny_spec(precision="bf16"), tiny_spec("baseline")])
def test_a_stage_ends_in_the_eager_state(tmp_path: Path, spec: TrialSpec, changes: dict[str, Any]) -> None:
    eager = train_tiny(job_of(spec, tmp_path, **changes))
    static = train_tiny(job_of(spec, tmp_path, node="static", execution="captured", **changes))
    assert static.points == eager.points
    assert [(t.phase, t.steps) for t in static.timings] == [(t.phase, t.steps) for t in eager.timings]
    assert state_digest(tmp_path, "static") == state_digest(tmp_path, "whole")


@pytest.mark.parametrize("stop", [1, 5, 7])
def test_a_run_is_stopped_in_one_form_and_goes_on_in_the_same_bits(tmp_path: Path, stop: int) -> None:
    spec = tiny_spec()
    whole = train_tiny(job_of(spec, tmp_path, evaluate_every=1))
    job = job_of(spec, tmp_path, node="static", execution="captured", evaluate_every=1)

    def ask(point: StagePoint) -> None:
        if point.step == stop:
            Path(job.stop_file).touch()

    assert train_tiny(job, ask).outcome == Stopped(stop, "stop requested")
    Path(job.stop_file).unlink()
    assert train_tiny(job).points == whole.points
    assert state_digest(tmp_path, "static") == state_digest(tmp_path, "whole")


@pytest.mark.parametrize("fork", [3, 5, 9])
def test_a_branch_leaves_a_shared_trunk_in_any_form(tmp_path: Path, fork: int) -> None:
    """Eager trunk and static branch, and the other way round."""
    spec = tiny_spec()
    train_tiny(job_of(spec, tmp_path))
    for trunk, branch in (("eager", "captured"), ("captured", "eager"), ("captured", "captured")):
        name = f"{trunk}-{branch}"
        train_tiny(job_of(spec, tmp_path, node=f"{name}-trunk", end=fork, execution=trunk))
        train_tiny(job_of(spec, tmp_path, node=name, parent=f"{name}-trunk", start=fork, execution=branch))
        assert state_digest(tmp_path, name) == state_digest(tmp_path, "whole")


def looking(spec: TrialSpec, execution: str, **changes: Any) -> tuple[TrainState, Progress, Stopped | Diverged | None]:
    step = step_of(spec, execution)
    state, progress = TrainState(step.model, step.optimizer), Progress()
    never = LoopArguments(0, 0.0, lambda: False, lambda point: None, lambda state, progress: None)
    validation = CORPUS.validation(VALIDATION_TOKENS)
    outcome = train(state, step, validation, spec.schedule.total_steps, progress, replace(never, **changes))
    return state, progress, outcome


def test_looking_behind_the_device_sees_every_step_once() -> None:
    spec = tiny_spec(total_steps=75, step_ratio=0.5)
    eager, ahead = looking(spec, "eager"), looking(spec, "captured")
    assert ahead[1].points == eager[1].points
    assert [clock.steps for clock in ahead[1].clocks] == [38, 37]
    assert [len(clock.samples) + len(clock.warm_up) for clock in ahead[1].clocks] == [4, 5]


@pytest.mark.parametrize("learning_rate", [1e30, 50.0])
def test_divergence_is_found_at_the_same_step_though_later(learning_rate: float) -> None:
    spec = tiny_spec("baseline", total_steps=60, warmup_steps=0, learning_rate=learning_rate)
    eager, ahead = looking(spec, "eager"), looking(spec, "captured")
    assert isinstance(ahead[2], Diverged)
    assert ahead[2] == eager[2]
    assert ahead[0].skipped_steps == eager[0].skipped_steps


def test_a_stop_waits_for_what_was_launched() -> None:
    """The state that is saved is that of the last step, and every step up to it has been looked at."""
    asked = iter([False, False, True, True, True])
    saved: list[int] = []
    state, progress, outcome = looking(
        tiny_spec("baseline", total_steps=60),
        "captured",
        should_stop=lambda: next(asked),
        on_checkpoint=lambda state, progress: saved.append(state.step),
    )
    assert outcome == Stopped(30, "stop requested")
    assert (saved, state.step, progress.clocks[0].steps) == ([30], 30, 30)


def test_masters_learn_what_bfloat16_would_forget() -> None:
    """Updates of 1e-5 are below half a bfloat16 step of the gains (1.0): only masters add them up."""
    spec = tiny_spec("baseline", total_steps=40, warmup_steps=0, decay_steps=0, learning_rate=1e-5, precision="bf16")
    for execution in ("eager", "captured"):
        step = step_of(spec, execution)
        readings(step, range(40))
        gain, working = step.model.norm.weight.detach(), step.working.norm.weight.detach()
        assert (gain.dtype, working.dtype) == (torch.float32, torch.bfloat16)
        assert 1e-5 < float((gain - 1).abs().max()) < 1e-3
        assert torch.equal(working, gain.to(torch.bfloat16))
        assert step.working.cosine_LE.dtype == torch.float32


def test_working_weights_are_renewed_on_the_stream_that_replays() -> None:
    """Elsewhere a replay of the phase before could still be reading them."""
    step = step_of(tiny_spec(precision="bf16"), "captured")
    readings(step, range(3))
    old = step.working.norm.weight.detach().clone()
    with torch.no_grad():
        step.model.norm.weight.fill_(3.0)
    seen: list[bool] = []

    class Watching(captured.Calls):
        def on_stream(self) -> AbstractContextManager[object]:
            seen.append(torch.equal(step.working.norm.weight, old))
            return super().on_stream()

    assert step._static is not None
    step._static.recorder = Watching()
    step._enter(step.phases[1], step.phases[1].start)
    assert seen == [True]
    assert torch.equal(step.working.norm.weight, torch.full_like(old, 3.0))


def failing_capture(first: RuntimeError) -> RuntimeError:
    """As torch raises it: the end of a capture that failed has an error of its own."""
    try:
        try:
            raise first
        finally:
            raise RuntimeError("operation failed due to a previous error during capture\nCUDA says more")
    except RuntimeError as error:
        return error


def test_out_of_memory_inside_a_capture_is_out_of_memory() -> None:
    short = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    assert captured.refusal_of(failing_capture(short)) is short
    assert captured.refusal_of(short) is short
    other = captured.refusal_of(failing_capture(RuntimeError("operation not permitted when stream is capturing")))
    assert isinstance(other, captured.CaptureError)
    assert str(other) == (
        "execution: captured failed here (operation not permitted when stream is capturing); use compiled or eager"
    )


def test_float32_keeps_no_second_copy() -> None:
    step = step_of(tiny_spec(), "eager")
    assert step.working is step.model
