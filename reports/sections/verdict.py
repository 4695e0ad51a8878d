"""The verdict, scale by scale: one table, one forest plot, and the recipe to take home.

Published values stand beside ours as hollow markers. They are read from the published tables each time, and no value
of the two kinds is ever averaged with the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reports.estimate.scaling import SizeTrend
from reports.estimate.verdict import ScaleVerdict, Words
from reports.evidence.runs import BASELINE
from reports.evidence.study import Study
from reports.html import theme
from reports.html.blocks import Block, Chart, Column, Prose, Table
from reports.sections import recipe
from reports.sections.figures import forest
from reports.sections.figures import speedup as speedup_figures
from reports.sections.figures.forest import ForestRow
from reports.sections.published_values import published_values
from reports.sections.section import Section
from reports.summary import Summary


@dataclass(frozen=True, slots=True)
class VerdictInfo:
    """`rows` of the forest from top to bottom; `verdicts` for the table; the recipe, where something was confirmed."""

    finding: str
    clock: str
    verdicts: tuple[ScaleVerdict, ...]
    rows: tuple[ForestRow, ...]
    trend: str
    trends: tuple[SizeTrend, ...]
    recipe: recipe.RecipeInfo | None


def info(study: Study, summary: Summary) -> VerdictInfo:
    """Collect the verdicts, the aggregates and the published values."""
    rows = [row for verdict in summary.verdicts if (row := forest.row_of_verdict(verdict)) is not None]
    for mean in summary.aggregates:
        low, high = mean.interval if mean.interval is not None else (None, None)
        name = f"geometric mean, {theme.method_label(mean.method)}"
        rows.append(ForestRow(name, mean.method, "mean", mean.speedup, low, high))
    if rows and study.context.against == BASELINE:
        # On the page of the published runs their pairs are the result itself: once is enough.
        alone = {row.label.split(",")[0] for row in rows if row.kind == "pair"}
        rows += [
            ForestRow(f"{value.scale}, published", "tst", "published", value.speedup, None, None)
            for value in published_values()
            if not (study.context.kind == "published" and value.scale in alone)
        ]
    return VerdictInfo(
        finding=_finding(summary.verdicts),
        clock=summary.clock_label,
        verdicts=summary.verdicts,
        rows=tuple(rows),
        trend=_trend(summary),
        trends=summary.trends,
        recipe=recipe.info(study, summary),
    )


SINGLE = {
    Words.FASTER: "{method} is faster at {scale}",
    Words.SLOWER: "{method} is slower at {scale}",
    Words.NO_DIFFERENCE: "No difference detected at {scale}",
    Words.NOT_REACHED: "At {scale} no baseline run ends as low as {method}",
    Words.LOSS_GAP_ONLY: "At {scale} two runs can be compared, but no curve fitted",
    Words.NO_INTERVAL: "At {scale} there is an estimate, but no interval",
    Words.UNCONFIRMED: "Nothing is confirmed at {scale}",
}
"""The finding of a forest plot that has one comparison."""


def _finding(verdicts: tuple[ScaleVerdict, ...]) -> str:
    """The forest plot's title: what the intervals say together."""
    if len(verdicts) == 1:
        only = verdicts[0]
        return SINGLE[only.words].format(method=theme.method_label(only.method), scale=only.scale)
    words = [verdict.words for verdict in verdicts]
    if len(set(words)) == 1:
        return f"{words[0].value.capitalize()} in all {len(words)} comparisons"
    counts = [f"{words.count(word)} {word.value}" for word in Words if word in words]
    return f"Of {len(words)} comparisons: " + ", ".join(counts)


def _trend(summary: Summary) -> str:
    sentences = []
    for trend in summary.trends:
        low, high = trend.slope_interval
        text = (
            f"Over model size, ln S of {theme.method_label(trend.method)} changes by {trend.slope:+.3f} for each e-fold "
            f"of parameters (95 %: {low:+.3f} to {high:+.3f})."
        )
        if trend.at_target is not None and trend.target_params is not None:
            value, below, above = trend.at_target
            text += (
                f" At {theme.count(trend.target_params)} parameters that projects {theme.speedup(value)} "
                f"(prediction interval {below:.2f} to {above:.2f})."
            )
        sentences.append(text.replace("-0", "\u22120"))
    return " ".join(sentences)


