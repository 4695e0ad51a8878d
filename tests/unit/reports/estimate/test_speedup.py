"""Verdicts: the number, its interval, and the words that follow from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import stdtrit

from reports.estimate.resolution import resolvable, what_it_can_resolve
from reports.estimate.speedup import judge
from reports.estimate.verdict import Flag, NotReached, Reached, ScaleVerdict, Words
from reports.evidence.runs import FinishedRun
from reports.evidence.study import Study
from tests.support.finished_runs import OFFSETS, STEP_SECONDS, ladder, make_run, make_study, sweep, true_loss, tuning


def verdict_of(study: Study) -> ScaleVerdict:
    (verdict,) = judge(study)
    return verdict


def reached(verdict: ScaleVerdict) -> Reached:
    assert isinstance(verdict.speedup, Reached)
    return verdict.speedup


def compare(baseline: Sequence[FinishedRun], method: Sequence[FinishedRun], **context: object) -> ScaleVerdict:
    return verdict_of(make_study([*tuning("baseline"), *tuning("tst"), *baseline, *method], **context))


@pytest.mark.parametrize("speedup", [1.1, 1.3, 1.45, 1.9])
def test_a_true_speedup_is_read_exactly_from_an_exact_ladder(speedup: float) -> None:
    verdict = verdict_of(sweep(speedup))
    assert reached(verdict).speedup == pytest.approx(speedup, rel=1e-4)
    assert verdict.target_loss == pytest.approx(true_loss(speedup * 4_000))
    assert verdict.method_cost == pytest.approx(4_000 * STEP_SECONDS / 3600)
    assert verdict.baseline_cost == pytest.approx(speedup * 4_000 * STEP_SECONDS / 3600, rel=1e-4)
    assert not reached(verdict).extrapolated


def test_every_clock_is_there_and_the_factors_multiply() -> None:
    method = [
        replace(
            run,
            phases=tuple(replace(phase, median_step_seconds=0.5) for phase in run.phases if phase.bag_size > 1)
            + tuple(phase for phase in run.phases if phase.bag_size == 1),
        )
        for run in ladder("tst", (4_000,), speedup=1.4)
    ]
    verdict = verdict_of(make_study([*ladder(), *method]))
    clocks = dict(verdict.by_clock)
    assert set(clocks) == {"gpu_hours", "flops", "tokens", "steps"}
    values = {clock: value.speedup for clock, value in clocks.items() if isinstance(value, Reached)}
    assert values["steps"] == pytest.approx(1.4, rel=1e-4)
    assert values["flops"] == pytest.approx(1.4, rel=1e-4)
    # A quarter of the steps reads four tokens a position: 1.75 times the text a step.
    assert values["tokens"] == pytest.approx(1.4 / 1.75, rel=1e-4)
    assert verdict.data_multiplier == pytest.approx(1.75 / 1.4, rel=1e-4)
    dearer = (0.25 * 0.5 + 0.75 * 0.36) / 0.36
    assert values["gpu_hours"] == pytest.approx(1.4 / dearer, rel=1e-4)
    assert verdict.factors is not None
    assert verdict.factors.cheaper_steps == pytest.approx(1 / dearer)
    assert verdict.factors.fewer_steps * verdict.factors.cheaper_steps == pytest.approx(reached(verdict).speedup)
    assert Flag.CLOCKS_DISAGREE in verdict.flags


def test_the_interval_is_the_delta_methods_with_trunks_as_units() -> None:
    verdict = verdict_of(sweep(1.5))
    reading = reached(verdict)
    # Offsets move whole trunks, so each arm's mean has variance s^2 / 3 with two degrees of freedom.
    sigma = float(np.std(OFFSETS, ddof=1))
    slope = -0.3 * (true_loss(6_000) - 2.0)
    spread = sigma * math.sqrt(2 / 3) / abs(slope)
    clock = 0.25 * 0.02  # the price of a bag step against the other, measured once, is taken to be known within 2 %
    assert reading.log_standard_error == pytest.approx(math.hypot(spread, clock), rel=1e-3)
    assert verdict.sigma is not None
    assert verdict.sigma.total == pytest.approx(sigma)
    assert verdict.sigma.trunk_share == pytest.approx(1.0)
    assert reading.interval is not None
    low, high = reading.interval
    assert math.sqrt(low * high) == pytest.approx(reading.speedup, rel=1e-6)
    quantile = math.log(high / low) / 2 / reading.log_standard_error
    freedom = (spread**2 + clock**2) ** 2 / (spread**4 / 4)  # two trunks too many in either arm; the clock's is assumed
    assert quantile == pytest.approx(stdtrit(freedom, 0.975), rel=1e-3)
    assert Flag.CLOCK_ASSUMED in verdict.flags


def test_words_follow_the_interval() -> None:
    assert verdict_of(sweep(1.5)).words is Words.FASTER
    wide = (-0.2, 0.0, 0.2)
    unsure = compare(ladder(offsets=wide), ladder("tst", (4_000,), speedup=1.3, offsets=wide))
    assert unsure.words is Words.NO_DIFFERENCE
    assert unsure.resolution is not None
    assert unsure.resolution > 0.3
    slow = compare(ladder(budgets=(3_000, 5_000, 8_000)), ladder("tst", (4_000,), speedup=0.8))
    assert slow.words is Words.SLOWER
    assert reached(slow).speedup == pytest.approx(0.8, rel=1e-3)


def test_a_method_worse_than_the_whole_ladder_is_slower_without_extrapolation() -> None:
    verdict = compare(ladder(budgets=(4_000, 8_000)), ladder("tst", (4_000,), speedup=0.5))
    assert verdict.speedup is None
    assert verdict.upper_bound == pytest.approx(1.0)
    assert verdict.words is Words.SLOWER


def test_extrapolation_is_marked() -> None:
    verdict = compare(ladder(), ladder("tst", (4_000,), speedup=0.9))
    assert reached(verdict).extrapolated
    assert Flag.EXTRAPOLATED in verdict.flags


def test_a_target_that_the_baseline_never_reached_is_censored() -> None:
    verdict = compare(ladder(), ladder("tst", (4_000,), speedup=3.0))
    assert isinstance(verdict.speedup, NotReached)
    assert verdict.words is Words.NOT_REACHED
    assert verdict.speedup.lower_bound == pytest.approx(2.0)
    assert verdict.speedup.projected == pytest.approx(3.0, rel=1e-3)
    assert verdict.baseline_cost is None
    assert verdict.resolution is None


def test_an_unclear_largest_budget_leaves_the_bound_to_the_smaller_ones() -> None:
    wide = (-0.02, 0.0, 0.02)
    verdict = compare(ladder(budgets=(1_000, 7_900), offsets=wide), ladder("tst", (4_000,), speedup=2.0, offsets=wide))
    assert isinstance(verdict.speedup, NotReached)
    assert verdict.speedup.lower_bound == pytest.approx(0.25)
    assert verdict.speedup.projected is None  # two budgets are not extrapolated


def test_a_target_below_the_asymptote_is_flagged() -> None:
    flat = [
        make_run("baseline", steps, 1000 + seed, 2.5 + 1e6 * steps**-2.0 + offset)
        for steps in (4_000, 6_000, 8_000)
        for seed, offset in enumerate(OFFSETS)
    ]
    verdict = compare(flat, ladder("tst", (4_000,), speedup=9.0))
    assert Flag.BELOW_ASYMPTOTE in verdict.flags
    assert isinstance(verdict.speedup, NotReached)
    assert verdict.speedup.projected is None


def test_two_budgets_add_the_unknown_asymptote_to_the_interval() -> None:
    two = compare(ladder(budgets=(4_000, 8_000)), ladder("tst", (4_000,), speedup=1.4))
    three = compare(ladder(), ladder("tst", (4_000,), speedup=1.4))
    assert Flag.TWO_BUDGETS in two.flags
    assert reached(two).systematic > 0
    assert reached(three).systematic == 0
    assert reached(two).interval is not None
    assert reached(three).interval is not None
    assert np.ptp(np.log(reached(two).interval)) > np.ptp(np.log(reached(three).interval))
    assert two.baseline_ladder is not None
    assert two.baseline_ladder.asymptote is None


def test_one_budget_prints_the_loss_gap_only() -> None:
    verdict = compare(ladder(budgets=(4_000,)), ladder("tst", (4_000,), speedup=1.4))
    assert verdict.speedup is None
    assert verdict.words is Words.LOSS_GAP_ONLY
    assert verdict.loss_gap is not None
    assert verdict.loss_gap.equal_cost
    assert verdict.loss_gap.gap == pytest.approx(true_loss(4_000) - true_loss(5_600))
    assert verdict.loss_gap.interval is not None
    assert verdict.loss_gap.interval[0] < verdict.loss_gap.gap < verdict.loss_gap.interval[1]


def test_the_loss_gap_at_equal_hours_is_read_from_the_fit() -> None:
    verdict = compare(ladder(), ladder("tst", (5_000,), speedup=1.4))
    assert verdict.loss_gap is not None
    assert verdict.loss_gap.gap == pytest.approx(true_loss(5_000) - true_loss(7_000), abs=1e-5)


def test_the_target_is_the_largest_budget_that_the_ladder_brackets() -> None:
    verdict = verdict_of(sweep(1.4, method_budgets=(4_000, 5_000, 9_000)))
    assert verdict.target_steps == 5_000
    assert [budget.total_steps for budget in verdict.budgets] == [4_000, 5_000, 9_000]
    first, second, third = (budget.speedup for budget in verdict.budgets)
    assert isinstance(first, Reached)
    assert isinstance(second, Reached)
    assert first.speedup == pytest.approx(second.speedup, rel=1e-3)
    assert isinstance(third, NotReached)
    assert Flag.LADDER_TOO_SHORT in verdict.flags
    assert verdict.matched_pair is not None
    assert (verdict.matched_pair.method_steps, verdict.matched_pair.baseline_steps) == (9_000, 8_000)


def test_single_seeds_of_a_small_model_give_no_interval() -> None:
    one = (0.0,)
    verdict = compare(ladder(offsets=one), ladder("tst", (4_000,), speedup=1.4, offsets=one))
    assert verdict.words is Words.NO_INTERVAL
    assert reached(verdict).interval is None
    assert {Flag.SIGMA_UNKNOWN, Flag.SINGLE_SEED} <= set(verdict.flags)


def test_single_seeds_of_a_large_model_use_the_prior_and_say_so() -> None:
    one = (0.0,)
    verdict = verdict_of(
        make_study([*ladder(offsets=one, params=1e9), *ladder("tst", (4_000,), speedup=1.4, offsets=one, params=1e9)])
    )
    assert Flag.SIGMA_FROM_PRIOR in verdict.flags
    assert reached(verdict).interval is not None


def test_a_noise_floor_cell_gives_single_seeds_an_interval() -> None:
    one = (0.0,)
    floor = [
        make_run("baseline", 4_000, 2_000 + n, true_loss(4_000) + x, purpose="noise_floor")
        for n, x in enumerate((-0.006, -0.002, 0.0, 0.003, 0.005))
    ]
    verdict = compare([*ladder(offsets=one), *floor], ladder("tst", (4_000,), speedup=1.4, offsets=one))
    assert verdict.sigma is not None
    assert verdict.sigma.source == "noise floor"
    assert verdict.sigma.degrees_of_freedom == pytest.approx(5)
    assert reached(verdict).interval is not None
    assert reached(verdict).speedup == pytest.approx(1.4, rel=1e-4)  # the floor moves no mean


def test_an_undecayed_run_never_enters_a_claim() -> None:
    undecayed = [replace(run, run_id=f"u{run.run_id}", decayed=False, final_loss=5.0) for run in ladder()]
    assert reached(compare([*ladder(), *undecayed], ladder("tst", (4_000,), speedup=1.3))).speedup == pytest.approx(
        1.3, rel=1e-4
    )


def test_tuning_runs_alone_claim_nothing() -> None:
    verdict = verdict_of(make_study([*tuning("baseline"), *tuning("tst")]))
    assert verdict.words is Words.UNCONFIRMED
    assert (verdict.trials_baseline, verdict.trials_method) == (3, 3)
    assert verdict.speedup is None


@pytest.mark.parametrize(
    ("method_tuning", "difference"),
    [
        (tuning("tst", (1e-3, 2e-3, 4e-3, 5e-3)), "4 trials of the method against 3 of the baseline"),
        (tuning("tst", (1e-3, 2e-3, 8e-3)), "learning rates 0.001 to 0.008 against 0.001 to 0.004"),
        ([replace(run, total_steps=5_000) for run in tuning("tst")], "at 5,000 against 2,500 steps"),
    ],
)
def test_unequal_tuning_is_found(method_tuning: list[FinishedRun], difference: str) -> None:
    verdict = verdict_of(
        make_study([*tuning("baseline"), *method_tuning, *ladder(), *ladder("tst", (4_000,), speedup=1.3)])
    )
    assert verdict.equal_tuning is False
    assert difference in verdict.tuning_difference
    assert Flag.UNEQUAL_TUNING in verdict.flags
    assert verdict.worst_caveat.startswith("The arms were not tuned alike")


def test_an_optimum_on_the_edge_is_flagged() -> None:
    inside = {"tst": {"learning_rate": (1e-3, 2e-3, 4e-3), "bag_size": (2, 4, 8)}}
    edge = {"tst": {"learning_rate": (1e-3, 2e-3), "bag_size": (2, 4, 8)}}
    assert Flag.EDGE_OF_SPACE not in verdict_of(sweep(1.3, axes=inside)).flags
    assert Flag.EDGE_OF_SPACE in verdict_of(sweep(1.3, axes=edge)).flags


def test_a_ladder_that_is_not_monotone_is_flagged() -> None:
    baseline = [
        make_run("baseline", steps, 1000 + seed, loss + offset)
        for steps, loss in ((4_000, 2.80), (6_000, 2.82), (8_000, 2.70))
        for seed, offset in enumerate(OFFSETS)
    ]
    assert Flag.NOT_MONOTONE in compare(baseline, ladder("tst", (4_000,), speedup=1.3)).flags


def test_lack_of_fit_is_tested_from_four_budgets_on() -> None:
    three = compare(ladder(), ladder("tst", (4_000,), speedup=1.3))
    assert Flag.FIT_NOT_TESTABLE in three.flags
    budgets = (4_000, 5_000, 6_500, 8_000)
    jitter = [(-0.004, 0.0005, 0.0035), (-0.0038, -0.0003, 0.0041), (-0.0041, 0.0002, 0.0039), (-0.004, 0.0004, 0.0036)]

    def bent(bend: float) -> list[FinishedRun]:
        return [
            make_run("baseline", steps, 1000 + seed, true_loss(steps) + offset + (bend if steps == 6_500 else 0.0))
            for steps, offsets in zip(budgets, jitter, strict=True)
            for seed, offset in enumerate(offsets)
        ]

    good = compare(bent(0.0), ladder("tst", (4_000,), speedup=1.3))
    bad = compare(bent(0.03), ladder("tst", (4_000,), speedup=1.3))
    assert Flag.LACK_OF_FIT not in good.flags
    assert Flag.FIT_NOT_TESTABLE not in good.flags
    assert Flag.LACK_OF_FIT in bad.flags


def test_hours_that_are_unknown_leave_flops_as_the_clock() -> None:
    runs = [replace(run, phases=(), gpu_hours=None) for run in [*ladder(), *ladder("tst", (4_000,), speedup=1.3)]]
    verdict = verdict_of(make_study(runs))
    assert verdict.clock == "flops"
    assert reached(verdict).speedup == pytest.approx(1.3, rel=1e-4)
    assert verdict.factors is None


def test_curves_for_drawing_agree_with_the_verdict() -> None:
    verdict = verdict_of(sweep(1.3, method_budgets=(4_000, 5_000, 6_000)))
    curve = verdict.speedup_curve
    assert curve is not None
    assert curve.low is not None
    assert curve.high is not None
    assert np.all(curve.low < curve.speedup)
    assert np.all(curve.speedup < curve.high)
    assert curve.speedup == pytest.approx(np.full(len(curve.target), 1.3), rel=1e-3)
    fit = verdict.baseline_ladder
    assert fit is not None
    assert fit.asymptote == pytest.approx(2.0, abs=1e-2)
    assert fit.low is not None
    assert np.all(fit.low < fit.loss)
    assert fit.loss[0] == pytest.approx(true_loss(4_000), abs=1e-4)
    assert verdict.pchip_speedup == pytest.approx(1.3, rel=0.01)


def test_an_extra_method_is_compared_with_the_same_baseline() -> None:
    runs = [*ladder(), *ladder("tst", (4_000,), speedup=1.3), *ladder("input_only", (4_000,), speedup=1.1)]
    verdicts = judge(make_study(runs))
    assert [verdict.method for verdict in verdicts] == ["tst", "input_only"], "as their first runs come"
    assert [round(reached(verdict).speedup, 3) for verdict in verdicts] == [1.3, 1.1]


def test_resolution_is_what_an_interval_can_exclude_with_four_fifths_power() -> None:
    assert resolvable(0.0, 4) == 0
    assert resolvable(0.1, math.inf) == pytest.approx(math.expm1(0.1 * (1.95996 + 0.84162)), rel=1e-4)


def test_a_plan_states_what_it_can_resolve() -> None:
    plan = {"baseline_budgets": (4_000, 6_000, 9_000), "method_budget": 4_000, "sigma": 0.0013, "slope": 0.16}
    three = what_it_can_resolve(**plan, baseline_seeds=3, method_seeds=3)
    five = what_it_can_resolve(**plan, baseline_seeds=5, method_seeds=5)
    assert three.smallest_speedup is not None
    assert five.smallest_speedup is not None
    assert 1 < five.smallest_speedup < three.smallest_speedup < 1.05
    assert three.degrees_of_freedom == pytest.approx(4)
    single = what_it_can_resolve(**plan, baseline_seeds=1, method_seeds=1)
    assert single.smallest_speedup is None
    assert "second seed" in single.reason
    floor = what_it_can_resolve(**plan, baseline_seeds=1, method_seeds=1, noise_floor_seeds=5)
    assert floor.smallest_speedup is not None
    noisy = what_it_can_resolve(**{**plan, "sigma": 0.05}, baseline_seeds=3, method_seeds=3)
    assert noisy.smallest_speedup is None
    assert "ladder ends" in noisy.reason
    with pytest.raises(ValueError, match="must be positive"):
        what_it_can_resolve(**{**plan, "sigma": 0.0}, baseline_seeds=3, method_seeds=3)
