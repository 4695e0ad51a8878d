"""Sharing is free: whatever trials are planned together, each ends as if it had been trained alone."""

from __future__ import annotations

import random
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.property.test_training import assert_equal_states
from tests.support import small
from tests.support.strategies import PROVENANCE
from trainers.contract.spec import TrialSpec
from trainers.contract.stage import STATE, StageJob, StageResult
from trainers.planning.assemble import assemble_record
from trainers.planning.lineage import ROOT, Segment, build_tree, path_of
from trainers.planning.stages import StageBook
from trainers.planning.store import DiskStore, MemoryStore
from trainers.training.stage import run_stage


@pytest.fixture(scope="module", autouse=True)
def prepared_text() -> None:
    """Before a strategy draws its first trial: what is prepared inside of one may not draw anything else."""
    small.corpus()


@st.composite
def trials(draw: st.DrawFn, *, most: int = 5) -> list[TrialSpec]:
    """A small plan in which every kind of fork occurs: budget, decay, boundary, bag size, learning rate, seed."""
    chosen = []
    for _ in range(draw(st.integers(2, most))):
        total = draw(st.sampled_from([12, 20, 30]))
        decay = draw(st.sampled_from([0, 4, 6]))
        rate, seed = draw(st.sampled_from([0.01, 0.02])), draw(st.sampled_from([0, 1]))
        if draw(st.booleans()):
            chosen.append(small.spec(total_steps=total, decay_steps=decay, learning_rate=rate, seed=seed))
        else:
            bag, ratio = draw(st.sampled_from([1, 2, 3])), draw(st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0]))
            chosen.append(
                small.spec(
                    "tst",
                    total_steps=total,
                    decay_steps=decay,
                    learning_rate=rate,
                    seed=seed,
                    bag_size=bag,
                    step_ratio=ratio,
                )
            )
    return list({trial.spec_id: trial for trial in chosen}.values())


def job_of(segment: Segment, store: Path, *, keep_state: bool) -> StageJob:
    return StageJob(
        node=segment.node,
        parent=None if segment.parent == ROOT else segment.parent,
        start=segment.start,
        end=segment.end,
        spec=segment.spec,
        booked_by=segment.trials[0],
        store=str(store),
        corpus=str(small.corpus().directory),
        stop_file=str(store / "stop"),
        device="cpu",
        execution="eager",
        evaluate_every=5,
        checkpoint_seconds=0.0,
        keep_state=keep_state,
    )


def drive(book: StageBook, store: Path, order: random.Random, corrupt: bool = False) -> list[Segment]:
    """Train everything that the book needs, in any order that it allows; returns the stages in the order they ran."""
    ran = []
    while ready := book.ready():
        segment = order.choice(ready)
        book.start(segment)
        book.finish(run_stage(job_of(segment, store, keep_state=book.keeps_state(segment)), small.corpus()))
        ran.append(segment)
        book.sweep_out(0.0)
    return ran


@pytest.mark.slow
@settings(max_examples=12)
@given(first=trials(), later=trials(most=3), seed=st.integers(0, 99))
def test_shared_training_ends_bit_equal_to_training_alone(
    first: list[TrialSpec], later: list[TrialSpec], seed: int
) -> None:
    """Also for trials that a later round of the search asks for, after states of the first round were deleted."""
    with TemporaryDirectory() as folder:
        together, apart = Path(folder) / "together", Path(folder) / "apart"
        book = StageBook(DiskStore(together))
        for batch in (first, later):
            book.add(path_of(trial, "eager") for trial in batch)
            drive(book, together, random.Random(seed))
        for trial in {t.spec_id: t for t in first + later}.values():
            alone = run_stage(small.job(trial, apart), small.corpus())
            chain, whole = book.chain(trial.spec_id)
            assert whole
            records = [
                assemble_record(trial, "tuning", stages, PROVENANCE, devices=1, corpus_tokens=1, evaluate_every=5)
                for stages in (chain, [alone])
            ]
            shared, single = records
            assert shared.outcome == single.outcome
            assert [(p.step, p.loss, p.tokens, p.flops, p.phase) for p in shared.curve.points] == [
                (p.step, p.loss, p.tokens, p.flops, p.phase) for p in single.curve.points
            ]


@settings(max_examples=60)
@given(plan=trials(most=8))
def test_every_way_is_whole_and_nothing_is_trained_twice(plan: list[TrialSpec]) -> None:
    tree = build_tree(path_of(trial, "eager") for trial in plan)
    for trial in plan:
        step, parent = 0, ROOT
        for node in tree.ways[trial.spec_id]:
            segment = tree.segments[node]
            assert (segment.start, segment.parent) == (step, parent)
            assert segment.end > segment.start
            step, parent = segment.end, node
        assert step == trial.schedule.total_steps
    alone = sum(trial.schedule.total_steps for trial in plan)
    assert tree.steps <= alone


