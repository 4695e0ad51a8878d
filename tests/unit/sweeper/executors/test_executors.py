"""The inline executor: attempts, failures, damaged parents, stops. The distributed one is held to it in `conformance`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest

from sweeper.executors.inline import MAX_FAILURES, InlineExecutor
from tests.support.tiny_sweep import Desk, result_of
from trainers.contract.record import Failed, Finished, Stopped, reason_of
from trainers.contract.stage import ParentLostError, StageJob, StagePoint, StageResult

OnPoint = Callable[[StagePoint], None]


def silent() -> None:
    """Nobody watches."""


def test_a_crash_is_tried_again_and_leaves_no_trace() -> None:
    desk, attempts = Desk(), Counter[str]()

    def train(job: StageJob, on_point: OnPoint) -> StageResult:
        attempts[job.node] += 1
        if attempts[job.node] <= MAX_FAILURES:
            raise OSError("the machine is gone")
        return result_of(job)

    InlineExecutor().run(desk.open(), train, silent)
    assert set(attempts.values()) == {MAX_FAILURES + 1}
    assert all(isinstance(record.outcome, Finished) for record in desk.ledger.written.values())


def test_a_stage_that_always_crashes_fails_with_its_reason() -> None:
    desk, attempts = Desk(), Counter[str]()

    def train(job: StageJob, on_point: OnPoint) -> StageResult:
        attempts[job.spec.method] += 1
        if job.spec.method == "tst":
            raise OSError("no\n memory")
        return result_of(job)

    InlineExecutor(max_failures=1).run(desk.open(), train, silent)
    outcomes = [r.outcome for r in desk.ledger.written.values() if r.spec.method == "tst"]
    assert outcomes == [Failed("OSError: no memory")] * 4
    assert attempts["tst"] == 2 * 2  # two trunks, two attempts each


def test_a_lost_parent_is_trained_again_before_its_child() -> None:
    desk, trained = Desk(), []

    def train(job: StageJob, on_point: OnPoint) -> StageResult:
        trained.append(job.node)
        if job.parent is not None and trained.count(job.parent) == 1:
            raise ParentLostError("SHA-256 differs")
        return result_of(job)

    InlineExecutor().run(desk.open(), train, silent)
    assert all(isinstance(record.outcome, Finished) for record in desk.ledger.written.values())
    assert max(Counter(trained).values()) >= 2


def test_a_stopped_stage_ends_the_run() -> None:
    desk, trained = Desk(), []

    def train(job: StageJob, on_point: OnPoint) -> StageResult:
        trained.append(job.node)
        outcome = Stopped(job.start + 1, "stop requested") if len(trained) == 3 else None
        return replace(result_of(job), outcome=outcome)

    sweep = desk.open()
    InlineExecutor().run(sweep, train, silent)
    assert len(trained) == 3
    assert sweep.stopping == "stop requested"


def test_points_and_ends_are_shown() -> None:
    desk, shown = Desk(), []
    sweep = desk.open()

    def train(job: StageJob, on_point: OnPoint) -> StageResult:
        on_point(StagePoint(job.start + 1, 3.5, "next-token"))
        return result_of(job)

    InlineExecutor().run(sweep, train, lambda: shown.append(dict(sweep.losses)))
    assert {(step, loss) for losses in shown for step, loss in losses.values()} >= {(1, 3.5)}
    assert shown[1] == {}


def test_an_interrupt_is_not_a_failure() -> None:
    desk = Desk()

    def train(job: StageJob, on_point: OnPoint) -> StageResult:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        InlineExecutor().run(desk.open(), train, silent)
    assert desk.ledger.written == {}


def test_trouble_of_the_ledger_is_not_taken_for_a_failed_trial() -> None:
    desk = Desk()

    class FullDisk(type(desk.ledger)):  # type: ignore[misc]
        def write(self, record: object) -> None:
            raise OSError("disk full")

    desk.ledger = FullDisk()
    with pytest.raises(OSError, match="disk full"):
        InlineExecutor().run(desk.open(), lambda job, on_point: result_of(job), silent)


def test_a_reason_is_one_line() -> None:
    assert reason_of(ValueError("a\n  b\tc")) == "ValueError: a b c"
    assert reason_of(ValueError("http://ann:s3cret@host says no")) == "ValueError: http://host says no"
    assert reason_of(KeyboardInterrupt()) == "KeyboardInterrupt"
