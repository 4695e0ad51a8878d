"""A planned sweep as a page of its own: what it will cost with and without shared prefixes, and the tree of stages.

Holds the values of a plan's arms and stages, for the sweeper that plans them, and draws them. Steps run along the x axis;
a trunk is one lane, and trials that branch off go on in the lanes below, joined at the step of the branch. Nothing on this
page has been trained.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from reports.html import theme
from reports.html.blocks import Block, Chart, Column, Fragment, Prose, Table
from reports.html.charts import blank, label, linear_axis
from reports.html.layout import DrawnSection, Masthead, render_sections, side_by_side
from trainers.contract.schedule import NEXT_TOKEN

if TYPE_CHECKING:
    import plotly.graph_objects as go

LANE_PIXELS = 13
MOST_LANES = 500
"""Of one scale; the rest of a larger tree is in the chart's table only."""
PHASE_STYLES = {NEXT_TOKEN: (theme.MUTED, 2), "decay": (theme.ORANGE, 3)}
METHOD_STYLE = (theme.ACCENT, 5)
"""Colour and width of a stage by its phase; whatever is not ordinary training is the method's own."""


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """Steps `[start, end)` that are trained once, for `trials` runs, in `hours` device-hours.

    `parent` is the stage that it goes on from, by `node`; None from the start. `phase` is the objective's name, or
    `decay`; `label` says in words which runs it belongs to. The names are keys of the plan's JSON.
    """

    node: str
    parent: str | None
    scale: str
    method: str
    start: int
    end: int
    label: str
    phase: str
    trials: int
    hours: float


@dataclass(frozen=True, slots=True)
class PlannedArm:
    """One method at one scale. Steps and device-hours `alone` are every trial trained by itself, `shared` with prefixes
    trained once; `finished` trials have a record already and cost nothing.

    `flops` are model FLOPs of all trials to train, each alone; `tokens` and `epochs` those of the run that reads most.
    The names are keys of the plan's JSON.
    """

    scale: str
    method: str
    tuning_trials: int
    confirmation_trials: int
    finished: int
    steps_alone: int
    steps_shared: int
    hours_alone: float
    hours_shared: float
    flops: float
    tokens: int
    epochs: float | None
    probe_trials: int = 0


