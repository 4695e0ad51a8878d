"""Ray's memory monitor ends a worker: the sweep goes on, and the reason is in status, ledger and page."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from sweeper.ledger.mlflow_ledger import Ledger
from tests.integration.test_cluster import environment
from tests.integration.test_command_line import FILE, SWEEPER, results, sweeper
from trainers.contract.record import Failed

__all__ = ["results"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.alone,
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning"),
]
FULL = {"RAY_memory_usage_threshold": "0.001", "RAY_memory_monitor_refresh_ms": "100"}
"""To Ray every machine is then full, and whatever trains is ended for it."""


def test_what_a_full_machine_ends_is_told_with_its_reason_and_can_be_run_again(results: Path) -> None:
    command = [str(SWEEPER), "run", str(FILE), "--results", str(results), "--workers", "1"]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment(**FULL), timeout=600)
    assert ended.returncode == 1, ended.stderr
    assert "Traceback" not in ended.stderr
    said = json.loads(sweeper("status", "tiny", "--results", results, "--json").stdout)
    assert said["failures"]
    assert all("out of memory: ended while" in failure["reason"] for failure in said["failures"]), said["failures"]
    with Ledger.open(results, "tiny", create=False) as ledger:
        assert {type(record.outcome) for record in ledger.records()} == {Failed}
    assert "out of memory: ended while" in (results / "tiny" / "report.html").read_text(encoding="utf-8")
    again = sweeper("run", FILE, "--results", results, "--executor", "inline")
    assert again.returncode == 0, again.stderr
