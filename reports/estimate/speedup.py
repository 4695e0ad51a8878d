"""The verdict: one method against the baseline at one scale, with everything a reader must know beside the number.

Chooses the target, the clock and the words, by the rules that were written down before any result. The arithmetic is in
`readings` and below.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from reports.estimate.intervals import CONFIDENCE, t_quantile
from reports.estimate.observations import Observations, observe
from reports.estimate.readings import (
    NO_CLOCK_ERROR,
    ClockError,
    Ladder,
    Reading,
    clock_error,
    ladder_curve,
    loss_gap,
    make_ladder,
    matched_pair,
    pchip_speedup,
    read_speedup,
    speedup_curve,
)
from reports.estimate.resolution import resolvable
from reports.estimate.verdict import (
    CLOCKS,
    COUNTED_CLOCKS,
    PAID_CLOCKS,
    BudgetSpeedup,
    Clock,
    Factors,
    Flag,
    LadderCurve,
    LossErrors,
    MatchedPair,
    NotReached,
    Reached,
    ScaleVerdict,
    Speedup,
    SpeedupCurve,
    Words,
)
from reports.estimate.wording import unconfirmed_words, worst_caveat
from reports.evidence.runs import BASELINE
from reports.evidence.study import Cell, ScaleStudy, Study, StudyArm
from reports.evidence.tuning import TuningComparison, compare_tuning, edges

PCHIP_TOLERANCE = 0.01
CLOCK_TOLERANCE = 0.05
LACK_OF_FIT_LEVEL = 0.05
SAME_LOSS = 0.002
"""Nats: published losses this close count as equal (neighbouring runs differ by as much)."""

LADDER_REACH = 2.0
"""The baseline's largest budget should be at least this many times the method's."""


def judge(study: Study) -> tuple[ScaleVerdict, ...]:
    """One verdict per scale and method, in the order of the study."""
    return tuple(verdict for scale in study.scales for verdict in judge_scale(study, scale))


def judge_scale(study: Study, scale: ScaleStudy) -> tuple[ScaleVerdict, ...]:
    """The verdicts of one scale; empty where only the baseline ran."""
    observations = observe(scale)
    return tuple(_judge_arm(study, scale, observations, arm) for arm in scale.methods)


@dataclass(frozen=True, slots=True, eq=False)
class _ArmPair:
    """A method arm and the baseline on the clock that the verdict uses."""

    scale: ScaleStudy
    observations: Observations
    baseline: StudyArm
    method: StudyArm
    clock: Clock
    ladder: Ladder
    target: Cell
    target_cost: float
    clock_error: ClockError

    def read(self, cell: Cell, clock: Clock) -> Reading | None:
        """S of a cell on any clock; None where its cost, or the ladder's, is not known there."""
        ladder = self.ladder if clock == self.clock else make_ladder(self.observations, self.baseline.cells, clock)
        cost = cell.cost(clock)
        if ladder is None or cost is None:
            return None
        return read_speedup(self.observations, ladder, cell, cost, _clock_error(self.scale, clock, ladder, cell))


def _compare(scale: ScaleStudy, observations: Observations, method: StudyArm) -> _ArmPair | None:
    baseline = scale.baseline
    if baseline is None or not baseline.cells or not method.cells:
        return None
    target = _target_cell(baseline, method)
    # Both arms need the clock: a ladder in hours and a method in FLOPs have no ratio.
    for clock in PAID_CLOCKS:
        ladder, cost = make_ladder(observations, baseline.cells, clock), target.cost(clock)
        if ladder is not None and cost is not None:
            break
    assert ladder is not None
    assert cost is not None  # steps are always known
    return _ArmPair(
        scale=scale,
        observations=observations,
        baseline=baseline,
        method=method,
        clock=clock,
        ladder=ladder,
        target=target,
        target_cost=cost,
        clock_error=_clock_error(scale, clock, ladder, target),
    )


def _clock_error(scale: ScaleStudy, clock: Clock, ladder: Ladder, cell: Cell) -> ClockError:
    """FLOPs, tokens and steps are counted, so only hours have an error of their own."""
    if clock != "gpu_hours":
        return NO_CLOCK_ERROR
    return clock_error(ladder.cells[0].runs[0], cell.runs[0], scale.pools)


def _target_cell(baseline: StudyArm, method: StudyArm) -> Cell:
    """The method's largest budget whose mean loss the baseline's ladder brackets, or simply its largest."""
    losses = [cell.mean_loss for cell in baseline.cells]
    # The longest run that the ladder can measure: a speedup at a small budget is easy and worth little, one beyond
    # the ladder is a projection.
    for cell in reversed(method.cells):
        if min(losses) <= cell.mean_loss <= max(losses):
            return cell
    return method.cells[-1]


