"""Learning rates that are tried again at length: for whom, at which rates, what they cost, and what follows from them."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from reports.checks.check_runs import check_edges, check_tuning_length
from reports.evidence.runs import run_from_record
from reports.evidence.study import Study, SweepContext, build_study
from sweeper.engine.probes import probed_rates
from sweeper.engine.view import view_of
from sweeper.plans.costs import step_cost
from sweeper.plans.plan import make_plan
from sweeper.plans.spec_list import list_trials
from sweeper.space.schema import SearchSpace
from tests.support.tiny_sweep import FACTS, Desk, Workers, loss_of, result_of, space_of
from trainers.contract.record import Diverged
from trainers.contract.stage import StageJob, StageResult

LONG = (8, 12, 40)
"""Five times the tuning budget."""
RATES = {"grid": (0.002, 0.0028, 0.004)}


def far_space(confirmation: tuple[int, ...] = LONG, **search: Any) -> SearchSpace:
    plain = space_of().model_dump(mode="python")
    methods = {
        "baseline": {
            "budgets": {"tuning": 8, "confirmation": confirmation},
            "axes": {"learning_rate": RATES},
        },
        "tst": {
            "budgets": {"tuning": 8, "confirmation": (8, 16)},
            "axes": {
                "learning_rate": RATES,
                "bag_size": {"grid": (2, 3)},
                "step_ratio": 0.5,
                "bag_weighting": "uniform",
            },
        },
    }
    return space_of(methods=methods, search={**plain["search"], "trials_per_arm": 6, **search})


def falling_optimum(job: StageJob) -> StageResult:
    """The best rate is 0.004 for 8 steps and half an octave lower for runs above 30."""
    made = result_of(job)
    best = 0.0028 if job.spec.schedule.total_steps > 30 else 0.004
    shift = 20 * (abs(job.spec.schedule.learning_rate - best) - abs(job.spec.schedule.learning_rate - 0.004))
    return replace(made, points=tuple(replace(point, loss=point.loss + shift) for point in made.points))


def swept(space: SearchSpace, workers: Workers | None = None) -> Desk:
    desk = Desk(space)
    (workers or Workers(judge=falling_optimum)).run(desk.open())
    return desk


def of(desk: Desk, purpose: str) -> list[Any]:
    return [record.spec for record in desk.ledger.written.values() if record.purpose == purpose]


def test_progress_counts_probes_from_the_start() -> None:
    """A total that grows when the searches end would take the bar back."""
    desk = Desk(far_space())
    sweep = desk.open()
    before = {(arm.scale, arm.method): arm.total for arm in view_of(sweep).arms}
    Workers(judge=falling_optimum).run(sweep)
    after = {(arm.scale, arm.method): arm.total for arm in view_of(sweep).arms}
    trained = Counter((record.spec.scale, record.spec.method) for record in desk.ledger.written.values())
    assert before == after == trained
    assert of(desk, "probe")


def study(desk: Desk) -> Study:
    axes = {name: {"learning_rate": RATES["grid"]} for name in desk.space.methods}
    runs = [run_from_record(record) for record in desk.ledger.written.values()]
    return build_study(SweepContext("tiny", "?", axes=axes), runs)


@pytest.mark.parametrize(
    ("centre", "grid", "expected"),
    [
        (5.7e-3, (2.8e-3, 4e-3, 5.7e-3, 8e-3), (4e-3, 5.7e-3, 8e-3)),
        (8e-3, (4e-3, 5.7e-3, 8e-3), (5.7e-3, 8e-3, 0.0113)),
        (1e-3, (1e-3, 2e-3), (7.07e-4, 1e-3, 1.41e-3)),
    ],
)
def test_rates_lie_half_an_octave_apart_and_on_the_grid_where_it_has_them(
    centre: float, grid: tuple[float, ...], expected: tuple[float, ...]
) -> None:
    assert probed_rates(centre, grid) == pytest.approx(expected)


def test_both_arms_are_probed_alike_and_the_best_rate_is_the_ladder_s() -> None:
    desk = swept(far_space())
    probes = of(desk, "probe")
    assert Counter(spec.method for spec in probes) == {"baseline": 3, "tst": 3}
    assert {(spec.method, spec.schedule.total_steps, spec.seed) for spec in probes} == {
        ("baseline", 40, 0),
        ("tst", 16, 0),
    }
    assert sorted(spec.schedule.learning_rate for spec in probes if spec.method == "baseline") == [
        0.0028,
        0.004,
        0.00566,
    ]
    rates = {(spec.method, spec.schedule.learning_rate) for spec in of(desk, "confirmation")}
    assert rates == {("baseline", 0.0028), ("tst", 0.004)}
    assert len(of(desk, "tuning")) == 12


@pytest.mark.parametrize("space", [far_space((8, 12, 32)), far_space(probe=False)])
def test_a_short_ladder_and_a_file_that_declines_have_none(space: SearchSpace) -> None:
    desk = swept(space)
    assert not of(desk, "probe")
    assert {spec.schedule.learning_rate for spec in of(desk, "confirmation")} == {0.004}


def test_a_rate_that_the_file_fixes_is_left_alone() -> None:
    methods = {**space_of().model_dump(mode="python")["methods"]}
    methods["baseline"]["budgets"]["confirmation"] = LONG
    assert not of(swept(space_of(methods=methods)), "probe")


@pytest.mark.parametrize("stages", range(1, 30, 4))
def test_a_killed_sweep_probes_what_is_left(stages: int) -> None:
    desk, workers = Desk(far_space()), Workers(2, random.Random(stages), judge=falling_optimum)
    workers.run(desk.open(), stages)
    workers.run(desk.open())
    assert desk.summary == swept(far_space()).summary


def test_probes_that_all_diverge_leave_the_tuned_rate() -> None:
    def judge(job: StageJob) -> StageResult:
        long = job.spec.seed == 0 and job.spec.schedule.total_steps > 12
        return result_of(job, Diverged(job.end, "loss is NaN")) if long else result_of(job)

    desk = swept(far_space(), Workers(judge=judge))
    assert {spec.schedule.learning_rate for spec in of(desk, "confirmation")} == {0.004}


def test_the_check_says_that_it_was_probed_or_that_it_was_not() -> None:
    probed, declined = study(swept(far_space())), study(swept(far_space(probe=False)))
    found = check_tuning_length(probed, ())
    assert (found.status, found.number) == ("pass", "5x, probed")
    assert "baseline at nano: 3 at 40 steps" in found.sentence
    assert (check_tuning_length(declined, ()).status, check_tuning_length(declined, ()).number) == ("warn", "5x")
    (scale,) = probed.scales
    assert [len(arm.search) for arm in scale.arms] == [6, 6], "a probe is no tuning trial"
    # The baseline's best is the lower of its probes; the method's, at the upper end of the grid, is between two.
    assert "learning_rate = 0.0028, the smallest searched" in check_edges(probed, ()).sentence
    assert "tst at nano: learning_rate" not in check_edges(probed, ()).sentence
    assert "tst at nano: learning_rate = 0.004, the largest searched" in check_edges(declined, ()).sentence


def test_a_plan_counts_what_is_run() -> None:
    desk = swept(far_space())
    cost = step_cost([], "cpu", on_gpu=False)
    plan = make_plan(desk.space, corpus=FACTS, corpus_words="", cost=cost, workers=1, on_gpu=False)
    assert [arm.probe_trials for arm in plan.arms] == [3, 3]
    asked = [record.spec.schedule.total_steps for record in desk.ledger.written.values()]
    assert sum(arm.steps_alone for arm in plan.arms) == sum(asked)


def test_a_list_for_a_bare_machine_waits_for_its_tuning_records() -> None:
    desk = Desk(far_space())
    first = list_trials(desk.space, FACTS, [])
    assert {line.purpose for line in first.trials} == {"tuning"}
    assert any("at length" in note for note in first.notes)
    records = [record for record in swept(far_space()).ledger.written.values() if record.purpose == "tuning"]
    second = list_trials(desk.space, FACTS, records)
    assert {line.purpose for line in second.trials} == {"probe"}
    assert loss_of(second.trials[0].spec, 1)


def test_equal_losses_keep_the_tuned_rate() -> None:
    def flat(job: StageJob) -> StageResult:
        made = result_of(job)
        loss = 3.0 + abs(job.spec.schedule.learning_rate - 0.0028) * (job.spec.schedule.total_steps < 30)
        return replace(made, points=tuple(replace(point, loss=loss) for point in made.points))

    desk = swept(far_space(), Workers(judge=flat))
    baseline = [spec for spec in of(desk, "confirmation") if spec.method == "baseline"]
    assert {spec.schedule.learning_rate for spec in baseline} == {0.0028}


def test_an_arm_that_was_tuned_at_its_own_length_is_probed_as_often() -> None:
    space = far_space()
    methods = {name: method.model_dump(mode="python") for name, method in space.methods.items()}
    methods["tst"]["budgets"] = {"tuning": 8, "confirmation": (8,)}
    desk = swept(space_of(methods=methods, search=space.search.model_dump(mode="python")))
    assert Counter(spec.method for spec in of(desk, "probe")) == {"baseline": 3, "tst": 3}


def test_a_raised_tuning_budget_may_ask_for_what_was_a_probe() -> None:
    desk = swept(far_space())
    methods = {name: method.model_dump(mode="python") for name, method in desk.space.methods.items()}
    methods["baseline"]["budgets"] = {"tuning": 40, "confirmation": (8, 12, 40)}
    methods["tst"]["budgets"] = {"tuning": 16, "confirmation": (8, 16)}
    desk.space = space_of(methods=methods, search=desk.space.search.model_dump(mode="python"))
    Workers(judge=falling_optimum).run(desk.open())
    assert not desk.ledger.pending()
    tuned = Counter((spec.method, spec.schedule.total_steps) for spec in of(desk, "tuning"))
    assert (tuned["baseline", 40], tuned["tst", 16]) == (6, 6)
    assert {spec.schedule.learning_rate for spec in of(desk, "confirmation") if spec.method == "baseline"} >= {0.0028}
