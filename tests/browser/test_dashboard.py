"""The ready view and the report, as a person finds them in MLflow's interface."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, sync_playwright

from sweeper.ledger.dashboard import Links, prepare, running_server
from sweeper.ledger.mlflow_ledger import Ledger
from tests.support.chromium import CHROMIUM, FLAGS, needs_chromium
from tests.support.ledger_factory import MLFLOW_WARNINGS, about_of, empty_results
from tests.support.strategies import record_of, spec_of

NUM_SEEDS = 8
REPORT = (
    "<!doctype html><p id=said>silent</p><script>document.getElementById('said').textContent = 'script ran'</script>"
)

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    MLFLOW_WARNINGS,
    needs_chromium,
]


@pytest.fixture(scope="module")
def dashboard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Links]]:
    """A server on a finished sweep of both methods, with more runs than MLflow shows unasked."""
    results = empty_results(tmp_path_factory)
    report = results / "report.html"
    report.write_text(REPORT)
    with Ledger.open(results, "quickstart", create=True) as ledger:
        ledger.begin(about_of("quickstart"))
        for seed in range(NUM_SEEDS):
            for method, loss in (("baseline", 2.74), ("tst", 2.70)):
                ledger.write(record_of(spec_of(method, seed=seed), final_loss=loss + 0.002 * seed))
        ledger.finish("finished", "TST was 1.05× faster", report)
    links = prepare(results, "quickstart", None)
    with running_server(results) as (address, _):
        yield address, links


@pytest.fixture(scope="module")
def page(dashboard: tuple[str, Links]) -> Iterator[Page]:
    """A fresh profile that reaches nothing but the dashboard."""
    address, _ = dashboard
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1600, "height": 1200})
        page.set_default_timeout(60_000)
        page.route(lambda url: not url.startswith((address, "data:", "blob:")), lambda route: route.abort())
        yield page
        browser.close()


def test_ready_view_draws_every_run_against_gpu_hours(dashboard: tuple[str, Links], page: Page) -> None:
    address, links = dashboard
    page.goto(address + links.view)
    curves = page.locator(".js-plotly-plot").first
    lines = curves.locator(".scatterlayer .trace path.js-line")
    lines.nth(2 * NUM_SEEDS - 1).wait_for(state="attached")
    # Each run has a loss of its own, so its line has a shape of its own; MLflow draws some lines twice.
    shapes = lines.evaluate_all("paths => paths.map(path => path.getAttribute('d'))")
    assert len(set(shapes)) == 2 * NUM_SEEDS
    assert curves.locator(".g-xtitle").text_content() == "gpu_hours"
    assert page.get_by_text(f"{2 * NUM_SEEDS} matching runs").is_visible()
    for section in ("Loss against GPU-hours", "What the search tried"):
        assert page.get_by_text(section).first.is_visible()
    assert page.get_by_text("Group by: scale").is_visible()


def test_sweep_page_shows_the_headline(dashboard: tuple[str, Links], page: Page) -> None:
    address, links = dashboard
    page.goto(address + links.sweep)
    page.get_by_text("TST was 1.05× faster").first.wait_for()


def test_report_runs_inside_mlflows_frame(dashboard: tuple[str, Links], page: Page) -> None:
    address, links = dashboard
    page.goto(address + links.sweep.replace("?", "/artifacts/report.html?"))
    page.frame_locator("iframe").get_by_text("script ran").wait_for()