def figure(shown: VerdictInfo) -> Sequence[Block]:
    """Forest plot, table, recipe."""
    if not shown.verdicts:
        empty = "No comparison is possible yet: a verdict needs finished, decayed runs of the baseline and of a method."
        return (Prose(empty, "empty"),)
    blocks: list[Block] = []
    if shown.rows:
        blocks.append(_forest_chart(shown))
    blocks.append(_table(shown))
    for number, trend in enumerate(shown.trends):
        blocks.append(speedup_figures.over_size(f"size-{number}", trend, shown.verdicts))
    if shown.trend:
        blocks.append(Prose(shown.trend))
    if shown.recipe is not None:
        blocks += recipe.figure(shown.recipe)
    return blocks


def _forest_chart(shown: VerdictInfo) -> Chart:
    notes = {
        "measured": "Filled: estimated from these runs, with its 95 % interval.",
        "bound": "An arrow: the baseline never reached the target; the speedup is at least this large.",
        "ceiling": "An arrow: even the baseline's cheapest run is better; the speedup is at most this large.",
        "pair": "Hollow, two runs: side by side, nothing fitted, no interval.",
        "published": "Hollow, published: two runs each from the paper's tables, one seed, no interval.",
    }
    kinds = {row.kind for row in shown.rows}
    return Chart(
        key="forest",
        title=shown.finding,
        figure=forest.draw(shown.rows, shown.clock),
        table=forest.table(f"Speedup on the {shown.clock} clock", "Comparison", shown.rows),
        height=forest.height(shown.rows),
        note=" ".join(text for kind, text in notes.items() if kind in kinds),
    )


def _table(shown: VerdictInfo) -> Table:
    clock = shown.clock
    columns = (
        Column("Scale", numeric=False),
        Column("Method", numeric=False),
        Column("Verdict", numeric=False),
        Column("Speedup"),
        Column("95 % interval"),
        Column("Two runs"),
        Column(f"{clock}, baseline → method"),
        Column("Text read"),
        Column("Fewer × cheaper"),
        Column("Loss gap"),
        Column("Seeds"),
        Column("Trials"),
        Column("Resolves"),
    )
    caption = (
        "S > 1: the method is faster. Two runs: a pair that ends at nearly the same loss, nothing fitted. Fewer × "
        f"cheaper: steps. Loss gap: baseline minus method at equal {clock}, nats, or to a baseline budget that costs so many "
        "times as much as it says. Seeds and trials: baseline + method. "
        "Resolves: the smallest gain that this sweep would find in four cases of five."
    )
    return Table(caption, columns, tuple(_table_row(verdict) for verdict in shown.verdicts))


def _table_row(verdict: ScaleVerdict) -> tuple[str, ...]:
    row, pair = forest.row_of_verdict(verdict), forest.close_pair(verdict)
    value, interval, costs = "–", "–", "–"
    if row is not None and row.kind != "pair":
        value = theme.speedup(row.value)
        if row.low is not None:
            interval = theme.interval((row.low, row.high)) if row.high is not None else f"> {row.low:.2f}"
        elif row.high is not None:
            interval = f"< {row.high:.2f}"
    if verdict.baseline_cost is not None and verdict.method_cost is not None:
        costs = f"{theme.count(verdict.baseline_cost)} → {theme.count(verdict.method_cost)}"
        if verdict.clock == "gpu_hours":
            costs = theme.hours_to_hours(verdict.baseline_cost, verdict.method_cost)
    elif pair is not None:
        costs = theme.hours_to_hours(pair.baseline_hours, pair.method_hours)
    factors = verdict.factors
    trials = [("–" if number is None else str(number)) for number in (verdict.trials_baseline, verdict.trials_method)]
    multiplier = verdict.data_multiplier
    if multiplier is None and pair is not None:
        multiplier = pair.data_multiplier
    return (
        verdict.scale,
        theme.method_label(verdict.method),
        verdict.words.value,
        value,
        interval,
        theme.speedup(pair.speedup if pair else None),
        costs,
        theme.speedup(multiplier),
        "–" if factors is None else f"{factors.fewer_steps:.2f} × {factors.cheaper_steps:.2f}",
        _gap_text(verdict),
        f"{verdict.seeds_baseline} + {verdict.seeds_method}",
        " + ".join(trials),
        theme.percent(verdict.resolution, 1),
    )


def _gap_text(verdict: ScaleVerdict) -> str:
    gap = verdict.loss_gap
    if gap is None:
        return "–"
    apart = "" if gap.equal_cost else f" at {theme.speedup(gap.cost_ratio)}"
    return theme.minus(f"{gap.gap:+.4f}") + apart


SECTION = Section("verdict", "Verdict by scale", info, figure)
