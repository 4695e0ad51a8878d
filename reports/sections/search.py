"""The search: what was tried, what it found, and what it cost, scale by scale.

Maps and slices show tuning runs at the largest tuning budget only: losses of different budgets are not comparable.
Nothing here enters the verdict, which rests on the confirmation runs.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from reports.evidence.importance import importances
from reports.evidence.runs import FinishedRun
from reports.evidence.study import ScaleStudy, Study, StudyArm
from reports.evidence.tuning import edges
from reports.html import theme
from reports.html.blocks import Block, Heading, Prose
from reports.sections.figures import search as search_figures
from reports.sections.figures.search import LossMap, Slice, Spending
from reports.sections.section import Section
from reports.summary import Summary
from trainers.contract.spec import Scalar
from trainers.methods import LEARNING_RATE, PARAMETER_TABLE, parameter_of


@dataclass(frozen=True, slots=True)
class ScaleSearch:
    """One scale's search. `loss_maps`: one for each method with trials over a whole number and r; `edges` are in words."""

    scale: str
    loss_maps: tuple[LossMap, ...]
    slices: tuple[Slice, ...]
    spending: tuple[Spending, ...]
    edges: tuple[str, ...]
    clock: str


@dataclass(frozen=True, slots=True)
class SearchInfo:
    """All scales that were searched, and the sentence about shared prefixes (empty: nothing was shared)."""

    scales: tuple[ScaleSearch, ...]
    shared: str


def info(study: Study, summary: Summary) -> SearchInfo:
    """Collect the tuning runs of every scale."""
    scales = tuple(_scale(study, scale) for scale in study.scales if any(arm.search for arm in scale.arms))
    return SearchInfo(scales, _shared(study, summary))


def _shared(study: Study, summary: Summary) -> str:
    cost = summary.cost
    if cost is None or cost.saved is None or cost.saved <= 0.005:
        return ""
    return (
        f"Trained one by one, all runs would have taken {theme.hours(cost.alone)}; sharing the prefixes that runs have "
        f"in common, the sweep paid {theme.hours(cost.incurred)} ({study.clock_label}): {theme.percent(cost.saved)} "
        "saved."
    )


def _scale(study: Study, scale: ScaleStudy) -> ScaleSearch:
    slices = [cut for arm in scale.arms for cut in _slices(arm)]
    return ScaleSearch(
        scale=scale.scale,
        loss_maps=tuple(_loss_map(scale, arm, axis) for arm in scale.methods if (axis := _map_axis(arm)) is not None),
        slices=tuple(slices),
        spending=tuple(spent for arm in scale.arms if (spent := _spending(arm)) is not None),
        edges=tuple(text for arm in scale.arms for text in _edges(study, arm)),
        clock=scale.clock_label,
    )


def top_trials(arm: StudyArm) -> tuple[FinishedRun, ...]:
    """The finished tuning runs of the largest tuning budget."""
    finished = [run for run in arm.search if run.final_loss is not None]
    top = max((run.total_steps for run in finished), default=0)
    return tuple(run for run in finished if run.total_steps == top)


def _searched(arm: StudyArm) -> list[str]:
    """Names of what the arm's trials differ in or could, in the order of the page."""
    names = {LEARNING_RATE, *(name for run in top_trials(arm) for name, _ in run.parameters)}
    known = [name for name in PARAMETER_TABLE if name in names]
    return known + sorted(names.difference(known))


def _map_axis(arm: StudyArm) -> str | None:
    """The whole number beside the step ratio that the arm's loss can be drawn over; None where there is none."""
    trials = [dict(run.parameters) for run in top_trials(arm)]
    if not trials or any("step_ratio" not in values for values in trials):
        return None
    return next((name for name in _searched(arm) if all(isinstance(v.get(name), int) for v in trials)), None)


def value_of(run: FinishedRun, name: str) -> Scalar | None:
    """The searched value of one axis."""
    return run.learning_rate if name == LEARNING_RATE else dict(run.parameters).get(name)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _best_mean(runs: Sequence[FinishedRun]) -> float:
    """The lowest mean final loss over seeds, among the configurations in `runs`."""
    groups: dict[object, list[float]] = defaultdict(list)
    for run in runs:
        groups[(run.learning_rate, run.parameters)].append(run.final_loss or 0.0)
    return min(_mean(losses) for losses in groups.values())


