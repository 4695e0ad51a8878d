"""What the sweep is told when Ray Tune says that a trial of its own failed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from sweeper.executors.inline import MAX_FAILURES
from sweeper.executors.ray_tune import _searcher
from sweeper.executors.workers import failure_file
from tests.conformance.sweep_of import RAY_WARNINGS
from tests.support.tiny_sweep import Desk, site_in
from trainers.contract.record import Failed
from trainers.contract.stage import StageJob

pytestmark = [pytest.mark.slow, *RAY_WARNINGS]


def test_a_worker_that_dies_between_two_trials_costs_no_trial(tmp_path: Path) -> None:
    """Tune tries nothing again that had not begun: the stage is given out once more, as often as one that had."""
    desk = Desk()
    sweep = desk.open(site=site_in(tmp_path))
    searcher = _searcher(sweep, MAX_FAILURES)
    for attempt in range(MAX_FAILURES + 1):
        searcher.suggest(str(attempt))
        job = searcher.jobs[str(attempt)]
        assert isinstance(job, StageJob)
        assert job.node in sweep.book.running
        assert not desk.ledger.written
        searcher.trials[str(attempt)] = SimpleNamespace(num_failures=1, error_file=None)
        searcher.on_trial_complete(str(attempt), error=True)
    outcomes = {record.outcome for record in desk.ledger.written.values()}
    assert outcomes == {Failed("the worker process died")}


def test_a_stage_that_said_why_or_was_tried_again_has_failed(tmp_path: Path) -> None:
    for said, failures in (("no memory", 1), (None, MAX_FAILURES + 1)):
        desk = Desk()
        sweep = desk.open(site=site_in(tmp_path / str(failures)))
        searcher = _searcher(sweep, MAX_FAILURES)
        searcher.suggest("first")
        job = searcher.jobs["first"]
        if said is not None:
            file = failure_file(Path(job.store), job.node)
            file.parent.mkdir(parents=True)
            file.write_text(said, encoding="utf-8")
        searcher.trials["first"] = SimpleNamespace(num_failures=failures, error_file=None)
        searcher.on_trial_complete("first", error=True)
        assert {record.outcome for record in desk.ledger.written.values()} == {
            Failed(said or "the worker process died")
        }
