"""The appendix: every run, every fit, every exclusion, the method in words, the environment, the command, the JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from reports.estimate.verdict import COUNTED_CLOCKS, LadderCurve
from reports.evidence.runs import FinishedRun
from reports.evidence.study import ScaleStudy, Study
from reports.html import theme
from reports.html.blocks import Block, Cell, Code, Column, Heading, Link, Prose, Table
from reports.sections.section import Section
from reports.summary import Summary, summary_to_json
from trainers.contract.record import RunRecord
from trainers.methods import METHODS, describe_parameters

SPEEDUP_IN_WORDS = (
    "The speedup at a loss is the device-hours in which finished, decayed baseline runs reach it over the device-hours "
    "of the method. The baseline's hours are read off a power law with an asymptote that is fitted to its ladder of "
    "budgets; the interval covers the noise between seeds of both arms and of the step times, with as many degrees of "
    "freedom as there are independent trunks."
)


@dataclass(frozen=True, slots=True)
class RunLine:
    """One run of the table; `cells` in the order of its columns."""

    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class FitLine:
    """One fitted ladder and the scale it belongs to."""

    scale: str
    ladder: LadderCurve


@dataclass(frozen=True, slots=True)
class RoutingLine:
    """The routing of one run of a mixture of experts, of its least even layer; `shift` None without a phase boundary."""

    run: str
    dropped: int
    max_over_mean: float
    entropy: float
    shift: float | None
    shift_steps: tuple[int, int]


@dataclass(frozen=True, slots=True)
class AppendixInfo:
    """All that the appendix prints."""

    clock: str
    runs: tuple[RunLine, ...]
    scores: tuple[tuple[str, ...], ...]
    routing: tuple[RoutingLine, ...]
    fits: tuple[FitLine, ...]
    exclusions: tuple[tuple[str, str], ...]
    environment: tuple[tuple[str, str], ...]
    command: str
    search_space: str
    summary_json: str
    methods: tuple[str, ...]


def info(study: Study, summary: Summary) -> AppendixInfo:
    """Collect everything; nothing is summarised here."""
    context = study.context
    fits = tuple(
        FitLine(verdict.scale, ladder)
        for verdict in summary.verdicts
        for ladder in (verdict.baseline_ladder, verdict.method_ladder)
        if ladder is not None
    )
    exclusions = tuple((_name(exclusion.run), exclusion.reason) for exclusion in study.exclusions)
    return AppendixInfo(
        clock=study.clock_label,
        runs=tuple(_line(study, scale, run) for scale in study.scales for run in scale.runs),
        scores=_scores(study),
        routing=tuple(line for run in study.runs if (line := _routing(run)) is not None),
        fits=fits,
        exclusions=exclusions,
        environment=_environment(study, summary),
        command=context.command,
        search_space=context.search_space_text,
        summary_json=json.dumps(summary_to_json(summary), indent=1, ensure_ascii=False),
        methods=_methods(study),
    )


def _methods(study: Study) -> tuple[str, ...]:
    """Every method of the study that we know, but the baseline, in words."""
    names = dict.fromkeys(arm.method for scale in study.scales for arm in scale.methods)
    return tuple(f"{METHODS[name].label}. {METHODS[name].words}" for name in names if name in METHODS)


def _scores(study: Study) -> tuple[tuple[str, ...], ...]:
    """Downstream scores as they were stated, beside the loss: the names of the columns, then a line for each run with any."""
    tasks = dict.fromkeys(task for run in study.runs for task, _ in run.scores)
    if not tasks:
        return ()
    lines = [
        (
            _name(run),
            theme.number(run.final_loss, 4),
            *(f"{scores[task]:g}" if task in scores else "–" for task in tasks),
        )
        for run in study.runs
        if (scores := dict(run.scores))
    ]
    return (("Run", "Final loss", *tasks), *lines)


def _name(run: FinishedRun) -> str:
    parts = [run.scale, theme.method_label(run.method), describe_parameters(run.parameters)]
    parts.append(f"{run.total_steps:,} steps")
    if run.seed is not None:
        parts.append(f"seed {run.seed}")
    return ", ".join(part for part in parts if part)


def _line(study: Study, scale: ScaleStudy, run: FinishedRun) -> RunLine:
    address = study.context.run_links.get(run.run_id, "")
    name = run.run_id[:16]
    outcome = run.outcome if not run.reason else f"{run.outcome}: {run.reason[:160]}"
    cells: tuple[Cell, ...] = (
        Link(name, address) if address else name,
        run.scale,
        theme.method_label(run.method),
        describe_parameters(run.parameters) or "–",
        theme.learning_rate(run.learning_rate),
        f"{run.total_steps:,}",
        "–" if run.seed is None else str(run.seed),
        run.purpose.replace("_", " "),
        theme.number(run.final_loss, 4),
        theme.hours(scale.hours.get(run.run_id, run.gpu_hours)),
        theme.hours(run.billed_gpu_hours),
        theme.hours(run.incurred_gpu_hours),
        theme.count(run.tokens),
        theme.number(run.epochs),
        outcome,
    )
    return RunLine(cells)


def _routing(run: FinishedRun) -> RoutingLine | None:
    """At the run's last point; what was dropped, and the largest shift at a boundary, over all of its points."""
    curve = run.record.curve if run.record is not None else None
    known = [point.routing for point in curve.points if point.routing is not None] if curve else []
    if curve is None or not known:
        return None
    # The least even layer and the largest shift: an average over layers hides the one that has collapsed.
    shift = max(curve.routing_shifts, key=lambda shift: shift.distance, default=None)
    return RoutingLine(
        run=_name(run),
        dropped=sum(point.dropped for point in known),
        max_over_mean=max(known[-1].max_over_mean),
        entropy=min(known[-1].entropy),
        shift=shift.distance if shift else None,
        shift_steps=(shift.boundary, shift.step) if shift else (0, 0),
    )


