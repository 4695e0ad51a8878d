"""The report in a real browser, opened from disk without a network, as its readers open it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from reports.pages.report import render_page, write_report
from reports.published import published_study
from reports.sections import plan
from reports.summary import summarize, summary_to_json
from tests.support.chromium import CHROMIUM, FLAGS, needs_chromium
from tests.support.report_factory import invented_study

READY = "html[data-ready=yes]"

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    needs_chromium,
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file for each kind of sweep that the tests open."""
    folder = tmp_path_factory.mktemp("reports")
    for variant in ("faster", "slower", "not-reached", "single-seed", "diverged-only", "empty"):
        study = invented_study(variant)
        write_report(study, summarize(study), folder / f"{variant}.html")
    write_report(published_study(), summarize(published_study()), folder / "published.html")
    return folder


@contextmanager
def opened(browser: Browser, file: Path, width: int = 1000, scheme: Any = "light") -> Iterator[Page]:
    """The page, drawn to its end; fails on leaving when it complained, or asked for anything but itself."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
    page = context.new_page()
    complaints: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: complaints.append(message.text) if message.type != "log" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(file.as_uri())
    page.wait_for_selector(READY, timeout=60_000)
    yield page
    assert complaints == []
    assert [url for url in requests if not url.startswith(("data:", "blob:"))] == [file.as_uri()]
    context.close()


def charts_of(page: Page) -> list[dict[str, Any]]:
    """Of each chart: its width, the width of its drawing, and how many shapes are drawn."""
    script = """() => [...document.querySelectorAll('.plot')].map((plot) => ({
        id: plot.id,
        width: plot.getBoundingClientRect().width,
        drawing: plot.querySelector('.main-svg')?.getBoundingClientRect().width ?? 0,
        shapes: plot.querySelectorAll('path, rect').length,
    }))"""
    found: list[dict[str, Any]] = page.evaluate(script)
    return found


@pytest.mark.parametrize("variant", ["faster", "not-reached", "single-seed", "diverged-only", "empty", "published"])
def test_every_kind_of_page_opens_from_disk_without_a_word_of_complaint(
    browser: Browser, reports: Path, variant: str
) -> None:
    with opened(browser, reports / f"{variant}.html") as page:
        charts = charts_of(page)
        assert all(chart["shapes"] > 3 for chart in charts)
        assert bool(charts) == (variant not in ("diverged-only", "empty"))


def test_headline_number_json_and_drawn_arrow_agree(browser: Browser, reports: Path) -> None:
    study = invented_study("faster")
    expected = summary_to_json(summarize(study))
    with opened(browser, reports / "faster.html") as page:
        embedded = json.loads(page.locator("#summary").text_content() or "")
        assert embedded == json.loads(json.dumps(expected))
        speedup = embedded["scales"][0]["speedup"]
        assert page.locator("#headline-number").inner_text().strip() == f"{speedup:.2f}×"
        assert f"{speedup:.2f}" in page.locator("#headline").inner_text()
        script = "() => document.getElementById('iso-loss-0').layout.annotations.find((one) => one.showarrow)"
        arrow = page.evaluate(script)
        assert 10 ** (arrow["x"] - arrow["ax"]) == pytest.approx(speedup, rel=1e-6)
        table = page.locator("#iso-loss section, figure:has(#iso-loss-0) details.data table tbody tr")
        cells = [row.split("\t") for row in table.all_text_contents()]
        assert len(cells) == sum(len(arm.cells) for arm in study.scales[0].arms)


@pytest.mark.parametrize(
    ("variant", "width"), [("faster", 640), ("faster", 1000), ("faster", 1600), ("published", 640)]
)
def test_it_fits_every_width(browser: Browser, reports: Path, variant: str, width: int) -> None:
    with opened(browser, reports / f"{variant}.html", width) as page:
        assert page.evaluate("() => document.documentElement.scrollWidth <= window.innerWidth")
        for chart in charts_of(page):
            assert abs(chart["drawing"] - chart["width"]) <= 1, chart
        assert page.evaluate(
            "() => [...document.querySelectorAll('p')].every((p) => p.scrollWidth <= p.clientWidth + 1)"
        )


def test_charts_follow_the_window(browser: Browser, reports: Path) -> None:
    with opened(browser, reports / "faster.html", 1600) as page:
        page.set_viewport_size({"width": 700, "height": 900})
        page.wait_for_function(
            """() => [...document.querySelectorAll('.plot')].every((plot) =>
            Math.abs(plot.querySelector('.main-svg').getBoundingClientRect().width - plot.clientWidth) <= 1)"""
        )


def _set(page: Page, name: str, value: float) -> None:
    script = """([name, value]) => {
        const input = document.querySelector(`#what-if [data-input="${name}"][data-source="yes"]`);
        input.value = value;
        input.dispatchEvent(new Event('input', {bubbles: true}));
    }"""
    page.evaluate(script, [name, value])


def _number(text: str) -> float:
    size = {"M": 1e6, "B": 1e9}
    words = text.replace("\u2212", "-").replace("$", "").replace(",", "").split()
    return float(words[0]) * (size.get(words[1], 1.0) if len(words) > 1 else 1.0)


def test_sliders_compute_what_the_plan_computes(browser: Browser, reports: Path) -> None:
    study = invented_study("faster")
    worth = plan.worth(study, summarize(study))
    assert worth is not None
    assert worth.low is not None
    assert worth.middle is not None
    assert worth.high is not None
    with opened(browser, reports / "faster.html") as page:
        table = page.locator("#what-if-table")
        before = table.inner_text()
        _set(page, "hours", 5.3)
        _set(page, "price", 2.5)
        _set(page, "devices", 64)
        _set(page, "power", 1.2)
        assert table.inner_text() != before
        hours = float(f"{10**5.3:.2g}")
        for end, factor in (("low", worth.low), ("middle", worth.middle), ("high", worth.high)):
            saved = hours * (1 - 1 / factor)
            cell = table.locator(f"[data-out='money-{end}']").inner_text()
            assert _number(cell) == pytest.approx(saved * 2.5, rel=6e-3)
            assert _number(table.locator(f"[data-out='hours-{end}']").inner_text()) == pytest.approx(saved, rel=6e-3)
            days = table.locator(f"[data-out='time-{end}']").inner_text()
            assert days.endswith(" days")
            assert _number(days) == pytest.approx(saved / 64 / 24, rel=6e-3)
            energy = table.locator(f"[data-out='energy-{end}']").inner_text()
            assert _number(energy) == pytest.approx(saved * 1.2, rel=6e-3)
            assert worth.spent_hours is not None
            payback = _number(table.locator(f"[data-out='payback-{end}']").inner_text())
            assert payback == pytest.approx(worth.spent_hours / (1 - 1 / factor), rel=6e-3)


def test_the_page_opens_with_the_figures_that_the_script_gives(browser: Browser, reports: Path) -> None:
    """What stands there before a script runs is what the script writes."""
    with opened(browser, reports / "slower.html") as page:
        shown = page.locator(".facts [data-out]").all_text_contents()
    source = (reports / "slower.html").read_text(encoding="utf-8")
    facts = source[source.index('<dl class="facts">') : source.index("</dl>")]
    assert len(shown) == 3
    for text in shown:
        assert f">{text}<" in facts


def test_the_price_in_the_headline_and_in_the_plan_is_one_price(browser: Browser, reports: Path) -> None:
    with opened(browser, reports / "faster.html") as page:
        money = page.locator(".facts [data-out='money-middle']")
        before = money.inner_text()
        page.locator(".facts input[data-input='price']").fill("5")
        assert money.inner_text() != before
        assert page.locator("#what-if [data-input='price'][data-source='yes']").input_value() == "5"
        assert page.locator("#what-if-table [data-out='money-middle']").inner_text() == money.inner_text()


def test_a_loss_is_shown_as_a_loss(browser: Browser, reports: Path) -> None:
    with opened(browser, reports / "slower.html") as page:
        assert page.locator("#what-if-table [data-out='money-middle']").inner_text().startswith("\u2212")
        assert page.locator("#what-if-table [data-out='payback-middle']").inner_text() == "never"


def test_charts_follow_the_readers_colours_while_the_page_is_open(browser: Browser, reports: Path) -> None:
    def luminance(color: str) -> float:
        channels = [float(part) for part in color[color.index("(") + 1 : -1].split(",")[:3]]
        return sum(channels) / 3

    colours = """() => ({
        page: getComputedStyle(document.body).backgroundColor,
        text: getComputedStyle(document.body).color,
        chart: getComputedStyle(document.querySelector('#iso-loss-0 .annotation-text')).fill,
        heading: getComputedStyle(document.querySelector('figcaption')).color,
    })"""
    with opened(browser, reports / "faster.html", scheme="dark") as page:
        dark = page.evaluate(colours)
        assert luminance(dark["page"]) < 60 < 150 < luminance(dark["text"])
        assert luminance(dark["chart"]) > 90
        page.emulate_media(color_scheme="light")
        page.wait_for_function("""() => getComputedStyle(document.body).backgroundColor === 'rgb(253, 253, 251)'""")
        page.wait_for_function(
            "(dark) => getComputedStyle(document.querySelector('#iso-loss-0 .annotation-text')).fill !== dark",
            arg=dark["chart"],
        )
        light = page.evaluate(colours)
        assert luminance(light["text"]) < 100 < luminance(light["page"])
        assert luminance(light["chart"]) < 120


def test_print_is_light_opens_the_details_and_closes_them_again(
    browser: Browser, reports: Path, tmp_path: Path
) -> None:
    with opened(browser, reports / "faster.html", scheme="dark") as page:
        page.evaluate(
            """() => window.addEventListener('beforeprint', () => {
                window.printed = {
                    closed: document.querySelectorAll('details:not([open]):not([data-long])').length,
                    widths: [...document.querySelectorAll('.plot .main-svg')].map((svg) => svg.width.baseVal.value),
                    ink: document.getElementById('iso-loss-0').layout.font.color,
                };
            })"""
        )
        pdf = page.pdf(path=tmp_path / "report.pdf", prefer_css_page_size=True)
        assert pdf.startswith(b"%PDF")
        printed = page.evaluate("() => window.printed")
        assert printed["closed"] == 0
        assert max(printed["widths"]) <= 680
        assert printed["ink"] == "#1B1C1E"
        assert page.locator("details[open]").count() == 0
        assert page.evaluate("() => document.getElementById('iso-loss-0').layout.font.color") == "#ECECE8"


def test_it_works_inside_a_sandboxed_frame(browser: Browser, reports: Path) -> None:
    """The tracking server shows artifacts in such a frame, about 660 pixels wide: scripts run, storage does not."""
    host = reports / "host.html"
    host.write_text(
        '<!doctype html><title>host</title><link rel="icon" href="data:,">'
        '<iframe sandbox="allow-scripts" src="faster.html" width="660" height="800"></iframe>',
        encoding="utf-8",
    )
    context = browser.new_context(offline=True)
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(host.as_uri())
    frame = page.frame_locator("iframe")
    frame.locator(READY).wait_for(state="attached", timeout=60_000)
    assert frame.locator(".plot .main-svg").count() >= 2 * frame.locator(".plot").count()
    assert frame.locator("#what-if-table [data-out='money-middle']").inner_text().startswith("$")
    assert complaints == []
    context.close()


def test_without_the_means_to_draw_the_tables_stand_in(browser: Browser, reports: Path) -> None:
    context = browser.new_context(offline=True)
    page = context.new_page()
    page.add_init_script("delete window.DecompressionStream")
    page.goto((reports / "faster.html").as_uri())
    page.wait_for_selector(READY)
    assert page.locator(".plot").first.is_hidden()
    assert page.locator("details.data[open]").count() == page.locator(".chart").count()
    context.close()


def test_the_two_palettes_keep_text_readable(browser: Browser, reports: Path) -> None:
    """At least 4.5 to 1 between a text's colour and the page's, as the accessibility guidelines ask."""
    script = """() => [...document.querySelectorAll('p, td, th, h1, h2, h3, li, dt, dd, summary, figcaption, .note')]
        .map((element) => getComputedStyle(element).color)"""

    def relative(color: str) -> float:
        channels = [float(part) / 255 for part in color[color.index("(") + 1 : -1].split(",")[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return float(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])

    for scheme in ("light", "dark"):
        with opened(browser, reports / "faster.html", scheme=scheme) as page:
            ground = relative(page.evaluate("() => getComputedStyle(document.body).backgroundColor"))
            for color in set(page.evaluate(script)):
                text = relative(color)
                contrast = (max(text, ground) + 0.05) / (min(text, ground) + 0.05)
                assert contrast >= 4.5, (scheme, color, contrast)


def test_hostile_text_runs_nowhere(browser: Browser, tmp_path: Path) -> None:
    from dataclasses import replace

    plain = invented_study("faster")
    hostile = '</script><script>window.broken = 1</script><img src="x" onerror="window.broken = 1">'
    study = replace(plain, context=replace(plain.context, name=hostile, question=hostile, command=hostile))
    file = tmp_path / "hostile.html"
    file.write_text(render_page(study, summarize(study)), encoding="utf-8")
    with opened(browser, file) as page:
        assert page.evaluate("() => window.broken") is None
        assert math.isfinite(page.evaluate("() => document.body.scrollHeight"))
        assert page.locator(".question").inner_text() == hostile
