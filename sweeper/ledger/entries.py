"""How a sweep and its trials look in the ledger: names, parameters, tags and metric points, as plain data.

Decides what a reviewer reads in the dashboard's columns and which points a chart is drawn from. Storing them is
`mlflow_ledger`'s. The columns are the same for every method, so that a baseline and a method line up in one table, and
for runs that were trained elsewhere, so that one view fits both; rows of those are for people and are never read back: what
was imported is kept as the text that it came in.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from reports.evidence.runs import FinishedRun
from reports.html.theme import method_style
from sweeper.ledger.about import SweepAbout
from trainers.contract.errors import InputError
from trainers.contract.reading import json_value, pairs_of, value_of
from trainers.contract.record import Diverged, EvalPoint, Failed, Finished, RunRecord, Stopped, outcome_name
from trainers.contract.spec import AnySpec, Scalar, Spec, spec_from_dict, spec_to_dict
from trainers.contract.writing import printable
from trainers.methods import METHODS, PARAMETER_COLUMNS, PARAMETER_TABLE, describe_parameters, facts_of, symbol_of

MAX_POINTS = 500
"""Points of a curve that are sent to the dashboard; `record.json` keeps them all."""

LOSS_KEY = "validation_loss"
"""The metric that every point of a curve has."""
KIND_TAG = "sweeper.kind"
ORDER_TAG = "sweeper.order"
SPEC_TAG = "sweeper.spec"
SPEC_ID_TAG = "spec_id"
PURPOSE_TAG = "stage"
OUTCOME_TAG = "outcome"
REASON_TAG = "reason"
DESCRIPTION_TAG = "mlflow.note.content"
"""MLflow shows its first line where there is room for one."""
IMPORTED_KIND = "imported"
IMPORT_TAG = "sweeper.import"
"""Which import a row belongs to."""
UNFINISHED_TAG = "sweeper.unfinished_import"
"""File and number of records of an import into a sweep that has begun and not ended."""
ROW_TAG = "sweeper.row"
"""An imported run's name or its line in the file."""
SCORES_TAG = "sweeper.scores"
"""The last file from which a trial's model has downstream scores."""
_LONGEST_REASON = 2_000
_LONGEST_FOREIGN = 500
"""Characters of a text from outside that go into the dashboard's columns."""

Scores = tuple[tuple[str, float], ...]
"""Downstream scores by the name of their task and metric."""

RUN_STATUS = {"finished": "FINISHED", "stopped": "KILLED", "diverged": "FAILED", "failed": "FAILED"}
"""Our outcomes in MLflow's words."""


@dataclass(frozen=True, slots=True)
class MetricPoint:
    """One value of one metric; `timestamp` in milliseconds since 1970, derived from the record and not from now, so
    that writing a record twice stores the same points."""

    key: str
    value: float
    step: int
    timestamp: int


@dataclass(frozen=True, slots=True)
class Trial:
    """A trial's run as it was found; `started` in milliseconds, `complete` once its outcome is known, `charted` where some
    points of its curve are there."""

    run_id: str
    artifact_uri: str
    started: int
    order: int
    spec: AnySpec
    purpose: str
    complete: bool
    charted: bool = False


def trial_of(
    run_id: str, artifact_uri: str, started: int, tags: Mapping[str, str], metrics: Mapping[str, float]
) -> Trial:
    """Rebuild a trial from its run. Raises `KeyError` or `ValueError` where its tags do not hold one."""
    spec = spec_from_dict(json_value(tags[SPEC_TAG]))
    complete, charted = OUTCOME_TAG in tags, LOSS_KEY in metrics
    return Trial(run_id, artifact_uri, started, int(tags[ORDER_TAG]), spec, tags[PURPOSE_TAG], complete, charted)


def sweep_tags(about: SweepAbout) -> dict[str, str]:
    """What the sweep's own run shows of where it comes from."""
    return {
        "question": about.question,
        "command": about.command,
        "git_commit": about.git_commit + ("-dirty" if about.git_dirty else ""),
        "mlflow.source.git.commit": about.git_commit,
        "corpus_fingerprint": about.corpus_fingerprint,
        "tokenizer_fingerprint": about.tokenizer_fingerprint,
        "device": about.device,
        "versions": " ".join(f"{name}={version}" for name, version in about.versions),
    }


