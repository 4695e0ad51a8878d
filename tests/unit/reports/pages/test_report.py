"""The page as text: every kind of sweep renders, nothing from outside breaks out, nothing points to a network."""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from reports.evidence.study import Study, build_study
from reports.html import theme
from reports.html.blocks import Block, Chart, Column, Prose, Table
from reports.html.charts import blank
from reports.html.layout import side_by_side
from reports.pages.report import SECTIONS, render_page, write_report
from reports.published import published_study
from reports.summary import summarize, summary_to_json
from tests.support.report_factory import VARIANTS, Invented, context_of, invented_study, many_runs

MEGABYTE = 1_000_000


class Elements(HTMLParser):
    """What a browser would make of the page: elements, their attributes, and the text of elements with an id."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.text_of: dict[str, str] = {}
        self.all_text: list[str] = []
        self._open: list[tuple[str, str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self._open.append((tag, dict(attrs).get("id") or ""))

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        self.all_text.append(data)
        for _, identifier in self._open:
            if identifier:
                self.text_of[identifier] = self.text_of.get(identifier, "") + data


def page_of(study: Study) -> tuple[str, Elements]:
    page = render_page(study, summarize(study))
    return page, Elements(page)


@pytest.mark.parametrize("variant", [*VARIANTS, "published"])
def test_every_kind_of_sweep_gives_a_whole_page(variant: str) -> None:
    study = published_study() if variant == "published" else invented_study(variant)
    summary = summarize(study)
    page = render_page(study, summary)
    elements = Elements(page)
    assert json.loads(elements.text_of["summary"]) == json.loads(json.dumps(summary_to_json(summary)))
    assert elements.text_of["headline"] == summary.headline
    anchors = [value for tag, name, value in elements.attributes if (tag, name) == ("section", "id")]
    assert anchors == [section.anchor for section in SECTIONS]
    assert len(page) <= 3 * MEGABYTE
    plots = [value for tag, name, value in elements.attributes if (tag, name, value) == ("div", "class", "plot")]
    figures = [identifier for identifier in elements.text_of if identifier.startswith("figure-")]
    assert len(plots) == len(figures)


@pytest.mark.parametrize(
    ("variant", "number"),
    [
        ("faster", r"1\.\d\d×"),
        ("slower", r"0\.\d\d×"),
        ("not-reached", r"> \d\.\d\d×"),
        ("one-budget", r"\d\.\d{3} nats"),
    ],
)
def test_the_large_number_is_of_the_right_kind(variant: str, number: str) -> None:
    _, elements = page_of(invented_study(variant))
    assert re.fullmatch(number, elements.text_of["headline-number"].strip())


@pytest.mark.parametrize("variant", ["diverged-only", "baseline-only", "empty"])
def test_without_a_comparison_no_number_is_shown(variant: str) -> None:
    page, elements = page_of(invented_study(variant))
    assert "headline-number" not in elements.text_of
    assert "money-middle" not in page
    assert 'class="empty"' in page


def test_a_large_number_is_the_number_of_the_json() -> None:
    _, elements = page_of(invented_study("faster"))
    embedded = json.loads(elements.text_of["summary"])["scales"][0]
    assert elements.text_of["headline-number"].strip() == theme.speedup(embedded["speedup"])
    low, high = embedded["interval"]
    assert f"{low:.2f} to {high:.2f}" in "".join(elements.all_text)


HOSTILE = '</script><script>document.title="broken"</script><img src=x onerror=alert(1)>&amp;"\u2028\''


def test_hostile_names_and_reasons_stay_text() -> None:
    plain = invented_study("faster")
    runs = [replace(run, reason=HOSTILE) if run.reason else run for run in plain.runs]
    context = replace(
        plain.context,
        name=HOSTILE,
        question=HOSTILE,
        command=HOSTILE,
        corpus_description=HOSTILE,
        search_space_text=HOSTILE,
        run_links={runs[0].run_id: "javascript:alert(1)"},
    )
    _, before = page_of(plain)
    _, after = page_of(build_study(context, runs))
    assert after.tags == before.tags
    assert not [name for _, name, _ in after.attributes if name.startswith("on")]
    assert not [value for _, name, value in after.attributes if name == "href" and "javascript" in value]
    assert json.loads(after.text_of["summary"])["name"] == HOSTILE
    assert any(HOSTILE.split("&")[0] in text for text in after.all_text)


def test_links_into_the_ledger_are_links() -> None:
    plain = invented_study("faster")
    address = "#/experiments/1/runs/abc"
    context = replace(plain.context, run_links={plain.runs[0].run_id: address})
    _, elements = page_of(build_study(context, plain.runs))
    assert ("a", "href", address) in elements.attributes


def test_nothing_points_to_a_network() -> None:
    page, elements = page_of(invented_study("faster"))
    loads = [(tag, value) for tag, name, value in elements.attributes if name in ("src", "srcset", "action", "data")]
    assert loads == []
    assert [value for tag, name, value in elements.attributes if (tag, name) == ("link", "href")] == ["data:,"]
    policy = next(value for _, name, value in elements.attributes if name == "content" and "default-src" in value)
    assert policy.startswith("default-src 'none'")
    assert "https:" not in policy
    assert "@import" not in page
    assert "url(" not in page


def test_the_chart_library_is_plotly_and_its_text_cannot_end_its_element() -> None:
    _, elements = page_of(invented_study("faster"))
    source = gzip.decompress(base64.b64decode(elements.text_of["chart-library"]))
    assert b"plotly.js v" in source[:200]
    assert b"</script" not in source.lower()


def test_a_page_without_charts_leaves_the_library_out() -> None:
    page, elements = page_of(invented_study("empty"))
    assert "chart-library" not in elements.text_of
    assert len(page) < 0.2 * MEGABYTE


@pytest.mark.slow
def test_a_page_is_the_same_each_time() -> None:
    study = invented_study("four-scales")
    assert render_page(study, summarize(study)) == render_page(study, summarize(study))


def test_no_trace_needs_a_gpu_and_every_chart_has_its_data_as_a_table() -> None:
    page, elements = page_of(invented_study("four-scales"))
    figures = [json.loads(text) for name, text in elements.text_of.items() if name.startswith("figure-")]
    kinds = {trace["type"] for figure in figures for trace in figure["data"]}
    assert kinds <= {"scatter", "heatmap"}
    assert page.count("Data of this chart") == len(figures)
    for figure in figures:
        for name, axis in figure["layout"].items():
            if name.startswith("xaxis"):
                assert axis["title"]["text"], "every horizontal axis says what it shows"


@pytest.mark.slow
def test_a_hundred_long_curves_fit_into_three_megabytes() -> None:
    truth = Invented(seeds=20, baseline_budgets=(4_000, 6_000, 9_000), method_budgets=(4_000, 6_000), eval_points=2_000)
    study = many_runs(truth)
    assert sum(len(run.curve) > 0 for run in study.runs if run.purpose == "confirmation") == 100
    page = render_page(study, summarize(study))
    assert len(page.encode()) <= 3 * MEGABYTE


def test_a_report_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    study = invented_study("empty")
    target = tmp_path / "deep" / "report.html"
    write_report(study, summarize(study), target)
    first = target.read_text(encoding="utf-8")
    assert first == render_page(study, summarize(study))
    assert [path.name for path in target.parent.iterdir()] == ["report.html"]
    broken = replace(study, context=replace(study.context, name="\ud800"))
    with pytest.raises(UnicodeEncodeError):
        write_report(broken, summarize(broken), target)
    assert target.read_text(encoding="utf-8") == first
    assert [path.name for path in target.parent.iterdir()] == ["report.html"]


def test_charts_share_a_row_only_as_far_as_they_fit() -> None:
    table = Table("t", (Column("c"),), (("1",),))

    def chart(share: int) -> Chart:
        return Chart(f"c{share}", "t", blank(), table, share=share)

    blocks: list[Block] = [Prose("p"), chart(4), chart(2), chart(3), chart(3), chart(3), Prose("q"), chart(4), chart(3)]
    assert [len(row) for row in side_by_side(blocks)] == [1, 2, 2, 1, 1, 1, 1]


def test_a_single_scale_without_price_says_that_the_price_is_a_placeholder() -> None:
    truths = (Invented(),)
    study = invented_study("faster")
    priced = build_study(replace(context_of("priced", truths), price_per_gpu_hour=2.5, currency="EUR"), study.runs)
    assert "placeholder" in render_page(study, summarize(study))
    page = render_page(priced, summarize(priced))
    assert "placeholder" not in page
    assert "EUR" in page


def test_a_sweep_without_a_confirmation_passes_no_check_on_winners_and_keeps_its_clock() -> None:
    for variant in ("empty", "diverged-only"):
        study = invented_study(variant)
        statuses = {check.name: check.status for check in summarize(study).checks}
        assert statuses["Optimum inside the space"] == "not_applicable"
    assert study.clock_label == "CPU-hours"
    assert invented_study("empty").clock_label == "GPU-hours"
