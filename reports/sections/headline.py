"""The top of the page: are the runs sound, what is the answer, how sure is it, what is it worth, what speaks against it.

Every word about the result comes from the summary; this file only chooses which number stands large.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from reports.estimate.verdict import NotReached, Reached, ScaleVerdict, Words
from reports.estimate.wording import seeds_sentence
from reports.evidence.clock import clock_note
from reports.evidence.runs import BASELINE
from reports.evidence.study import Study
from reports.html import theme
from reports.html.blocks import Block, Fragment
from reports.html.charts import plain, round_ticks
from reports.sections import plan
from reports.sections.figures.forest import close_pair
from reports.sections.section import Section
from reports.summary import Summary

MARKS = {"pass": "✓", "warn": "!", "fail": "✕", "not_applicable": "·"}

BANNERS = {
    "demo": ("Demonstration.", "These runs are shorter than any claim needs; the page shows how a sweep is read."),
    "imported": ("Imported runs.", "Trained elsewhere and read from a table; what it lacks is left empty here."),
    "published": (
        "Published figures.",
        "Read from the paper's tables, not trained by this sweep: one seed each and few budgets.",
    ),
    "replay": ("Replay.", "Losses come from a table of finished runs, step times are assumed; nothing was trained."),
}


@dataclass(frozen=True, slots=True)
class Tally:
    """How many checks ended in one way."""

    status: str
    mark: str
    text: str


@dataclass(frozen=True, slots=True)
class Banner:
    """What kind of runs these are, where they are not a sweep's own."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Tick:
    """A mark on the ruler, `at` percent of its width."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Ruler:
    """The interval as a bar on a logarithmic ruler; positions in percent of its width. `high` is None where only a
    lower bound is known."""

    one: float
    low: float
    high: float | None
    estimate: float | None
    ticks: tuple[Tick, ...]
    description: str


@dataclass(frozen=True, slots=True)
class Fact:
    """One figure under the headline. `output` names the what-if figure that keeps it current; `price` is editable."""

    name: str
    value: str
    note: str
    output: str = ""
    price: str | None = None
    currency: str = ""


@dataclass(frozen=True, slots=True)
class HeadlineInfo:
    """What the top of the page shows. `certain`: the interval of what the file asks for lies on one side of 1. `clock` and
    `clocks`: what the reader's plan is counted in, one and many of it. `clock_note`: how the hours of runs with different
    clocks were counted."""

    tallies: tuple[Tally, ...]
    stamp: str
    banners: tuple[Banner, ...]
    question: str
    sentence: str
    equal_data: str
    clock_note: str
    number: str
    number_note: str
    certain: bool
    ruler: Ruler | None
    facts: tuple[Fact, ...]
    caveat: str
    seeds: str
    clock: str
    clocks: str
    plan_hours: str


def info(study: Study, summary: Summary) -> HeadlineInfo:
    """Read the headline off the main verdict."""
    context, main = study.context, summary.main
    number, note = _number(main)
    stamp = [theme.day(context.created_at)] if context.created_at else []
    if context.git_commit not in ("", "unknown"):
        stamp.append(f"commit {context.git_commit[:7]}{' with local changes' if context.git_dirty else ''}")
    banners = [Banner(*BANNERS[context.kind])] if context.kind in BANNERS else []
    if context.against != BASELINE:
        label = theme.method_label(context.against)
        place = f"{label} stands in the baseline's place: where this page says baseline, it means {label}."
        banners.append(Banner(f"Against {label}.", place))
    return HeadlineInfo(
        tallies=_tallies(summary),
        stamp=" · ".join(stamp),
        banners=tuple(banners),
        question=context.question or context.name,
        sentence=summary.headline,
        equal_data=summary.equal_data,
        clock_note=clock_note(study.runs),
        number=number,
        number_note=note,
        certain=main is not None
        and main.words in (Words.FASTER, Words.SLOWER)
        and not study.asked_for_by_an_earlier_file,
        ruler=_ruler(main),
        facts=_facts(study, summary),
        caveat=summary.worst_caveat,
        seeds=seeds_sentence(main) if main else "",
        clock=study.clock_label.removesuffix("s"),
        clocks=study.clock_label,
        plan_hours=theme.count(plan.PLAN_HOURS),
    )


def _tallies(summary: Summary) -> tuple[Tally, ...]:
    words = {"pass": "passed", "warn": "warned", "fail": "failed"}
    return tuple(
        Tally(status if number else "none", MARKS[status], f"{number} {'check' if number == 1 else 'checks'} {word}")
        for status, word in words.items()
        if (number := sum(check.status == status for check in summary.checks)) or status != "warn"
    )


def _number(main: ScaleVerdict | None) -> tuple[str, str]:
    """The one large number and what it is; both empty where the runs hold none."""
    if main is None:
        return "", ""
    seeds = _seeds(main)
    match main.speedup:
        case Reached(speedup, (low, high)):
            return theme.speedup(speedup), f"95 % interval {low:.2f} to {high:.2f} · {seeds}"
        case Reached(speedup, None):
            return theme.speedup(speedup), f"no interval: no deviation between seeds is known · {seeds}"
        case NotReached(float(bound), _) if main.needed_steps is not None:
            said = f"S > {bound:.2f}×: baseline budgets above {main.needed_steps:,} steps are needed"
            return "not known", f"{said} · {seeds}"
        case NotReached(float(bound), _):
            return f"> {bound:.2f}×", f"95 % lower bound: no baseline run reached the target · {seeds}"
        case _:
            pass
    if main.upper_bound is not None:
        return f"< {main.upper_bound:.2f}×", f"95 % upper bound: even the baseline's cheapest run is better · {seeds}"
    pair, gap = close_pair(main), main.loss_gap
    if pair is not None:
        hours = f"{theme.hours(pair.method_hours)} against {theme.hours(pair.baseline_hours)}"
        losses = f"loss {theme.loss(pair.method_loss)} against {theme.loss(pair.baseline_loss)}"
        return theme.speedup(pair.speedup), f"two runs side by side, no interval: {hours}, {losses}"
    if gap is not None and gap.equal_cost:
        between = "no interval"
        if gap.interval is not None:
            between = theme.minus(f"95 % interval {gap.interval[0]:+.4f} to {gap.interval[1]:+.4f}")
        side = "lower" if gap.gap >= 0 else "higher"
        return f"{abs(gap.gap):.3f} nats", f"{side} final loss at equal {main.clock_label} · {between} · {seeds}"
    return "", ""


def _seeds(main: ScaleVerdict) -> str:
    """How many seeds and trials stand behind the number."""
    baseline, method = main.seeds_baseline, main.seeds_method
    if baseline == method:
        text = f"{_counted(baseline, 'seed')} a budget in either arm"
    else:
        text = f"{_counted(baseline, 'seed')} a budget of the baseline, {method} of the method"
    first, second = main.trials_baseline, main.trials_method
    if first is None or second is None:
        return text
    if first == second:
        return f"{text} · {_counted(first, 'tuning trial')} in either arm"
    return f"{text} · {_counted(first, 'tuning trial')} of the baseline, {second} of the method"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _ruler(main: ScaleVerdict | None) -> Ruler | None:
    if main is None:
        return None
    estimate: float | None = None
    upper: float | None = None
    match main.speedup:
        case Reached(speedup, (low, high)):
            estimate, upper = speedup, high
        case NotReached(float(low), _):
            pass
        case _:
            return None
    # The ruler holds at least 0.8 to 1.25, so that an interval of one per cent looks as narrow as it is.
    top = max(1.25, (upper if upper is not None else 1.5 * low) * 1.06)
    bottom = min(0.8, low / 1.06)

    def at(value: float) -> float:
        return round(100 * math.log(value / bottom) / math.log(top / bottom), 2)

    known = f"above {low:.2f}" if estimate is None else f"{estimate:.2f} ({low:.2f} to {upper:.2f})"
    ticks = tuple(Tick(at(tick), plain(tick) + "×") for tick in round_ticks(bottom, top, most=6))
    return Ruler(
        one=at(1.0),
        low=at(low),
        high=None if upper is None else at(upper),
        estimate=None if estimate is None else at(estimate),
        ticks=ticks,
        description=f"Speedup {known}; 1 means no difference.",
    )


def _facts(study: Study, summary: Summary) -> tuple[Fact, ...]:
    main = summary.main
    worth = plan.worth(study, summary)
    facts: list[Fact] = []
    if worth is not None:
        end = worth.best_known
        least = {"low": "at least, ", "high": "at most, "}.get(end, "")
        facts += [
            Fact(
                "Money saved",
                theme.money(worth.saved_money(end), worth.currency),
                f"{least}on a plan of",
                f"money-{end}",
                f"{worth.price:g}",
                worth.currency,
            ),
            Fact(
                "Time saved",
                plan.days_text(worth.saved_days(end)),
                f"{least}on the same plan with {worth.devices} {'device' if worth.devices == 1 else 'devices'}",
                f"time-{end}",
            ),
        ]
    if main is not None and main.data_multiplier is not None:
        equal = ", at equal loss" if isinstance(dict(main.by_clock).get("tokens"), Reached) else ""
        note = f"tokens for each one that the baseline reads{equal}; the text has to exist"
        facts.append(Fact("Text read", theme.speedup(main.data_multiplier), note))
    if main is not None and main.factors is not None:
        fewer, cheaper = main.factors.fewer_steps, main.factors.cheaper_steps
        facts.append(Fact("Where it comes from", f"{fewer:.2f} × {cheaper:.2f}", "fewer steps × cheaper steps"))
    return tuple(facts)


def figure(shown: HeadlineInfo) -> Sequence[Block]:
    """The masthead."""
    return (Fragment("headline.html.j2", shown),)


SECTION = Section("answer", "", info, figure)
