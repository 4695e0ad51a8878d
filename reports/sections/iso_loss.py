"""The iso-loss chart: what a loss costs with the baseline and with the method, scale by scale.

Only decayed end points and the fitted ladder carry the claim; the curves inside the runs are drawn faint, for
orientation, and a method's first phase is marked as not comparable. Beside it, S as a function of the target, by
budget and by clock. All numbers are the summary's.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from reports.estimate.verdict import Clock, MatchedPair, NotReached, Reached, ScaleVerdict, TargetReading
from reports.estimate.wording import reference, target_sentence
from reports.evidence.runs import BASELINE, FinishedRun, FloatArray
from reports.evidence.study import ScaleStudy, Study, StudyArm
from reports.evidence.units import BITS, PERPLEXITY, LossUnit
from reports.html import theme
from reports.html.blocks import Block, Chart, Column, Heading, Prose, Table
from reports.html.embed import thinned
from reports.sections.figures import iso_loss as iso_loss_figure
from reports.sections.figures import speedup as speedup_figures
from reports.sections.figures.iso_loss import EndPoint, InRunCurve, IsoLoss
from reports.sections.section import Section
from reports.summary import Summary

MOST_CURVES = 100
"""Faint curves on the whole page: more cannot be told apart, and the page has a size to keep."""


@dataclass(frozen=True, slots=True)
class ChartedVerdict:
    """One verdict with everything its charts show."""

    key: str
    verdict: ScaleVerdict
    chart: IsoLoss


@dataclass(frozen=True, slots=True)
class EndInUnits:
    """The mean final loss of one cell; `losses` in the order of the units."""

    scale: str
    method: str
    total_steps: int
    losses: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class IsoLossInfo:
    """One comparison for each (scale, method) with end points. `omitted`: in-run curves that were left out. `targets`: what
    each arm pays for the loss that was asked for. `units`: those that losses are shown in, nats first, and `ends` the mean
    final loss of every cell in each of them."""

    comparisons: tuple[ChartedVerdict, ...]
    omitted: int
    targets: tuple[TargetReading, ...] = ()
    units: tuple[LossUnit, ...] = ()
    ends: tuple[EndInUnits, ...] = ()


def info(study: Study, summary: Summary) -> IsoLossInfo:
    """Collect end points, ladders and thinned curves of every comparison."""
    scales = {scale.scale: scale for scale in study.scales}
    found = [(verdict, scales[verdict.scale]) for verdict in summary.verdicts]
    # A page of many scales shares the limit, or its size would grow with the number of charts.
    per_chart = max(MOST_CURVES // max(len(found), 1), 1)
    comparisons, omitted = [], 0
    for number, (verdict, scale) in enumerate(found):
        arms = [arm for arm in scale.arms if arm.method in (verdict.against, verdict.method) and arm.cells]
        if not arms:
            continue
        runs = _seed_by_seed(arms)
        omitted += max(len(runs) - per_chart, 0)
        chart = _chart(verdict, scale, arms, runs[:per_chart])
        comparisons.append(ChartedVerdict(f"iso-loss-{number}", verdict, chart))
    units = _units(study)
    ends = tuple(
        EndInUnits(scale.scale, arm.method, cell.total_steps, tuple(unit.of(cell.mean_loss) for unit in units))
        for scale in study.scales
        for arm in scale.arms
        for cell in arm.cells
    )
    return IsoLossInfo(tuple(comparisons), omitted, summary.targets, units, ends)


def _units(study: Study) -> tuple[LossUnit, ...]:
    """Bits per byte only where the bytes of a token are known."""
    size = study.bytes_per_token
    return (LossUnit(), LossUnit(PERPLEXITY), *([] if size is None else [LossUnit(BITS, size)]))


def _seed_by_seed(arms: list[StudyArm]) -> list[FinishedRun]:
    """All runs with a curve, the first seed of every cell before the second of any: a limit then cuts fairly."""
    cells = [cell.runs for arm in arms for cell in reversed(arm.cells)]
    return [run for runs in itertools.zip_longest(*cells) for run in runs if run is not None and len(run.curve)]


def _chart(verdict: ScaleVerdict, scale: ScaleStudy, arms: list[StudyArm], runs: list[FinishedRun]) -> IsoLoss:
    clock = verdict.clock
    points = tuple(
        EndPoint(
            arm.method,
            cell.total_steps,
            cost,
            cell.mean_loss,
            tuple((run.final_loss or 0.0) for run in cell.runs),
        )
        for arm in arms
        for cell in arm.cells
        if (cost := cell.cost(clock)) is not None and cost > 0
    )
    curves = tuple(curve for run in runs if (curve := _curve(scale, run, clock)) is not None)
    reached, pair = isinstance(verdict.speedup, Reached), _unequal_pair(verdict)
    pair_cost = pair.speedup * verdict.method_cost if pair is not None and verdict.method_cost is not None else None
    return IsoLoss(
        clock_label=verdict.clock_label,
        loss_label=_loss_label(arms),
        methods=tuple(arm.method for arm in arms),
        points=points,
        curves=curves,
        ladders=tuple(
            ladder
            for ladder in (verdict.baseline_ladder, verdict.method_ladder)
            if ladder is not None and ladder.clock == clock
        ),
        target_loss=verdict.target_loss,
        baseline_cost=verdict.baseline_cost if reached else pair_cost,
        baseline_loss=None if pair is None else pair.baseline_loss,
        method_cost=verdict.method_cost,
        arrow_text=_arrow_text(verdict),
        projected=isinstance(verdict.speedup, Reached) and verdict.speedup.extrapolated,
    )


def _loss_label(arms: list[StudyArm]) -> str:
    """What was measured: runs from elsewhere may say that it is their training loss."""
    stated = {run.validation or "" for arm in arms for cell in arm.cells for run in cell.runs}
    return "training loss" if all(text.startswith("training loss") for text in stated) else "validation loss"


def _unequal_pair(verdict: ScaleVerdict) -> MatchedPair | None:
    """The two runs to set side by side where nothing was read at equal cost or equal loss."""
    gap, pair = verdict.loss_gap, verdict.matched_pair
    if verdict.speedup is not None or gap is None or gap.equal_cost or pair is None:
        return None
    return pair if pair.method_steps == verdict.target_steps else None


def _cost_word(verdict: ScaleVerdict) -> str:
    return "hours" if verdict.clock == "gpu_hours" else verdict.clock_label


def _arrow_text(verdict: ScaleVerdict) -> str:
    if (pair := _unequal_pair(verdict)) is not None:
        return f"{theme.speedup(pair.speedup)} the {_cost_word(verdict)}"
    match verdict.speedup:
        case Reached(speedup, _):
            return theme.speedup(speedup) + (" projected" if verdict.speedup.extrapolated else "")
        case NotReached(float(bound), _):
            return f"not reached, > {bound:.2f}×"
        case NotReached():
            return "not reached"
        case _:
            return ""


def _curve(scale: ScaleStudy, run: FinishedRun, clock: Clock) -> InRunCurve | None:
    """The run's in-run losses on `clock`, thinned, cut at the phase boundary; None where the clock is unknown."""
    arrays: dict[str, FloatArray | None] = {
        "gpu_hours": None,
        "flops": run.curve.flops,
        "tokens": run.curve.tokens,
        "steps": run.curve.steps,
    }
    cost = scale.curve_hours(run) if clock == "gpu_hours" else arrays[clock]
    if cost is None or len(run.curve) < 2:
        return None
    # Before the boundary the model trains on something else: that part is drawn dotted, and not joined to the rest.
    before = run.curve.steps <= (run.boundary_step or 0)
    boundary = float(cost[before][-1]) if before.any() else None
    early_x, early_y = thinned(cost[before], run.curve.losses[before], 100)
    late_x, late_y = thinned(cost[~before], run.curve.losses[~before])
    name = f"{theme.method_label(run.method)}, {run.total_steps:,} steps, seed {run.seed}"
    return InRunCurve(
        method=run.method,
        name=name,
        early_cost=early_x,
        early_loss=early_y,
        late_cost=late_x,
        late_loss=late_y,
        boundary_cost=boundary,
    )


