"""A sweep whose stages run stacked comes to the records of the sweep that trains them one by one, through any executor."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sweeper.executors import InlineExecutor
from sweeper.worker import train_stack
from tests.conformance.sweep_of import (
    NUM_TRIALS,
    RAY_WARNINGS,
    Bench,
    essence,
    on_ray,
    stack_and_ask_for_a_stop,
    stack_and_die,
    stack_and_lose,
    train_and_damage,
)
from trainers.data.shards import PreparedCorpus
from trainers.record import Finished
from trainers.stack_stage import STACKED
from trainers.stage import StageJob


@pytest.fixture
def bench(corpus: PreparedCorpus, tmp_path: Path) -> Bench:
    return Bench(corpus, tmp_path, stack=4)


def test_a_stacked_sweep_comes_to_the_same_records(executor: Any, bench: Bench, alone: dict[str, object]) -> None:
    """Bit-equal losses: on a CPU a slice computes in float32 what it computes alone."""
    bench.run(executor)
    assert essence(bench.records) == alone
    assert len(bench.records) == NUM_TRIALS
    assert {record.provenance.execution for record in bench.records} == {STACKED}
    assert all(isinstance(record.outcome, Finished) for record in bench.records)


def test_stages_do_share_stacks(bench: Bench) -> None:
    widths: list[int] = []

    def watched(jobs: list[StageJob], *callbacks: Any) -> Any:
        widths.append(len(jobs))
        return train_stack(jobs, *callbacks)

    bench.run(InlineExecutor(train_stack=watched))
    assert max(widths) == 4
    assert sum(widths) > NUM_TRIALS / 2


def test_a_stack_that_fails_is_trained_slice_by_slice(executor: Any, bench: Bench, alone: dict[str, object]) -> None:
    bench.run(replace(executor, train_stack=stack_and_lose))
    assert essence(bench.records) == alone


def test_a_stop_request_loses_nothing(executor: Any, bench: Bench, alone: dict[str, object]) -> None:
    sweep = bench.run(replace(executor, train_stack=stack_and_ask_for_a_stop))
    assert sweep.stopping == "stop requested"
    assert len(list((bench.folder / "stages").glob("*/partial"))) > 1, "every slice of the stack left its state"
    bench.stop_file.unlink()
    bench.run(executor)
    assert essence(bench.records) == alone


def test_a_damaged_state_is_trained_again(executor: Any, bench: Bench, alone: dict[str, object]) -> None:
    """The damage is in a trunk that was trained alone; it is found by a stack, which falls apart, and then by its slice."""
    bench.run(executor, train_and_damage)
    assert essence(bench.records) == alone


@pytest.mark.parametrize("executor", [pytest.param(on_ray, marks=[pytest.mark.slow, *RAY_WARNINGS])], indirect=True)
def test_a_worker_that_dies_loses_no_slice(executor: Any, bench: Bench, alone: dict[str, object]) -> None:
    bench.run(replace(executor, train_stack=stack_and_die))
    assert len((bench.folder / "stages" / "died").read_text().split()) == 3
    assert essence(bench.records) == alone
