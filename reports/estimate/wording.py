"""Verdicts in words: the headline sentence and the worst caveat. Words follow the interval; numbers are never rounded up.

A slower method, a difference that the sweep could not have seen and a target that was never reached each have a sentence
of their own, as plain as the one for a success.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

from reports.estimate.verdict import (
    Check,
    Flag,
    NotReached,
    Reached,
    ScaleVerdict,
    SeedDeviation,
    Speedup,
    TargetReading,
    TargetWords,
    Words,
)
from reports.evidence.clock import ASSUMED_LOG_ERROR
from reports.evidence.runs import BASELINE, FinishedRun
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
    (Flag.ONE_BUDGET, "{baseline} has one budget, so only the loss gap can be read, no speedup."),
    (Flag.BELOW_ASYMPTOTE, "The target lies below {baseline}'s fitted asymptote."),
    (Flag.NOT_MONOTONE, "{baseline}'s ladder is not monotone: seed noise is as large as the steps between budgets."),
    (Flag.EXTRAPOLATED, "The target lies outside {baseline}'s ladder: the number is projected, not measured."),
    (
        Flag.CLOCKS_DISAGREE,
        "Hours and FLOPs tell different speedups: step times differ between the arms by more than 5 %.",
    ),
    (Flag.TWO_BUDGETS, "Two budgets of {baseline} leave the shape of the ladder open; the interval includes that."),
    (Flag.LACK_OF_FIT, "The power law misses {baseline}'s ladder by more than seed noise."),
    (Flag.EXPONENT_AT_BOUND, "The ladder's bend is not resolved: the fitted exponent is at or below its bound."),
    (Flag.PCHIP_DISAGREES, "Monotone interpolation of the ladder gives a speedup that differs by more than 1 %."),
    (Flag.EDGE_OF_SPACE, "The best setting lies on the edge of the search space; a wider one may change the answer."),
    (Flag.SINGLE_SEED, "An arm has a single confirmation seed."),
    (Flag.TUNING_UNKNOWN, "How the arms were tuned is not recorded."),
    (Flag.LADDER_TOO_SHORT, "{baseline}'s largest budget is less than twice the method's."),
    (Flag.CLOCK_ASSUMED, "A step time was measured once, so the clock's own error is assumed to be 2 %."),
    (Flag.FIT_NOT_TESTABLE, "Whether a power law fits the ladder is not testable with these budgets and seeds."),
)
"""From the worst to the mildest."""


def worst_caveat(
    flags: tuple[Flag, ...], tuning_difference: str, deviation: SeedDeviation | None, against: str = BASELINE
) -> str:
    """The sentence of the worst flag; empty where there is none."""
    sigma = deviation.total if deviation is not None else 0.0
    words = {"tuning": tuning_difference, "sigma": sigma, "baseline": reference(against)}
    return next((capital(text.format(**words)) for flag, text in _CAVEATS if flag in flags), "")


def caveat_of_check(check: Check) -> str:
    """A failed check as a caveat: its name, its number and its sentence."""
    return f"{check.name}: {check.number}. {check.sentence}"


def reference(against: str) -> str:
    """The arm that the methods are held against, in a sentence: the baseline, or a method in its place."""
    return "the baseline" if against == BASELINE else theme.method_label(against)


def capital(text: str) -> str:
    """The text with a capital first letter, the rest as it is."""
    return text[:1].upper() + text[1:]


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
    other = reference(verdict.against)
    match verdict.words, verdict.speedup:
        case Words.UNCONFIRMED, _ if verdict.unfinished:
            text = f"Nothing is confirmed yet {place}: {'; '.join(verdict.unfinished)}"
        case Words.UNCONFIRMED, _:
            text = (
                f"Nothing is confirmed yet {place}: {label} and {other} have no finished confirmation runs to compare"
            )
        case Words.LOSS_GAP_ONLY, _:
            text = _gap_sentence(verdict, label, place)
        case _, NotReached(lower_bound, _):
            text = _not_reached_sentence(verdict, label, place, kind, lower_bound)
        case Words.SLOWER, Reached() as reached:
            text = (
                f"{label} is slower {place}: {_projected(reached)}{times(reached.speedup)} ({_interval(reached)}){kind}"
            )
        case Words.SLOWER, _:
            assert verdict.upper_bound is not None
            text = f"{label} is slower {place}: S < {times(verdict.upper_bound)} (95 %){kind}"
        case Words.NO_DIFFERENCE, Reached() as reached:
            text = (
                f"No difference detected between {label} and {other} {place}: "
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
    if verdict.against != BASELINE and verdict.words in (Words.FASTER, Words.SLOWER, Words.NO_INTERVAL):
        text += f", against {other}"
    text += _flops_beside(verdict)
    if Flag.SIGMA_FROM_PRIOR in verdict.flags and isinstance(verdict.speedup, Reached):
        text += "; the seed deviation is assumed, not measured"
    return text


SAME_CLOCK = 0.02
"""Hours and FLOPs that agree this well, as logarithms, tell one speedup."""


def _flops_beside(verdict: ScaleVerdict) -> str:
    """The speedup in FLOPs, which no other work on the machine can stretch, beside one in wall time that it differs from;
    empty where hours were timed step by step."""
    hours, flops = verdict.speedup, dict(verdict.by_clock).get("flops")
    if not verdict.wall_time_only or verdict.upper_bound is not None:
        return ""
    first, second = _estimate(hours), _estimate(flops)
    if first is None or second is None or (type(hours) is type(flops) and abs(math.log(first / second)) <= SAME_CLOCK):
        return ""
    if not isinstance(flops, Reached):
        return f"; in model FLOPs S > {times(second)} (95 %)"
    return f"; in model FLOPs {_projected(flops)}{times(second)} ({_interval(flops)})"


def _estimate(speedup: Speedup | None) -> float | None:
    """The speedup, or its lower bound where it is not more than that."""
    match speedup:
        case Reached(value):
            return value
        case NotReached(bound):
            return bound
        case None:
            return None


def _projected(reached: Reached) -> str:
    return "projected " if reached.extrapolated else ""


def _not_reached_sentence(verdict: ScaleVerdict, label: str, place: str, kind: str, lower_bound: float | None) -> str:
    other = reference(verdict.against)
    if verdict.needed_steps is not None and lower_bound is not None:
        # A bound below 1 holds for a slower method, too.
        bound = f"S > {times(lower_bound)}, 95 %"
        return (
            f"Not known whether {label} is faster {place}{kind}: no run of {other} ends as low ({bound}); "
            f"needs budgets of {other} above {verdict.needed_steps:,} steps"
        )
    bound = f"S > {times(lower_bound)} (95 %)" if lower_bound is not None else "no bound without a seed deviation"
    return f"{capital(other)} did not reach {label}'s loss {place}: not reached; {bound}{kind}"


def _gap_sentence(verdict: ScaleVerdict, label: str, place: str) -> str:
    gap, pair, other = verdict.loss_gap, verdict.matched_pair, reference(verdict.against)
    if verdict.upper_bound is not None:
        bound = f"S < {times(verdict.upper_bound)} (95 %)"
        return f"{capital(other)}'s cheapest run already beats {label} {place}: {bound}"
    if gap is not None and gap.equal_cost:
        direction = "lower" if gap.gap >= 0 else "higher"
        interval = f" (95 %: {gap.interval[0]:+.4f} to {gap.interval[1]:+.4f})" if gap.interval else ""
        return (
            f"{label} ends {abs(gap.gap):.3f} nats {direction} than {other} at equal cost {place}{interval}; "
            f"{other}'s ladder gives no speedup"
        )
    if pair is not None:
        unit = verdict.clock_label if verdict.clock == "gpu_hours" else "compute"
        flops = pair.flops_ratio if verdict.wall_time_only else None
        if flops is not None and abs(math.log(pair.speedup / flops)) > SAME_CLOCK:
            unit += f" and {times(flops)} the model FLOPs"
        return (
            f"{label} ends at {pair.method_loss:.3f} and {other} at {pair.baseline_loss:.3f} with "
            f"{times(pair.speedup)} the {unit} {place}; that is one pair of runs, so neither a fit nor an interval"
        )
    return f"No speedup can be read {place}"


def equal_data_sentence(verdict: ScaleVerdict, label: str) -> str:
    """The same verdict with text in the place of hours; empty where the tokens of an arm are not known."""
    tokens: Speedup | None = dict(verdict.by_clock).get("tokens")
    match tokens:
        case None:
            return ""
        case NotReached(None, _):
            said = f"{reference(verdict.against)} did not reach {label}'s loss"
        case NotReached(float(bound), _) if bound > 1:
            said = f"{reference(verdict.against)} did not reach {label}'s loss: S > {times(bound)} (95 %)"
        case NotReached(float(bound), _):
            said = f"not known whether {label} is faster: S > {times(bound)} (95 %)"
        case Reached(speedup, None):
            said = f"{label} reads {_projected(tokens)}{times(speedup)}, without an interval"
        case Reached(speedup, (low, _)) if low > 1:
            said = f"{label} is {_projected(tokens)}{times(speedup)} faster ({_interval(tokens)})"
        case Reached(speedup, (_, high)) if high < 1:
            said = f"{label} is slower: {_projected(tokens)}{times(speedup)} ({_interval(tokens)})"
        case Reached(speedup, _):
            said = f"no difference detected: {_projected(tokens)}{times(speedup)} ({_interval(tokens)})"
    return f"At equal data (tokens read instead of {verdict.clock_label}): {said}."


def seeds_sentence(verdict: ScaleVerdict) -> str:
    """What a further seed would narrow; empty where seeds are not most of the interval."""
    if verdict.one_more_seed is None or not isinstance(verdict.speedup, Reached):
        return ""
    low, high = (times(value).removesuffix("x") for value in verdict.one_more_seed)
    now = _interval(verdict.speedup).removeprefix("95 %: ")
    return (
        f"Seeds make up most of this interval: one more seed a budget in both arms would narrow it from {now} to about "
        f"{low} to {high}."
    )


def target_sentence(reading: TargetReading) -> str:
    """What one arm pays for the given loss, in one sentence without a full stop."""
    label = capital(reference(reading.method))
    loss, place = f"a loss of {reading.target_loss:g}", f"at {reading.scale}"
    if reading.given:
        loss += f" ({reading.given})"
    end = f"its largest budget ends at {theme.loss(reading.end_loss)} for {_cost(reading, reading.end_cost)}"
    match reading.words:
        case TargetWords.REACHED:
            text = f"{label} gets to {loss} in {_cost(reading, reading.cost)}{_cost_interval(reading)} {place}"
            if (ratio := reading.speedup) is not None:
                text += f", {times(ratio.speedup)} ({_interval(ratio)}) against {reference(reading.against)}"
        case TargetWords.PROJECTED:
            cost = f"{_cost(reading, reading.cost)}{_cost_interval(reading)}"
            text = f"{label} is projected to get to {loss} in {cost} {place}; {end}"
        case TargetWords.NOT_REACHED:
            text = f"{label} does not get to {loss} {place}{_cost_bounds(reading)}; {end}"
        case TargetWords.PASSED:
            text = f"{label} is below {loss} with its cheapest budget already {place}{_cost_bounds(reading)}"
        case TargetWords.ONE_BUDGET:
            text = f"{label} has one budget {place}, so no curve to read {loss} off{_cost_bounds(reading)}; it ends at "
            text += f"{theme.loss(reading.end_loss)} for {_cost(reading, reading.end_cost)}"
        case TargetWords.UNCONFIRMED:
            text = f"{label} has no finished confirmation runs {place}"
    if reading.clock_assumed and reading.interval is not None:
        text += f"; the clock's own error is assumed to be {theme.percent(ASSUMED_LOG_ERROR)}"
    return text


def _cost(reading: TargetReading, cost: float | None) -> str:
    return theme.hours(cost) if reading.clock == "gpu_hours" else f"{theme.count(cost)} {reading.clock_label}"


def _cost_interval(reading: TargetReading) -> str:
    if reading.interval is None:
        return ", without an interval"
    return f" (95 %: {' to '.join(_cost(reading, end) for end in reading.interval)})"


def _cost_bounds(reading: TargetReading) -> str:
    if reading.lower_bound is not None:
        return f": more than {_cost(reading, reading.lower_bound)} (95 %)"
    return "" if reading.upper_bound is None else f": less than {_cost(reading, reading.upper_bound)} (95 %)"


def unconfirmed_words(runs: Iterable[FinishedRun]) -> tuple[str, ...]:
    """Why arms with these runs are not confirmed: their searches found nothing, their confirmation did not finish, or does not
    count."""
    runs = tuple(runs)
    return (*_lost_searches(runs), *_unfinished(runs), *_undecayed(runs))


def _lost_searches(runs: Sequence[FinishedRun]) -> Iterator[str]:
    """`no tuning trial of TST has finished: 8 diverged`, where nothing of it was confirmed."""
    for method in dict.fromkeys(run.method for run in runs):
        own = [run for run in runs if run.method == method]
        ends = Counter(run.outcome for run in own)
        if not ends["finished"] and all(run.purpose == "tuning" for run in own):
            ended = ", ".join(f"{count} {end}" for end, count in sorted(ends.items()))
            yield f"no tuning trial of {reference(method)} has finished: {ended}"


def _undecayed(runs: Sequence[FinishedRun]) -> Iterator[str]:
    """`the confirmation of TST does not count, its schedule is not said to end decayed`, and how its file would say so."""
    left_out = [r for r in runs if r.purpose == "confirmation" and r.outcome == "finished" and not r.decayed]
    for line in dict.fromkeys(run.undecayed for run in left_out):
        methods = dict.fromkeys(reference(run.method) for run in left_out if run.undecayed == line)
        said = f"; where it does, say so by {line}, for new trials" if line else ""
        yield f"the confirmation of {' and '.join(methods)} does not count, its schedule is not said to end decayed{said}"


def _unfinished(runs: Sequence[FinishedRun]) -> tuple[str, ...]:
    """Confirmation runs that did not finish: `the confirmation of TST failed at 8,000 and 12,000 steps (seeds 1000, 1001)`."""
    seeds: dict[tuple[str, str, int], list[int]] = defaultdict(list)
    for run in runs:
        if run.purpose == "confirmation" and run.outcome != "finished":
            ended: str = "was stopped" if run.outcome == "stopped" else run.outcome
            seeds[reference(run.method), ended, run.total_steps] += [] if run.seed is None else [run.seed]
    # Budgets that lost the same seeds are named together.
    budgets: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for (method, ended, steps), found in seeds.items():
        budgets[method, ended, _seed_list(found)].append(steps)
    return tuple(
        f"the confirmation of {method} {ended} at {_listed_steps(steps)} steps{listed}"
        for (method, ended, listed), steps in budgets.items()
    )


def _listed_steps(budgets: list[int]) -> str:
    *first, last = (f"{steps:,}" for steps in sorted(budgets))
    return f"{', '.join(first)} and {last}" if first else last


def _seed_list(seeds: list[int]) -> str:
    if not seeds:
        return ""
    return f" (seed{'s' * (len(seeds) > 1)} {', '.join(str(seed) for seed in sorted(seeds))})"


def headline_of(study: Study, main: ScaleVerdict | None, label: str) -> str:
    """The sweep in one sentence. What kind of runs these are, and unequal tuning with both counts, stand before the number."""
    if study.context.kind == "replay":
        return f"Replay: {_headline(study, main, label)}"
    if study.asked_for_by_an_earlier_file:
        return f"Of an earlier state of the file: {_headline(study, main, label)}"
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
    ordered = study.context.scales or all(scale.params is not None for scale in study.scales)
    suffix = f" (the {'largest' if ordered else 'last'} of {compared} scales)" if compared > 1 else ""
    return f"{warning}{verdict_sentence(main, label)}{suffix}."