def _judge_arm(study: Study, scale: ScaleStudy, observations: Observations, method: StudyArm) -> ScaleVerdict:
    tuning = compare_tuning(scale.baseline, method, study.context)
    comparison = _compare(scale, observations, method)
    if comparison is None:
        return _unconfirmed(scale, observations, method, tuning)
    reading = comparison.read(comparison.target, comparison.clock)
    assert reading is not None
    readings = [(clock, comparison.read(comparison.target, clock)) for clock in CLOCKS]
    by_clock = tuple((clock, found.speedup) for clock, found in readings if found is not None and found.speedup)
    pair, speedup = matched_pair(comparison.baseline.cells, method.cells[-1], comparison.clock), reading.speedup
    baseline_curve, method_curve, over_targets = _curves(comparison, speedup)
    alternative = pchip_speedup(comparison.ladder, comparison.target.mean_loss, comparison.target_cost)
    flags = _flags(
        study,
        comparison,
        reading,
        by_clock=by_clock,
        curve=baseline_curve,
        alternative=alternative,
        tuning=tuning,
    )
    return ScaleVerdict(
        **_about_the_arms(scale, comparison.baseline, method, tuning),
        clock=comparison.clock,
        clock_label=COUNTED_CLOCKS.get(comparison.clock, scale.clock_label),
        target_loss=comparison.target.mean_loss,
        target_steps=comparison.target.total_steps,
        speedup=speedup,
        upper_bound=reading.upper_bound,
        by_clock=by_clock,
        baseline_cost=comparison.target_cost * speedup.speedup if isinstance(speedup, Reached) else None,
        method_cost=comparison.target_cost,
        matched_pair=pair,
        factors=_factors(comparison, speedup),
        data_multiplier=_data_multiplier(by_clock, pair, prefer_pair=study.context.kind == "published"),
        sigma=observations.deviation,
        seeds_baseline=comparison.baseline.num_seeds,
        seeds_method=comparison.target.num_seeds,
        budgets=tuple(_budget(comparison, cell) for cell in method.cells),
        loss_gap=loss_gap(observations, comparison.ladder, comparison.target, comparison.target_cost),
        resolution=_resolution(speedup),
        words=_words(reading),
        flags=flags,
        worst_caveat=worst_caveat(flags, tuning.difference, observations.deviation, comparison.baseline.method),
        errors=reading.errors,
        scored_tokens=_scored_tokens(comparison.target),
        baseline_ladder=baseline_curve,
        method_ladder=method_curve,
        speedup_curve=over_targets,
        pchip_speedup=alternative,
        needed_steps=_needed_steps(comparison, speedup),
        one_more_seed=_one_more_seed(comparison, speedup, reading.errors),
        wall_time_only=_wall_time_only(comparison),
    )


def _wall_time_only(comparison: _ArmPair) -> bool:
    cells = (*comparison.ladder.cells, comparison.target)
    return comparison.clock == "gpu_hours" and any(run.wall_time_only for cell in cells for run in cell.runs)


def _scored_tokens(cell: Cell) -> int | None:
    """How much text the ends of the runs were scored on, where their records say so."""
    known = {run.record.score.tokens for run in cell.runs if run.record is not None and run.record.score is not None}
    return known.pop() if len(known) == 1 else None


def _about_the_arms(
    scale: ScaleStudy, baseline: StudyArm | None, method: StudyArm, tuning: TuningComparison
) -> dict[str, Any]:
    """What a verdict says of its arms whether or not they are confirmed."""
    return {
        "scale": scale.scale,
        "method": method.method,
        "params": scale.params,
        "against": baseline.method if baseline else BASELINE,
        "trials_baseline": baseline.num_trials if baseline else None,
        "trials_method": method.num_trials,
        "equal_tuning": tuning.equal,
        "tuning_difference": tuning.difference,
        "best": method.configuration,
        "baseline_best": baseline.configuration if baseline else None,
    }


def _needed_steps(comparison: _ArmPair, speedup: Speedup | None) -> int | None:
    """Steps above which a baseline budget costs more than the method does and ends lower than any has: only such a run can
    put the bound above 1. None where the bound is above 1 already, or there is none."""
    match speedup:
        case NotReached(lower_bound=float(bound)) if bound <= 1:
            steps = comparison.target_cost / _baseline_step(comparison)
            return max(math.ceil(steps * (1 - 1e-9)), comparison.baseline.budgets[-1])
        case _:
            return None


