"""Two sweeps side by side: each verdict as its own page gives it, their ratio where it means something, and what differs.

A speedup is a ratio within one sweep, so it may be set beside another's even across machines; losses and hours may not,
and the page says which of them differ in what. The ratio of two speedups has an interval only where both have one and
no run is in both sweeps. Nothing is estimated anew here: every number of a side is read from its `Summary`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from reports.estimate.verdict import NotReached, Reached, ScaleVerdict, Speedup
from reports.estimate.wording import times
from reports.evidence.runs import FinishedRun
from reports.evidence.study import SETTINGS, Cell, ScaleStudy, Study
from reports.html import theme
from reports.html.blocks import Block, Chart, Column, Fragment, Prose, Table
from reports.html.layout import DrawnSection, Masthead, render_sections, side_by_side
from reports.summary import Summary, summarize, summary_to_json

COMPARISON_SCHEMA = 1
FORBIDS = {
    "device": "their hours must not be compared",
    "validation": "their losses must not be compared",
    "tokenizer": "their losses must not be compared",
    "context": "neither losses nor hours must be compared",
    "precision": "their hours must not be compared",
    "tokens_per_step": "their steps must not be compared",
    "recipe": "their losses and steps must not be compared",
}
"""What a setting that differs between two sweeps forbids."""
CLOSE_TARGETS = 0.005
"""Nats between two targets that count as the same loss: about a seed deviation."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """The first sweep's speedup over the second's; `interval` is 95 %, None where one cannot be made."""

    value: float
    interval: tuple[float, float] | None

    @property
    def words(self) -> str:
        """What may be said. Follows the interval, nothing else."""
        if self.interval is None:
            return "no interval"
        if self.interval[0] > 1:
            return "larger in the first"
        return "larger in the second" if self.interval[1] < 1 else "no difference detected"


@dataclass(frozen=True, slots=True)
class ComparedArm:
    """One method at one scale in both sweeps; None where a sweep has no such comparison.

    `budgets`: total steps of the baseline's and of the method's ladder, by sweep. `reasons`: why what is missing cannot
    be compared, or the caveats of what can.
    """

    scale: str
    method: str
    verdicts: tuple[ScaleVerdict | None, ScaleVerdict | None]
    budgets: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    ratio: Ratio | None
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two sweeps. `differences`: what they do not have in common, one sentence each."""

    names: tuple[str, str]
    summaries: tuple[Summary, Summary]
    arms: tuple[ComparedArm, ...]
    differences: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """The comparison in one sentence."""
        measured = [arm for arm in self.arms if arm.ratio is not None]
        if not measured:
            return f"{self.names[0]} and {self.names[1]} have no speedup that can be set side by side."
        main = self.summaries[0].main
        spoken = [arm for arm in measured if main is not None and (arm.scale, arm.method) == (main.scale, main.method)]
        arm = (spoken or measured)[-1]
        assert arm.ratio is not None
        first, second = (_reached(verdict) for verdict in arm.verdicts)
        assert first is not None
        assert second is not None
        interval = arm.ratio.interval
        how = "no interval" if interval is None else f"95 %: {interval[0]:.2f} to {interval[1]:.2f}"
        return (
            f"{theme.method_label(arm.method)} at {arm.scale}: {times(first.speedup)} in {self.names[0]}, "
            f"{times(second.speedup)} in {self.names[1]}; ratio {arm.ratio.value:.2f} ({how}): {arm.ratio.words}."
        )


def compare(first: Study, second: Study) -> Comparison:
    """Set the verdicts of two studies side by side, scales in ascending size."""
    summaries = summarize(first), summarize(second)
    names = first.context.name, second.context.name
    keys: dict[tuple[str, str], float] = {}
    for summary in summaries:
        for verdict in summary.verdicts:
            keys.setdefault((verdict.scale, verdict.method), verdict.params or math.inf)
    ordered = sorted(keys, key=lambda key: keys[key])
    arms = tuple(_arm(scale, method, (first, second), summaries, names) for scale, method in ordered)
    return Comparison(names, summaries, arms, _differences(first, second, names))


