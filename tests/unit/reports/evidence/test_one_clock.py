"""Runs of another trainer that were timed in different ways: no loss is left out for its clock."""

from __future__ import annotations

from dataclasses import replace

import pytest

from reports.checks.check_stated import check_one_clock
from reports.estimate.speedup import judge
from reports.evidence.clock import WHOLE_COMMAND, clock_note, on_one_clock
from reports.evidence.runs import FinishedRun, run_from_record
from reports.evidence.study import Study
from reports.sections import headline
from reports.summary import summarize
from sweeper.foreign.track import BETWEEN, WHOLE
from tests.support.finished_runs import make_study
from tests.support.strategies import record_of, spec_of
from trainers.contract.record import Timing
from trainers.contract.spec import ForeignSpec, Schedule

START_UP = 0.5
"""Seconds that every command takes before its first step."""


def run_of(method: str, steps: int, seed: int, clock: str) -> FinishedRun:
    made = record_of(
        spec_of(), final_loss=4.0 - 0.2 * (steps / 1_000) ** 0.5 - 0.1 * (method == "tst") + 0.004 * (seed % 3)
    )
    spec = ForeignSpec(
        scale="small",
        scale_values=(),
        method=method,
        parameters=(("bag_size", 4), ("step_ratio", 0.3)) if method == "tst" else (),
        command=("train",),
        environment=(),
        code="",
        loss_from="",
        decayed=True,
        schedule=Schedule(steps, 0, 0, 2e-3),
        seed=seed,
    )
    whole = START_UP + 0.001 * steps
    step_seconds = 0.001 if clock == BETWEEN else whole / steps
    phase = replace(made.timing.phases[0], steps=steps, median_step_seconds=step_seconds)
    timing = Timing((phase,), 1, whole, whole, clock)
    return run_from_record(replace(made, spec=spec, timing=timing))


def study_with(clock_of_the_longest: str) -> Study:
    runs = [
        run_of(method, steps, seed, clock_of_the_longest if steps == 3_000 else BETWEEN)
        for method, budgets in (("baseline", (1_000, 2_000, 3_000)), ("tst", (1_500,)))
        for steps in budgets
        for seed in (1000, 1001, 1002)
    ]
    return make_study(on_one_clock(runs))


def test_runs_of_two_clocks_are_all_compared_by_what_their_commands_took() -> None:
    study = study_with(WHOLE)
    (scale,) = study.scales
    assert scale.exclusions == ()
    assert scale.baseline is not None
    assert [cell.total_steps for cell in scale.baseline.cells] == [1_000, 2_000, 3_000]
    for cell in scale.baseline.cells:
        assert cell.gpu_hours == pytest.approx((START_UP + 0.001 * cell.total_steps) / 3600)
    assert all(WHOLE_COMMAND in run.notes for run in study.runs)
    check = check_one_clock(study)
    assert check is not None
    assert (check.name, check.status) == ("Same clock", "warn")
    (verdict,) = judge(study)
    assert verdict.speedup is not None
    assert type(verdict.speedup).__name__ == "Reached", verdict.speedup


def test_runs_of_one_clock_keep_it() -> None:
    study = study_with(BETWEEN)
    (scale,) = study.scales
    assert scale.baseline is not None
    assert scale.baseline.cells[0].gpu_hours == pytest.approx(0.001 * 1_000 / 3600)
    assert check_one_clock(study) is None


def test_one_line_under_the_headline_says_so() -> None:
    study = study_with(WHOLE)
    said = headline.info(study, summarize(study)).clock_note
    assert said == "Hours at small are timed by the whole command, start-up included: its runs had different clocks."
    assert clock_note(study_with(BETWEEN).runs) == ""
