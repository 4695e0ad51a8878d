"""What the charts of two pages draw, against what was written down: numbers, labels and colours, not pixels.

When a chart changes on purpose, look at its page and write the new data:
`python -m tests.unit.reports.test_golden_figures`.
"""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest

from reports.evidence.study import Study
from reports.html.blocks import Chart
from reports.pages.report import SECTIONS
from reports.published import published_study
from reports.summary import summarize
from tests.support.places import GOLDEN
from tests.support.report_factory import invented_study

FOLDER = GOLDEN / "figures"
STUDIES = ("published", "faster", "not-reached")
MOST_VALUES = 12
"""Values of a long array that are kept, evenly by index: enough to notice a change, few enough to read."""
DRAWN = ("type", "name", "mode", "x", "y", "z", "base", "text", "error_x", "marker", "line", "fill", "fillcolor")


def study_of(name: str) -> Study:
    return published_study() if name == "published" else invented_study(name)


def _plain(value: Any) -> Any:
    """A figure's value as short JSON: floats to six digits, long arrays thinned, what is not set left out."""
    if hasattr(value, "to_plotly_json"):
        value = value.to_plotly_json()
    if isinstance(value, dict) and "bdata" in value:
        return _plain(np.frombuffer(base64.b64decode(value["bdata"]), dtype=value["dtype"]))
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in sorted(value.items()) if part is not None}
    if isinstance(value, np.ndarray | list | tuple):
        kept = np.unique(np.linspace(0, len(value) - 1, min(len(value), MOST_VALUES)).astype(int)) if len(value) else []
        return [_plain(value[index]) for index in kept]
    if isinstance(value, float | np.floating):
        return float(f"{value:.6g}")
    return int(value) if isinstance(value, np.integer) else value


def figures_of(study: Study) -> dict[str, Any]:
    """Each chart of the page: its title, its traces, its axes and the words written into it."""
    summary = summarize(study)
    charts = [
        block
        for section in SECTIONS
        for block in section.figure(section.info(study, summary))
        if isinstance(block, Chart)
    ]
    found: dict[str, Any] = {}
    for chart in charts:
        plain = chart.figure.to_plotly_json()
        layout = plain["layout"]
        found[chart.key] = {
            "title": chart.title,
            "traces": [_plain({key: trace.get(key) for key in DRAWN}) for trace in plain["data"]],
            "axes": {
                key: _plain({part: layout[key].get(part) for part in ("type", "range", "ticktext", "tickvals")})
                for key in sorted(layout)
                if key.startswith(("xaxis", "yaxis"))
            },
            "words": [_plain(note.get("text")) for note in layout.get("annotations", ())],
        }
    return found


def _close(found: Any, written: Any, where: str) -> None:
    """Equal, floats to five digits: processors order their sums differently."""
    if isinstance(written, dict):
        assert isinstance(found, dict), where
        assert sorted(found) == sorted(written), where
        for key in written:
            _close(found[key], written[key], f"{where}.{key}")
    elif isinstance(written, list):
        assert isinstance(found, list), where
        assert len(found) == len(written), where
        for index, part in enumerate(written):
            _close(found[index], part, f"{where}[{index}]")
    elif isinstance(written, float) and isinstance(found, float | int):
        assert found == pytest.approx(written, rel=1e-5, abs=1e-9), where
    else:
        assert found == written, where


@pytest.mark.parametrize("name", STUDIES)
def test_charts_draw_what_was_written_down(name: str) -> None:
    written = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    _close(json.loads(json.dumps(figures_of(study_of(name)))), written, name)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for study_name in STUDIES:
        text = json.dumps(figures_of(study_of(study_name)), indent=1, ensure_ascii=False)
        (FOLDER / f"{study_name}.json").write_text(text + "\n", encoding="utf-8")
