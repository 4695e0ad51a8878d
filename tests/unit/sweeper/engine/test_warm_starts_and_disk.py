"""What a search may know from other sweeps, and what a disk that is too small does to a sweep."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sweeper.engine.arms import earlier_points, identity_of
from sweeper.engine.site import Site, state_bytes
from sweeper.engine.states import final_nodes
from sweeper.engine.sweep import Sweep
from sweeper.executors.inline import InlineExecutor
from sweeper.executors.worker import train_stage
from sweeper.ledger.in_memory import MemoryLedger
from sweeper.options import corpus_facts
from sweeper.space.load import parse_search_space
from sweeper.space.schema import SearchSpace
from tests.support import small
from tests.support.strategies import PROVENANCE
from trainers.planning.store import DiskStore

TEXT = """
name: disk
question: What fits?
scales: [pico]
tokenizer: {vocab_size: 300}
context: 8
tokens_per_step: 16
validation_tokens: 257
schedule: {warmup_steps: 2, decay_fraction: 0.2}
seeds: {tuning: [0], confirmation: [1000, 1001]}
methods:
  baseline:
    budgets: {tuning: 10, confirmation: [10, 20]}
    axes: {learning_rate: {grid: [0.002, 0.004, 0.008]}}
  tst:
    budgets: {tuning: 10, confirmation: [10]}
    axes: {learning_rate: {grid: [0.002, 0.004, 0.008]}, bag_size: 2, step_ratio: 0.5, bag_weighting: uniform}
search: {trials_per_arm: 2, fan: 1, sampler: surface}
resources: {gpus: 0}
"""


def space(text: str = TEXT) -> SearchSpace:
    return parse_search_space(text, Path("disk.yaml"))


def run(folder: Path, disk_bytes: float, earlier: tuple[object, ...] = ()) -> tuple[Sweep, MemoryLedger]:
    ledger = MemoryLedger()
    site = Site(str(folder / "stages"), str(folder / "stop"), "eager", disk_bytes=disk_bytes)
    facts = corpus_facts(small.corpus())
    sweep = Sweep(space(), facts, ledger, DiskStore(folder / "stages"), site, PROVENANCE, earlier=earlier)  # type: ignore[arg-type]
    InlineExecutor().run(sweep, train_stage, lambda: None)
    return sweep, ledger


def test_a_disk_for_a_few_states_is_enough_and_never_exceeded(tmp_path: Path) -> None:
    roomy, expected = run(tmp_path / "roomy", float("inf"))
    assert roomy.stopping is None
    one = max(state_bytes(spec) for spec, _ in expected.asked.values())
    tight, ledger = run(tmp_path / "tight", 3.5 * one)
    assert tight.stopping is None
    assert {r.spec.spec_id: r.final_loss for r in ledger.records()} == {
        r.spec.spec_id: r.final_loss for r in expected.records()
    }
    # The weights that are kept for export are given up before the sweep is.
    kept, wanted = tight.store.states(), final_nodes(expected.records())
    assert roomy.store.states().keys() == wanted
    assert kept.keys() < wanted
    assert sum(kept.values()) <= 3.5 * one


def test_a_disk_for_no_state_stops_the_sweep_with_one_line(tmp_path: Path) -> None:
    sweep, ledger = run(tmp_path, 10.0)
    assert sweep.stopping is not None
    assert sweep.stopping.startswith("resources.disk_gb: 1e-08 GB hold no further state")
    assert ledger.pending()


def test_an_earlier_sweep_says_where_to_begin_and_counts_for_nothing_else(tmp_path: Path) -> None:
    _, ledger = run(tmp_path / "first", float("inf"))
    records = tuple(ledger.records())
    baseline = [record for record in records if record.spec.method == "baseline"]
    like = baseline[0].spec
    points = earlier_points(records, like)
    assert points
    largest = max(record.spec.schedule.total_steps for record in baseline)
    assert len(points) == sum(record.spec.schedule.total_steps == largest for record in baseline)
    other_text = replace(like, corpus_fingerprint="another")
    assert identity_of(other_text) != identity_of(like)
    assert earlier_points(records, other_text) == []
    assert identity_of(replace(like, seed=5)) == identity_of(like)

    best = dict(min(points, key=lambda pair: pair[1])[0])["learning_rate"]
    second, again = run(tmp_path / "second", float("inf"), earlier=records)
    first_asked = next(
        spec for spec, purpose in again.asked.values() if spec.method == "baseline" and purpose == "tuning"
    )
    assert first_asked.schedule.learning_rate == best
    assert sum(purpose == "tuning" for _, purpose in again.asked.values()) == 4, "the same number of trials as ever"
    assert second.stopping is None
