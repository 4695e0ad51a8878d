"""The verdict of a sweep in one value: for the page, for `--json`, and in one sentence.

Calls the estimators and the checks once; everything that is printed anywhere is read from the `Summary`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from reports.checks.all_checks import run_checks
from reports.estimate.scaling import Aggregate, SizeTrend, geometric_mean, size_trend
from reports.estimate.speedup import judge
from reports.estimate.targets import read_targets
from reports.estimate.verdict import (
    Check,
    MatchedPair,
    NotReached,
    Reached,
    ScaleVerdict,
    Speedup,
    TargetReading,
    Words,
)
from reports.estimate.wording import caveat_of_check, equal_data_sentence, headline_of
from reports.evidence.study import Configuration, Study
from reports.evidence.sweep_cost import SweepCost, sweep_cost
from reports.html.theme import method_label
from trainers.methods import PARAMETER_COLUMNS

SUMMARY_SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Summary:
    """What a sweep says. `headline` is one sentence; `equal_data` says the same with text in the place of hours (empty: not
    known). `worst_caveat` is the worst check that failed, without one the main verdict's (empty: none).

    `verdicts`: one per (scale, method), scales ascending. `main` is the verdict that the headline speaks about: at the
    largest scale with a confirmed comparison, that of the method that the search-space file names first.
    `aggregates`: geometric means over scales, one per method, only where two scales or more have a measured speedup.
    `trends`: `ln S` against `ln N`, from four scales on. `targets`: what each arm pays for the study's target loss. `against`
    is the arm that all others are held against. `kind` is the study's; `cost` of the whole sweep, tuning
    included, None where it is not known.
    """

    name: str
    kind: str
    clock_label: str
    device: str | None
    headline: str
    equal_data: str
    worst_caveat: str
    verdicts: tuple[ScaleVerdict, ...]
    main: ScaleVerdict | None
    aggregates: tuple[Aggregate, ...]
    trends: tuple[SizeTrend, ...]
    checks: tuple[Check, ...]
    cost: SweepCost | None
    targets: tuple[TargetReading, ...] = ()
    against: str = "baseline"


def summarize(study: Study) -> Summary:
    """Estimate, check, and put it into words."""
    verdicts = judge(study)
    methods = tuple(dict.fromkeys(verdict.method for verdict in verdicts))
    target = study.context.target_scale_params
    aggregates = [geometric_mean(verdicts, method) for method in methods]
    trends = [size_trend(verdicts, method, target) for method in methods]
    main = _main_verdict(verdicts)
    label = method_label(main.method) if main else ""
    checks = run_checks(study, verdicts)
    devices = sorted({scale.device for scale in study.scales if scale.device})
    return Summary(
        name=study.context.name,
        kind=study.context.kind,
        # Where an arm does not know its hours, the clock is what was counted instead.
        clock_label=main.clock_label if main else study.clock_label,
        device=", ".join(devices) or None,
        headline=headline_of(study, main, label),
        equal_data=equal_data_sentence(main, label) if main else "",
        worst_caveat=_worst_caveat(main, checks),
        verdicts=verdicts,
        main=main,
        aggregates=tuple(aggregate for aggregate in aggregates if aggregate is not None),
        trends=tuple(trend for trend in trends if trend is not None),
        checks=checks,
        cost=sweep_cost(study),
        targets=read_targets(study),
        against=study.context.against,
    )


def _worst_caveat(main: ScaleVerdict | None, checks: tuple[Check, ...]) -> str:
    """What stands under the headline: the first check that failed, else the worst caveat of the verdict itself."""
    if main is None:
        return ""
    failed = next((check for check in checks if check.status == "fail"), None)
    return main.worst_caveat if failed is None else caveat_of_check(failed)


def _main_verdict(verdicts: tuple[ScaleVerdict, ...]) -> ScaleVerdict | None:
    """The verdict that the headline speaks about: chosen by scale and by the file's order of methods, never by its result."""
    confirmed = [verdict for verdict in verdicts if verdict.words is not Words.UNCONFIRMED] or list(verdicts)
    if not confirmed:
        return None
    largest = [verdict for verdict in confirmed if verdict.scale == confirmed[-1].scale]
    return largest[0]


def summary_to_json(summary: Summary) -> dict[str, Any]:
    """The summary as plain JSON values, schema 1; null where a number does not exist, and never a NaN."""
    return {
        "schema": SUMMARY_SCHEMA,
        "name": summary.name,
        "kind": summary.kind,
        "clock": summary.clock_label,
        "device": summary.device,
        "against": summary.against,
        "headline": summary.headline,
        "equal_data": summary.equal_data or None,
        "worst_caveat": summary.worst_caveat or None,
        "cost": None
        if summary.cost is None
        else {
            "hours_alone": _number(summary.cost.alone),
            "hours_incurred": _number(summary.cost.incurred),
            "saved": _number(summary.cost.saved),
        },
        "scales": [_verdict_to_json(verdict) for verdict in summary.verdicts],
        "geometric_means": [
            {
                "method": aggregate.method,
                "speedup": _number(aggregate.speedup),
                "interval": _pair(aggregate.interval),
                "scales": list(aggregate.scales),
                "left_out": list(aggregate.left_out),
            }
            for aggregate in summary.aggregates
        ],
        "target": {
            "loss": _number(summary.targets[0].target_loss),
            "arms": [_target_to_json(reading) for reading in summary.targets],
        }
        if summary.targets
        else None,
        "checks": [
            {"name": check.name, "status": check.status, "number": check.number, "sentence": check.sentence}
            for check in summary.checks
        ],
    }


