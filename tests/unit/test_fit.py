"""Arithmetic on bytes: which micro-batch is taken where nobody said, and which one is advised after an error."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.tiny_training import CPU, job_of, tiny_spec, train_tiny
from trainers.fit import (
    DoesNotFitError,
    activation_bytes,
    advice,
    chosen_micro_sequences,
    estimated_micro_sequences,
    largest_divisor_that_fits,
    resident_bytes,
)
from trainers.flops import count_parameters
from trainers.scales import SCALES
from trainers.spec import TrialSpec

H200 = 141e9


def published(scale: str, sequences: int = 1_024) -> TrialSpec:
    return replace(
        tiny_spec("baseline", precision="bf16"),
        shape=SCALES[scale].shape,
        context=2_048,
        tokens_per_step=2_048 * sequences,
        validation_tokens=4_097,
    )


@given(
    sequences=st.integers(1, 500),
    resident=st.integers(0, 100),
    slope=st.integers(1, 50),
    capacity=st.integers(0, 5_000),
)
def test_the_largest_divisor_is_found(sequences: int, resident: int, slope: int, capacity: int) -> None:
    found = largest_divisor_that_fits(sequences, resident, slope, capacity)
    fitting = [n for n in range(1, sequences + 1) if sequences % n == 0 and resident + n * slope <= capacity]
    assert found == (max(fitting) if fitting else None)


def test_the_parts_of_what_stays_are_those_that_are_stated() -> None:
    shape = SCALES["270m"].shape
    parameters, head = count_parameters(shape).total, 4 * 128_256 * 576
    assert resident_bytes(shape, "bf16") == 20 * parameters + head + 8_192 * 128_256 * 2
    assert resident_bytes(shape, "fp32") == 16 * parameters + head + 4_160 * 128_256 * 4


@pytest.mark.parametrize("scale", ["270m", "600m", "3b"])
def test_more_memory_and_checkpointing_never_lower_the_choice(scale: str) -> None:
    spec = published(scale)
    choices = [estimated_micro_sequences(spec, memory, False) or 0 for memory in (24e9, 80e9, H200, 192e9)]
    assert choices == sorted(choices)
    assert all(1_024 % choice == 0 for choice in choices if choice)
    assert (estimated_micro_sequences(spec, H200, True) or 0) >= choices[2] >= 1
    assert activation_bytes(spec.shape, 2_048, "bf16", True) < activation_bytes(spec.shape, 2_048, "bf16", False)


def test_three_billion_parameters_do_not_fit_24_gb() -> None:
    assert estimated_micro_sequences(published("3b"), 24e9, True) is None


def test_a_processor_takes_the_whole_batch() -> None:
    assert chosen_micro_sequences(published("270m"), CPU, False) == 1_024


def test_advice_after_an_error_is_smaller_and_fits_the_line_through_the_peak() -> None:
    spec = published("600m", 64)
    resident = resident_bytes(spec.shape, "bf16")
    for slope, fits in ((12e9, 8), (20e9, 4), (50e9, 2), (100e9, 1)):
        said = advice(spec, 16, resident + 16 * slope, H200, False)
        assert said == f"out of memory with micro_sequences = 16 (141 GB): micro_sequences = {fits} should fit"


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
