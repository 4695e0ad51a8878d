"""Arithmetic on bytes: which micro-batch is taken where nobody said, and which one is advised after an error."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.tiny_training import CPU, job_of, tiny_spec, train_tiny
from trainers.contract.scales import SCALES
from trainers.contract.spec import TrialSpec
from trainers.planning.footprint import USABLE, divisors_down, footprint, largest_micro_batch
from trainers.step.fit import DoesNotFitError, advice, chosen_micro_sequences

H200 = 141e9


def published(scale: str, sequences: int = 1_024) -> TrialSpec:
    return replace(
        tiny_spec("baseline", precision="bf16"),
        shape=SCALES[scale].shape,
        context=2_048,
        tokens_per_step=2_048 * sequences,
        validation_tokens=4_097,
    )


@given(number=st.integers(1, 2_000))
def test_divisors_come_largest_first(number: int) -> None:
    found = list(divisors_down(number))
    assert found == sorted(found, reverse=True)
    assert set(found) == {n for n in range(1, number + 1) if number % n == 0}


@pytest.mark.parametrize("scale", ["270m", "600m", "3b"])
def test_ranks_share_the_sequences_and_leave_room_for_more_of_them(scale: str) -> None:
    spec = published(scale)
    assert chosen_micro_sequences(spec, CPU, False, ranks=8) == 128
    one, eight = (largest_micro_batch(spec, H200, ranks=ranks) or 0 for ranks in (1, 8))
    assert one <= eight <= 128
    assert "micro_sequences = 64 should fit" in advice(spec, 128, 0, 1e15, False, ranks=8)


@pytest.mark.parametrize("scale", ["270m", "600m", "3b"])
def test_more_memory_and_checkpointing_never_lower_the_choice(scale: str) -> None:
    spec = published(scale)
    choices = [largest_micro_batch(spec, memory) or 0 for memory in (24e9, 80e9, H200, 192e9)]
    assert choices == sorted(choices)
    assert all(1_024 % choice == 0 for choice in choices if choice)
    assert (largest_micro_batch(spec, H200, checkpoint_activations=True) or 0) >= choices[2] >= 1


def test_three_billion_parameters_do_not_fit_24_gb() -> None:
    assert largest_micro_batch(published("3b"), 24e9, checkpoint_activations=True) is None


def test_a_processor_takes_the_whole_batch() -> None:
    assert chosen_micro_sequences(published("270m"), CPU, False) == 1_024


@pytest.mark.parametrize("beyond", [0, 40e9, 90e9])
def test_advice_after_an_error_is_smaller_and_fits_the_line_through_the_peak(beyond: float) -> None:
    """What was used beyond the estimate grows in proportion to the micro-batch."""
    spec = published("600m", 64)

    def needs(sequences: int) -> float:
        return footprint(spec, sequences).total + beyond * sequences / 32

    fits = next(n for n in (16, 8, 4, 2, 1) if needs(n) <= USABLE * H200)
    said = advice(spec, 32, needs(32), H200, False)
    assert said == f"out of memory with micro_sequences = 32 (141 GB): micro_sequences = {fits} should fit"


def test_advice_never_repeats_what_failed_whatever_the_estimate_says() -> None:
    spec = published("270m", 64)
    assert "micro_sequences = 1 should fit" in advice(spec, 2, 1e9, H200, False)
    assert "checkpoint activations" in advice(spec, 1, 1e9, H200, False)
    assert "not even one sequence" in advice(spec, 1, 1e9, H200, True)
    assert "\n" not in advice(spec, 1, 1e9, H200, True)


def test_out_of_memory_in_a_stage_is_one_line_of_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device's error comes from inside a step, its figures from the device."""
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 100e9)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 141e9))

    def fail(point: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    with pytest.raises(DoesNotFitError, match=r"^out of memory with micro_sequences = 2 \(141 GB\): .*= 1 should fit$"):
        train_tiny(job_of(tiny_spec(), tmp_path), fail)
