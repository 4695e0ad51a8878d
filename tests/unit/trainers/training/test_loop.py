"""The loop: where chunks end, what is evaluated and counted, how a run stops, diverges and goes on."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch

from tests.support.tiny_training import CORPUS, CPU, VALIDATION_TOKENS, tiny_spec
from trainers.contract.record import Diverged, Stopped
from trainers.contract.schedule import Phase
from trainers.contract.spec import TrialSpec
from trainers.contract.stage import StagePoint
from trainers.methods import phases_of
from trainers.model.decoder import build_model
from trainers.step.optim import build_optimizer
from trainers.step.step import TrainingStep
from trainers.training.checkpoint import TrainState
from trainers.training.loop import CHUNK_STEPS, DIVERGED_SKIPS, LoopArguments, PhaseClock, Progress, chunk_end, train

NEVER = LoopArguments(
    evaluate_every=0,
    checkpoint_seconds=0.0,
    should_stop=lambda: False,
    on_point=lambda point: None,
    on_checkpoint=lambda state, progress: None,
)


def parts_of(spec: TrialSpec) -> tuple[TrainState, TrainingStep]:
    model = build_model(spec.shape, spec.context, spec.seed, CPU)
    state = TrainState(model, build_optimizer(model, spec.optimizer))
    step = TrainingStep(spec, phases_of(spec), model, state.optimizer, CORPUS.stream(spec.seed, 32), CPU, "eager")
    return state, step


def run(
    spec: TrialSpec, end: int, arguments: LoopArguments = NEVER
) -> tuple[TrainState, Progress, Stopped | Diverged | None]:
    state, step = parts_of(spec)
    progress = Progress()
    outcome = train(state, step, CORPUS.validation(VALIDATION_TOKENS), end, progress, arguments)
    return state, progress, outcome


def test_a_chunk_ends_at_whatever_comes_first() -> None:
    phase = Phase("superposition", 0, 35)
    assert chunk_end(0, phase, 100, 0) == CHUNK_STEPS
    assert chunk_end(3, phase, 100, 4) == 4
    assert chunk_end(3, phase, 100, 0) == CHUNK_STEPS
    assert chunk_end(4, phase, 100, 4) == 8
    assert chunk_end(30, phase, 100, 0) == 35
    assert chunk_end(30, phase, 33, 0) == 33


def test_a_run_is_evaluated_on_the_grid_at_the_boundary_and_at_the_end() -> None:
    spec = tiny_spec(total_steps=12, step_ratio=0.4)
    seen: list[StagePoint] = []
    state, progress, outcome = run(spec, 11, replace(NEVER, evaluate_every=4, on_point=seen.append))
    assert outcome is None
    assert [(point.step, point.phase) for point in progress.points] == [
        (4, "superposition"),
        (5, "superposition"),
        (8, "next-token"),
        (11, "next-token"),
    ]
    assert seen == progress.points
    assert (state.step, state.skipped_steps) == (11, 0)


def test_a_run_learns() -> None:
    spec = tiny_spec("baseline", total_steps=80, decay_steps=20, sequences=8)
    _, progress, _ = run(spec, 80, replace(NEVER, evaluate_every=20))
    assert progress.points[-1].loss < progress.points[0].loss < math.log(48) + 1
    assert progress.points[-1].loss < 2.6


def test_the_clock_counts_every_step_of_its_phase() -> None:
    _, progress, _ = run(tiny_spec(total_steps=30, step_ratio=0.5), 30)
    timings = [clock.timing() for clock in progress.clocks]
    assert [(t.phase, t.bag_size, t.steps) for t in timings] == [("superposition", 3, 15), ("next-token", 1, 15)]
    assert sum(t.steps * t.median_step_seconds for t in timings) > 0
    assert all(len(clock.warm_up) == 1 for clock in progress.clocks)


def test_the_median_is_taken_from_warm_chunks_where_there_are_any() -> None:
    assert PhaseClock("p", 1, 30, samples=[3.0, 1.0, 2.0], warm_up=[99.0]).timing().median_step_seconds == 2.0
    assert PhaseClock("p", 1, 3, samples=[], warm_up=[5.0]).timing().median_step_seconds == 5.0


def test_a_stop_request_is_answered_with_a_checkpoint() -> None:
    saved: list[int] = []
    arguments = replace(
        NEVER,
        evaluate_every=5,
        should_stop=lambda: True,
        on_checkpoint=lambda state, progress: saved.append(state.step),
    )
    state, _, outcome = run(tiny_spec("baseline", total_steps=12), 12, arguments)
    assert outcome == Stopped(5, "stop requested")
    assert (saved, state.step) == ([5], 5)


def test_a_stop_request_at_the_end_changes_nothing() -> None:
    _, _, outcome = run(tiny_spec("baseline", total_steps=6), 6, replace(NEVER, should_stop=lambda: True))
    assert outcome is None


def test_checkpoints_are_written_on_the_way_and_not_at_the_end() -> None:
    saved: list[int] = []
    arguments = replace(
        NEVER,
        evaluate_every=3,
        checkpoint_seconds=1e-9,
        on_checkpoint=lambda state, progress: saved.append(state.step),
    )
    run(tiny_spec("baseline", total_steps=12), 12, arguments)
    assert saved == [3, 6, 9, 10]  # evaluations, and the chunk's own end


def exploding(learning_rate: float = 1e30) -> TrialSpec:
    """A learning rate at which the weights leave all bounds with the first step."""
    return tiny_spec("baseline", total_steps=60, warmup_steps=0, learning_rate=learning_rate)


def test_a_run_without_a_finite_gradient_diverges() -> None:
    state, progress, outcome = run(exploding(), 60)
    assert outcome == Diverged(DIVERGED_SKIPS + 1, f"no finite gradient for {DIVERGED_SKIPS} steps")
    assert state.skipped_steps == DIVERGED_SKIPS
    assert progress.points == []
    assert all(bool(torch.isfinite(parameter).all()) for parameter in state.model.parameters())


def test_a_validation_loss_that_is_no_number_diverges_and_is_no_point() -> None:
    _, progress, outcome = run(exploding(1e15), 60, replace(NEVER, evaluate_every=2))
    assert outcome == Diverged(2, "validation loss is nan")
    assert progress.points == []


def test_a_validation_loss_beyond_all_bounds_diverges() -> None:
    _, progress, outcome = run(exploding(50.0), 60, replace(NEVER, evaluate_every=3))
    assert isinstance(outcome, Diverged)
    assert "twice that of guessing" in outcome.reason
    assert outcome.step not in [point.step for point in progress.points]


@pytest.mark.parametrize("cuts", [(4,), (20,), (7, 13, 18)])
def test_divergence_does_not_depend_on_where_a_run_was_cut(cuts: tuple[int, ...]) -> None:
    spec = exploding()
    state, step = parts_of(spec)
    for end in (*cuts, 60):
        outcome = train(state, step, CORPUS.validation(VALIDATION_TOKENS), end, Progress(), NEVER)
        if outcome is not None:
            break
    assert outcome == run(spec, 60)[2]


def test_steps_without_a_finite_gradient_are_counted_only_in_a_row() -> None:
    """One bad step in ten is skipped, and the run goes on to its end."""
    spec = tiny_spec("baseline", total_steps=40)
    state, step = parts_of(spec)
    seen = itertools.count()

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        return gradient * float("nan") if next(seen) % 10 == 3 else gradient

    state.model.norm.weight.register_hook(spoil)
    outcome = train(state, step, CORPUS.validation(VALIDATION_TOKENS), 40, Progress(), NEVER)
    assert outcome is None
    assert (state.skipped_steps, state.consecutive_skips) == (4, 0)