def _arm(
    scale: str, method: str, studies: tuple[Study, Study], summaries: tuple[Summary, Summary], names: tuple[str, str]
) -> ComparedArm:
    verdicts = (_verdict(summaries[0], scale, method), _verdict(summaries[1], scale, method))
    budgets = tuple((_budgets(study, scale, "baseline"), _budgets(study, scale, method)) for study in studies)
    ratio, reasons = _ratio(verdicts, names, _shared_runs(studies, scale))
    return ComparedArm(scale, method, verdicts, budgets, ratio, reasons)


def _verdict(summary: Summary, scale: str, method: str) -> ScaleVerdict | None:
    return next((one for one in summary.verdicts if (one.scale, one.method) == (scale, method)), None)


def _reached(verdict: ScaleVerdict | None) -> Reached | None:
    return verdict.speedup if verdict is not None and isinstance(verdict.speedup, Reached) else None


def _scale(study: Study, scale: str) -> ScaleStudy | None:
    return next((one for one in study.scales if one.scale == scale), None)


def _cells(study: Study, scale: str, method: str | None = None) -> list[Cell]:
    found = _scale(study, scale)
    return [cell for arm in (found.arms if found else ()) if method in (None, arm.method) for cell in arm.cells]


def _budgets(study: Study, scale: str, method: str) -> tuple[int, ...]:
    return tuple(cell.total_steps for cell in _cells(study, scale, method))


def _confirmed(study: Study, scale: str) -> list[FinishedRun]:
    return [run for cell in _cells(study, scale) for run in cell.runs]


def _shared_runs(studies: tuple[Study, Study], scale: str) -> int:
    """Runs that are in both sweeps' ladders: one of our own is known by its spec, any other by name and loss."""
    first, second = ({(run.run_id, run.final_loss) for run in _confirmed(study, scale)} for study in studies)
    return len(first & second)


def _ratio(
    verdicts: tuple[ScaleVerdict | None, ScaleVerdict | None], names: tuple[str, str], shared: int
) -> tuple[Ratio | None, tuple[str, ...]]:
    """The ratio of the two speedups with its caveats, or None and why there is none."""
    for verdict, name in zip(verdicts, names, strict=True):
        if verdict is None:
            return None, (f"Not in {name}.",)
    one, two = verdicts
    first, second = _reached(one), _reached(two)
    missing = [name for side, name in zip((first, second), names, strict=True) if side is None]
    if one is None or two is None or first is None or second is None:
        return None, tuple(f"No measured speedup in {name}, so no ratio." for name in missing)
    if one.clock != two.clock:
        return None, (f"Speedups on different clocks ({one.clock_label} and {two.clock_label}), so no ratio.",)
    reasons = [
        f"Projected in {name}: outside the baseline's ladder."
        for side, name in zip((first, second), names, strict=True)
        if side.extrapolated
    ]
    left, right = one.target_loss, two.target_loss
    if left is not None and right is not None and abs(left - right) > CLOSE_TARGETS:
        shown = f"{theme.loss(left)} and {theme.loss(right)}"
        reasons.append(f"Read at different losses ({shown}), so part of the ratio may be the target's.")
    value = first.speedup / second.speedup
    if shared:
        reasons.append(f"{shared} confirmation runs are in both sweeps, so the ratio has no interval.")
        return Ratio(value, None), tuple(reasons)
    return Ratio(value, _ratio_interval(value, first, second)), tuple(reasons)


def _ratio_interval(value: float, first: Reached, second: Reached) -> tuple[float, float] | None:
    """95 % interval of a ratio of independent speedups: errors of `ln S` add in squares, degrees of freedom by Welch and
    Satterthwaite, systematic half-widths as they are."""
    from reports.estimate.intervals import CONFIDENCE, add_variances, t_quantile

    if first.interval is None or second.interval is None:
        return None
    parts: list[tuple[float, float]] = []
    for side in (first, second):
        if side.log_standard_error is None or side.degrees_of_freedom is None:
            return None
        parts.append((side.log_standard_error**2, side.degrees_of_freedom))
    variance, freedom = add_variances(*parts)
    half = float(t_quantile((1 + CONFIDENCE) / 2, freedom)) * math.sqrt(variance)
    half += first.systematic + second.systematic
    return value * math.exp(-half), value * math.exp(half)


