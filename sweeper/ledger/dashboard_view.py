"""The view that the dashboard opens on: runs by scale and method, loss against GPU-hours, the columns that matter.

MLflow keeps a shared view as an experiment tag in a format of its own, which this file knows for the versions in
`KNOWN_VERSIONS`; with any other version the link is the plain one, which shows the same runs without our charts.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping
from typing import Any

from trainers.methods import LEARNING_RATE, PARAMETER_COLUMNS

VIEW_KEY = "sweeper"
KNOWN_VERSIONS = ((3, 10), (3, 18))
"""First and last minor version of MLflow on which the view's format is known."""
_TAG_PREFIX = "mlflow.sharedViewState."
_MODE = "workflowType=machine_learning"
_LOSS, _HOURS, _FINAL = "validation_loss", "gpu_hours", "final_loss"
_CURVES, _SEARCH = "Loss against GPU-hours (before a phase boundary not comparable)", "What the search tried"
_QUIET_METRICS = (_HOURS, "tokens", "flops", _FINAL, "standalone_gpu_hours", "incurred_gpu_hours")


def is_known(version: str) -> bool:
    """Whether `version` of MLflow reads the view that is written here."""
    try:
        major, minor = (int(part) for part in version.split(".")[:2])
    except ValueError:
        return False
    return KNOWN_VERSIONS[0] <= (major, minor) <= KNOWN_VERSIONS[1]


def view_tags(name: str, version: str, created: int) -> Mapping[str, str]:
    """Experiment tags that hold the view of sweep `name`; none for an unknown version. `created` in milliseconds."""
    if not is_known(version):
        return {}
    view = {"name": f"{name}: loss against GPU-hours", "createdAt": created, "state": _packed(_state())}
    return {_TAG_PREFIX + VIEW_KEY: json.dumps(view)}


def _packed(state: dict[str, Any]) -> str:
    """Compressed: a tag of an experiment holds 5,000 characters."""
    return "deflate;" + base64.b64encode(zlib.compress(json.dumps(state).encode(), 9)).decode()


def view_link(experiment_id: str, version: str) -> str:
    """Fragment of the dashboard's address that shows the sweep, on the saved view where the version knows it."""
    plain = f"#/experiments/{experiment_id}/runs?{_MODE}&compareRunsMode=CHART"
    return f"{plain}&viewStateShareKey={VIEW_KEY}" if is_known(version) else plain


def run_link(link: str) -> str:
    """A run's link such that MLflow shows it as training, not as an evaluation of a language model."""
    return f"{link}?{_MODE}"


def _state() -> dict[str, Any]:
    return {
        "searchFilter": "tags.`sweeper.kind` != 'sweep'",
        "orderByKey": f"metrics.`{_FINAL}`",
        "orderByAsc": True,
        "selectedColumns": _columns(),
        "groupBy": {
            "aggregateFunction": "average",
            "groupByKeys": [{"mode": "tag", "groupByData": "scale"}, {"mode": "tag", "groupByData": "method"}],
        },
        # An average over runs of different budgets would be a curve that nobody trained.
        "useGroupedValuesInCharts": False,
        "runsHiddenMode": "SHOW_ALL",
        "autoRefreshEnabled": True,
        "hideEmptyCharts": True,
        "compareRunSections": [_section(_CURVES, 2, 420), _section(_SEARCH, 3, 360)],
        "compareRunCharts": [
            _line(),
            _scatter("end points", _HOURS, "METRIC", _FINAL, "Final loss against GPU-hours (finished runs)", _CURVES),
            *(
                _scatter(axis, axis, "PARAM", _FINAL, f"Final loss against {axis.replace('_', ' ')}", _SEARCH)
                for axis in (LEARNING_RATE, *reversed(PARAMETER_COLUMNS))
            ),
            *(_hidden(metric) for metric in _QUIET_METRICS),
        ],
    }


def _columns() -> list[str]:
    parameters = (*PARAMETER_COLUMNS, LEARNING_RATE, "total_steps", "seed")
    return [
        *(f"metrics.`{metric}`" for metric in (_FINAL, _HOURS)),
        *(f"tags.`{tag}`" for tag in ("stage", "outcome")),
        *(f"params.`{parameter}`" for parameter in parameters),
    ]


def _section(name: str, columns: int, height: int) -> dict[str, Any]:
    return {
        "uuid": _identity("section", name),
        "name": name,
        "display": True,
        "isReordered": False,
        "deleted": False,
        "isGenerated": False,
        "columns": columns,
        "cardHeight": height,
    }


def _identity(kind: str, name: str) -> str:
    return f"sweeper-{kind}-{name.lower().replace(' ', '-')}"


def _card(kind: str, name: str, title: str, section: str) -> dict[str, Any]:
    return {
        "type": kind,
        "uuid": _identity("chart", name),
        "metricSectionId": _identity("section", section),
        "runsCountToCompare": 1_000,
        "deleted": False,
        "isGenerated": False,
        "displayName": title,
    }


def _line() -> dict[str, Any]:
    return {
        **_card("LINE", "curves", "Validation loss against GPU-hours", _CURVES),
        "metricKey": _LOSS,
        "selectedMetricKeys": [_LOSS],
        "xAxisKey": "metric",
        "selectedXAxisMetricKey": _HOURS,
        "useGlobalXaxisKey": False,
        "useGlobalLineSmoothing": False,
        "lineSmoothness": 0,
        "xAxisScaleType": "linear",
        "scaleType": "log",
        "displayPoints": False,
        "range": {},
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "ignoreOutliers": False,
    }


def _scatter(name: str, x: str, x_type: str, y: str, title: str, section: str) -> dict[str, Any]:
    return {
        **_card("SCATTER", name, title, section),
        "xaxis": {"key": x, "type": x_type},
        "yaxis": {"key": y, "type": "METRIC"},
    }


def _hidden(metric: str) -> dict[str, Any]:
    """MLflow adds a chart for each metric that has none: one that is deleted already keeps the view to its point."""
    return {**_card("LINE", f"hidden {metric}", metric, _CURVES), "metricKey": metric, "deleted": True, "range": {}}
