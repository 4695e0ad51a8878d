"""One stage on one worker: it starts where it should, leaves what others need, and goes on exactly."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.tiny_training import job_of, state_digest, tiny_spec, train_tiny
from trainers.contract.record import PROCESSOR, Diverged, Stopped
from trainers.contract.spec import TrialSpec
from trainers.contract.stage import (
    RESULT,
    STATE,
    ParentLostError,
    StageJob,
    StagePoint,
    StageResult,
    job_from_dict,
    job_to_dict,
    read_result,
    result_from_dict,
    result_to_dict,
)
from trainers.training.checkpoint import read_note
from trainers.training.stage import PARTIAL

SPEC = tiny_spec(total_steps=12, warmup_steps=2, decay_steps=4, step_ratio=0.4)  # boundary at 5, decay from 8


def stop_after(job: StageJob, step: int) -> Callable[[StagePoint], None]:
    """Another terminal asks for a stop once `step` steps are done."""

    def on_point(point: StagePoint) -> None:
        if point.step >= step:
            Path(job.stop_file).touch()

    return on_point


def crash_after(step: int) -> Callable[[StagePoint], None]:
    def on_point(point: StagePoint) -> None:
        if point.step >= step:
            raise OSError("the machine is gone")

    return on_point


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[StageResult, str]:
    """SPEC without interruption, evaluated at every step, and the digest of its end."""
    store = tmp_path_factory.mktemp("whole")
    return train_tiny(job_of(SPEC, store, evaluate_every=1)), state_digest(store, "whole")


@pytest.mark.parametrize("step", range(1, 12))
def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path: Path, whole: tuple[StageResult, str], step: int) -> None:
    job = job_of(SPEC, tmp_path, evaluate_every=1)
    stopped = train_tiny(job, stop_after(job, step))
    assert stopped.outcome == Stopped(step, "stop requested")
    assert read_result(tmp_path, job.node) is None
    Path(job.stop_file).unlink()
    billed_before = read_note(tmp_path / job.node / PARTIAL)["billed_seconds"]
    resumed = train_tiny(job)
    assert (resumed.outcome, resumed.points) == (None, whole[0].points)
    assert [(t.phase, t.steps) for t in resumed.timings] == [(t.phase, t.steps) for t in whole[0].timings]
    assert state_digest(tmp_path, job.node) == whole[1]
    assert not (tmp_path / job.node / PARTIAL).exists()
    assert resumed.billed_seconds > billed_before > 0


@pytest.mark.parametrize("step", [2, 5, 6, 9])
def test_a_crash_goes_on_from_the_last_checkpoint(tmp_path: Path, whole: tuple[StageResult, str], step: int) -> None:
    job = job_of(SPEC, tmp_path, evaluate_every=1, checkpoint_seconds=1e-9)
    with pytest.raises(OSError, match="the machine is gone"):
        train_tiny(job, crash_after(step))
    trained: list[int] = []
    resumed = train_tiny(job, lambda point: trained.append(point.step))
    assert trained == list(range(step, 13))
    assert resumed.points == whole[0].points
    assert state_digest(tmp_path, job.node) == whole[1]


@pytest.mark.parametrize("every", [0, 3])
def test_how_often_a_run_is_watched_changes_no_bit(tmp_path: Path, whole: tuple[StageResult, str], every: int) -> None:
    train_tiny(job_of(SPEC, tmp_path, evaluate_every=every, checkpoint_seconds=1e-9))
    assert state_digest(tmp_path, "whole") == whole[1]


@pytest.mark.parametrize("cuts", [(5,), (3, 8), (5, 8, 10), (1, 2, 4, 11)])
def test_stages_in_a_row_end_in_the_same_bits(
    tmp_path: Path, whole: tuple[StageResult, str], cuts: tuple[int, ...]
) -> None:
    parent, start = None, 0
    points: list[StagePoint] = []
    for end in (*cuts, 12):
        job = job_of(SPEC, tmp_path, node=f"at-{end}", parent=parent, start=start, end=end, evaluate_every=1)
        points += train_tiny(job).points
        parent, start = job.node, end
    assert state_digest(tmp_path, "at-12") == whole[1]
    assert tuple(points) == whole[0].points


def test_a_damaged_partial_checkpoint_starts_the_stage_again(tmp_path: Path, whole: tuple[StageResult, str]) -> None:
    job = job_of(SPEC, tmp_path, evaluate_every=1)
    train_tiny(job, stop_after(job, 7))
    Path(job.stop_file).unlink()
    (file,) = (tmp_path / job.node / PARTIAL).glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-1])
    trained: list[int] = []
    train_tiny(job, lambda point: trained.append(point.step))
    assert trained[0] == 1
    assert state_digest(tmp_path, job.node) == whole[1]


def test_an_attempt_at_another_stretch_of_steps_is_not_gone_on_with(
    tmp_path: Path, whole: tuple[StageResult, str]
) -> None:
    """Stopped on the way from the seed; when it is asked for again, its way starts at a state that is there by now."""
    from_seed = job_of(SPEC, tmp_path, node="end", evaluate_every=1)
    train_tiny(from_seed, stop_after(from_seed, 7))
    Path(from_seed.stop_file).unlink()
    train_tiny(job_of(SPEC, tmp_path, node="middle", end=5, evaluate_every=1))
    result = train_tiny(replace(from_seed, parent="middle", start=5))
    assert result.points == whole[0].points[5:]
    assert sum(timing.steps for timing in result.timings) == 7
    assert state_digest(tmp_path, "end") == whole[1]


def test_a_finished_stage_is_not_trained_again(tmp_path: Path) -> None:
    job = job_of(SPEC, tmp_path)
    trained: list[StagePoint] = []
    first = train_tiny(job)
    assert train_tiny(job, trained.append) == first
    assert trained == []


def test_a_finished_stage_is_trained_again_when_its_state_is_wanted_and_gone(
    tmp_path: Path, whole: tuple[StageResult, str]
) -> None:
    job = job_of(SPEC, tmp_path, keep_state=False)
    first = train_tiny(job)
    assert not (tmp_path / job.node / STATE).exists()
    again = train_tiny(replace(job, keep_state=True))
    assert again.points == first.points
    assert state_digest(tmp_path, job.node) == whole[1]


def trunk(spec: TrialSpec, store: Path) -> StageJob:
    """The first five steps, trained, and the job that goes on from there."""
    train_tiny(job_of(spec, store, node="trunk", end=5))
    return job_of(spec, store, node="end", parent="trunk", start=5)


def test_a_damaged_parent_is_found_by_its_hash(tmp_path: Path) -> None:
    job = trunk(SPEC, tmp_path)
    (file,) = (tmp_path / "trunk" / STATE).glob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-5] ^= 4
    file.write_bytes(content)
    with pytest.raises(ParentLostError, match=r"stage end cannot start: .*SHA-256 differs"):
        train_tiny(job)
    assert not (tmp_path / "end").exists()


def test_a_parent_that_is_gone_or_ends_elsewhere_is_lost(tmp_path: Path) -> None:
    job = trunk(SPEC, tmp_path)
    with pytest.raises(ParentLostError, match="starts at step 4, its parent ends at 5"):
        train_tiny(replace(job, start=4))
    with pytest.raises(ParentLostError, match="holds no whole checkpoint"):
        train_tiny(replace(job, parent="never-trained"))


def test_divergence_is_a_result_that_is_kept(tmp_path: Path) -> None:
    spec = tiny_spec("baseline", total_steps=60, warmup_steps=0, learning_rate=1e30)
    result = train_tiny(job_of(spec, tmp_path, evaluate_every=0))
    assert result.outcome == Diverged(21, "no finite gradient for 20 steps")
    assert result.skipped_steps == 20
    assert read_result(tmp_path, "whole") == result
    assert not (tmp_path / "whole" / STATE).exists()


def test_jobs_and_results_survive_json(tmp_path: Path) -> None:
    job = job_of(SPEC, tmp_path, parent="p", micro_sequences=1)
    assert job_from_dict(json.loads(json.dumps(job_to_dict(job)))) == job
    result = train_tiny(job_of(SPEC, tmp_path))
    for outcome in (None, Stopped(3, "asked"), Diverged(4, "nan")):
        ended = replace(result, outcome=outcome)
        assert result_from_dict(json.loads(json.dumps(result_to_dict(ended)))) == ended


@pytest.mark.parametrize("text", ["", "{", "[]", '{"diverged": false}', "null", '{"node": 1}'])
def test_a_result_that_is_not_whole_is_none(tmp_path: Path, text: str) -> None:
    train_tiny(job_of(SPEC, tmp_path))
    assert read_result(tmp_path, "whole") is not None
    (tmp_path / "whole" / RESULT).write_text(text)
    assert read_result(tmp_path, "whole") is None


def test_a_result_says_who_pays_and_where_it_ran(tmp_path: Path) -> None:
    result = train_tiny(job_of(SPEC, tmp_path, booked_by="someone"))
    assert (result.booked_by, result.execution, result.start, result.end) == ("someone", "eager", 0, 12)
    assert result.device
    assert 0 < result.busy_seconds < result.billed_seconds


def test_steps_on_a_cpu_are_timed_by_the_processor_time_of_the_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processor time that stands still is a clock that reads nothing, however long the stage took."""
    monkeypatch.setattr("trainers.training.stage.time.process_time", lambda: 5.0)
    result = train_tiny(job_of(SPEC, tmp_path))
    assert result.clock == PROCESSOR
    assert {timing.median_step_seconds for timing in result.timings} == {0.0}
    assert result.billed_seconds > 0, "what is billed is the time on the wall"