def _differences(first: Study, second: Study, names: tuple[str, str]) -> tuple[str, ...]:
    """Everything that the two sweeps do not share, and what that forbids."""
    found: list[str] = []
    kinds = {"sweep": "trained here", "imported": "imported", "published": "published figures", "replay": "replayed"}
    if first.context.kind != second.context.kind:
        shown = [kinds.get(study.context.kind, study.context.kind) for study in (first, second)]
        found.append(f"Kind of runs: {shown[0]} in {names[0]}, {shown[1]} in {names[1]}.")
    for scale in first.scales:
        if _scale(second, scale.scale) is not None:
            found += _other_settings(scale.scale, (first, second), names)
    for study, other, name in ((first, second, names[0]), (second, first, names[1])):
        only = [scale.scale for scale in study.scales if _scale(other, scale.scale) is None]
        if only:
            found.append(f"Only {name} has {', '.join(only)}.")
    return tuple(found)


def _other_settings(scale: str, studies: tuple[Study, Study], names: tuple[str, str]) -> list[str]:
    """The settings of the compared runs that are not the same in both sweeps, or not known to be."""
    ladders = [_confirmed(study, scale) for study in studies]
    if not all(ladders):
        return []
    found: list[str] = []
    unknown: list[str] = []
    for attribute, label in SETTINGS:
        values = [getattr(runs[0], attribute) for runs in ladders]
        if values[0] == values[1]:
            unknown += [label] if values[0] is None else []
            continue
        if attribute == "recipe" and None not in values:
            shown = "differs"
        else:
            left, right = ("not stated" if value is None else str(value) for value in values)
            shown = f"{left} in {names[0]}, {right} in {names[1]}"
        found.append(f"{scale}, {label}: {shown}; {FORBIDS[attribute]}.")
    if unknown:
        found.append(f"{scale}: neither sweep states {', '.join(unknown)}, so whether these differ is not known.")
    return found


def comparison_to_json(made: Comparison) -> dict[str, Any]:
    """Plain JSON values, schema 1; both summaries in full."""
    return {
        "schema": COMPARISON_SCHEMA,
        "sentence": made.sentence,
        "ratios": [
            {
                "scale": arm.scale,
                "method": arm.method,
                "ratio": arm.ratio.value if arm.ratio else None,
                "interval": list(arm.ratio.interval) if arm.ratio and arm.ratio.interval else None,
                "words": arm.ratio.words if arm.ratio else None,
                "reasons": list(arm.reasons),
            }
            for arm in made.arms
        ],
        "differences": list(made.differences),
        "sweeps": [summary_to_json(summary) for summary in made.summaries],
    }


def speedup_text(speedup: Speedup | None) -> str:
    """`1.32× (1.20 – 1.45)`, a lower bound, or that there is none."""
    match speedup:
        case Reached(value, interval):
            shown = "" if interval is None else f" ({theme.interval(interval)})"
            return f"{theme.speedup(value)}{shown}{' projected' if speedup.extrapolated else ''}"
        case NotReached(bound, _):
            return "not reached" + ("" if bound is None else f", > {bound:.2f}×")
        case None:
            return "–"


def _steps(budgets: tuple[int, ...]) -> str:
    return " ".join(theme.count(steps).replace(" ", "") for steps in budgets) or "–"


def _side_rows(made: Comparison) -> tuple[tuple[str, ...], ...]:
    rows: list[tuple[str, ...]] = []
    for arm in made.arms:
        for name, verdict, budgets in zip(made.names, arm.verdicts, arm.budgets, strict=True):
            if verdict is None:
                continue
            rows.append(
                (
                    f"{arm.scale}, {theme.method_label(arm.method)}",
                    name,
                    str(verdict.words),
                    speedup_text(verdict.speedup),
                    verdict.clock_label,
                    _settings(verdict),
                    theme.loss(verdict.target_loss),
                    _steps(budgets[0]),
                    _steps(budgets[1]),
                    f"{verdict.seeds_baseline} + {verdict.seeds_method}",
                    f"{_count(verdict.trials_baseline)} + {_count(verdict.trials_method)}",
                )
            )
    return tuple(rows)


