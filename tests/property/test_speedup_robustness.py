"""Whatever runs a sweep leaves behind, there is a verdict in plain words and plain numbers."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reports.estimate.verdict import NotReached, Reached, Words
from reports.evidence.exporting import runs_to_csv
from reports.evidence.runs import FinishedRun
from reports.summary import summarize, summary_to_json
from tests.support.finished_runs import make_run, make_study, sweep

losses = st.one_of(st.sampled_from((2.5, 2.6, 2.7)), st.floats(0.5, 8.0))


@st.composite
def any_run(draw: st.DrawFn) -> FinishedRun:
    """A run of any arm, outcome and completeness; few distinct values, so that cells and ladders come about."""
    method = draw(st.sampled_from(("baseline", "baseline", "tst", "other")))
    loss = draw(st.one_of(st.none(), losses, losses, losses))
    steps, seed = draw(st.sampled_from((1_000, 2_000, 3_000, 4_000))), draw(st.sampled_from((1000, 1001, None, 0)))
    run = make_run(method, steps, seed, loss, run_id=str(draw(st.integers(0, 10**6))))
    bare = draw(st.booleans())
    return replace(
        run,
        purpose=draw(st.sampled_from(("confirmation", "confirmation", "confirmation", "tuning", "noise_floor"))),
        scale=draw(st.sampled_from(("nano", "nano", "3b"))),
        params=draw(st.sampled_from((1e5, 3e9, None))),
        decayed=loss is not None and draw(st.sampled_from((True, True, True, False))),
        learning_rate=draw(st.sampled_from((1e-3, 1e-3, 2e-3, None))),
        phases=() if bare else run.phases,
        gpu_hours=draw(st.sampled_from((None, 1.0, run.gpu_hours))) if bare else run.gpu_hours,
        tokens=draw(st.sampled_from((run.tokens, None))),
    )


@given(st.lists(any_run(), max_size=24))
@settings(max_examples=150)
def test_any_mixture_of_runs_has_a_summary(runs: list[FinishedRun]) -> None:
    study = make_study(runs, axes={"tst": {"bag_size": (2, 4)}}, target_scale_params=1e9)
    summary = summarize(study)
    plain = summary_to_json(summary)
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert summary.headline.endswith(".")
    assert not {"nan", "nanx", "inf", "infx", "nan."} & set(summary.headline.split())
    for verdict in summary.verdicts:
        match verdict.speedup:
            case Reached(speedup=speedup, interval=interval):
                assert 0 < speedup < math.inf
                assert interval is None or 0 < interval[0] <= speedup <= interval[1]
            case NotReached(lower_bound=lower_bound):
                assert verdict.words in (Words.NOT_REACHED, Words.SLOWER)
                assert lower_bound is None or lower_bound > 0
    for scale in study.scales:
        entered = {run.run_id for arm in scale.arms for cell in arm.cells + arm.other_cells for run in cell.runs}
        assert not entered & {exclusion.run.run_id for exclusion in scale.exclusions} - {
            run.run_id for run in runs if sum(other.run_id == run.run_id for other in runs) > 1
        }
    assert len(runs_to_csv(study).splitlines()) == len(runs) + 1


@given(st.permutations(range(18)))
@settings(max_examples=20)
def test_the_order_of_the_runs_does_not_matter(order: list[int]) -> None:
    study = sweep(1.3)
    shuffled = make_study([study.runs[number] for number in order])
    assert json.dumps(summary_to_json(summarize(shuffled))) == json.dumps(summary_to_json(summarize(study)))


def test_the_order_test_covers_the_whole_sweep() -> None:
    assert len(sweep(1.3).runs) == pytest.approx(18)