def running_description(about: SweepAbout) -> str:
    """The sweep's description, in Markdown, until it ends."""
    return f"{_as_words(about.question)}\n\nRunning since {about.started_at}: {_as_code(about.command)}"


def final_description(about: SweepAbout, headline: str | None) -> str:
    """The sweep's description in the end; the headline is its first line."""
    said = [_as_words(text) for text in (headline, about.question) if text]
    return "\n\n".join([*said, _as_code(about.command)])


_NO_MARKDOWN = {ord("\\"): "\\\\", ord("["): "\\[", ord("<"): "&lt;"}


def _as_words(text: str) -> str:
    """Text for a place where Markdown is read: no tag, no link and no picture, which would be fetched from somewhere."""
    return printable(text).translate(_NO_MARKDOWN)


def _as_code(text: str) -> str:
    return f"`{printable(text).replace('`', chr(39))}`"


def short_number(number: float) -> str:
    """A number for a text column, without the noise of binary fractions."""
    return f"{number:.10g}"


def _column(value: Scalar | None) -> str:
    return short_number(value) if isinstance(value, float) else str(value)


def method_label(spec: Spec) -> str:
    """`Baseline`, or the method with its parameters: `TST s=3 r=0.2`."""
    label = METHODS[spec.method].label if spec.method in METHODS else spec.method
    symbols_first = sorted(spec.parameters, key=lambda given: symbol_of(given[0]) == given[0])
    return " ".join(word for word in (label, describe_parameters(symbols_first, digits=10)) if word)


def run_name(spec: Spec, purpose: str) -> str:
    """For people, never parsed: `nano TST s=3 r=0.2 lr=2.8e-03 · 4,000 steps · seed 1000 · confirmation`."""
    schedule = spec.schedule
    return (
        f"{spec.scale} {method_label(spec)} lr={schedule.learning_rate:.1e} · {schedule.total_steps:,} steps "
        f"· seed {spec.seed} · {purpose.replace('_', ' ')}"
    )


def parameters(spec: Spec) -> dict[str, str]:
    """One row of the dashboard's table, with columns that line up across methods."""
    own = {name: _column(value) for name, value in spec.parameters}
    return {
        **{name: _column(row.absent) for name, row in PARAMETER_TABLE.items() if row.absent is not None},
        **own,
        "scale": spec.scale,
        "method": spec.method,
        "learning_rate": short_number(spec.schedule.learning_rate),
        "total_steps": str(spec.schedule.total_steps),
        **{name: _column(value) for name, value in facts_of(spec).columns.items()},
        "seed": str(spec.seed),
    }


def trial_tags(spec: Spec, purpose: str, order: int) -> dict[str, str]:
    """What is known when a trial is asked for; `order` counts the trials of the sweep in the order asked."""
    return {
        KIND_TAG: "trial",
        ORDER_TAG: str(order),
        SPEC_TAG: json.dumps(spec_to_dict(spec), sort_keys=True, separators=(",", ":"), allow_nan=False),
        SPEC_ID_TAG: spec.spec_id,
        "scale": spec.scale,
        "method": spec.method,
        PURPOSE_TAG: purpose,
        "mlflow.runColor": method_style(spec.method).color,
    }


def result_tags(record: RunRecord) -> dict[str, str]:
    """What is known when a trial has ended, except the outcome itself: that tag marks the record as complete."""
    provenance = record.provenance
    tags = {
        PURPOSE_TAG: record.purpose,
        "git_commit": provenance.git_commit + ("-dirty" if provenance.git_dirty else ""),
        "device": provenance.device,
        "execution": provenance.execution,
    }
    match record.outcome:
        case Finished():
            return tags
        case Stopped(reason=reason) | Diverged(reason=reason) | Failed(reason=reason):
            return {**tags, REASON_TAG: reason[:_LONGEST_REASON]}


def run_status(record: RunRecord) -> str:
    """The run's status in MLflow's words."""
    return RUN_STATUS[outcome_name(record.outcome)]