@pytest.mark.parametrize(("devices", "each"), [(1, 2.0), (4, 0.5)])
def test_processor_time_is_that_of_each_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, devices: int, each: float
) -> None:
    """Every look at the clock is two processor seconds after the last: hours are processor time, on any number of cores."""
    moments = itertools.count(0.0, 2.0)
    monkeypatch.setattr("trainers.training.stage.time.process_time", lambda: next(moments))
    result = train_tiny(job_of(SPEC, tmp_path, devices=devices, evaluate_every=1))
    assert {timing.median_step_seconds for timing in result.timings} == {each}


def test_an_attempt_that_was_timed_by_another_clock_is_not_gone_on_with(
    tmp_path: Path, whole: tuple[StageResult, str]
) -> None:
    job = job_of(SPEC, tmp_path, evaluate_every=1)
    train_tiny(job, stop_after(job, 7))
    Path(job.stop_file).unlink()
    note = tmp_path / job.node / PARTIAL / "note.json"
    note.write_text(note.read_text().replace('"processor"', '"wall"'))
    result = train_tiny(job)
    assert sum(timing.steps for timing in result.timings) == 12
    assert [point.step for point in result.points] == [point.step for point in whole[0].points]


def test_the_end_of_a_trial_is_scored_on_all_of_the_text_and_points_before_it_on_a_part(tmp_path: Path) -> None:
    points = train_tiny(job_of(SPEC, tmp_path / "part", evaluate_every=4, evaluate_tokens=16)).points
    whole = train_tiny(job_of(SPEC, tmp_path / "whole", evaluate_every=4)).points
    assert [point.score is None for point in points] == [True] * (len(points) - 1) + [False]
    assert points[-1].score == whole[-1].score
    assert points[-1].score is not None
    assert points[-1].score.tokens == (SPEC.validation_tokens - 1) // 8 * 8
    assert points[-1].score.loss == whole[-1].loss
    assert all(part.loss != full.loss for part, full in zip(points, whole, strict=True)), "16 tokens are another text"


def test_a_stage_in_which_no_trial_ends_is_not_scored_on_all_of_the_text(tmp_path: Path) -> None:
    trunk = train_tiny(job_of(SPEC, tmp_path, node="trunk", end=5))
    assert [point.score for point in trunk.points] == [None] * len(trunk.points)
    undecayed = tiny_spec("baseline", decay_steps=0)
    assert train_tiny(job_of(undecayed, tmp_path, node="any", end=5)).points[-1].score is not None
