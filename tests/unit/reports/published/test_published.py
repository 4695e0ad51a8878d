"""The published runs: their own numbers come back, and ours stand beside them with their limits."""

from __future__ import annotations

import pytest

from reports.estimate.verdict import Flag, Reached, ScaleVerdict, Words
from reports.published import published_runs, published_study
from reports.summary import summarize, summary_to_json


def verdict(scale: str, method: str = "tst") -> ScaleVerdict:
    return next(v for v in summarize(published_study()).verdicts if (v.scale, v.method) == (scale, method))


def test_the_table_has_thirteen_runs() -> None:
    runs = published_runs()
    assert len(runs) == 13
    assert {run.scale for run in runs} == {"270m", "600m", "3b", "10b-a1b"}
    assert all(run.seed is None and run.decayed for run in runs)


@pytest.mark.parametrize(
    ("scale", "speedup", "baseline", "method", "multiplier"),
    [("3b", 1.79, 443, 247, 1.39), ("10b-a1b", 2.58, 12311, 4768, 1.90)],
)
def test_the_published_comparison_is_reproduced(
    scale: str, speedup: float, baseline: float, method: float, multiplier: float
) -> None:
    pair = verdict(scale).matched_pair
    assert pair is not None
    assert round(pair.speedup, 2) == speedup
    assert (pair.baseline_hours, pair.method_hours) == (baseline, method)
    assert pair.data_multiplier is not None
    assert round(pair.data_multiplier, 2) == multiplier
    assert verdict(scale).data_multiplier == pair.data_multiplier


def test_tokens_are_counted_from_steps() -> None:
    run = next(run for run in published_runs() if run.scale == "10b-a1b" and run.method == "tst")
    assert run.tokens == 8_388_608 * (12_483 * 16 + 37_500)


def test_our_ladder_fit_of_the_3b_runs() -> None:
    ours = verdict("3b")
    assert isinstance(ours.speedup, Reached)
    assert ours.speedup.speedup == pytest.approx(1.81, abs=0.005)
    assert {Flag.SIGMA_FROM_PRIOR, Flag.SINGLE_SEED, Flag.TUNING_UNKNOWN, Flag.FIT_NOT_TESTABLE} <= set(ours.flags)


def test_one_budget_at_the_largest_scale_gives_neither_fit_nor_interval() -> None:
    ours = verdict("10b-a1b")
    assert ours.speedup is None
    assert ours.baseline_ladder is None
    assert ours.words is Words.LOSS_GAP_ONLY
    assert ours.loss_gap is not None
    assert not ours.loss_gap.equal_cost
    json = next(s for s in summary_to_json(summarize(published_study()))["scales"] if s["scale"] == "10b-a1b")
    assert (json["speedup"], json["interval"], json["reached"]) == (None, None, False)
    assert round(json["matched_pair"]["speedup"], 2) == 2.58


def test_reinitialising_the_embedding_is_slower() -> None:
    assert verdict("3b", "tst_reinit_embeddings").words is Words.SLOWER


def test_the_average_leaves_out_what_was_not_measured() -> None:
    (aggregate,) = (a for a in summarize(published_study()).aggregates if a.method == "tst")
    assert aggregate.scales == ("270m", "3b")
    assert aggregate.left_out == ("600m", "10b-a1b")
