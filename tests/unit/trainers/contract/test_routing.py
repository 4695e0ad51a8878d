"""The numbers of a routing: even is one, a shift is the share that moved, and old records are read without any."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports.evidence.runs import run_from_record
from reports.evidence.study import build_study
from reports.html.blocks import Table
from reports.sections import appendix
from reports.summary import summarize
from sweeper.ledger.entries import metric_points
from tests.support.report_factory import Invented, context_of, records_of
from trainers.contract.record import LossCurve, RunRecord, record_from_dict, record_to_dict
from trainers.contract.routing import RoutingPoint, load_shift, summarise

counts = st.lists(st.integers(0, 1_000), min_size=2, max_size=6).filter(any)


def test_an_even_load_is_one_and_a_lonely_expert_is_not() -> None:
    point = summarise([[5, 5, 5, 5], [0, 20, 0, 0]], 0, keep_load=True)
    assert point.max_over_mean == (1.0, 4.0)
    assert point.entropy == (1.0, 0.0)
    assert point.load == ((0.25,) * 4, (0.0, 1.0, 0.0, 0.0))
    assert summarise([[5, 5]], 3, keep_load=False) == RoutingPoint((1.0,), (1.0,), 3)


def test_the_shift_is_the_share_of_the_assignments_that_moved() -> None:
    before = summarise([[10, 0], [5, 5]], 0, keep_load=True)
    after = summarise([[7, 3], [5, 5]], 0, keep_load=True)
    assert load_shift(before, after) == pytest.approx(0.15)  # 0.3 in one layer of two
    with pytest.raises(ValueError, match="both points"):
        load_shift(before, summarise([[7, 3], [5, 5]], 0, keep_load=False))


@given(counts, st.randoms(use_true_random=False))
def test_a_shift_is_a_distance(first: list[int], shuffled: random.Random) -> None:
    second = shuffled.sample(first, len(first))
    a, b = summarise([first], 0, keep_load=True), summarise([second], 0, keep_load=True)
    assert load_shift(a, a) == 0
    assert load_shift(a, b) == pytest.approx(load_shift(b, a))
    assert 0 <= load_shift(a, b) <= 1 + 1e-5
    assert a.max_over_mean == b.max_over_mean
    assert 0 <= a.entropy[0] <= 1 + 1e-9
    assert 1 - 1e-5 <= a.max_over_mean[0] <= len(first)


# ---- records, ledger, report -----------------------------------------------------------------------------------------


def routed(record: RunRecord) -> RunRecord:
    """The record as one of a mixture of two experts whose load moves by 0.2 at every change of the phase."""
    points = []
    for point, after in zip(record.curve.points, (*record.curve.points[1:], None), strict=True):
        even = summarise([[6, 4] if point.phase == "superposition" else [4, 6]], 0, keep_load=True)
        at_end = after is None or after.phase != point.phase
        starts = bool(points) and points[-1].phase != point.phase
        points.append(replace(point, routing=even if at_end or starts else replace(even, load=())))
    return replace(record, curve=LossCurve(tuple(points)))


@pytest.fixture(scope="module")
def records() -> list[RunRecord]:
    return [routed(record) for record in records_of(Invented(seeds=1))]


def test_a_record_keeps_its_routing_and_one_without_says_nothing_of_it(records: list[RunRecord]) -> None:
    for record in records[:3]:
        assert record_from_dict(record_to_dict(record)) == record
    dense = records_of(Invented(seeds=1))[0]
    plain = record_to_dict(dense)
    assert all("routing" not in point for point in plain["curve"]["points"])
    assert record_from_dict(plain) == dense


def test_the_ledger_shows_routing_and_shift_of_those_runs_only(records: list[RunRecord]) -> None:
    tst = next(record for record in records if record.spec.method == "tst")
    points = metric_points(tst, 0)
    assert {p.value for p in points if p.key == "routing_max_over_mean"} == {1.2}
    assert [(p.step, p.value) for p in points if p.key == "routing_shift"] == [(0, pytest.approx(0.2))]
    dense = records_of(Invented(seeds=1))[0]
    assert not any(p.key.startswith("routing") for p in metric_points(dense, 0))


def test_the_report_lists_the_routing_of_runs_that_have_one(records: list[RunRecord]) -> None:
    truths = (Invented(seeds=1),)

    def tables(runs: list[RunRecord]) -> list[Table]:
        study = build_study(context_of("experts", truths), [run_from_record(run) for run in runs])
        blocks = appendix.figure(appendix.info(study, summarize(study)))
        return [block for block in blocks if isinstance(block, Table) and "experts" in block.caption]

    (table,) = tables(records)
    assert len(table.rows) == len(records)
    assert {row[4] for row in table.rows} == {"20 %", "–"}
    assert tables(records_of(*truths)) == []
