"""The algebra of a speedup, whatever the ladder, the noise and the clock."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reports.estimate.ladder import fit_power_law
from reports.estimate.observations import observe
from reports.estimate.readings import ClockError, make_ladder, speedup_curve
from reports.estimate.speedup import judge
from reports.estimate.verdict import Clock, NotReached, Reached, ScaleVerdict
from reports.evidence.runs import FinishedRun
from tests.support.finished_runs import make_run, make_study

BUDGETS = (2_000, 3_000, 4_500, 7_000)

ladders = st.tuples(
    st.floats(1.5, 2.5), st.floats(0.5, 2.0), st.floats(0.1, 0.8), st.sampled_from((2, 3, 4)), st.integers(0, 2**31)
)
"""Asymptote, height, exponent, budgets, and the seed of the noise."""


def arm(
    method: str, truth: tuple[float, float, float, int, int], speedup: float, *, sigma: float = 0.003, seeds: int = 3
) -> list[FinishedRun]:
    asymptote, height, exponent, num_budgets, seed = truth
    generator = np.random.default_rng([seed, len(method)])
    trunk = generator.normal(0, sigma, seeds)
    return [
        make_run(
            method,
            steps,
            1000 + number,
            asymptote
            + height * (speedup * steps / 1_000) ** -exponent
            + float(trunk[number])
            + float(generator.normal(0, sigma / 2)),
        )
        for steps in BUDGETS[:num_budgets]
        for number in range(seeds)
    ]


def as_method(runs: list[FinishedRun]) -> list[FinishedRun]:
    """The same runs under a method's name, at the same cost."""
    return [
        replace(run, run_id=f"m{run.run_id}", method="tst", trunk=f"m{run.trunk}", parameters=(("bag_size", 1),))
        for run in runs
    ]


def verdict_of(runs: list[FinishedRun]) -> ScaleVerdict:
    (verdict,) = judge(make_study(runs))
    return verdict


@given(ladders)
@settings(max_examples=40)
def test_identical_arms_are_equally_fast(truth: tuple[float, float, float, int, int]) -> None:
    baseline = arm("baseline", truth, 1.0, sigma=0.0005)
    study = make_study([*baseline, *as_method(baseline)])
    (scale,) = study.scales
    observations = observe(scale)
    assert scale.baseline is not None
    ours, theirs = (
        make_ladder(observations, cells, "gpu_hours") for cells in (scale.baseline.cells, scale.methods[0].cells)
    )
    assert ours is not None
    assert theirs is not None
    curve = speedup_curve(observations, ours, theirs, ClockError(0.0, math.inf, False))
    assert curve is not None
    assert curve.speedup == pytest.approx(np.ones(len(curve.target)), rel=1e-6)
    if len(baseline) == 9:  # three budgets are met exactly, so single targets are read exactly too
        for budget in verdict_of([*baseline, *as_method(baseline)]).budgets[1:-1]:
            assert isinstance(budget.speedup, Reached)
            assert budget.speedup.speedup == pytest.approx(1.0, rel=1e-5)


@given(ladders, st.floats(0.8, 1.25))
@settings(max_examples=40)
def test_swapping_the_arms_inverts_the_speedup(truth: tuple[float, float, float, int, int], speedup: float) -> None:
    study = make_study([*arm("baseline", truth, 1.0), *as_method(arm("other", truth, speedup))])
    (scale,) = study.scales
    observations = observe(scale)
    assert scale.baseline is not None
    one = make_ladder(observations, scale.baseline.cells, "gpu_hours")
    two = make_ladder(observations, scale.methods[0].cells, "gpu_hours")
    assert one is not None
    assert two is not None
    error = ClockError(1e-5, 7.0, False)
    forward, backward = speedup_curve(observations, one, two, error), speedup_curve(observations, two, one, error)
    assert (forward is None) == (backward is None)
    if forward is None or backward is None or len(forward.target) != len(backward.target):
        return
    assert forward.speedup == pytest.approx(1 / backward.speedup, rel=1e-9)
    assert forward.low is not None
    assert backward.high is not None
    assert forward.low == pytest.approx(1 / backward.high, rel=1e-9)


