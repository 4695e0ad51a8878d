"""The saved view: only for versions whose format is known, within MLflow's limits, otherwise a plain link."""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any

import pytest

from sweeper.ledger.dashboard_view import is_known, view_link, view_tags
from sweeper.ledger.entries import metric_points, parameters, trial_tags
from tests.support.strategies import record_of, spec_of


@pytest.mark.parametrize("version", ["3.10.0", "3.17.2", "3.18.0rc1"])
def test_known_versions_get_a_view(version: str) -> None:
    assert view_tags("quickstart", version, 0)
    assert "viewStateShareKey" in view_link("1", version)


@pytest.mark.parametrize("version", ["2.22.0", "3.9.1", "3.19.0", "4.0.0", "unknown", ""])
def test_other_versions_get_the_plain_link(version: str) -> None:
    assert not is_known(version)
    assert view_tags("quickstart", version, 0) == {}
    assert view_link("1", version) == "#/experiments/1/runs?workflowType=machine_learning&compareRunsMode=CHART"


def unpacked(tag: str) -> dict[str, Any]:
    packed = json.loads(tag)["state"].removeprefix("deflate;")
    state: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(packed, validate=True)))
    return state


def test_view_fits_into_a_tag_and_names_only_what_the_ledger_writes() -> None:
    (value,) = view_tags("n" * 64, "3.17.2", 1_700_000_000_000).values()
    assert len(value) <= 5_000
    state = unpacked(value)
    record = record_of(spec_of("tst"))
    written = {
        "metrics": {point.key for point in metric_points(record, 0)},
        "params": set(parameters(record.spec)),
        "tags": {*trial_tags(record.spec, record.purpose, 1), "outcome"},
    }
    for column in state["selectedColumns"]:
        kind, key = column.removesuffix("`").split(".`")
        assert key in written[kind]
    assert {group["groupByData"] for group in state["groupBy"]["groupByKeys"]} <= written["tags"]
    charted = {chart["metricKey"] for chart in state["compareRunCharts"] if "metricKey" in chart}
    sections = {section["uuid"] for section in state["compareRunSections"]}
    assert charted | {"final_loss"} == written["metrics"]
    assert {chart["metricSectionId"] for chart in state["compareRunCharts"]} <= sections
