"""The seed deviation that a plan reckons with: measured here, measured by an earlier sweep, or assumed by size."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from sweeper.plans.plan import assumed_deviation, expected_deviation, measured_deviation
from tests.support.report_factory import Invented, record_of, spec_of
from trainers.contract.record import RunRecord


def confirmations(losses: tuple[float, ...], **changes: object) -> list[RunRecord]:
    made = []
    for number, loss in enumerate(losses):
        spec = spec_of(
            "baseline",
            scale="nano",
            seed=1000 + number,
            total_steps=4_000,
            learning_rate=2e-3,
            bag_size=1,
            step_ratio=0.0,
        )
        record = record_of(Invented(), replace(spec, **changes), "confirmation", random.Random(0))  # type: ignore[arg-type]
        made.append(replace(record, outcome=replace(record.outcome, final_loss=loss)))  # type: ignore[call-arg]
    return made


def test_large_models_have_the_public_deviation_and_tiny_ones_ten_times_that() -> None:
    assert [assumed_deviation(size) for size in (5e4, 110_000)] == [0.01, 0.01]
    assert [assumed_deviation(size) for size in (1e8, 3e9)] == pytest.approx([0.0013, 0.0013])
    middle = assumed_deviation((1.1e5 * 1e8) ** 0.5)
    assert middle == pytest.approx((0.01 * 0.0013) ** 0.5), "a straight line in the logarithms"


def test_what_was_measured_comes_before_what_is_assumed() -> None:
    own, other = confirmations((3.0, 3.02)), confirmations((3.0, 3.002))
    assert expected_deviation(own, other, 1e5) == (pytest.approx(0.02 / 2**0.5), "measured")
    assert expected_deviation([], other, 1e5) == (
        pytest.approx(0.002 / 2**0.5),
        "measured by earlier sweeps at this scale",
    )
    for size, words in ((1e5, "a model this small"), (1e7, "between 0.01 at 110K"), (1e9, "public runs")):
        assert words in expected_deviation([], [], size)[1]


def test_two_sweeps_of_other_text_are_not_one_cell_and_the_same_trial_counts_once() -> None:
    one, two = confirmations((3.0,)), confirmations((4.0,), corpus_fingerprint="another")
    assert measured_deviation([*one, *two]) is None
    assert measured_deviation([*one, *one]) is None
