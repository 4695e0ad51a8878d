"""Tests of pytest with a limit for each: one that hangs or takes the process with it costs itself, and the others go on.

This module is also the plugin that pytest loads to tell what becomes of each test, a line of JSON at once. A signal would
not end a test that waits inside a kernel, so the process is ended, and another one runs the tests that are left.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainers.bench.tour.process import POLL_SECONDS, ends_with_us

TEST_SECONDS = 90.0
COLLECT_SECONDS = 120.0
"""Until the first test begins: torch is loaded, and its compiler."""
EVENTS, DONE = "TOUR_TEST_EVENTS", "TOUR_TESTS_DONE"
"""Variables that name the files of the plugin's lines, and of the tests that it leaves out."""
HUNG, CRASHED, FAILED = FAILURES = ("hung", "crashed", "failed")
COLLECTION, THE_END = "collection", "the end"
"""What a process does before its first test, and between tests and after the last."""


@dataclass(frozen=True, slots=True)
class Ended:
    """A test: `outcome` is pytest's, `hung` or `crashed`; `said` is why, in one line."""

    name: str
    outcome: str
    seconds: float
    said: str = ""


def run_tests(
    folder: Path,
    root: Path,
    options: Sequence[str],
    log: Path,
    tell: Callable[[Ended], None],
    seconds: float = TEST_SECONDS,
) -> list[Ended]:
    """Run the tests of `folder`, with pytest's output appended to `log`; `tell` hears of each when it is over.

    Warnings of torch are no failures here, neither in a test nor where its file is loaded.
    """
    log.unlink(missing_ok=True)
    # Without the project's own options, some of which belong to plugins that may not be here.
    command = [sys.executable, "-m", "pytest", "-o", "addopts=", "-W", "default", "-v", "-p", __name__]
    command += ["--continue-on-collection-errors", *options, str(folder)]
    found: list[Ended] = []
    while True:
        more = _one_process(command, root, log, [one.name for one in found], tell, seconds)
        found += more
        if not more or more[-1].outcome not in (HUNG, CRASHED) or more[-1].name in (COLLECTION, THE_END):
            return found


def _one_process(
    command: Sequence[str],
    root: Path,
    log: Path,
    without: Sequence[str],
    tell: Callable[[Ended], None],
    seconds: float,
) -> list[Ended]:
    """The tests that one process decides, the last of them by its end where it hung or crashed."""
    events, done = log.with_suffix(".events"), log.with_suffix(".done")
    events.write_text("", encoding="utf-8")
    done.write_text(json.dumps(without), encoding="utf-8")
    found: list[Ended] = []
    running, since, read = COLLECTION, time.monotonic(), 0

    def end(outcome: str, said: str) -> None:
        found.append(Ended(running, outcome, round(time.monotonic() - since, 1), said))
        tell(found[-1])

    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            cwd=root,
            env=_environment(events, done),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=ends_with_us(),
        )
    while True:
        code = process.poll()
        lines = events.read_text(encoding="utf-8").split("\n")[:-1]
        for event in map(json.loads, lines[read:]):
            if (
                "outcome" in event and event["name"] not in without
            ):  # a file that cannot be loaded says so to each process
                running = event["name"]
                end(event["outcome"], event["said"])
            running, since = event["then"], time.monotonic()
        read = len(lines)
        if code is not None:
            if running != THE_END and code not in (0, _NOTHING_COLLECTED) and not (found and running == COLLECTION):
                end(CRASHED, f"the process ended with {code}")
            return found
        limit = COLLECT_SECONDS if running == COLLECTION else seconds
        if time.monotonic() - since > limit:
            process.kill()
            process.wait()
            end(HUNG, f"not over after {limit:g} s")
            return found
        time.sleep(POLL_SECONDS)


_NOTHING_COLLECTED = 5
"""Exit code of pytest where no test is chosen."""


def _environment(events: Path, done: Path) -> dict[str, str]:
    ours = str(Path(__file__).resolve().parents[3])
    path = os.pathsep.join(part for part in (ours, os.environ.get("PYTHONPATH", "")) if part)
    return {**os.environ, EVENTS: str(events), DONE: str(done), "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


_outcome: dict[str, str] = {}
"""Of the test that runs, in pytest's process: setup, call and teardown have one each, and the worst counts."""


def _write(event: Mapping[str, str]) -> None:
    with open(os.environ[EVENTS], "a", encoding="utf-8") as file:
        file.write(json.dumps(event) + "\n")


def pytest_collection_modifyitems(items: list[Any]) -> None:
    """Leave out the tests that are decided."""
    done = set(json.loads(Path(os.environ[DONE]).read_text(encoding="utf-8")))
    items[:] = [item for item in items if item.nodeid not in done]


def pytest_collectreport(report: Any) -> None:
    """A file that cannot be loaded is a failure by its own name."""
    if report.failed:
        _write({"name": report.nodeid, "outcome": FAILED, "said": _reason(report), "then": COLLECTION})


def pytest_runtest_logstart(nodeid: str) -> None:
    """A test begins."""
    _outcome.clear()
    _write({"then": nodeid})


def pytest_runtest_logreport(report: Any) -> None:
    """A test's setup, call or teardown is over."""
    if report.outcome != "passed" and _outcome.get("outcome") != FAILED:
        _outcome.update(outcome=report.outcome, said=_reason(report))


def pytest_runtest_logfinish(nodeid: str) -> None:
    """A test is over."""
    _write({"name": nodeid, "outcome": "passed", "said": "", **_outcome, "then": THE_END})


def _reason(report: Any) -> str:
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[2])[:300]
    crash = getattr(report.longrepr, "reprcrash", None)
    lines = [line for line in str(crash.message if crash else report.longrepr or "").splitlines() if line.strip()]
    return (lines[0] if crash else lines[-1]).strip()[:300] if lines else ""