def _loss_map(scale: ScaleStudy, arm: StudyArm, axis: str) -> LossMap:
    cells: dict[tuple[int, float], list[FinishedRun]] = defaultdict(list)
    trials = top_trials(arm)
    for run in trials:
        cells[(int(dict(run.parameters)[axis]), round(run.step_ratio, 6))].append(run)
    baseline = top_trials(scale.baseline) if scale.baseline is not None else ()
    same_budget = [run for run in baseline if run.total_steps == trials[0].total_steps]
    chosen = dict(arm.configuration.parameters) if arm.configuration is not None else {}
    confirmed = (int(chosen[axis]), float(chosen["step_ratio"])) if {axis, "step_ratio"} <= set(chosen) else None
    return LossMap(
        method=arm.method,
        axis=axis,
        total_steps=trials[0].total_steps,
        losses={place: _best_mean(runs) for place, runs in sorted(cells.items())},
        trials={place: len(runs) for place, runs in cells.items()},
        baseline_best=_best_mean(same_budget) if same_budget else None,
        confirmed=confirmed,
    )


def _slices(arm: StudyArm) -> list[Slice]:
    """The arm's losses over each axis with more than one value."""
    trials = [
        ({name: value for name in _searched(arm) if (value := value_of(run, name)) is not None}, run.final_loss or 0.0)
        for run in top_trials(arm)
    ]
    shares = importances(trials)
    return [cut for name in _searched(arm) if (cut := _slice(arm, name, shares.get(name))) is not None]


def _slice(arm: StudyArm, name: str, share: float | None) -> Slice | None:
    """Losses of one arm over one axis; None where the axis has one value."""
    points = [(value, run.final_loss) for run in top_trials(arm) if (value := value_of(run, name)) is not None]
    values = sorted({value for value, _ in points}, key=lambda value: (isinstance(value, str), value))
    if len(values) < 2:
        return None
    losses = [loss or 0.0 for _, loss in points]
    return Slice(
        method=arm.method,
        axis=name,
        title=parameter_of(name).words,
        values=tuple(value for value, _ in points),
        losses=tuple(losses),
        share=share,
    )


def _spending(arm: StudyArm) -> Spending | None:
    """Best final loss so far at the largest tuning budget against the hours that the arm's whole search had cost."""
    # Trials overlap, so this is the order in which they began; imported ones keep the order of their table.
    order = sorted(arm.search, key=lambda run: run.record.provenance.started_at if run.record is not None else "")
    top = max((run.total_steps for run in top_trials(arm)), default=0)
    spent, best = 0.0, math.inf
    hours: list[float] = []
    losses: list[float] = []
    for run in order:
        # What was paid, shared prefixes once: the chart compares searches as they ran, not trials as if alone.
        cost = run.incurred_gpu_hours if run.incurred_gpu_hours is not None else run.gpu_hours
        if cost is None:
            return None
        spent += cost
        if run.final_loss is not None and run.total_steps == top:
            best = min(best, run.final_loss)
        if math.isfinite(best):
            hours.append(spent)
            losses.append(best)
    return Spending(arm.method, tuple(hours), tuple(losses)) if hours else None


def _edges(study: Study, arm: StudyArm) -> list[str]:
    """Sentences about a confirmed value at the edge of its searched range."""
    return [
        f"{theme.method_label(arm.method)}: the chosen {parameter_of(edge.name).words}, {edge.value:g}, is the {edge.side} "
        "that was searched; the optimum may lie beyond."
        for edge in edges(arm, study.context.axes.get(arm.method, {}))
    ]


def figure(shown: SearchInfo) -> Sequence[Block]:
    """Map, slices and spending of each scale."""
    if not shown.scales:
        return (Prose("No tuning runs were recorded: how the settings were found is not known here.", "empty"),)
    blocks: list[Block] = [Prose(shown.shared)] if shown.shared else []
    for number, scale in enumerate(shown.scales):
        if len(shown.scales) > 1:
            blocks.append(Heading(scale.scale))
        blocks += _scale_blocks(f"search-{number}", scale)
    return blocks


def _scale_blocks(key: str, scale: ScaleSearch) -> list[Block]:
    blocks: list[Block] = []
    height = max([380, *map(search_figures.map_height, scale.loss_maps)])
    several = len(scale.loss_maps) > 1
    for number, shown in enumerate(scale.loss_maps):
        blocks.append(search_figures.map_chart(f"{key}-map-{number}" if several else f"{key}-map", shown, several))
    if scale.spending:
        blocks.append(search_figures.spending_chart(f"{key}-spending", scale.spending, scale.clock, height))
    if scale.slices:
        blocks.append(search_figures.slices_chart(f"{key}-slices", scale.slices))
    blocks += [Prose(text, "note") for text in scale.edges]
    if not blocks:
        blocks.append(Prose("No tuning run of this scale finished.", "empty"))
    return blocks


SECTION = Section("search", "The search", info, figure)
