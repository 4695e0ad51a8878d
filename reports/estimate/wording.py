"""Verdicts in words: the headline sentence and the worst caveat. Words follow the interval; numbers are never rounded up.

A slower method, a difference that the sweep could not have seen and a target that was never reached each have a sentence
of their own, as plain as the one for a success.
"""

from __future__ import annotations

from reports.estimate.verdict import Flag, NotReached, Reached, ScaleVerdict, SeedDeviation, Words
from reports.evidence.study import Study
from reports.html import theme

_CAVEATS: tuple[tuple[Flag, str], ...] = (
    (Flag.UNEQUAL_TUNING, "The arms were not tuned alike ({tuning}), so part of the difference is the search's luck."),
    (
        Flag.CHOSEN_ON_CONFIRMATION,
        "The configuration was picked by the losses that are reported here, so it is lucky by construction.",
    ),
    (
        Flag.SIGMA_UNKNOWN,
        "No budget has a second seed, so how far seeds scatter is unknown and there is no interval.",
    ),
    (
        Flag.SIGMA_FROM_PRIOR,
        "One seed a budget: the seed deviation ({sigma:.4f} nats) is assumed from public runs, not measured here.",
    ),
    (Flag.ONE_BUDGET, "The baseline has one budget, so only the loss gap can be read, no speedup."),
    (Flag.BELOW_ASYMPTOTE, "The target lies below the baseline's fitted asymptote."),
    (Flag.NOT_MONOTONE, "The baseline's ladder is not monotone: seed noise is as large as the steps between budgets."),
    (Flag.EXTRAPOLATED, "The target lies outside the baseline's ladder: the number is projected, not measured."),
    (
        Flag.CLOCKS_DISAGREE,
        "Hours and FLOPs tell different speedups: step times differ between the arms by more than 5 %.",
    ),
    (Flag.TWO_BUDGETS, "Two baseline budgets leave the shape of the ladder open; the interval includes that."),
    (Flag.LACK_OF_FIT, "The power law misses the baseline's ladder by more than seed noise."),
    (Flag.EXPONENT_AT_BOUND, "The ladder's bend is not resolved: the fitted exponent is at or below its bound."),
    (Flag.PCHIP_DISAGREES, "Monotone interpolation of the ladder gives a speedup that differs by more than 1 %."),
    (Flag.EDGE_OF_SPACE, "The best setting lies on the edge of the search space; a wider one may change the answer."),
    (Flag.SINGLE_SEED, "An arm has a single confirmation seed."),
    (Flag.TUNING_UNKNOWN, "How the arms were tuned is not recorded."),
    (Flag.LADDER_TOO_SHORT, "The baseline's largest budget is less than twice the method's."),
    (Flag.CLOCK_ASSUMED, "A step time was measured once, so the clock's own error is assumed to be 2 %."),
    (Flag.FIT_NOT_TESTABLE, "Whether a power law fits the ladder is not testable with these budgets and seeds."),
)
"""From the worst to the mildest."""


def caveats(flags: tuple[Flag, ...], tuning_difference: str, deviation: SeedDeviation | None) -> tuple[str, ...]:
    """One sentence for each flag, the worst first."""
    sigma = deviation.total if deviation is not None else 0.0
    return tuple(text.format(tuning=tuning_difference, sigma=sigma) for flag, text in _CAVEATS if flag in flags)


def worst_caveat(flags: tuple[Flag, ...], tuning_difference: str, deviation: SeedDeviation | None) -> str:
    """The single worst caveat; empty where there is none."""
    return next(iter(caveats(flags, tuning_difference, deviation)), "")


def times(value: float) -> str:
    """A speedup as it is printed everywhere: `1.32x`, with fewer digits where they mean nothing."""
    if value >= 1e5 or value <= 1e-3:
        return "more than 100,000x" if value >= 1e5 else "less than 0.001x"
    return f"{value:,.0f}x" if value >= 100 else f"{value:.1f}x" if value >= 10 else f"{value:.2f}x"


def percent(fraction: float) -> str:
    """A fraction as a percentage with two significant digits or none after the point."""
    return "more than 1,000 %" if fraction >= 10 else theme.percent(fraction, 0 if fraction >= 0.1 else 1)


def _interval(reached: Reached) -> str:
    if reached.interval is None:
        return "no interval"
    low, high = (times(value).removesuffix("x") for value in reached.interval)
    return f"95 %: {low} to {high}"


