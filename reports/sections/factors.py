"""Where it comes from: fewer steps times cheaper steps, and how fast each phase ran on this device.

The clock is the pooled step time of the study; utilisation is stated with its convention and only where the device's
peak is known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from reports.estimate.verdict import Reached, ScaleVerdict
from reports.evidence.clock import PooledStepTime
from reports.evidence.runs import FinishedRun
from reports.evidence.study import ScaleStudy, Study
from reports.html import theme
from reports.html.blocks import Block, Chart, Column, Prose, Table
from reports.html.charts import axis, blank, label, log_axis, padded_log
from reports.sections.section import Section
from reports.summary import Summary
from trainers.contract.flops import flops_per_step
from trainers.contract.schedule import Phase
from trainers.contract.spec import TrialSpec, own
from trainers.methods import phases_of

if TYPE_CHECKING:
    import plotly.graph_objects as go

PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "B200": 2250e12, "A100": 312e12}
"""Dense bf16 peaks of the vendor's data sheets, found by a part of the device's name."""


@dataclass(frozen=True, slots=True)
class FactorRow:
    """`speedup = fewer_steps * cheaper_steps` of one verdict."""

    label: str
    method: str
    fewer_steps: float
    cheaper_steps: float

    @property
    def speedup(self) -> float:
        """The product."""
        return self.fewer_steps * self.cheaper_steps


@dataclass(frozen=True, slots=True)
class PhaseRow:
    """One phase of one scale on the clock. Rates per device; `utilisation` is None without a known peak."""

    scale: str
    phase: str
    bag_size: int
    milliseconds: float
    spread: float
    num_runs: int
    positions_per_second: float | None
    tokens_per_second: float | None
    utilisation: float | None


@dataclass(frozen=True, slots=True)
class FactorsInfo:
    """Factors of each verdict that has them, the phases' speed, the data multipliers in words."""

    rows: tuple[FactorRow, ...]
    phases: tuple[PhaseRow, ...]
    data: str
    device: str
    clock: str


def info(study: Study, summary: Summary) -> FactorsInfo:
    """Factors from the verdicts, speed from the pooled step times."""
    rows = tuple(
        FactorRow(
            f"{verdict.scale}, {theme.method_label(verdict.method)}",
            verdict.method,
            verdict.factors.fewer_steps,
            verdict.factors.cheaper_steps,
        )
        for verdict in summary.verdicts
        if verdict.factors is not None
    )
    phases = tuple(_phase(scale, time) for scale in study.scales for time in scale.step_times)
    return FactorsInfo(rows, phases, _text_read(summary.verdicts), summary.device or "", summary.clock_label)


def _text_read(verdicts: tuple[ScaleVerdict, ...]) -> str:
    """How much more text the methods read, at equal loss where a ladder gave it, else in a pair of runs that end apart."""
    equal, apart = [], []
    for verdict in verdicts:
        if verdict.data_multiplier is None:
            continue
        said = (
            f"{verdict.scale}: {theme.method_label(verdict.method)} reads {verdict.data_multiplier:.2f} times the text"
        )
        pair = verdict.matched_pair
        if isinstance(dict(verdict.by_clock).get("tokens"), Reached) or pair is None:
            equal.append(said)
        else:
            apart.append(f"{said}, {abs(pair.baseline_loss - pair.method_loss):.3f} nats apart")
    sentences = [f"At equal loss, {'; '.join(equal)} that the baseline reads."] if equal else []
    if apart:
        sentences.append(f"Of two runs side by side, not at equal loss: {'; '.join(apart)}.")
    return " ".join(sentences)


def _phase(scale: ScaleStudy, time: PooledStepTime) -> PhaseRow:
    runs = [run for run in scale.runs if run.device == time.device and run.tokens_per_step is not None]
    positions, flops = float(runs[0].tokens_per_step or 0) if runs else None, None
    found = _trained_phase(runs, time)
    if found is not None:
        spec, phase = found
        positions, flops = phase.positions(spec.tokens_per_step), flops_per_step(spec, phase)
    devices = runs[0].num_devices if runs else 1
    rate = None if positions is None else positions / time.seconds / devices
    # An unknown device has no utilisation rather than a guessed one.
    peak = next((value for name, value in PEAK_FLOPS.items() if name in time.device.upper()), None)
    utilisation = None if peak is None or flops is None else flops / time.seconds / devices / peak
    return PhaseRow(
        scale=time.scale,
        phase=time.phase,
        bag_size=time.bag_size,
        milliseconds=1_000 * time.seconds,
        spread=time.spread,
        num_runs=time.num_runs,
        positions_per_second=rate,
        tokens_per_second=None if rate is None else rate * time.bag_size,
        utilisation=utilisation,
    )


def _trained_phase(runs: list[FinishedRun], time: PooledStepTime) -> tuple[TrialSpec, Phase] | None:
    """A trial of ours that went through this phase, and the phase; None for runs from elsewhere."""
    specs = (own(run.record.spec) for run in runs if run.record is not None)
    return next(
        (
            (spec, phase)
            for spec in specs
            for phase in phases_of(spec)
            if (phase.name, phase.bag_size) == (time.phase, time.bag_size)
        ),
        None,
    )