def _one_more_seed(
    comparison: _ArmPair, speedup: Speedup | None, errors: LossErrors | None
) -> tuple[float, float] | None:
    """About the interval with one seed more in both arms; None where the noise of seeds is not most of its variance, or
    was not measured in both."""
    seeds = min(comparison.baseline.num_seeds, comparison.target.num_seeds)
    match speedup:
        case Reached(log_standard_error=float(error), degrees_of_freedom=float(freedom)) if seeds > 1:
            text = 0.0 if errors is None or not errors.seeds else (errors.sampling or 0.0) / errors.seeds
            share = 1 / (1 + text**2)
            noise = (error**2 - comparison.clock_error.variance) * share
            other = error**2 - noise
            if noise <= other:
                return None
            # Means over n seeds scatter by 1 / n, and n seeds leave n - 1 degrees of freedom a cell.
            quantile = float(t_quantile((1 + CONFIDENCE) / 2, freedom * seeds / (seeds - 1)))
            half = quantile * math.sqrt(noise * seeds / (seeds + 1) + other) + speedup.systematic
            return speedup.speedup * math.exp(-half), speedup.speedup * math.exp(half)
        case _:
            return None


def _curves(
    comparison: _ArmPair, speedup: Speedup | None
) -> tuple[LadderCurve | None, LadderCurve | None, SpeedupCurve | None]:
    """For drawing: the baseline's ladder as far as the speedup was read, the method's, and S over the target."""
    reach = comparison.target_cost
    if isinstance(speedup, Reached):
        # A speedup of many times would stretch the axis until the measured part is a dot.
        reach *= min(speedup.speedup, 10.0)
    observations, clock = comparison.observations, comparison.clock
    baseline = ladder_curve(observations, comparison.ladder, clock, comparison.baseline.method, reach)
    method_ladder = make_ladder(observations, comparison.method.cells, clock)
    if method_ladder is None:
        return baseline, None, None
    own_reach = float(method_ladder.cost[-1])
    return (
        baseline,
        ladder_curve(observations, method_ladder, clock, comparison.method.method, own_reach),
        speedup_curve(observations, comparison.ladder, method_ladder, comparison.clock_error),
    )


def _budget(comparison: _ArmPair, cell: Cell) -> BudgetSpeedup:
    reading = comparison.read(cell, comparison.clock)
    return BudgetSpeedup(
        total_steps=cell.total_steps,
        target_loss=cell.mean_loss,
        speedup=None if reading is None else reading.speedup,
    )


def _factors(comparison: _ArmPair, speedup: Speedup | None) -> Factors | None:
    """Fewer steps x cheaper steps; the price of a baseline step is its ladder's mean."""
    if comparison.clock != "gpu_hours" or not isinstance(speedup, Reached):
        return None
    # Hours are steps times the price of one, so the two factors multiply to S exactly.
    cheaper = _baseline_step(comparison) * comparison.target.total_steps / comparison.target_cost
    return Factors(fewer_steps=speedup.speedup / cheaper, cheaper_steps=cheaper)


def _baseline_step(comparison: _ArmPair) -> float:
    """What a baseline step costs on the verdict's clock."""
    return float(comparison.ladder.cost.sum()) / sum(cell.total_steps for cell in comparison.ladder.cells)


def _data_multiplier(
    by_clock: tuple[tuple[Clock, Speedup], ...], pair: MatchedPair | None, *, prefer_pair: bool
) -> float | None:
    """Tokens read by the method over tokens read by the baseline at equal loss: from the fit, else from the matched
    pair. For published figures a pair of equal losses comes first, since that is what was published."""
    measured = pair.data_multiplier if pair is not None else None
    tokens = dict(by_clock).get("tokens")
    if not isinstance(tokens, Reached):
        return measured
    same_loss = pair is not None and abs(pair.baseline_loss - pair.method_loss) <= SAME_LOSS
    return measured if prefer_pair and same_loss and measured is not None else 1 / tokens.speedup


def _resolution(speedup: Speedup | None) -> float | None:
    if not isinstance(speedup, Reached) or speedup.log_standard_error is None:
        return None
    assert speedup.degrees_of_freedom is not None
    return resolvable(speedup.log_standard_error, speedup.degrees_of_freedom, speedup.systematic)


