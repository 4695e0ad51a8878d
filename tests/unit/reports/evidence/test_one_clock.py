"""Runs that were timed by different clocks are compared by one that all have; none of their losses is thrown away."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from reports.evidence.runs import FinishedRun, run_from_record
from reports.evidence.study import Study
from reports.sections import headline
from reports.summary import summarize
from tests.support.finished_runs import OFFSETS, make_study, true_loss
from tests.support.strategies import PROVENANCE, record_of, spec_of
from trainers.contract.record import WALL

BETWEEN, WHOLE = "point-to-point wall", "whole-command wall"
STEP_SECONDS, START_UP = 0.01, 20.0
DEVICE = PROVENANCE.device


def timed(
    method: str, steps: int, number: int, clock: str, *, billed: bool = True, purpose: str = "confirmation"
) -> FinishedRun:
    """A run whose whole wall time has a start-up in it that only the whole command's clock counts."""
    whole = steps * STEP_SECONDS + START_UP
    record = record_of(
        spec_of(method, total_steps=steps, seed=1000 + number),
        purpose=purpose,
        final_loss=true_loss(steps * (1.3 if method == "tst" else 1.0)) + OFFSETS[number],
        step_seconds=whole / steps if clock == WHOLE else STEP_SECONDS,
    )
    timing = replace(record.timing, clock=clock, billed_seconds=whole if billed else 0.0)
    return run_from_record(replace(record, timing=timing))


def confirmed(clock_of: Callable[[int], str], *, billed: bool = True) -> Iterator[FinishedRun]:
    for method, budgets in (("baseline", (4_000, 6_000, 8_000)), ("tst", (4_000,))):
        for steps in budgets:
            for number in range(len(OFFSETS)):
                yield timed(method, steps, number, clock_of(steps), billed=billed)


def by_length(steps: int) -> str:
    """A trainer that says a point every so many steps: only its longest runs say enough of them for a clock."""
    return BETWEEN if steps >= 8_000 else WHOLE


def same_clock(study: Study) -> str | None:
    found = [check for check in summarize(study).checks if check.name == "Same clock"]
    return found[0].status if found else None


def test_the_longest_runs_are_not_left_out_for_their_better_clock() -> None:
    study = make_study(list(confirmed(by_length)))
    assert study.exclusions == ()
    (scale,) = study.scales
    assert scale.baseline is not None
    assert scale.baseline.budgets == (4_000, 6_000, 8_000)
    (verdict,) = summarize(study).verdicts
    assert verdict.needed_steps is None, "the target lies inside the ladder"
    assert verdict.clock == "gpu_hours"


def test_every_run_counts_as_if_its_whole_command_had_been_its_clock() -> None:
    mixed, whole = (make_study(list(confirmed(clock))) for clock in (by_length, lambda steps: WHOLE))
    assert mixed.scales[0].hours == pytest.approx(whole.scales[0].hours)
    for one, other in zip(mixed.runs, whole.runs, strict=True):
        assert one.curve.gpu_hours is not None
        assert one.curve.gpu_hours == pytest.approx(other.curve.gpu_hours)


def test_the_page_says_it_once_and_a_check_warns() -> None:
    study = make_study(list(confirmed(by_length)))
    said = headline.info(study, summarize(study)).clock_note
    assert said == (
        f"At {study.scales[0].scale} hours are each run's whole wall time, start-up and all, as its runs were timed by "
        "different clocks."
    )
    assert same_clock(study) == "warn"


@pytest.mark.parametrize(("clock", "device"), [(WALL, DEVICE), (BETWEEN, f"{DEVICE}, {BETWEEN} time")])
def test_runs_of_one_clock_keep_it(clock: str, device: str) -> None:
    runs = list(confirmed(lambda steps: clock))
    study = make_study(runs)
    assert study.runs == tuple(runs)
    assert study.scales[0].device == device
    assert same_clock(study) is None
    assert headline.info(study, summarize(study)).clock_note == ""


def test_without_a_wall_time_the_verdict_is_on_another_clock_and_a_check_fails() -> None:
    study = make_study(list(confirmed(by_length, billed=False)))
    (verdict,) = summarize(study).verdicts
    assert study.exclusions == ()
    assert verdict.clock == "flops"
    assert same_clock(study) == "fail"
    assert summarize(study).worst_caveat.startswith("Same clock: no hours. At nano hours are left out")


def test_short_trials_that_only_say_how_seeds_scatter_cost_the_confirmed_runs_no_clock() -> None:
    scatter = [timed("baseline", 1_000, number, WHOLE, purpose="noise_floor") for number in range(3)]
    study = make_study([*confirmed(lambda steps: BETWEEN), *scatter])
    (scale,) = study.scales
    assert study.exclusions == ()
    assert scale.device == f"{DEVICE}, {BETWEEN} time"
    assert scale.baseline is not None
    assert len(scale.baseline.noise_floor) == 3
    assert {time.seconds for time in scale.step_times} == {STEP_SECONDS}
    assert same_clock(study) is None


def test_runs_of_an_earlier_file_do_not_cost_the_file_s_runs_their_clock() -> None:
    own = list(confirmed(lambda steps: BETWEEN))
    others = [
        replace(timed("baseline", 3_000, number, WHOLE), run_id=f"earlier {number}", context=128) for number in range(3)
    ]
    study = make_study([*own, *others], of_file=frozenset(run.run_id for run in own))
    assert {exclusion.run.run_id for exclusion in study.exclusions} == {run.run_id for run in others}
    assert same_clock(study) is None