def figure(shown: FactorsInfo) -> Sequence[Block]:
    """The factors as a chart, the phases as a table."""
    blocks: list[Block] = []
    if shown.rows:
        blocks.append(_chart(shown))
    if shown.data:
        blocks.append(Prose(shown.data))
    if shown.phases:
        blocks.append(_table(shown))
        blocks.append(
            Prose(
                "Utilisation (MFU) counts 6 × (parameters without the input embedding) + 12 × layers × width × "
                "context / 2 model FLOPs a position, causal (context: the length of the phase's sequences; a further "
                "head adds a layer and the unembedding), over the dense bf16 peak; empty where the "
                "device's is not known. Spread: the slowest run's median step over the fastest's.",
                "note",
            )
        )
    if not blocks:
        blocks.append(Prose("No run has a clock that could be taken apart.", "empty"))
    return blocks


def _chart(shown: FactorsInfo) -> Chart:
    last = shown.rows[-1]
    fewer, cheaper = abs(math.log(last.fewer_steps)), abs(math.log(last.cheaper_steps))
    share = fewer / max(fewer + cheaper, 1e-12)
    if share > 0.9:
        title = f"Almost all of it is the number of steps: a step costs {1 / last.cheaper_steps:.2f} of the baseline's"
    elif share < 0.1:
        title = "Almost all of it is the cost of a step"
    else:
        title = f"Steps account for a factor of {last.fewer_steps:.2f}, their cost for {last.cheaper_steps:.2f}"
    if len(shown.rows) > 1:
        title += f" ({last.label})"
    rows = tuple(
        (row.label, f"{row.fewer_steps:.3f}", f"{row.cheaper_steps:.3f}", f"{row.speedup:.3f}") for row in shown.rows
    )
    columns = (Column("Comparison", numeric=False), Column("Fewer steps"), Column("Cheaper steps"), Column("Speedup"))
    table = Table("Speedup = fewer steps × cheaper steps", columns, rows)
    return Chart("factors", title, draw(shown.rows, shown.clock), table, 84 + 84 * len(shown.rows))


def draw(rows: tuple[FactorRow, ...], clock: str) -> go.Figure:
    """Two bars a row, end to end on a logarithmic axis: the second starts where the first ends."""
    drawn = blank(left=14, right=70, top=8, bottom=54)
    edges = [edge for row in rows for edge in (1.0, row.fewer_steps, row.speedup)]
    low, high = padded_log([*edges, 0.95, 1.1], 0.07)
    for position, row in enumerate(rows):
        color = theme.method_style(row.method).color
        for start, end, y, opacity, text in (
            (1.0, row.fewer_steps, position - 0.02, 1.0, f"fewer steps, {theme.speedup(row.fewer_steps)}"),
            (row.fewer_steps, row.speedup, position + 0.3, 0.45, f"cheaper steps, {theme.speedup(row.cheaper_steps)}"),
        ):
            drawn.add_shape(
                type="rect",
                x0=min(start, end),
                x1=max(start, end),
                y0=y - 0.09,
                y1=y + 0.09,
                fillcolor=theme.rgba(color, opacity),
                line={"color": color, "width": 1},
            )
            # Both texts stand to the right of the bars, where no bar can reach them, slower factors included.
            at = math.log10(max(start, end, 1.0))
            drawn.add_annotation(**label(text, at, y, xshift=8))
        drawn.add_shape(
            type="line",
            x0=row.fewer_steps,
            x1=row.fewer_steps,
            y0=position - 0.11,
            y1=position + 0.39,
            line={"color": theme.MUTED, "width": 1, "dash": "dot"},
        )
        name = f"{row.label}: <b>{theme.speedup(row.speedup)}</b>"
        drawn.add_annotation(**label(name, 0, position - 0.32, xref="paper"))
    bottom = len(rows) - 0.5
    drawn.add_shape(
        type="line", x0=1, x1=1, y0=-0.2, y1=bottom, line={"color": theme.MUTED, "width": 1, "dash": "dash"}
    )
    drawn.add_scatter(x=[1.0], y=[0], mode="markers", marker={"opacity": 0}, hoverinfo="skip")
    drawn.update_layout(
        xaxis=log_axis(f"factor on {clock} (log scale)", low, high * 1.35, suffix="×"),
        yaxis=axis("", grid=False, range=[bottom, -0.5], tickvals=[], showline=False, ticks=""),
    )
    return drawn


def _table(shown: FactorsInfo) -> Table:
    columns = (
        Column("Scale", numeric=False),
        Column("Phase", numeric=False),
        Column("Bag size"),
        Column("Step, ms"),
        Column("Spread"),
        Column("Runs"),
        Column("Positions/s a device"),
        Column("Data tokens/s a device"),
        Column("MFU"),
    )
    rows = tuple(
        (
            row.scale,
            row.phase,
            str(row.bag_size),
            theme.significant(row.milliseconds, 4),
            f"{row.spread:.3f}",
            str(row.num_runs),
            theme.count(row.positions_per_second),
            theme.count(row.tokens_per_second),
            theme.percent(row.utilisation, 1),
        )
        for row in shown.phases
    )
    on = f" on {shown.device}" if shown.device else ""
    folded = f"The speed of all {len(rows)} phases" if len(rows) > 12 else ""
    return Table(f"Steady-state speed of each phase{on}", columns, rows, folded)


SECTION = Section("factors", "Where it comes from", info, figure)