def _words(reading: Reading) -> Words:
    """The words follow the interval."""
    # The bound comes first: it needs no fit, so no doubt about the fit can soften it.
    if reading.upper_bound is not None and reading.upper_bound <= 1:
        return Words.SLOWER
    match reading.speedup:
        case None:
            return Words.LOSS_GAP_ONLY
        case NotReached():
            return Words.NOT_REACHED
        case Reached(interval=None):
            return Words.NO_INTERVAL
        case Reached(interval=(low, _)) if low > 1:
            return Words.FASTER
        case Reached(interval=(_, high)) if high < 1:
            return Words.SLOWER
        case _:
            return Words.NO_DIFFERENCE


def _flags(
    study: Study,
    comparison: _ArmPair,
    reading: Reading,
    *,
    by_clock: tuple[tuple[Clock, Speedup], ...],
    curve: LadderCurve | None,
    alternative: float | None,
    tuning: TuningComparison,
) -> tuple[Flag, ...]:
    """Everything that a reader must know beside the number, in the order of `Flag`."""
    speedup, baseline, method = reading.speedup, comparison.baseline, comparison.method
    num_budgets = len(comparison.ladder.cost)
    deviation = comparison.observations.deviation
    reached = speedup if isinstance(speedup, Reached) else None
    axes = study.context.axes
    single = min(baseline.num_seeds, comparison.target.num_seeds) < 2
    conditions: dict[Flag, bool] = {
        Flag.EXTRAPOLATED: reached is not None and reached.extrapolated,
        Flag.BELOW_ASYMPTOTE: reading.below_asymptote,
        Flag.EXPONENT_AT_BOUND: reading.at_bound,
        Flag.NOT_MONOTONE: num_budgets > 1 and not comparison.ladder.monotone,
        Flag.LACK_OF_FIT: curve is not None
        and curve.lack_of_fit_p is not None
        and curve.lack_of_fit_p < LACK_OF_FIT_LEVEL,
        Flag.FIT_NOT_TESTABLE: num_budgets > 2 and (curve is None or curve.lack_of_fit_p is None),
        Flag.PCHIP_DISAGREES: reached is not None
        and alternative is not None
        and abs(math.log(alternative / reached.speedup)) > PCHIP_TOLERANCE,
        Flag.SIGMA_FROM_PRIOR: deviation.source == "prior",
        Flag.SIGMA_UNKNOWN: deviation.source == "unknown",
        Flag.TWO_BUDGETS: num_budgets == 2,
        Flag.ONE_BUDGET: num_budgets == 1,
        Flag.LADDER_TOO_SHORT: baseline.budgets[-1] < LADDER_REACH * method.budgets[-1],
        Flag.UNEQUAL_TUNING: tuning.equal is False,
        Flag.TUNING_UNKNOWN: tuning.equal is None,
        Flag.EDGE_OF_SPACE: any(edges(arm, axes.get(arm.method, {})) for arm in (baseline, method)),
        Flag.SINGLE_SEED: single,
        Flag.CLOCKS_DISAGREE: _clocks_disagree(by_clock),
        Flag.CHOSEN_ON_CONFIRMATION: "confirmation" in (baseline.chosen_by, method.chosen_by),
        Flag.CLOCK_ASSUMED: comparison.clock == "gpu_hours" and comparison.clock_error.assumed,
    }
    return tuple(flag for flag in Flag if conditions[flag])


def _clocks_disagree(by_clock: tuple[tuple[Clock, Speedup], ...]) -> bool:
    values = dict(by_clock)
    hours, flops = values.get("gpu_hours"), values.get("flops")
    if not isinstance(hours, Reached) or not isinstance(flops, Reached):
        return False
    return abs(math.log(hours.speedup / flops.speedup)) > CLOCK_TOLERANCE


def _unconfirmed(
    scale: ScaleStudy, observations: Observations, method: StudyArm, tuning: TuningComparison
) -> ScaleVerdict:
    """No finished confirmation run in one of the arms: counts, and no claim."""
    baseline = scale.baseline
    arms = (baseline.method if baseline else BASELINE, method.method)
    return ScaleVerdict(
        **_about_the_arms(scale, baseline, method, tuning),
        clock="gpu_hours",
        clock_label=scale.clock_label,
        target_loss=method.cells[-1].mean_loss if method.cells else None,
        target_steps=method.cells[-1].total_steps if method.cells else None,
        method_cost=method.cells[-1].gpu_hours if method.cells else None,
        sigma=observations.deviation if observations.deviation.num_cells else None,
        seeds_baseline=baseline.num_seeds if baseline else 0,
        seeds_method=method.num_seeds,
        words=Words.UNCONFIRMED,
        flags=(Flag.UNEQUAL_TUNING,) if tuning.equal is False else (),
        unfinished=unconfirmed_words(run for run in scale.own_runs if run.method in arms),
    )