def _environment(study: Study, summary: Summary) -> tuple[tuple[str, str], ...]:
    context = study.context
    facts = [
        ("Sweep", context.name),
        ("Made", theme.day(context.created_at)),
        ("Commit", context.git_commit + (" with local changes" if context.git_dirty else "")),
        ("Device", summary.device or "not stated"),
        ("Corpus", context.corpus_description),
    ]
    records = [run.record for run in study.runs if run.record is not None]
    if records:
        facts.append(("Execution", ", ".join(sorted({record.provenance.execution for record in records}))))
        facts.append(("Sharing", _sharing(records)))
        versions = sorted({version for record in records for version in record.provenance.versions})
        facts += [(f"Version of {name}", version) for name, version in versions]
    return tuple((name, value) for name, value in facts if value)


def _sharing(records: Sequence[RunRecord]) -> str:
    """How trials that used a device together were timed; empty where each had its own."""
    shares = sorted({record.timing.devices for record in records if record.timing.devices < 1})
    if not shares:
        return ""
    parts = ", ".join(f"{share:g}" for share in shares)
    return f"a trial had {parts} of a device; steps were timed under that contention, hours are that share"


def figure(shown: AppendixInfo) -> Sequence[Block]:
    """Headings, tables and texts."""
    blocks: list[Block] = [Heading("In words"), *(Prose(text) for text in (*shown.methods, SPEEDUP_IN_WORDS))]
    if shown.fits:
        blocks += [Heading("Fits"), _fits(shown)]
    blocks.append(Heading("Runs"))
    blocks.append(_runs(shown) if shown.runs else Prose("There are no runs.", "empty"))
    if shown.scores:
        header, *lines = shown.scores
        tasks = tuple(Column(name, numeric=name != "Run") for name in header)
        title = "Downstream scores as they were stated; no claim rests on them"
        blocks += [Heading("Downstream scores"), Table(title, tasks, tuple(lines))]
    if shown.routing:
        blocks += [Heading("Experts"), _experts(shown)]
    if shown.exclusions:
        columns = (Column("Run", numeric=False), Column("Reason", numeric=False))
        number = len(shown.exclusions)
        title = f"{number:,} {'run enters' if number == 1 else 'runs enter'} no estimate"
        blocks += [Heading("Exclusions"), Table(title, columns, shown.exclusions, f"{title}: the reasons")]
    columns = (Column("What", numeric=False), Column("Value", numeric=False))
    blocks += [Heading("Environment"), Table("Where the runs and this page come from", columns, shown.environment)]
    if shown.command:
        blocks.append(Code(shown.command, "This page again"))
    if shown.search_space:
        blocks.append(Code(shown.search_space, folded="The search-space file"))
    blocks.append(Code(shown.summary_json, folded="All numbers as JSON"))
    return blocks


def _fits(shown: AppendixInfo) -> Table:
    columns = (
        Column("Scale", numeric=False),
        Column("Method", numeric=False),
        Column("Clock", numeric=False),
        Column("Asymptote E"),
        Column("Amplitude A"),
        Column("Exponent a"),
        Column("Lack of fit, p"),
        Column("Monotone", numeric=False),
    )

    rows = tuple(
        (
            fit.scale,
            theme.method_label(fit.ladder.method),
            COUNTED_CLOCKS.get(fit.ladder.clock, shown.clock),
            theme.significant(fit.ladder.asymptote, 4),
            theme.significant(fit.ladder.amplitude, 4),
            theme.significant(fit.ladder.exponent, 4) + (" (at its bound)" if fit.ladder.at_bound else ""),
            "not testable" if fit.ladder.lack_of_fit_p is None else f"{fit.ladder.lack_of_fit_p:.3f}",
            "yes" if fit.ladder.monotone else "no",
        )
        for fit in shown.fits
    )
    return Table("L(C) = E + A · C^−a, fitted to the decayed ends", columns, rows)


def _runs(shown: AppendixInfo) -> Table:
    columns = (
        Column("Run", numeric=False),
        Column("Scale", numeric=False),
        Column("Method", numeric=False),
        Column("Parameters", numeric=False),
        Column("Learning rate"),
        Column("Steps"),
        Column("Seed"),
        Column("Stage", numeric=False),
        Column("Final loss"),
        Column(shown.clock),
        Column("Billed, alone"),
        Column("Paid here"),
        Column("Tokens"),
        Column("Epochs"),
        Column("Outcome", numeric=False),
    )
    return Table(
        "Every run, with its own page in the tracking server where there is one",
        columns,
        tuple(line.cells for line in shown.runs),
        f"All {len(shown.runs):,} runs",
    )


def _experts(shown: AppendixInfo) -> Table:
    columns = (
        Column("Run", numeric=False),
        Column("Busiest / mean expert"),
        Column("Entropy of the load"),
        Column("Dropped"),
        Column("Load that moved at the boundary"),
        Column("Between steps", numeric=False),
    )
    rows = tuple(
        (
            line.run,
            f"{line.max_over_mean:.2f}",
            f"{line.entropy:.3f}",
            f"{line.dropped:,}",
            theme.percent(line.shift),
            "–" if line.shift is None else f"{line.shift_steps[0]:,} and {line.shift_steps[1]:,}",
        )
        for line in shown.routing
    )
    return Table("Routing over the experts at the end of a run, in its least even layer", columns, rows)


SECTION = Section("appendix", "Appendix", info, figure)