def thinned(points: tuple[EvalPoint, ...], limit: int) -> tuple[EvalPoint, ...]:
    """At most `limit` points, evenly by index, the first and the last always among them."""
    if len(points) <= limit:
        return points
    last = len(points) - 1
    return tuple(points[round(index * last / (limit - 1))] for index in range(limit))


def live_points(
    step: int, loss: float, tokens: int, flops: float, device_seconds: float, moment: int
) -> tuple[MetricPoint, ...]:
    """A point of a curve while its trial trains, with the keys and numbers that the record will have; its hours are by the
    clock so far. `moment` is in milliseconds."""
    measured = ((LOSS_KEY, loss), ("gpu_hours", device_seconds / 3_600))
    counted = ((name, value) for name, value in (("tokens", float(tokens)), ("flops", flops)) if value)
    return tuple(MetricPoint(name, value, step, moment) for name, value in (*measured, *counted))


def metric_points(
    record: RunRecord, run_started: int, charted: Mapping[int, float] | None = None
) -> tuple[MetricPoint, ...]:
    """Loss, GPU-hours, tokens and FLOPs at the same steps (so that any of them can be an axis), then the totals: the
    final loss, and the trial's two costs, as if trained alone and as this sweep paid it (billed device-hours both).
    Of a mixture of experts also the least even layer's routing, and the largest shift of the load at a change of phase.

    `run_started`, in milliseconds, is used where the record does not say when it started. The totals stand at step 0:
    the dashboard draws a metric with later steps as a line. `charted` are the steps, with their losses, that the dashboard has
    had while the trial trained: they are not drawn twice.
    """
    started = milliseconds(record.provenance.started_at)
    started = run_started if started is None else started
    devices = record.timing.devices
    points: list[MetricPoint] = []
    there = charted or {}
    missing = tuple(point for point in record.curve.points if there.get(point.step) != point.loss)
    for point in thinned(missing, max(2, MAX_POINTS - len(there))):
        at = started + round(1_000 * point.seconds)
        points += [
            MetricPoint(LOSS_KEY, point.loss, point.step, at),
            MetricPoint("gpu_hours", devices * point.seconds / 3_600, point.step, at),
        ]
        counted = (("tokens", float(point.tokens)), ("flops", point.flops))
        points += [MetricPoint(name, value, point.step, at) for name, value in counted if value]
        if point.routing is not None:
            points += [
                MetricPoint("routing_max_over_mean", max(point.routing.max_over_mean), point.step, at),
                MetricPoint("routing_entropy", min(point.routing.entropy), point.step, at),
                MetricPoint("routing_dropped", float(point.routing.dropped), point.step, at),
            ]
    if shifts := record.curve.routing_shifts:
        points.append(MetricPoint("routing_shift", max(shift.distance for shift in shifts), 0, started))
    if record.final_loss is not None:
        points.append(MetricPoint("final_loss", record.final_loss, 0, started))
    points.append(MetricPoint("standalone_gpu_hours", record.timing.billed_gpu_hours, 0, started))
    points.append(MetricPoint("incurred_gpu_hours", record.timing.incurred_gpu_hours, 0, started))
    return tuple(points)


def score_points(scores: Scores, run_started: int) -> tuple[MetricPoint, ...]:
    """Downstream scores as totals of a run."""
    return tuple(MetricPoint(f"score/{name}", value, 0, run_started) for name, value in scores)


def scores_of(plain: Any) -> Scores:
    """Raises `InputError` for what is no object of finite numbers."""
    pairs = value_of(_Kept, {"scores": pairs_of(plain, "scores")}, "scores").scores
    if not all(math.isfinite(value) for _, value in pairs):
        raise InputError("not scores: a number is not finite")
    return pairs


@dataclass(frozen=True, slots=True)
class _Kept:
    scores: Scores


def milliseconds(moment: str) -> int | None:
    """A moment in ISO form in milliseconds since 1970, None where it is not one."""
    try:
        return max(0, round(1_000 * datetime.fromisoformat(moment).timestamp()))
    except (ValueError, OverflowError, OSError):
        return None


