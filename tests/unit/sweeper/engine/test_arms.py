"""What an arm tries, how it takes up an earlier run, and what it makes of a file's axes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sweeper.engine.arms import Arm, proposal_of
from sweeper.space.schema import UNIFORM_CELLS, Grid, IntegerRange, LogUniformRange, UniformRange
from sweeper.space.trials import axis_of, domain_of
from tests.support.strategies import record_of
from tests.support.tiny_sweep import Desk, loss_of, space_of
from trainers.contract.record import Diverged, RunRecord
from trainers.contract.spec import TrialSpec


def arm_of(method: str, **changes: object) -> Arm:
    """An arm as the sweep opens it, with nothing tried."""
    sweep = Desk(space_of(**changes)).open()
    return next(arm for arm in sweep.arms if arm.method == method)


def ended(spec: TrialSpec) -> RunRecord:
    return record_of(spec, purpose="tuning", final_loss=loss_of(spec, 8))


def ask_all(arm: Arm) -> list[TrialSpec]:
    asked: list[TrialSpec] = []
    while specs := arm.ask():
        asked += specs
    return asked


@pytest.mark.parametrize("method", ["baseline", "tst"])
def test_an_arm_asks_for_its_trials_once_and_no_more(method: str) -> None:
    arm = arm_of(method)
    asked = ask_all(arm)
    assert len({spec.spec_id for spec in asked}) == len(asked) == arm.trials == 4
    assert all(arm.belongs(spec) for spec in asked)
    assert not arm.tuning_done
    for spec in asked:
        arm.tell(ended(spec))
    assert arm.tuning_done
    assert arm.ask() == []


def test_a_fan_differs_in_its_ratio_alone() -> None:
    first, second, *_ = arm_of("tst").ask()
    assert {first.step_ratio, second.step_ratio} == {0.25, 0.5}
    assert replace(first, parameters=second.parameters) == second


def test_an_arm_knows_its_own_trials() -> None:
    baseline, tst = arm_of("baseline"), arm_of("tst")
    (spec, *_) = tst.ask()
    assert tst.belongs(spec)
    assert not baseline.belongs(spec)
    assert not tst.belongs(replace(spec, corpus_fingerprint="another"))
    assert not tst.belongs(replace(spec, scale="micro"))
    assert not tst.belongs(replace(spec, schedule=replace(spec.schedule, learning_rate=0.003)))
    assert not tst.belongs(replace(spec, schedule=replace(spec.schedule, total_steps=12, decay_steps=3)))


SURFACE = {"sampler": "surface", "trials_per_arm": 4, "fan": 2, "warm_start": False}


def test_a_search_hears_of_a_round_when_all_of_it_has_ended() -> None:
    arm = arm_of("tst", search=SURFACE)
    first, second = arm.ask()
    assert arm.ask() == []
    arm.tell(ended(second))
    assert arm.ask() == []
    assert arm.strategy.pending == 2
    arm.tell(ended(first))
    assert arm.strategy.pending == 0
    assert arm.ask()


@pytest.mark.parametrize("told", [0, 1, 2, 3])
def test_an_earlier_run_is_taken_up_where_it_ended(told: int) -> None:
    undisturbed = arm_of("tst", search=SURFACE)
    whole: list[TrialSpec] = []
    while specs := undisturbed.ask():
        whole += specs
        for spec in specs:
            undisturbed.tell(ended(spec))
    asked = whole[:2] if told < 2 else whole
    after = arm_of("tst", search=SURFACE)
    after.replay([ended(spec) for spec in asked[:told]], asked[told:])
    while open_trials := [spec for spec in after.asked.values() if spec.spec_id not in after.tuned] or after.ask():
        for spec in reversed(open_trials):
            after.tell(ended(spec))
    assert list(after.asked.values()) == whole
    assert after.tuning_done


def test_trials_that_the_search_would_not_ask_for_are_a_round_of_their_own() -> None:
    """As after a change of the file: what was paid for is known to the search, and counts."""
    other = arm_of("tst", search={**SURFACE, "seed": 7, "sampler": "random"})
    (first, second, third, *_) = other.ask()
    arm = arm_of("tst", search=SURFACE)
    would = {spec.spec_id for spec in arm_of("tst", search=SURFACE).ask()}
    assert {first.spec_id, second.spec_id, third.spec_id} - would
    arm.replay([ended(first)], [second, third])
    assert arm.ask() == []
    for spec in (third, second):
        arm.tell(ended(spec))
    assert len(arm.ask()) == 1


def test_the_winner_does_not_depend_on_the_order_in_which_trials_end() -> None:
    forward, backward = arm_of("tst"), arm_of("tst")
    asked = ask_all(forward)
    assert ask_all(backward) == asked
    for spec in asked:
        forward.tell(ended(spec))
    for spec in reversed(asked):
        backward.tell(ended(spec))
    assert [spec for spec, _ in forward.confirm()] == [spec for spec, _ in backward.confirm()]
    assert forward.winner is not None
    assert dict(forward.winner.parameters)["bag_size"] == 2


def test_an_arm_without_a_finished_trial_confirms_nothing() -> None:
    arm = arm_of("baseline")
    for spec in ask_all(arm):
        arm.tell(record_of(spec, purpose="tuning", outcome=Diverged(3, "nan")))
    assert arm.tuning_done
    assert (arm.best, arm.confirm(), arm.winner) == (None, [], None)


def test_confirmation_seeds_are_none_that_the_search_used() -> None:
    arm = arm_of("baseline", seeds={"tuning": (0, 1), "confirmation": (1000,)})
    asked = ask_all(arm)
    for spec in asked:
        arm.tell(ended(spec))
    confirmed = arm.confirm()
    assert [purpose for _, purpose in confirmed] == ["confirmation"] * 3 + ["noise_floor"] * 4
    assert {spec.seed for spec, _ in confirmed}.isdisjoint(spec.seed for spec in asked)
    assert len({spec.spec_id for spec, _ in confirmed}) == 7


def test_a_proposal_is_read_back_from_its_spec() -> None:
    arm = arm_of("tst")
    for spec in ask_all(arm):
        proposal = proposal_of(spec)
        assert arm.make(dict(proposal.parameters), proposal.total_steps, proposal.seed) == spec


def test_every_kind_of_axis_becomes_a_grid_of_equal_bits() -> None:
    bags = axis_of("bag_size", IntegerRange(integers=(2, 4)))
    assert (bags.values, bags.spacing) == ((2, 3, 4), "log")
    assert axis_of("bag_size", Grid(grid=(2, 8))).spacing == "log"
    assert axis_of("step_ratio", Grid(grid=(0.1, 0.2))).spacing == "linear"
    assert axis_of("bag_weighting", Grid(grid=("uniform", "power_law"))).spacing == "category"
    ratios = axis_of("step_ratio", UniformRange(uniform=(0.1, 0.9), step=0.1))
    assert ratios.values == (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    assert len(axis_of("step_ratio", UniformRange(uniform=(0.0, 0.8))).values) == UNIFORM_CELLS + 1
    assert axis_of("step_ratio", UniformRange(uniform=(0.3, 0.3))).values == (0.3,)
    rates = axis_of("learning_rate", LogUniformRange(log_uniform=(1e-3, 4e-3)))
    assert rates.values == (1e-3, 1.41421e-3, 2e-3, 2.82843e-3, 4e-3)
    assert rates.spacing == "log"


def test_a_method_of_constants_has_one_point_and_a_fan_needs_two_ratios() -> None:
    space = space_of()
    constant = space.methods["baseline"].model_copy(update={"axes": {"learning_rate": 0.002}})
    assert domain_of(constant, (0,)).points == ((("learning_rate", 0.002),),)
    assert domain_of(space.methods["tst"], (0,)).fan_axis == "step_ratio"
    one_ratio = space.methods["tst"].model_copy(
        update={"axes": {**space.methods["tst"].axes, "step_ratio": Grid(grid=(0.25,))}}
    )
    assert domain_of(one_ratio, (0,)).fan_axis is None