def figure(shown: IsoLossInfo) -> Sequence[Block]:
    """For each comparison the iso-loss chart with S over the target beside it, then S by budget and by clock."""
    if not shown.comparisons:
        return (Prose("There is no finished, decayed confirmation run to draw.", "empty"),)
    blocks: list[Block] = [
        Prose(
            "A dot is the end of a finished run, its learning rate decayed to the end. The faint lines are the same "
            "runs on their way; they are not comparable with each other before they end. Read the chart along the "
            "dotted line: how far to the right must the baseline go for the loss that the method ends at?"
        )
    ]
    for comparison in shown.comparisons:
        if len(shown.comparisons) > 1:
            verdict = comparison.verdict
            blocks.append(Heading(f"{verdict.scale}, {theme.method_label(verdict.method)}"))
        blocks += _comparison(comparison)
    if shown.omitted:
        blocks.append(Prose(f"{shown.omitted:,} more in-run curves are not drawn; their ends are.", "note"))
    return [*blocks, *_targets(shown.targets), _ends(shown)]


def _ends(shown: IsoLossInfo) -> Table:
    """Final losses in the units that others report."""
    names = [unit.words for unit in shown.units]
    columns = (Column("Scale", numeric=False), Column("Arm", numeric=False), Column("Steps"), *map(Column, names))
    rows = tuple(
        (
            end.scale,
            theme.method_label(end.method),
            f"{end.total_steps:,}",
            *(theme.number(loss, 4) for loss in end.losses),
        )
        for end in shown.ends
    )
    return Table("Mean final losses of all budgets", columns, rows, f"Final losses in {', '.join(names)}")