def _verdict_to_json(verdict: ScaleVerdict) -> dict[str, Any]:
    speedup = verdict.speedup
    reached = speedup if isinstance(speedup, Reached) else None
    hours = verdict.clock == "gpu_hours"
    best, baseline_best = verdict.best, verdict.baseline_best
    parameters = dict(best.parameters) if best is not None else {}
    gap = verdict.loss_gap
    return {
        "scale": verdict.scale,
        "method": verdict.method,
        "words": str(verdict.words),
        "target_loss": _number(verdict.target_loss),
        "speedup": _number(reached.speedup) if reached else None,
        "interval": _pair(reached.interval) if reached else None,
        "reached": _reached(verdict),
        "lower_bound": _number(speedup.lower_bound) if isinstance(speedup, NotReached) else None,
        "upper_bound": _number(verdict.upper_bound),
        "projected": _number(speedup.projected) if isinstance(speedup, NotReached) else None,
        "clock": verdict.clock,
        "by_clock": {clock: _clock_to_json(value) for clock, value in verdict.by_clock},
        "matched_pair": _pair_to_json(verdict.matched_pair),
        "hours": {
            "baseline": _number(verdict.baseline_cost) if hours else None,
            "method": _number(verdict.method_cost) if hours else None,
        },
        "factors": None
        if verdict.factors is None
        else {"fewer_steps": verdict.factors.fewer_steps, "cheaper_steps": verdict.factors.cheaper_steps},
        "data_multiplier": _number(verdict.data_multiplier),
        "loss_gap": None
        if gap is None
        else {
            "nats": _number(gap.gap),
            "interval": _pair(gap.interval),
            "equal_cost": gap.equal_cost,
            "cost_ratio": _number(gap.cost_ratio),
        },
        "sigma": _sigma(verdict),
        "sigma_source": verdict.sigma.source if verdict.sigma is not None else None,
        "scored_tokens": verdict.scored_tokens,
        "errors": None
        if verdict.errors is None
        else {"seeds": _number(verdict.errors.seeds), "sampling": _number(verdict.errors.sampling)},
        "resolution": _number(verdict.resolution),
        "needed_steps": verdict.needed_steps,
        "one_more_seed": _pair(verdict.one_more_seed),
        "seeds": {"baseline": verdict.seeds_baseline, "method": verdict.seeds_method},
        "trials": {"baseline": verdict.trials_baseline, "method": verdict.trials_method},
        "equal_tuning": verdict.equal_tuning,
        "best": {
            "parameters": parameters,
            **{name: parameters.get(name) for name in PARAMETER_COLUMNS},
            "learning_rate": _learning_rate(best),
        },
        "baseline_best": {"learning_rate": _learning_rate(baseline_best)},
        "flags": [str(flag) for flag in verdict.flags],
    }


def _target_to_json(reading: TargetReading) -> dict[str, Any]:
    speedup = reading.speedup
    return {
        "scale": reading.scale,
        "method": reading.method,
        "words": str(reading.words),
        "clock": reading.clock,
        "cost": _number(reading.cost),
        "interval": _pair(reading.interval),
        "lower_bound": _number(reading.lower_bound),
        "upper_bound": _number(reading.upper_bound),
        "budgets": reading.budgets,
        "speedup": None if speedup is None else _number(speedup.speedup),
        "speedup_interval": None if speedup is None else _pair(speedup.interval),
    }


def _reached(verdict: ScaleVerdict) -> bool | None:
    """Whether a finished baseline run of the ladder ended at or below the target; null without a comparison."""
    match verdict.speedup:
        case Reached():
            return True
        case NotReached():
            return False
        case None:
            pair = verdict.matched_pair
            return None if pair is None else pair.baseline_loss <= pair.method_loss


def _sigma(verdict: ScaleVerdict) -> float | None:
    if verdict.sigma is None or verdict.sigma.source == "unknown":
        return None
    return _number(verdict.sigma.total)


def _clock_to_json(speedup: Speedup) -> dict[str, Any]:
    match speedup:
        case Reached():
            return {"speedup": _number(speedup.speedup), "interval": _pair(speedup.interval), "lower_bound": None}
        case NotReached():
            return {"speedup": None, "interval": None, "lower_bound": _number(speedup.lower_bound)}


def _pair_to_json(pair: MatchedPair | None) -> dict[str, Any] | None:
    if pair is None:
        return None
    return {
        "speedup": _number(pair.speedup),
        "hours": {"baseline": _number(pair.baseline_hours), "method": _number(pair.method_hours)},
        "loss": {"baseline": _number(pair.baseline_loss), "method": _number(pair.method_loss)},
        "steps": {"baseline": pair.baseline_steps, "method": pair.method_steps},
        "data_multiplier": _number(pair.data_multiplier),
    }


def _learning_rate(configuration: Configuration | None) -> float | None:
    return configuration.learning_rate if configuration is not None else None


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _pair(interval: tuple[float, float] | None) -> list[float] | None:
    return None if interval is None else [float(interval[0]), float(interval[1])]
