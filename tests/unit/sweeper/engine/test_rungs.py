"""Budget as the fidelity: a file with several tuning rungs, and the sweep that climbs them on the trunks it left."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import jsonschema
import pytest

from sweeper.engine.states import final_nodes
from sweeper.search import Axis, Domain
from sweeper.space.errors import SearchSpaceError
from sweeper.space.json_schema import search_space_schema
from sweeper.space.load import parse_search_space
from sweeper.space.schema import Budgets, SearchSpace
from sweeper.space.trials import domain_of, grid_trials
from sweeper.space.yaml_lines import read_yaml
from tests.support.places import SHIPPED
from tests.support.tiny_sweep import Desk, Workers, result_of, space_of
from trainers.contract.record import Diverged, RunRecord
from trainers.contract.schedule import boundary_step

QUICKSTART = (SHIPPED / "quickstart.yaml").read_text(encoding="utf-8")
RUNGS = (8, 16, 32)


def rung_space(sampler: str = "surface", trials: int = 7) -> SearchSpace:
    space = space_of()
    methods = {name: method.model_dump() for name, method in space.methods.items()}
    for method in methods.values():
        method["budgets"] |= {"tuning": RUNGS}
    return space_of(methods=methods, search={"sampler": sampler, "trials_per_arm": trials, "fan": 2})


def by_rung(desk: Desk, method: str) -> dict[int, list[RunRecord]]:
    found: dict[int, list[RunRecord]] = defaultdict(list)
    for record in desk.ledger.written.values():
        if record.purpose == "tuning" and record.spec.method == method:
            found[record.spec.schedule.total_steps].append(record)
    return found


def point(record: RunRecord) -> tuple[object, ...]:
    return (record.spec.parameters, record.spec.schedule.learning_rate, record.spec.seed)


def with_tuning(written: str) -> str:
    return QUICKSTART.replace("tuning: 3500", f"tuning: {written}")


def test_one_number_is_one_rung_and_a_list_is_as_many() -> None:
    space = parse_search_space(with_tuning("[2000, 4000]"), Path("q.yaml"))
    for method in space.methods.values():
        assert domain_of(method, space.seeds.tuning).rungs == (2000, 4000)
    assert Budgets(tuning=4000, confirmation=(8000,)).rungs == (4000,)
    assert Budgets(tuning=(4000,), confirmation=(8000,)).rungs == (4000,)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("[]", "methods.baseline.budgets.tuning: [] is empty"),
        ("[4000, 2000]", "methods.baseline.budgets.tuning: 2000 is not above the 4000 before it"),
        ("[100, 4000]", "methods.baseline.budgets.tuning: 100 steps are fewer than warm-up plus decay (200 + 20)"),
        ("[2000, many]", "methods.baseline.budgets.tuning: 'many' is not a whole number"),
        ("many", "methods.baseline.budgets.tuning: 'many' is not a whole number"),
    ],
)
def test_a_bad_rung_is_named_with_its_line(written: str, said: str) -> None:
    with pytest.raises(SearchSpaceError) as caught:
        parse_search_space(with_tuning(written), Path("q.yaml"))
    line = next(number for number, text in enumerate(QUICKSTART.splitlines(), 1) if "tuning: 3500" in text)
    assert str(caught.value).splitlines()[0].startswith(f"q.yaml:{line}: {said}")


def test_editors_accept_both_forms_and_nothing_else() -> None:
    validator = jsonschema.Draft202012Validator(search_space_schema())

    def accepts(written: str) -> bool:
        import json

        value = read_yaml(with_tuning(written))[0].value
        return bool(validator.is_valid(json.loads(json.dumps(value))))

    assert accepts("4000")
    assert accepts("[2000, 4000]")
    assert not accepts("[]")
    assert not accepts("many")


def test_promoted_trials_go_on_from_their_trunks() -> None:
    desk, workers = Desk(rung_space()), Workers(2)
    assert workers.run(desk.open())
    for method in ("baseline", "tst"):
        rungs = by_rung(desk, method)
        assert [len(rungs[steps]) for steps in RUNGS] == [4, 2, 1]
        for low, high in ((8, 16), (16, 32)):
            assert {point(r) for r in rungs[high]} <= {point(r) for r in rungs[low]}
    assert max(workers.trained.values()) == 1
    starts = {
        (job.spec.method, job.spec.schedule.total_steps, job.start)
        for job in workers.jobs
        if job.spec.seed < 1000 and job.spec.schedule.total_steps > 8
    }
    assert not any(start == 0 for _, _, start in starts), "a promoted trial was trained from its beginning"


def test_climbing_saves_the_steps_that_lower_rungs_trained() -> None:
    """The baseline goes on where the lower rung's decay began, the method where its superposition phase ended."""
    desk, workers = Desk(rung_space()), Workers()
    workers.run(desk.open())
    for method in ("baseline", "tst"):
        for low, high in ((8, 16), (16, 32)):
            for record in by_rung(desk, method)[high]:
                (below,) = [r for r in by_rung(desk, method)[low] if point(r) == point(record)]
                spec = below.spec
                left_at = boundary_step(spec.step_ratio, low) or spec.schedule.decay_start
                assert record.timing.billed_seconds == pytest.approx(0.5 * high)
                assert record.timing.incurred_seconds <= 0.5 * (high - left_at) + 1e-9


