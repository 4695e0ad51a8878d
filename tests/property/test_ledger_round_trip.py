"""Whatever record is written is read back equal, from another ledger object, and nothing stays pending."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeper.ledger.mlflow_ledger import Ledger
from tests.support.ledger_factory import MLFLOW_WARNINGS, about_of, empty_results
from tests.support.strategies import run_records, trial_specs
from trainers.contract.record import PURPOSES, RunRecord
from trainers.contract.spec import TrialSpec

pytestmark = MLFLOW_WARNINGS


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return empty_results(tmp_path_factory)


@pytest.fixture(scope="module")
def names() -> Iterator[str]:
    return (f"sweep-{number}" for number in count())


record_lists = st.lists(run_records(), min_size=1, max_size=3, unique_by=lambda record: record.spec.spec_id)


@settings(max_examples=12)
@given(written=record_lists)
def test_records_survive_the_round_trip(results: Path, names: Iterator[str], written: list[RunRecord]) -> None:
    name = next(names)
    with Ledger.open(results, name, create=True) as ledger:
        ledger.begin(about_of(name))
        for record in written:
            ledger.write(record)
    with Ledger.open(results, name, create=False) as ledger:
        assert ledger.records() == written
        assert ledger.pending() == []
        assert ledger.damaged() == []
        assert ledger.about() == about_of(name)


asked_trials = st.lists(st.tuples(trial_specs(), st.sampled_from(PURPOSES)), min_size=1, max_size=5)


@settings(max_examples=8)
@given(asked=asked_trials, data=st.data())
def test_pending_is_what_was_asked_and_not_written_in_order(
    results: Path, names: Iterator[str], asked: list[tuple[TrialSpec, str]], data: st.DataObject
) -> None:
    name = next(names)
    first = {spec.spec_id: (spec, purpose) for spec, purpose in reversed(asked)}
    order = list(dict.fromkeys(spec.spec_id for spec, _ in asked))
    done = data.draw(st.sets(st.sampled_from(order)))
    with Ledger.open(results, name, create=True) as ledger:
        ledger.begin(about_of(name))
        for spec, purpose in asked:
            ledger.schedule(spec, purpose)
        for spec_id in sorted(done):
            ledger.write(data.draw(run_records(st.just(first[spec_id][0]))))
    with Ledger.open(results, name, create=False) as ledger:
        assert ledger.pending() == [first[spec_id] for spec_id in order if spec_id not in done]
        assert {record.spec.spec_id for record in ledger.records()} == done
