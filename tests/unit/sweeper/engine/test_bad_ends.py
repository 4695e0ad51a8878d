"""Failures are told with their arm; a reason that comes again is counted; an arm without a winner stays in sight."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sweeper.cli.screen import sweep_line
from sweeper.engine.bad_ends import BadEnds
from sweeper.engine.view import view_of
from sweeper.executors.inline import InlineExecutor
from tests.conformance.test_foreign_trainers import ForeignBench
from tests.unit.trainers.planning.test_command import SPEC
from trainers.contract.record import Diverged, Failed


def test_a_reason_is_told_once_and_counted_while_it_comes_again() -> None:
    ends = BadEnds()
    spec = replace(SPEC, scale="small", method="tst")
    said = [
        ends.said(spec, outcome)
        for outcome in (
            Failed("exit code 7; its log ends: 'loss 3.1'"),
            Failed("exit code 7; its log ends: 'loss 3.2'"),
            Failed("exit code 7"),
            Diverged(4, "the loss is nan"),
            Failed("exit code 8; its log ends: 'loss 3.2'"),
            Failed("exit code 7"),
        )
    ]
    assert said == [
        "small tst failed: exit code 7; its log ends: 'loss 3.1'",
        "small tst failed: the same reason again, 2 in a row",
        "small tst failed: the same reason again, 3 in a row",
        "small tst diverged at step 4: the loss is nan",
        "small tst failed: exit code 8; its log ends: 'loss 3.2'",
        "small tst failed: exit code 7",
    ]


def test_the_last_line_of_a_sweep_whose_trials_all_failed_has_its_counters(tmp_path: Path) -> None:
    bench = ForeignBench(tmp_path)
    command = ("false", *(bench.space.trainer.command or ())[1:])
    bench.space = bench.space.model_copy(
        update={"trainer": bench.space.trainer.model_copy(update={"command": command})}
    )
    sweep = bench.run(InlineExecutor())
    line = sweep_line(view_of(sweep))
    assert line.startswith("baseline 2/"), line
    assert ", tst 2/" in line
    assert line.endswith("small tst: every trial failed")