def _settings(verdict: ScaleVerdict) -> str:
    from reports.sections.recipe import words_of

    return "–" if verdict.best is None else words_of(verdict.best)


def _count(value: int | None) -> str:
    return "?" if value is None else str(value)


def sides_table(made: Comparison) -> Table:
    """The verdicts of every comparison, one line for each sweep that has it."""
    columns = (
        *(Column(name, numeric=False) for name in ("Comparison", "Sweep", "Verdict")),
        Column("Speedup (95 %)"),
        Column("Clock", numeric=False),
        Column("Settings", numeric=False),
        *(Column(name) for name in ("Target loss", "Baseline steps", "Method steps", "Seeds", "Trials")),
    )
    caption = (
        "Each speedup is at its own sweep's target loss: the method's mean at its largest budget that the baseline's ladder "
        "brackets. Seeds and trials: baseline + method."
    )
    return Table(caption, columns, _side_rows(made))


def ratio_table(made: Comparison) -> Table:
    """The ratio of the two speedups, with what may be said of it."""
    columns = (
        Column("Comparison", numeric=False),
        Column(f"{made.names[0]} over {made.names[1]}"),
        Column("95 % interval"),
        Column("In words", numeric=False),
        Column("Caveats", numeric=False),
    )
    rows = []
    for arm in made.arms:
        ratio = arm.ratio
        interval = ratio.interval if ratio is not None else None
        rows.append(
            (
                f"{arm.scale}, {theme.method_label(arm.method)}",
                theme.number(ratio.value if ratio else None),
                theme.interval(interval),
                "not comparable" if ratio is None else ratio.words,
                " ".join(arm.reasons) or "–",
            )
        )
    return Table("Ratio of the speedups, runs of the two sweeps taken as independent", columns, tuple(rows))


def _chart(made: Comparison) -> Chart | None:
    from reports.sections.figures import forest

    rows = tuple(
        row
        for arm in made.arms
        for name, verdict in zip(made.names, arm.verdicts, strict=True)
        if verdict is not None
        and (
            row := forest.row_of(f"{arm.scale}, {theme.method_label(arm.method)}, {name}", arm.method, verdict.speedup)
        )
        is not None
    )
    if not rows:
        return None
    clocks = {verdict.clock_label for arm in made.arms for verdict in arm.verdicts if verdict is not None}
    clock = clocks.pop() if len(clocks) == 1 else ""
    table = forest.table("Speedups of both sweeps", "Comparison", rows)
    return Chart("speedups", "Each sweep's own speedups", forest.draw(rows, clock), table, forest.height(rows))


def render_comparison(made: Comparison, command: str) -> str:
    """The page as HTML."""
    top = Masthead(
        "Comparison.",
        "Two sweeps, each with its own baseline: a speedup is read within one, never across the two.",
        f"{made.names[0]} and {made.names[1]}",
        made.sentence,
    )
    chart = _chart(made)
    answer: list[Block] = [] if chart is None else [chart]
    answer += [sides_table(made), ratio_table(made)]
    differences: Sequence[str] = made.differences or ("Nothing that is recorded differs between the two sweeps.",)
    headlines: list[Block] = []
    for name, summary in zip(made.names, made.summaries, strict=True):
        headlines.append(Prose(f"{name}: {summary.headline} {summary.worst_caveat}".strip()))
    sections = (
        DrawnSection("answer", "", side_by_side([Fragment("masthead.html.j2", top)])),
        DrawnSection("verdicts", "Both verdicts", side_by_side(answer)),
        DrawnSection("differences", "What differs", side_by_side([Prose(text) for text in differences])),
        DrawnSection("each", "Each by itself", side_by_side([*headlines, Prose(f"Made with: {command}", "note")])),
    )
    title = f"{made.names[0]} and {made.names[1]} compared"
    return render_sections(title, title, sections, comparison_to_json(made))
