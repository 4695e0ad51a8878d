"""Results and states on disk and in memory keep the same promises."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.tiny_training import job_of, tiny_spec, train_tiny
from trainers.contract.stage import RESULT, STATE
from trainers.planning.store import DiskStore, MemoryStore, StageStore

SPEC = tiny_spec("baseline", total_steps=4, decay_steps=1)


@pytest.fixture(params=["disk", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> StageStore:
    """With one stage, `whole`, trained."""
    result = train_tiny(job_of(SPEC, tmp_path))
    made: StageStore = DiskStore(tmp_path) if request.param == "disk" else MemoryStore()
    made.add(result)
    return made


def test_what_was_added_is_there(store: StageStore) -> None:
    result = store.result("whole")
    assert result is not None
    assert (result.node, result.end) == ("whole", 4)
    assert store.has_state("whole")
    assert list(store.states()) == ["whole"]


def test_what_was_never_trained_is_not(store: StageStore) -> None:
    assert store.result("other") is None
    assert not store.has_state("other")


def test_a_dropped_state_leaves_its_result(store: StageStore) -> None:
    store.drop_state("whole")
    store.drop_state("whole")
    assert store.result("whole") is not None
    assert not store.has_state("whole")
    assert store.states() == {}


def test_what_is_forgotten_is_gone(store: StageStore) -> None:
    store.forget("whole")
    store.forget("never trained")
    assert store.result("whole") is None
    assert not store.has_state("whole")


def test_another_driver_finds_what_lies_on_disk(tmp_path: Path) -> None:
    result = train_tiny(job_of(SPEC, tmp_path))
    assert DiskStore(tmp_path).result("whole") == result
    size = DiskStore(tmp_path).states()["whole"]
    assert size == sum(file.stat().st_size for file in (tmp_path / "whole" / STATE).iterdir())
    assert size > 10_000


def test_a_state_without_a_result_is_none_to_go_on_from(tmp_path: Path) -> None:
    train_tiny(job_of(SPEC, tmp_path))
    (tmp_path / "whole" / RESULT).unlink()
    store = DiskStore(tmp_path)
    assert store.result("whole") is None
    assert not store.has_state("whole")
    assert "whole" in store.states(), "what a crash left counts for the disk"


def test_a_store_that_does_not_exist_yet_is_empty(tmp_path: Path) -> None:
    store = DiskStore(tmp_path / "never")
    assert (store.states(), store.result("a"), store.has_state("a")) == ({}, None, False)