def _targets(readings: tuple[TargetReading, ...]) -> list[Block]:
    """What each arm pays for the loss that was asked for: a table, and each row in words."""
    if not readings:
        return []
    columns = (
        Column("Scale", numeric=False),
        Column("Arm", numeric=False),
        Column("Finding", numeric=False),
        Column("Budgets"),
        Column("Cost"),
        Column("95 %"),
        Column("Speedup"),
        Column("95 %"),
    )
    caption = "Each arm's own ladder at one loss; bounds where an arm does not get there or starts below it"
    return [
        Heading(f"What a loss of {readings[0].target_loss:g} costs"),
        Table(caption, columns, tuple(_target_row(reading) for reading in readings)),
        Prose(" ".join(f"{target_sentence(reading)}." for reading in readings)),
    ]


def _target_row(reading: TargetReading) -> tuple[str, ...]:
    def cost(value: float | None) -> str:
        return theme.hours(value, reading.cost) if reading.clock == "gpu_hours" else theme.count(value)

    ends = "–" if reading.interval is None else " – ".join(cost(end) for end in reading.interval)
    if reading.lower_bound is not None:
        ends = f"> {cost(reading.lower_bound)}"
    elif reading.upper_bound is not None:
        ends = f"< {cost(reading.upper_bound)}"
    speedup = reading.speedup
    return (
        reading.scale,
        theme.method_label(reading.method),
        reading.words.value,
        str(reading.budgets),
        cost(reading.cost),
        ends,
        theme.speedup(speedup.speedup if speedup else None),
        theme.interval(speedup.interval if speedup else None),
    )


def _comparison(comparison: ChartedVerdict) -> list[Block]:
    verdict, chart, key = comparison.verdict, comparison.chart, comparison.key
    over_target = verdict.speedup_curve is not None and len(verdict.speedup_curve.target) > 1
    blocks: list[Block] = [
        Chart(
            key=key,
            title=_title(verdict, chart),
            figure=iso_loss_figure.draw(chart),
            table=iso_loss_figure.table(chart),
            height=500,
            share=4 if over_target else 6,
        )
    ]
    if over_target:
        blocks.append(speedup_figures.over_target(f"{key}-target", verdict))
    clocks = speedup_figures.by_clock(f"{key}-clock", verdict)
    budgets = speedup_figures.by_budget(f"{key}-budget", verdict)
    return blocks + [chart for chart in (budgets, clocks) if chart is not None]


def _title(verdict: ScaleVerdict, chart: IsoLoss) -> str:
    method, other = theme.method_label(verdict.method), reference(verdict.against)
    target = theme.loss(verdict.target_loss)
    match verdict.speedup:
        case Reached() if verdict.baseline_cost is not None and verdict.method_cost is not None:
            would = "would need" if verdict.speedup.extrapolated else "needs"
            costs = _costs(verdict, verdict.method_cost, verdict.baseline_cost)
            return f"To end at a loss of {target}, {method} needs {costs[0]} and {other} {would} {costs[1]}"
        case NotReached():
            run = "baseline run" if verdict.against == BASELINE else f"run of {other}"
            return f"No {run} ends as low as {method} does, at {target}"
        case _:
            pass
    if len(chart.methods) < 2:
        return f"Only {theme.method_label(chart.methods[0])} has finished runs; there is nothing to compare"
    gap = verdict.loss_gap
    pair = _unequal_pair(verdict)
    if pair is not None and verdict.method_cost is not None:
        costs = _costs(verdict, verdict.method_cost, pair.speedup * verdict.method_cost)
        return (
            f"{method} ends at {theme.loss(pair.method_loss)} for {costs[0]}, {other} at "
            f"{theme.loss(pair.baseline_loss)} for {costs[1]}: {theme.speedup(pair.speedup)} the {_cost_word(verdict)}, "
            f"{abs(pair.baseline_loss - pair.method_loss):.3f} nats apart"
        )
    if gap is None or not gap.equal_cost:
        return f"{method} and {other}: final losses by cost"
    better = "below" if gap.gap > 0 else "above"
    return f"{method} ends {abs(gap.gap):.3f} nats {better} {other} at equal cost"


def _costs(verdict: ScaleVerdict, method: float, baseline: float) -> tuple[str, str]:
    """Two costs on the verdict's clock, in one unit."""
    if verdict.clock == "gpu_hours":
        return theme.hours(method, baseline), theme.hours(baseline, method)
    return theme.count(method), theme.count(baseline)


SECTION = Section("iso-loss", "What a loss costs", info, figure)