def verdict_sentence(verdict: ScaleVerdict, label: str) -> str:
    """One sentence about one verdict. `label` is the method's name for people."""
    place = f"at {verdict.scale}"
    kind = "" if verdict.clock == "gpu_hours" else f" on {verdict.clock_label}"
    match verdict.words, verdict.speedup:
        case Words.UNCONFIRMED, _:
            text = f"Nothing is confirmed yet {place}: {label} and the baseline have no finished confirmation runs to compare"
        case Words.LOSS_GAP_ONLY, _:
            text = _gap_sentence(verdict, label, place)
        case _, NotReached(float(lower_bound), _) if lower_bound <= 1:
            text = (
                f"It is not known whether {label} is faster {place}: no baseline run ends as low, and all that can be said "
                f"is S > {times(lower_bound)} (95 %){kind}; it takes baseline budgets{_above(verdict)}"
            )
        case _, NotReached(lower_bound, _):
            bound = (
                f"S > {times(lower_bound)} (95 %)" if lower_bound is not None else "no bound without a seed deviation"
            )
            text = f"The baseline did not reach {label}'s loss {place}: not reached; {bound}{kind}"
        case Words.SLOWER, Reached() as reached:
            text = (
                f"{label} is slower {place}: {_projected(reached)}{times(reached.speedup)} ({_interval(reached)}){kind}"
            )
        case Words.SLOWER, _:
            assert verdict.upper_bound is not None
            text = f"{label} is slower {place}: S < {times(verdict.upper_bound)} (95 %){kind}"
        case Words.NO_DIFFERENCE, Reached() as reached:
            text = (
                f"No difference detected between {label} and the baseline {place}: "
                f"{_projected(reached)}{times(reached.speedup)} ({_interval(reached)}){kind}"
            )
            if verdict.resolution is not None:
                text += f"; this sweep could resolve {percent(verdict.resolution)}"
        case Words.FASTER, Reached() as reached:
            text = (
                f"{label} is {_projected(reached)}{times(reached.speedup)} faster ({_interval(reached)}) {place}{kind}"
            )
        case _, Reached() as reached:
            text = f"{label} reads {_projected(reached)}{times(reached.speedup)} {place}{kind}, without an interval"
        case _:
            text = f"No speedup can be read {place}"
    if Flag.SIGMA_FROM_PRIOR in verdict.flags and isinstance(verdict.speedup, Reached):
        text += "; the seed deviation is assumed, not measured"
    return text


def _above(verdict: ScaleVerdict) -> str:
    return "" if verdict.longest_baseline is None else f" above {verdict.longest_baseline:,} steps"


def _projected(reached: Reached) -> str:
    return "projected " if reached.extrapolated else ""


def _gap_sentence(verdict: ScaleVerdict, label: str, place: str) -> str:
    gap, pair = verdict.loss_gap, verdict.matched_pair
    if verdict.upper_bound is not None:
        return f"The baseline's cheapest run already beats {label} {place}: S < {times(verdict.upper_bound)} (95 %)"
    if gap is not None and gap.equal_cost:
        direction = "lower" if gap.gap >= 0 else "higher"
        interval = f" (95 %: {gap.interval[0]:+.4f} to {gap.interval[1]:+.4f})" if gap.interval else ""
        return (
            f"{label} ends {abs(gap.gap):.3f} nats {direction} than the baseline at equal cost {place}{interval}; "
            "the baseline's ladder gives no speedup"
        )
    if pair is not None:
        unit = verdict.clock_label if verdict.clock == "gpu_hours" else "compute"
        return (
            f"{label} ends at {pair.method_loss:.3f} and the baseline at {pair.baseline_loss:.3f} with "
            f"{times(pair.speedup)} the {unit} {place}; that is one pair of runs, so neither a fit nor an interval"
        )
    return f"No speedup can be read {place}"


def headline_of(study: Study, main: ScaleVerdict | None, label: str) -> str:
    """The sweep in one sentence. Unequal tuning is said here, with both counts, before anything else."""
    if study.context.kind == "replay":
        return f"Replay: {_headline(study, main, label)}"
    return _headline(study, main, label)


def _headline(study: Study, main: ScaleVerdict | None, label: str) -> str:
    if main is None:
        if not study.runs:
            return "No runs yet."
        finished = sum(run.outcome == "finished" for run in study.runs)
        return f"No comparison yet: {finished} of {len(study.runs)} runs finished, and no method beside the baseline."
    warning = ""
    if main.equal_tuning is False:
        warning = f"UNEQUAL TUNING ({main.trials_method} trials against {main.trials_baseline}"
        warning += f": {main.tuning_difference}). " if main.trials_method == main.trials_baseline else "). "
    compared = sum(1 for scale in study.scales if scale.methods)
    suffix = f" (the largest of {compared} scales)" if compared > 1 else ""
    return f"{warning}{verdict_sentence(main, label)}{suffix}."
