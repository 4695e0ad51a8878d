"""A sweep as a list: everything that can be asked for before a result, in the order of its worth, and nothing twice."""

from __future__ import annotations

from sweeper.plans.spec_list import list_trials
from tests.support.strategies import record_of
from tests.support.tiny_sweep import FACTS, loss_of, space_of
from trainers.contract.record import RunRecord
from trainers.planning.spec_lines import TrialLine, filled_in


def trained(trials: list[TrialLine]) -> list[RunRecord]:
    return [
        record_of(line.spec, purpose=line.purpose, final_loss=loss_of(line.spec, line.spec.schedule.total_steps))
        for line in trials
    ]


def test_a_grid_is_one_list_tuning_first_then_a_seed_of_every_arm_at_a_time() -> None:
    made = list_trials(space_of(), FACTS, [])
    kinds = [(line.purpose, line.winner, line.spec.seed) for line in made.trials]
    assert kinds[:8] == [("tuning", False, seed) for _, _, seed in kinds[:8]]
    assert {(line.spec.method, line.spec.seed) for line in made.trials[:8]} == {
        ("baseline", 0), ("baseline", 1), ("tst", 0),
    }  # fmt: skip
    assert kinds[8:] == [("confirmation", True, 1000)] * 4 + [("confirmation", True, 1001)] * 4
    assert [line.spec.schedule.total_steps for line in made.trials[8:12]] == [8, 12, 16, 8]
    assert made.notes == ()
    assert (made.corpus, made.evaluate_every) == ("nowhere", 4)
    assert len({line.spec.spec_id for line in made.trials}) == 16


def test_with_the_tuning_in_the_ledger_the_confirmations_are_the_sweep_s_own() -> None:
    first = list_trials(space_of(), FACTS, [])
    tuning = [line for line in first.trials if line.purpose == "tuning"]
    half = list_trials(space_of(), FACTS, trained(tuning[:3]))
    assert set(half.trials) == set(first.trials), "the list finds its winner among all tuning trials"
    then = list_trials(space_of(), FACTS, trained(tuning))
    assert {(line.purpose, line.winner) for line in then.trials} == {("confirmation", False)}
    ended = {record.spec.spec_id: record for record in trained(tuning)}
    on_the_machine = [spec for spec, purpose in filled_in(first.trials, ended) if purpose == "confirmation"]
    assert [line.spec for line in then.trials] == on_the_machine, "the same winner here and there"
    assert list_trials(space_of(), FACTS, [*ended.values(), *trained(list(then.trials))]).trials == ()


def test_what_the_list_cannot_know_is_said() -> None:
    halving = {"baseline": {"tuning": (6, 8)}, "tst": {"tuning": (6, 8)}}
    space = space_of()
    methods = {
        name: {"budgets": {**halving[name], "confirmation": (8, 12)}, "axes": method.model_dump()["axes"]}
        for name, method in space.methods.items()
    }
    search = {"sampler": "surface", "trials_per_arm": 4, "fan": 2, "warm_start": False}
    made = list_trials(space_of(methods=methods, search=search), FACTS, [])
    assert {line.purpose for line in made.trials} == {"tuning"}
    assert {line.spec.schedule.total_steps for line in made.trials} == {6}
    (note,) = made.notes
    assert note.startswith("nano: the search goes on from results")
    (chosen,) = list_trials(space_of(search=search), FACTS, []).notes
    assert chosen == "the search chose all of its tuning trials before it saw a result"
    (scales,) = list_trials(space_of(scales=("nano", "micro")), FACTS, []).notes
    assert scales == "only nano: larger scales begin from what it finds"
