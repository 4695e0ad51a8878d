"""Runs that an earlier state of the file asked for are named and counted apart, wherever a sweep's progress is told."""

from __future__ import annotations

from typing import Any

import pytest

from sweeper.engine.status import arms_of
from sweeper.engine.view import view_of
from sweeper.plans.costs import StepCost
from sweeper.plans.plan import make_plan
from tests.support.tiny_sweep import FACTS, Desk, Workers, space_of


def swept() -> Desk:
    desk = Desk()
    assert Workers().run(desk.open())
    return desk


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({}, 4 + 2 * 3),
        ({"validation_tokens": 513}, 0),
        ({"seeds": {"tuning": (0, 1), "confirmation": (1001, 1002)}}, 4 + 1 * 3),
    ],
    ids=["the same file", "another text to score on", "one seed exchanged"],
)
def test_progress_is_that_of_the_file_as_it_is(changes: dict[str, Any], kept: int) -> None:
    desk = swept()
    there = sum(record.spec.method == "baseline" for record in desk.ledger.written.values())
    sweep = desk.open(space=space_of(**changes))
    (arm,) = [arm for arm in view_of(sweep).arms if arm.method == "baseline"]
    assert (arm.done, arm.of_earlier_files) == (kept, there - kept)
    assert arm.total == 4 + 2 * 3
    status = next(
        arm for arm in arms_of(list(sweep.finished.values()), [], sweep.of_earlier_files) if arm.method == "baseline"
    )
    assert (status.finished, status.of_earlier_files) == (kept, there - kept)
    plan = make_plan(
        space_of(**changes),
        corpus=FACTS,
        corpus_words="text",
        cost=StepCost({}, 1e12, "assumed"),
        workers=1,
        on_gpu=False,
        known=desk.ledger.records(),
    )
    planned = next(arm for arm in plan.arms if arm.method == "baseline")
    assert planned.finished == kept
    assert planned.tuning_trials + planned.confirmation_trials == 4 + 2 * 3
    assert (plan.of_earlier_files == 0) == (not changes)
