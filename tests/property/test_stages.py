"""What is shared is what is equal, what is needed is kept, and a sweep's records do not depend on its mishaps."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeper.engine.sweep import Idle
from tests.support.method_specs import method_spec
from tests.support.tiny_sweep import Desk, Workers, result_of, space_of
from trainers.contract.schedule import phase_at
from trainers.contract.spec import TrialSpec
from trainers.contract.stage import StageJob, StageResult
from trainers.methods import METHODS
from trainers.planning.lineage import ROOT, Segment, TrialPath, build_tree, path_of
from trainers.planning.stages import StageBook
from trainers.planning.store import MemoryStore
from trainers.step.optim import learning_rates


@st.composite
def specs(draw: st.DrawFn) -> TrialSpec:
    """Trials that fork at every place there is, from few values, so that they often agree."""
    total = draw(st.sampled_from((6, 8, 12)))
    method = draw(st.sampled_from(("baseline", "tst", "tst", *METHODS)))
    return method_spec(
        method,
        {
            "bag_size": draw(st.sampled_from((1, 2, 3))),
            "step_ratio": draw(st.sampled_from((0.0, 0.25, 0.5, 0.9, 1.0))),
            "bag_weighting": draw(st.sampled_from(("uniform", "power_law"))),
            **{name: draw(st.sampled_from((1, 2, 4))) for name in ("heads", "patch_size", "pieces")},
        },
        total_steps=total,
        warmup_steps=draw(st.sampled_from((0, 2))),
        decay_steps=draw(st.sampled_from((0, 2, 4))),
        learning_rate=draw(st.sampled_from((0.01, 0.02))),
        seed=draw(st.integers(0, 1)),
    )


plans = st.lists(specs(), min_size=1, max_size=6, unique_by=lambda spec: spec.spec_id)


def history(path: TrialPath, step: int) -> list[tuple[object, ...]]:
    """All that decided the state after `step` steps, step by step, as the trainer sees it."""
    rates = learning_rates(path.spec.schedule)
    seen: list[tuple[object, ...]] = [(path.spec.seed, max(phase.heads for phase in path.phases))]
    for index in range(step):
        phase = phase_at(path.phases, index)
        weighting = phase.weighting if phase.target_size > 1 else None
        geometry = (phase.bag_size, phase.target_size, phase.position_divisor, phase.pieces, phase.heads)
        seen.append((float(rates[index]), *geometry, weighting, phase.fresh if index == phase.start else ()))
    return seen


@settings(max_examples=150)
@given(first=specs(), second=specs(), data=st.data())
def test_states_of_one_name_have_one_history(first: TrialSpec, second: TrialSpec, data: st.DataObject) -> None:
    a, b = path_of(first, "eager"), path_of(second, "eager")
    step = data.draw(st.integers(1, min(a.end, b.end)))
    if a.node(step) == b.node(step):
        assert history(a, step) == history(b, step)
    elif step <= min(first.schedule.decay_start, second.schedule.decay_start) and first.bag_size > 1 < second.bag_size:
        assert history(a, step) != history(b, step) or first.schedule.warmup_steps != second.schedule.warmup_steps


@settings(max_examples=100)
@given(plan=plans)
def test_other_executions_share_nothing(plan: list[TrialSpec]) -> None:
    tree = build_tree([path_of(spec, "eager") for spec in plan])
    compiled = build_tree([path_of(spec, "compiled") for spec in plan])
    assert set(tree.segments).isdisjoint(compiled.segments)
    assert tree.steps == compiled.steps


@settings(max_examples=100)
@given(plan=plans)
def test_a_stage_lies_within_one_phase_of_every_trial_that_shares_it(plan: list[TrialSpec]) -> None:
    paths = {spec.spec_id: path_of(spec, "eager") for spec in plan}
    tree = build_tree(paths.values())
    for segment in tree.segments.values():
        names = {
            phase_at(paths[spec_id].phases, step).name
            for spec_id in segment.trials
            for step in (segment.start, segment.end - 1)
        }
        assert len(names) == 1
        assert segment.remaining == max(paths[spec_id].end for spec_id in segment.trials) - segment.start


@dataclass
class SizedStore(MemoryStore):
    """A byte a state."""

    def states(self) -> dict[str, int]:
        return dict.fromkeys(self.kept, 1)


def stage_result(segment: Segment) -> StageResult:
    return result_of(
        StageJob(
            node=segment.node,
            parent=None if segment.parent == ROOT else segment.parent,
            start=segment.start,
            end=segment.end,
            spec=segment.spec,
            booked_by=segment.trials[0],
            store="",
            corpus="",
            stop_file="",
            device="cpu",
            execution="eager",
            evaluate_every=4,
        )
    )


@settings(max_examples=80)
@given(plan=plans, budget=st.integers(0, 4), seed=st.integers(0, 99))
def test_the_disk_budget_gives_way_only_to_what_is_needed(plan: list[TrialSpec], budget: int, seed: int) -> None:
    order, book = random.Random(seed), StageBook(SizedStore())
    book.add(path_of(spec, "eager") for spec in plan)
    book.protected = set(order.sample(sorted(book.tree.segments), len(book.tree.segments) // 2))
    book.finals = set(order.sample(sorted(book.tree.segments), len(book.tree.segments) // 3))
    valued = book.protected | book.finals
    while ready := book.ready():
        segment = order.choice(ready)
        book.start(segment)
        book.finish(stage_result(segment))
        needed = {segment.parent for segment in book.needed()} & set(book.store.states())
        kept_before = set(book.store.states())
        book.sweep_out(budget)
        kept = set(book.store.states())
        assert needed <= kept
        assert kept - needed <= valued
        assert len(kept) <= max(budget, len(needed))
        if len(kept_before & (needed | valued)) <= budget:
            assert kept == kept_before & (needed | valued), "a protected state is dropped for nothing"
        if kept_before & book.finals - needed - kept:
            assert kept & valued <= needed | book.finals, "a model is dropped before a state that may be trained again"
    assert all(book.chain(spec.spec_id)[1] for spec in plan)


@settings(max_examples=80)
@given(plan=plans, seed=st.integers(0, 99))
def test_whatever_is_lost_is_trained_again(plan: list[TrialSpec], seed: int) -> None:
    """Results and states vanish from the store while trials are trained; in the end every trial has its whole way."""
    order, store = random.Random(seed), MemoryStore()
    book = StageBook(store)
    book.add(path_of(spec, "eager") for spec in plan)
    losses = 6
    while not all(book.chain(spec.spec_id)[1] for spec in plan):
        ready = book.ready()
        assert ready, "nothing to train, and yet a trial is not whole"
        segment = order.choice(ready)
        book.start(segment)
        book.finish(stage_result(segment))
        if losses and order.random() < 0.5:
            losses -= 1
            store.results.pop(order.choice(sorted(store.results)), None)
            store.kept.discard(order.choice(sorted(store.kept | {""})))


SPACES = {
    "one": space_of(),
    "two": space_of(scales=("nano", "micro"), seeds={"tuning": (0,), "confirmation": (1000,)}),
}
UNDISTURBED: dict[str, Desk] = {}


def undisturbed(name: str) -> Desk:
    """The sweep with one worker and no mishap."""
    if name not in UNDISTURBED:
        UNDISTURBED[name] = Desk(SPACES[name])
        Workers().run(UNDISTURBED[name].open())
    return UNDISTURBED[name]


@settings(max_examples=40)
@given(
    name=st.sampled_from(sorted(SPACES)),
    workers=st.integers(1, 5),
    kills=st.lists(st.integers(0, 25), max_size=4),
    outlive=st.booleans(),
    seed=st.integers(0, 2**16),
)
@pytest.mark.slow
def test_records_do_not_depend_on_workers_order_and_kills(
    name: str, workers: int, kills: list[int], outlive: bool, seed: int
) -> None:
    """Drivers are killed again and again; their workers' stages are lost, or end when nobody listens any more."""
    desk, pool = Desk(SPACES[name]), Workers(workers, random.Random(seed))
    for stages in kills:
        if pool.run(desk.open(), len(pool.jobs) + stages):
            break
        if outlive:
            for job in pool.held:
                desk.store.add(result_of(job))
                pool.trained[job.node] += 1
    assert pool.run(desk.open())
    assert desk.summary == undisturbed(name).summary
    assert set(pool.trained.values()) == {1}
    assert desk.open().next_job() is Idle.OVER
