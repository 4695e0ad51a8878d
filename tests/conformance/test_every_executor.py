"""Every executor runs the same sweep to the same records, and treats failures, stops and limits alike."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from sweeper.executors.inline import Executor
from tests.conformance.sweep_of import (
    NUM_TRIALS,
    Bench,
    essence,
    failed,
    flip_a_token,
    train_and_ask_for_a_stop,
    train_and_change_the_text,
    train_and_crash_once,
    train_and_damage,
    train_but_fail_in_bags,
)
from trainers.contract.record import Finished
from trainers.data.shards import PreparedCorpus


@pytest.fixture
def bench(corpus: PreparedCorpus, tmp_path: Path) -> Bench:
    return Bench(corpus, tmp_path)


def test_a_sweep_comes_to_the_same_records_and_then_trains_nothing_again(
    executor: Executor, bench: Bench, alone: dict[str, object]
) -> None:
    sweep = bench.run(executor)
    assert sweep.stopping is None
    assert essence(bench.records) == alone
    assert len(alone) == NUM_TRIALS
    assert all(isinstance(record.outcome, Finished) for record in bench.records)
    assert not bench.ledger.pending()
    before = bench.records
    sweep = bench.run(executor, train_but_fail_in_bags)
    assert bench.records == before
    assert sum(sweep.arm_steps.values()) == 0


def test_a_failing_stage_fails_its_trials_and_the_rest_goes_on(
    executor: Executor, bench: Bench, alone: dict[str, object]
) -> None:
    bench.run(executor, train_but_fail_in_bags)
    assert failed(bench.records) == {"tst: OutOfMemoryError: no memory for bags"}
    good = essence([record for record in bench.records if isinstance(record.outcome, Finished)])
    assert good == {spec_id: alone[spec_id] for spec_id in good}
    assert len(good) == NUM_TRIALS - 1
    bench.run(executor)
    assert essence(bench.records) == alone


def test_a_stop_request_loses_nothing(executor: Executor, bench: Bench, alone: dict[str, object]) -> None:
    sweep = bench.run(executor, train_and_ask_for_a_stop)
    assert sweep.stopping == "stop requested"
    assert len(bench.records) < NUM_TRIALS
    assert bench.ledger.pending()
    assert list((bench.folder / "stages").glob("*/partial")), "the stage that was stopped left its state"
    bench.stop_file.unlink()
    bench.run(executor)
    assert essence(bench.records) == alone


def test_a_spent_limit_starts_nothing_more(executor: Executor, bench: Bench, alone: dict[str, object]) -> None:
    sweep = bench.run(executor, max_hours=1e-9)
    assert sweep.stopping is not None
    assert "device-hours are spent" in sweep.stopping
    assert len(bench.records) < NUM_TRIALS
    bench.run(executor)
    assert essence(bench.records) == alone


def test_a_crash_in_the_middle_of_a_stage_changes_nothing(
    executor: Executor, bench: Bench, alone: dict[str, object]
) -> None:
    bench.run(executor, train_and_crash_once)
    assert essence(bench.records) == alone
    assert len(list((bench.folder / "stages").glob("crashed-*"))) == 3


def test_a_damaged_state_is_trained_again(executor: Executor, bench: Bench, alone: dict[str, object]) -> None:
    bench.run(executor, train_and_damage)
    assert (bench.folder / "stages" / "damaged").exists()
    assert essence(bench.records) == alone


def test_a_text_that_changes_in_a_run_enters_no_record(
    executor: Executor, bench: Bench, alone: dict[str, object], tmp_path: Path
) -> None:
    """Stages fail by the hash of the file until it is what was prepared again."""
    copy = shutil.copytree(bench.corpus.directory, tmp_path / "text")
    bench.corpus = replace(bench.corpus, directory=copy)
    bench.run(executor, train_and_change_the_text)
    good = essence([record for record in bench.records if isinstance(record.outcome, Finished)])
    assert good == {spec_id: alone[spec_id] for spec_id in good}
    assert len(good) < NUM_TRIALS
    assert all("train.tokens: the content is not what was written" in said for said in failed(bench.records))
    flip_a_token(tmp_path / "text")
    bench.run(executor)
    assert essence(bench.records) == alone