def test_the_winner_is_of_the_top_rung_and_lower_rungs_stay_evidence() -> None:
    """A short run that looks better than every long one (another budget's loss) does not win."""
    desk = Desk(rung_space())
    sweep = desk.open()
    Workers(2).run(sweep)
    top = {point(record)[1] for record in by_rung(desk, "baseline")[32]}
    confirmed = {
        r.spec.schedule.learning_rate
        for r in desk.ledger.written.values()
        if r.purpose == "confirmation" and r.spec.method == "baseline"
    }
    assert confirmed == top
    assert all(record.final_loss is not None for record in by_rung(desk, "baseline")[8])
    best = {(arm.scale, arm.method): arm.best for arm in sweep.arms}
    assert all(record is not None and record.spec.schedule.total_steps == 32 for record in best.values())


@pytest.mark.parametrize("stages", range(0, 30, 3))
def test_a_killed_climb_goes_on_and_trains_nothing_twice(stages: int) -> None:
    whole = Desk(rung_space())
    Workers().run(whole.open())
    desk, workers = Desk(rung_space()), Workers()
    workers.run(desk.open(), stages)
    workers.run(desk.open())
    assert desk.summary == whole.summary
    assert max(workers.trained.values()) == 1


def test_a_rung_of_which_every_trial_diverged_does_not_hang_the_sweep() -> None:
    desk = Desk(rung_space())
    judged = Workers(
        2, judge=lambda job: result_of(job, Diverged(job.end, "nan") if job.spec.method == "tst" else None)
    )
    assert judged.run(desk.open())
    assert sum(map(len, by_rung(desk, "tst").values())) == 7
    assert all(r.final_loss is None for records in by_rung(desk, "tst").values() for r in records)


def test_states_that_only_a_higher_rung_needed_are_gone_at_the_end() -> None:
    desk = Desk(rung_space())
    Workers(2).run(desk.open())
    assert desk.store.states().keys() == final_nodes(desk.ledger.records())


def test_a_grid_covers_the_lowest_rung_once() -> None:
    def domain(*rungs: int) -> Domain:
        return Domain((Axis("bag_size", (2, 3, 4), "log"),), rungs, seeds=(0, 1))

    assert grid_trials(domain(8), 100) == 6
    assert grid_trials(domain(8), 4) == 4
    assert grid_trials(domain(8, 16), 100) == 8
    desk = Desk(rung_space("grid", trials=50))
    assert Workers(3).run(desk.open())
    rungs = by_rung(desk, "tst")
    assert len({point(record) for record in rungs[8]}) == len(rungs[8]) == 8  # four cells, two seeds
    assert len(rungs[8]) > len(rungs[16]) > len(rungs[32]) >= 1