@dataclass(frozen=True, slots=True)
class PlannedSweep:
    """`notes` are sentences for people; `clock` is GPU-hours or CPU-hours; `price` per device-hour in `currency`."""

    name: str
    question: str
    clock: str
    price: float | None
    currency: str
    arms: tuple[PlannedArm, ...]
    stages: tuple[PlannedStage, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StageLanes:
    """One scale's stages in the order of their lanes. `lanes`: stage -> lane, from the top; `rows`: lane -> label."""

    scale: str
    stages: tuple[PlannedStage, ...]
    lanes: Mapping[str, int]
    rows: Mapping[int, str]

    @property
    def num_lanes(self) -> int:
        """How many lanes there are."""
        return 1 + max(self.lanes.values(), default=-1)


def lay_out(scale: str, stages: Sequence[PlannedStage]) -> StageLanes:
    """Give each stage of a scale its lane: of the stages that go on from one, one stays in its lane, the others get a lane
    below each."""
    known = {stage.node for stage in stages}
    children: dict[str | None, list[PlannedStage]] = defaultdict(list)
    for stage in stages:
        children[stage.parent if stage.parent in known else None].append(stage)
    reach: dict[str, int] = {}
    # Children start later than their parents, so one pass from the end knows how far each branch reaches.
    for stage in sorted(stages, key=lambda stage: -stage.start):
        reach[stage.node] = max([stage.end, *(reach[child.node] for child in children[stage.node])])
    lanes: dict[str, int] = {}
    rows: dict[int, str] = {}
    ordered: list[PlannedStage] = []
    for root in sorted(children[None], key=_natural):
        rows[1 + max(lanes.values(), default=-1)] = f"{theme.method_label(root.method)} {root.label}"
        # A stack instead of recursion: an adaptive search may branch more often than Python may call. Popped in this
        # order, the lanes below a trunk are those that leave it last to first, and joints do not cross.
        waiting: list[tuple[PlannedStage, int | None]] = [(root, None)]
        while waiting:
            stage, lane = waiting.pop()
            lanes[stage.node] = 1 + max(lanes.values(), default=-1) if lane is None else lane
            ordered.append(stage)
            # The last one stays in the lane: of the same phase if there is one, else the longest.
            leaving = sorted(
                children[stage.node],
                key=lambda child: (child.phase == stage.phase, reach[child.node], child.node),
            )
            waiting += [(child, None) for child in leaving[:-1]]
            waiting += [(child, lanes[stage.node]) for child in leaving[-1:]]
    return StageLanes(scale, tuple(ordered), lanes, rows)


def _natural(stage: PlannedStage) -> tuple[object, ...]:
    """Numbers in words by their size: a bag of 10 after one of 9."""
    parts = re.split(r"(\d+(?:\.\d+)?)", stage.label)
    return (
        stage.method,
        [float(part) if index % 2 else part for index, part in enumerate(parts)],
        stage.start,
        stage.node,
    )


def tree_chart(key: str, tree: StageLanes, planned: PlannedSweep) -> Chart:
    """The lanes of one scale."""
    arms = [arm for arm in planned.arms if arm.scale == tree.scale]
    alone, shared = sum(arm.steps_alone for arm in arms), sum(arm.steps_shared for arm in arms)
    runs = sum(arm.tuning_trials + arm.probe_trials + arm.confirmation_trials for arm in arms)
    lanes = min(tree.num_lanes, MOST_LANES)
    figure = blank(left=230, right=20, top=8, bottom=54)
    for phase in dict.fromkeys(stage.phase for stage in tree.stages):
        _draw_phase(figure, tree, phase, planned)
    _draw_joints(figure, tree)
    end = max((stage.end for stage in tree.stages), default=1)
    figure.update_layout(
        xaxis=linear_axis("optimizer step", 0, end * 1.01),
        yaxis={"range": [lanes - 0.4, -0.8], "visible": False, "fixedrange": True},
        annotations=[
            label(text, 0, lane, theme.INK, xref="paper", xanchor="right", xshift=-8, font={"size": 11})
            for lane, text in tree.rows.items()
            if lane < lanes
        ],
    )
    saved = f", {theme.percent(1 - shared / alone)} fewer" if alone and shared < alone else ""
    title = f"{tree.scale}: {runs:,} runs in {len(tree.stages):,} stages, {theme.count(shared)} steps instead of "
    title += f"{theme.count(alone)}{saved}"
    note = "Blue and thick: training that only the method does; grey: ordinary training; orange: the decay at the end of a run."
    if tree.num_lanes > lanes:
        note += f" The first {lanes} of {tree.num_lanes} lanes are drawn; the table has all."
    return Chart(key, title, figure, _stage_table(tree, planned), height=LANE_PIXELS * lanes + 70, note=note)


def _draw_phase(figure: go.Figure, tree: StageLanes, phase: str, planned: PlannedSweep) -> None:
    x: list[float | None] = []
    y: list[float | None] = []
    text: list[str] = []
    for stage in tree.stages:
        lane = tree.lanes[stage.node]
        if stage.phase == phase and lane < MOST_LANES:
            x += [stage.start, (stage.start + stage.end) / 2, stage.end, None]
            y += [lane, lane, lane, None]
            text += [_hover(stage, planned)] * 3 + [""]
    color, width = PHASE_STYLES.get(phase, METHOD_STYLE)
    figure.add_scatter(
        x=x, y=y, mode="lines", line={"color": color, "width": width}, hovertext=text, hoverinfo="text", name=phase
    )  # fmt: skip


def _draw_joints(figure: go.Figure, tree: StageLanes) -> None:
    """Thin upright lines from a trunk to what leaves it."""
    x: list[float | None] = []
    y: list[float | None] = []
    for stage in tree.stages:
        above = tree.lanes.get(stage.parent or "")
        if above is not None and above != tree.lanes[stage.node] < MOST_LANES:
            x += [stage.start, stage.start, None]
            y += [above, tree.lanes[stage.node], None]
    figure.add_scatter(
        x=x, y=y, mode="lines", line={"color": theme.MUTED, "width": 0.7}, hoverinfo="skip", name="joints"
    )


def _hover(stage: PlannedStage, planned: PlannedSweep) -> str:
    price = "" if planned.price is None else f", {theme.money(stage.hours * planned.price, planned.currency)}"
    for_whom = "for one run" if stage.trials == 1 else f"once for {stage.trials} runs"
    return (
        f"{theme.method_label(stage.method)} {stage.label}<br>{stage.phase}, steps {stage.start:,} to {stage.end:,}"
        f"<br>{theme.hours(stage.hours)}{price}, {for_whom}"
    )


def _stage_table(tree: StageLanes, planned: PlannedSweep) -> Table:
    columns = (
        Column("Run", numeric=False),
        Column("Phase", numeric=False),
        Column("From step"),
        Column("To step"),
        Column("Runs that use it"),
        Column(planned.clock),
    )
    rows = tuple(
        (
            f"{theme.method_label(stage.method)} {stage.label}",
            stage.phase,
            f"{stage.start:,}",
            f"{stage.end:,}",
            str(stage.trials),
            theme.hours(stage.hours),
        )
        for stage in tree.stages
    )
    return Table(f"Stages of {tree.scale}, each trained once", columns, rows)


def cost_table(planned: PlannedSweep) -> Table:
    """Steps, device-hours and money of each arm and of all, alone and shared."""
    names = ["Scale", "Method", "Tuning + confirmation", "Steps alone", "Steps shared", "Saved"]
    names += [f"{planned.clock} alone", f"{planned.clock} shared"]
    names += ["Price alone", "Price shared"] if planned.price is not None else []
    columns = tuple(Column(name, numeric=index > 1) for index, name in enumerate(names))
    rows = [
        _cost_row(arm.scale, theme.method_label(arm.method), (arm,), planned)
        for arm in planned.arms
    ]  # fmt: skip
    if len(planned.arms) > 1:
        rows.append(_cost_row("All", "", planned.arms, planned))
    return Table(
        "Every run by itself, and with the prefixes that runs have in common trained once", columns, tuple(rows)
    )


def _cost_row(scale: str, method: str, arms: Sequence[PlannedArm], planned: PlannedSweep) -> tuple[str, ...]:
    alone, shared = sum(arm.steps_alone for arm in arms), sum(arm.steps_shared for arm in arms)
    hours = sum(arm.hours_alone for arm in arms), sum(arm.hours_shared for arm in arms)
    counts = [(arm.tuning_trials, arm.probe_trials, arm.confirmation_trials) for arm in arms]
    tuning, probes, confirming = map(sum, zip(*counts, strict=True))
    trials = f"{tuning} + {probes} + {confirming}" if probes else f"{tuning} + {confirming}"
    cells = [scale, method, trials, theme.count(alone), theme.count(shared)]
    cells.append(theme.percent(1 - shared / alone) if alone else "–")
    cells += [theme.hours(value, max(hours)) for value in hours]
    if planned.price is not None:
        cells += [theme.money(value * planned.price, planned.currency) for value in hours]
    return tuple(cells)


def render_plan(planned: PlannedSweep, numbers: Mapping[str, Any]) -> str:
    """The page as HTML; `numbers` are embedded as JSON (`#summary`)."""
    alone, shared = (sum(getattr(arm, key) for arm in planned.arms) for key in ("hours_alone", "hours_shared"))
    price = "" if planned.price is None else f", {theme.money(shared * planned.price, planned.currency)}"
    clock = planned.clock.removesuffix("-hours")
    sentence = f"{theme.hours(shared)} of {clock} time{price}"
    if shared < alone:
        sentence += (
            f", instead of {theme.hours(alone)} with every run by itself ({theme.percent(1 - shared / alone)} less)"
        )
    top = Masthead(
        "Plan.",
        "Nothing has been trained; adaptive searches are shown on one likely course.",
        planned.question,
        sentence + ".",
    )
    trees = [
        lay_out(scale, [stage for stage in planned.stages if stage.scale == scale])
        for scale in dict.fromkeys(stage.scale for stage in planned.stages)
    ]
    charts: list[Block] = [tree_chart(f"tree-{index}", tree, planned) for index, tree in enumerate(trees)]
    costs: list[Block] = [cost_table(planned), *(Prose(note, "note") for note in planned.notes)]
    sections = (
        DrawnSection("answer", "", side_by_side([Fragment("masthead.html.j2", top)])),
        DrawnSection("costs", "What it costs", side_by_side(costs)),
        DrawnSection(
            "tree", "What is trained once", side_by_side(charts or [Prose("Nothing is left to train.", "empty")])
        ),
    )
    return render_sections(f"{planned.name}: the plan", planned.name, sections, numbers)
