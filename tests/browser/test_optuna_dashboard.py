"""`optuna-dashboard` on the studies of a sweep: it lists them and draws what was tried."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, sync_playwright

from sweeper.ledger.location import spare_loopback
from tests.support.chromium import CHROMIUM, FLAGS, needs_chromium
from tests.support.study_desk import NamedLedger, file_in, swept

pytestmark = [pytest.mark.browser, pytest.mark.slow, needs_chromium]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The command that a person gives, on the file of a sweep that has ended."""
    place = file_in(tmp_path_factory.mktemp("studies"))
    swept(NamedLedger(), place)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    spare_loopback()
    command = shutil.which("optuna-dashboard", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert command is not None, "optuna-dashboard is not installed"
    arguments = [command, place.url, "--port", str(port), "--host", "127.0.0.1"]
    with subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            yield answered(f"http://127.0.0.1:{port}/dashboard", server)
        finally:
            server.terminate()


def answered(address: str, server: subprocess.Popen[bytes]) -> str:
    for _ in range(400):
        assert server.poll() is None, "optuna-dashboard ended by itself"
        try:
            urllib.request.urlopen(address, timeout=5).close()
        except OSError:
            time.sleep(0.3)
        else:
            return address
    raise AssertionError("optuna-dashboard does not answer")


@pytest.fixture(scope="module")
def page(address: str) -> Iterator[Page]:
    """A fresh profile that reaches nothing but the dashboard."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1500, "height": 1400})
        page.set_default_timeout(60_000)
        own = address.removesuffix("dashboard")
        page.route(lambda url: not url.startswith((own, "data:", "blob:")), lambda route: route.abort())
        yield page
        browser.close()


def test_every_study_is_listed_and_opens_on_its_history_and_importances(address: str, page: Page) -> None:
    page.goto(address)
    for name in ("tiny/nano/baseline/8", "tiny/nano/tst/8"):
        page.get_by_text(name).first.wait_for()
    page.get_by_text("tiny/nano/tst/8").first.click()
    page.get_by_text("Hyperparameter Importance").first.wait_for()
    for axis in ("bag_size", "step_ratio", "learning_rate"):
        page.locator(".js-plotly-plot").get_by_text(axis, exact=True).first.wait_for()
    history = page.locator(".js-plotly-plot").first.locator(".scatterlayer .points path")
    history.first.wait_for(state="attached")
    assert history.count() >= 8  # a dot a trial
    page.get_by_text("Best Trial").first.wait_for()


def test_a_trial_says_its_purpose_and_its_run(address: str, page: Page) -> None:
    page.goto(address)
    page.get_by_text("tiny/nano/tst/8").first.click()
    page.get_by_text("Best Trial").first.wait_for()
    page.goto(page.url.rstrip("/") + "/trials")
    page.get_by_text("mlflow_run_id").first.wait_for()
    for words in ("purpose", "spec_id", "tuning"):
        assert page.get_by_text(words).first.is_visible()