def result_of(segment: Segment) -> StageResult:
    parent = None if segment.parent == ROOT else segment.parent
    return StageResult(
        segment.node, parent, segment.start, segment.end, None, (), (), 1.0, 1.0, 0, segment.trials[0], "none", "eager"
    )


@settings(max_examples=80)
@given(first=trials(most=6), later=trials(most=4), workers=st.integers(1, 6), seed=st.integers(0, 999))
def test_any_number_of_workers_train_each_stage_once_and_no_needed_state_is_deleted(
    first: list[TrialSpec], later: list[TrialSpec], workers: int, seed: int
) -> None:
    order = random.Random(seed)
    book, running, ran = StageBook(MemoryStore()), [], []
    book.add(path_of(trial, "eager") for trial in first)
    known = {trial.spec_id for trial in first}
    while True:
        while len(running) < workers and (ready := book.ready()):
            segment = order.choice(ready)
            assert segment.parent == ROOT or book.store.has_state(segment.parent)
            book.start(segment)
            running.append(segment)
        if not running:
            break
        ended = running.pop(order.randrange(len(running)))
        ran.append(ended.node)
        book.finish(result_of(ended))
        if not running or order.random() < 0.3:
            needed_before = {segment.parent for segment in book.needed()}
            held = {node for node in needed_before if book.store.has_state(node)}
            book.sweep_out(0.0)
            assert all(book.store.has_state(node) for node in held)
    assert len(ran) == len(set(ran))
    assert all(book.chain(spec_id)[1] for spec_id in known)
    assert sum(book.tree.segments[node].steps for node in ran) == book.tree.steps


def test_a_damaged_parent_is_found_by_its_hash_and_trained_again(tmp_path: Path) -> None:
    import pytest

    from trainers.contract.stage import ParentLostError

    short, long = small.spec(total_steps=12, decay_steps=4), small.spec(total_steps=20, decay_steps=4)
    book = StageBook(DiskStore(tmp_path))
    book.add(path_of(trial, "eager") for trial in (short, long))
    (trunk,) = book.ready()
    book.start(trunk)
    book.finish(run_stage(job_of(trunk, tmp_path, keep_state=True), small.corpus()))
    (state,) = (tmp_path / trunk.node / STATE).glob("*.safetensors")
    content = bytearray(state.read_bytes())
    content[-1] ^= 1
    state.write_bytes(bytes(content))

    child = book.ready()[0]
    book.start(child)
    with pytest.raises(ParentLostError, match="SHA-256"):
        run_stage(job_of(child, tmp_path, keep_state=True), small.corpus())
    book.abandon(child.node)
    book.lose(trunk.node)
    assert [segment.node for segment in book.ready()] == [trunk.node]
    drive(book, tmp_path, random.Random(0))
    for trial in (short, long):
        alone = run_stage(small.job(trial, tmp_path / "alone"), small.corpus())
        assert book.chain(trial.spec_id)[0][-1].points[-1] == alone.points[-1]


def test_a_stage_goes_on_after_a_crash_in_its_middle(tmp_path: Path) -> None:
    """The worker dies after a checkpoint: the next attempt starts there and ends as if nothing had happened."""
    from dataclasses import replace

    trial = small.spec(total_steps=60, decay_steps=6)
    job = replace(small.job(trial, tmp_path), checkpoint_seconds=1e-9)

    class CrashError(Exception):
        pass

    def crash(point: object) -> None:
        if getattr(point, "step", 0) >= 30:
            raise CrashError

    import pytest

    with pytest.raises(CrashError):
        run_stage(job, small.corpus(), crash)
    seen: list[int] = []
    again = run_stage(job, small.corpus(), lambda point: seen.append(point.step))
    assert min(seen) > 5, "it did not start from the beginning"
    whole = run_stage(small.job(trial, tmp_path / "whole"), small.corpus())
    assert again.points == whole.points
    assert_equal_states(tmp_path / trial.spec_id / STATE, tmp_path / "whole" / trial.spec_id / STATE)


def test_a_result_and_a_state_are_all_or_nothing(tmp_path: Path) -> None:
    import pytest

    from trainers.contract.stage import read_result
    from trainers.training.checkpoint import CheckpointError, read_note

    trial = small.spec()
    run_stage(small.job(trial, tmp_path), small.corpus())
    folder = tmp_path / trial.spec_id
    assert read_result(tmp_path, trial.spec_id) is not None
    (folder / "result.json").write_text('{"node": "cut')
    assert read_result(tmp_path, trial.spec_id) is None
    (folder / STATE / "note.json").write_text("{")
    with pytest.raises(CheckpointError, match="holds no whole checkpoint"):
        read_note(folder / STATE)