@given(ladders, st.floats(1.0, 1.5), st.floats(0.1, 10.0), st.sampled_from(("baseline", "tst")))
@settings(max_examples=40)
def test_scaling_one_arms_cost_scales_the_speedup_on_every_clock(
    truth: tuple[float, float, float, int, int], speedup: float, factor: float, scaled: str
) -> None:
    runs = [*arm("baseline", truth, 1.0), *arm("tst", truth, speedup)[:3]]
    runs = [replace(run, phases=(), gpu_hours=run.total_steps / 1e4) for run in runs]

    def dearer(run: FinishedRun) -> FinishedRun:
        if run.method != scaled:
            return run
        assert run.gpu_hours is not None
        assert run.flops is not None
        assert run.tokens is not None
        return replace(run, gpu_hours=factor * run.gpu_hours, flops=factor * run.flops, tokens=factor * run.tokens)

    before, after = verdict_of(runs), verdict_of([dearer(run) for run in runs])
    expected = factor if scaled == "baseline" else 1 / factor
    clocks: tuple[Clock, ...] = ("gpu_hours", "flops", "tokens")
    for clock in clocks:
        first, second = dict(before.by_clock).get(clock), dict(after.by_clock).get(clock)
        match first, second:
            case Reached(), Reached():
                assert second.speedup == pytest.approx(expected * first.speedup, rel=1e-6)
                assert first.interval is not None
                assert second.interval is not None
                assert second.interval == pytest.approx([expected * end for end in first.interval], rel=1e-5)
            case NotReached(), NotReached():
                assert (first.lower_bound is None) == (second.lower_bound is None)
                if first.lower_bound is not None and second.lower_bound is not None:
                    assert second.lower_bound == pytest.approx(expected * first.lower_bound, rel=1e-9)
            case _:
                assert first is None
                assert second is None


@given(ladders, st.floats(0.5, 4.0))
@settings(max_examples=40)
def test_a_bracketed_target_is_read_between_the_budgets_that_hold_it(
    truth: tuple[float, float, float, int, int], speedup: float
) -> None:
    verdict = verdict_of([*arm("baseline", truth, 1.0, sigma=1e-5), *arm("tst", truth, speedup, sigma=1e-5)[:3]])
    largest = BUDGETS[truth[3] - 1] / BUDGETS[0]
    match verdict.speedup:
        case Reached(extrapolated=False) as reached:
            assert 1 - 1e-3 <= reached.speedup <= largest * (1 + 1e-3)
            assert reached.interval is not None
            assert reached.interval[0] <= reached.speedup <= reached.interval[1]
        case NotReached(lower_bound, _):
            assert speedup > largest * 0.99
            if speedup > largest * 1.01:
                assert lower_bound == pytest.approx(largest)
        case Reached() | None:
            assert speedup < 1.01 or speedup == pytest.approx(largest, rel=1e-2)


@given(ladders, st.floats(3.6, 20.0))
@settings(max_examples=40)
def test_a_method_that_the_baseline_never_reaches_is_censored_at_every_budget(
    truth: tuple[float, float, float, int, int], speedup: float
) -> None:
    baseline = arm("baseline", truth, 1.0, sigma=1e-6)
    verdict = verdict_of([*baseline, *arm("tst", truth, speedup, sigma=1e-6)])
    assert verdict.budgets
    for budget in verdict.budgets:
        assert isinstance(budget.speedup, NotReached)
        assert budget.speedup.lower_bound == pytest.approx(BUDGETS[truth[3] - 1] / budget.total_steps)


@given(
    st.lists(st.floats(2.0, 4.0), min_size=3, max_size=6),
    st.lists(st.floats(1.05, 3.0), min_size=2, max_size=5),
    st.floats(0.2, 5.0),
)
@settings(max_examples=40)
def test_weights_of_any_ladder_sum_to_one(losses: list[float], ratios: list[float], at: float) -> None:
    size = min(len(losses), len(ratios) + 1)
    if size < 3:
        return
    cost = np.cumprod([1.0, *ratios[: size - 1]])
    fit = fit_power_law(cost, np.array([losses[:size]]), np.ones(size))
    weights = fit.weights_at(np.array([at]))
    assert np.isfinite(weights).all()
    assert weights.sum() == pytest.approx(1.0, abs=1e-6)


@given(ladders, st.floats(0.7, 2.0), st.floats(-0.5, 0.5))
@settings(max_examples=40)
def test_a_shift_of_all_losses_changes_no_fitted_speedup(
    truth: tuple[float, float, float, int, int], speedup: float, shift: float
) -> None:
    asymptote, height, exponent, _, seed = truth
    full = (asymptote, height, exponent, 4, seed)
    runs = [*arm("baseline", full, 1.0), *arm("tst", full, speedup)[:3]]
    moved = [replace(run, final_loss=run.final_loss + shift) for run in runs if run.final_loss is not None]
    before, after = verdict_of(runs).speedup, verdict_of(moved).speedup
    assert type(before) is type(after)
    if isinstance(before, Reached) and isinstance(after, Reached):
        assert after.speedup == pytest.approx(before.speedup, rel=1e-4)
