"""Runs that were trained elsewhere, as the ledger holds them: what of theirs is read, and how ours show them.

Plain data on both sides. The rows of the dashboard have the same columns as our own trials, so that one view fits both;
they are for people and are never read back: what was imported is kept as the text that it came in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from reports.evidence.runs import FinishedRun, describe_parameters
from reports.html.theme import method_style
from sweeper.ledger.entries import (
    KIND_TAG,
    MAX_POINTS,
    ORDER_TAG,
    OUTCOME_TAG,
    REASON_TAG,
    RUN_STATUS,
    STAGE_TAG,
    MetricPoint,
    short_number,
)

IMPORTED_KIND = "imported"
IMPORT_TAG = "sweeper.import"
"""Which import a row belongs to."""
ROW_TAG = "sweeper.row"
"""The run's name or its line in the file."""
_LONGEST = 500
"""Characters of a text from outside that go into the dashboard's columns."""


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
        row=run.run_id[:_LONGEST],
        name=_name(run),
        parameters=_parameters(run),
        tags=_tags(run, order, key),
        metrics=_metrics(run, moment),
        status=RUN_STATUS[run.outcome],
    )


def _name(run: FinishedRun) -> str:
    words = [run.scale, method_style(run.method).label, describe_parameters(run.parameters)]
    words += [f"lr={run.learning_rate:.1e}"] if run.learning_rate is not None else []
    parts = [" ".join(word for word in words if word), f"{run.total_steps:,} steps"]
    parts += [f"seed {run.seed}"] if run.seed is not None else []
    return " · ".join([*parts, run.stage.replace("_", " ")])[:_LONGEST]


def _parameters(run: FinishedRun) -> dict[str, str]:
    known = {
        "scale": run.scale,
        "method": run.method,
        "bag_size": str(run.bag_size),
        "step_ratio": short_number(run.step_ratio),
        "total_steps": str(run.total_steps),
        "learning_rate": None if run.learning_rate is None else short_number(run.learning_rate),
        "seed": None if run.seed is None else str(run.seed),
        "params": None if run.params is None else short_number(run.params),
    }
    return {name: value[:_LONGEST] for name, value in known.items() if value is not None}


def _tags(run: FinishedRun, order: int, key: str) -> dict[str, str]:
    tags = {
        KIND_TAG: IMPORTED_KIND,
        IMPORT_TAG: key,
        ROW_TAG: run.run_id[:_LONGEST],
        ORDER_TAG: str(order),
        "scale": run.scale[:_LONGEST],
        "method": run.method[:_LONGEST],
        STAGE_TAG: run.stage,
        OUTCOME_TAG: run.outcome,
        "mlflow.runColor": method_style(run.method).color,
        "mlflow.source.name": "sweeper import",
        "mlflow.source.type": "LOCAL",
    }
    tags |= {"device": run.device[:_LONGEST]} if run.device else {}
    return tags | ({REASON_TAG: run.reason} if run.reason else {})


def _metrics(run: FinishedRun, moment: int) -> tuple[MetricPoint, ...]:
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