@dataclass(frozen=True, slots=True)
class ForeignRun:
    """A run in an MLflow experiment that others wrote. `metrics` are the last logged values, `status` is MLflow's."""

    run_id: str
    name: str
    status: str
    parameters: Mapping[str, str]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """An imported run as one row of the dashboard; `status` in MLflow's words."""

    row: str
    name: str
    parameters: Mapping[str, str]
    tags: Mapping[str, str]
    metrics: tuple[MetricPoint, ...]
    status: str


def row_of(run: FinishedRun, order: int, key: str, moment: int) -> LedgerRow:
    """The row of a run; `order` is its place in the file, `key` names the import, `moment` is in milliseconds."""
    return LedgerRow(
        row=run.run_id[:_LONGEST_FOREIGN],
        name=_row_name(run),
        parameters=_row_parameters(run),
        tags=_row_tags(run, order, key),
        metrics=_row_metrics(run, moment),
        status=RUN_STATUS[run.outcome],
    )


def _row_name(run: FinishedRun) -> str:
    words = [run.scale, method_style(run.method).label, describe_parameters(run.parameters)]
    words += [f"lr={run.learning_rate:.1e}"] if run.learning_rate is not None else []
    parts = [" ".join(word for word in words if word), f"{run.total_steps:,} steps"]
    parts += [f"seed {run.seed}"] if run.seed is not None else []
    return " · ".join([*parts, run.purpose.replace("_", " ")])[:_LONGEST_FOREIGN]


def _row_parameters(run: FinishedRun) -> dict[str, str]:
    given = dict(run.parameters)
    known = {
        "scale": run.scale,
        "method": run.method,
        **{name: _column(given.get(name, PARAMETER_TABLE[name].absent)) for name in PARAMETER_COLUMNS},
        "total_steps": str(run.total_steps),
        "learning_rate": None if run.learning_rate is None else short_number(run.learning_rate),
        "seed": None if run.seed is None else str(run.seed),
        "params": None if run.params is None else short_number(run.params),
    }
    return {name: value[:_LONGEST_FOREIGN] for name, value in known.items() if value is not None}


def _row_tags(run: FinishedRun, order: int, key: str) -> dict[str, str]:
    tags = {
        KIND_TAG: IMPORTED_KIND,
        IMPORT_TAG: key,
        ROW_TAG: run.run_id[:_LONGEST_FOREIGN],
        ORDER_TAG: str(order),
        "scale": run.scale[:_LONGEST_FOREIGN],
        "method": run.method[:_LONGEST_FOREIGN],
        PURPOSE_TAG: run.purpose,
        OUTCOME_TAG: run.outcome,
        "mlflow.runColor": method_style(run.method).color,
        "mlflow.source.name": "sweeper import",
        "mlflow.source.type": "LOCAL",
    }
    tags |= {"device": run.device[:_LONGEST_FOREIGN]} if run.device else {}
    return tags | ({REASON_TAG: run.reason} if run.reason else {})


def _row_metrics(run: FinishedRun, moment: int) -> tuple[MetricPoint, ...]:
    """Curve points at their steps, then the end of the run at its last step; totals stand at step 0, as our own do."""
    curve, points = run.curve, []
    stride = max(1, -(-len(curve) // MAX_POINTS))
    for index in range(0, len(curve), stride):
        step = int(curve.steps[index])
        if step >= run.total_steps and run.final_loss is not None:
            break
        points.append(MetricPoint("validation_loss", float(curve.losses[index]), step, moment))
        for name, values in (("gpu_hours", curve.gpu_hours), ("tokens", curve.tokens), ("flops", curve.flops)):
            if values is not None:
                points.append(MetricPoint(name, float(values[index]), step, moment))
    last = (("gpu_hours", run.gpu_hours), ("tokens", run.tokens), ("flops", run.flops))
    if run.final_loss is not None:
        points.append(MetricPoint("validation_loss", run.final_loss, run.total_steps, moment))
        points.append(MetricPoint("final_loss", run.final_loss, 0, moment))
    points += [MetricPoint(name, value, run.total_steps, moment) for name, value in last if value is not None]
    return tuple(points)
