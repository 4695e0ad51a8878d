"""Two sweeps side by side: the ratio's arithmetic, what forbids it, what differs, and the gate for pipelines."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from scipy.stats import t as student

from reports.estimate.verdict import NotReached, Reached
from reports.evidence.study import Study
from reports.pages.comparison import Comparison, compare, comparison_to_json, render_comparison, speedup_text
from reports.published import published_study
from reports.summary import summarize
from sweeper.reporting import below
from tests.support.finished_runs import ladder, make_study, sweep, tuning


def other(study: Study, name: str = "other", **changes: object) -> Study:
    """The same runs under other names, with `changes` to each: another sweep."""
    runs = [replace(run, run_id=f"{name}-{run.run_id}", **changes) for run in study.runs]  # type: ignore[arg-type]
    return make_study(runs, name=name)


def only(made: Comparison) -> tuple[Reached, Reached]:
    (arm,) = made.arms
    sides = [verdict.speedup for verdict in arm.verdicts if verdict is not None]
    assert isinstance(sides[0], Reached)
    assert isinstance(sides[1], Reached)
    return sides[0], sides[1]


def test_errors_of_independent_speedups_add_in_squares() -> None:
    made = compare(sweep(1.4), other(sweep(1.1)))
    (arm,) = made.arms
    first, second = only(made)
    assert arm.ratio is not None
    assert arm.ratio.interval is not None
    assert arm.ratio.value == pytest.approx(1.4 / 1.1, rel=1e-3)
    variances = [(side.log_standard_error or 0.0) ** 2 for side in (first, second)]
    freedoms = [side.degrees_of_freedom or 0.0 for side in (first, second)]
    freedom = sum(variances) ** 2 / sum(v**2 / f for v, f in zip(variances, freedoms, strict=True))
    half = student.ppf(0.975, freedom) * math.sqrt(sum(variances))
    assert math.log(arm.ratio.interval[1] / arm.ratio.value) == pytest.approx(half, rel=1e-9)
    assert math.log(arm.ratio.value / arm.ratio.interval[0]) == pytest.approx(half, rel=1e-9)
    assert arm.ratio.words == "larger in the first"
    assert any("different losses" in reason for reason in arm.reasons)


def test_swapping_the_sweeps_inverts_the_ratio() -> None:
    forth, back = compare(sweep(1.4), other(sweep(1.1))), compare(other(sweep(1.1)), sweep(1.4))
    one, two = forth.arms[0].ratio, back.arms[0].ratio
    assert one is not None
    assert two is not None
    assert one.interval is not None
    assert two.interval is not None
    assert one.value * two.value == pytest.approx(1)
    assert one.interval[0] * two.interval[1] == pytest.approx(1)
    assert two.words == "larger in the second"


def test_equal_speedups_are_no_difference() -> None:
    made = compare(sweep(1.2), other(sweep(1.2)))
    assert made.arms[0].ratio is not None
    assert made.arms[0].ratio.words == "no difference detected"
    assert made.differences == ()
    assert "ratio 1.00" in made.sentence


def test_shared_runs_take_the_interval_away() -> None:
    made = compare(sweep(1.4), make_study([*ladder(), *ladder("tst", (4_000,), speedup=1.1)], name="other"))
    ratio = made.arms[0].ratio
    assert ratio is not None
    assert ratio.interval is None
    assert ratio.words == "no interval"
    assert any("in both sweeps" in reason for reason in made.arms[0].reasons)


def test_what_a_sweep_did_not_measure_has_no_ratio() -> None:
    never = make_study([*tuning("baseline"), *ladder(), *ladder("tst", (8_000,), speedup=3.0)], name="never")
    made = compare(sweep(1.4), other(never, "never"))
    assert made.arms[0].ratio is None
    assert made.arms[0].reasons == ("No measured speedup in never, so no ratio.",)
    assert "no speedup that can be set side by side" in made.sentence
    assert comparison_to_json(made)["ratios"][0]["ratio"] is None
    verdict = made.arms[0].verdicts[1]
    assert verdict is not None
    assert isinstance(verdict.speedup, NotReached)
    assert speedup_text(verdict.speedup).startswith("not reached, > ")


def test_other_scales_and_settings_are_said() -> None:
    made = compare(sweep(1.2), other(sweep(1.2), device="another machine", validation="other text", precision=None))
    assert made.arms[0].ratio is not None
    assert made.differences == (
        "nano, device: a processor in test, another machine in other; their hours must not be compared.",
        "nano, validation set: text/65536 in test, other text in other; their losses must not be compared.",
        "nano, precision: fp32 in test, not stated in other; their hours must not be compared.",
    )
    elsewhere = compare(sweep(1.2), published_study())
    assert "Kind of runs: trained here in test, published figures in published." in elsewhere.differences
    assert "Only test has nano." in elsewhere.differences
    assert all(arm.ratio is None for arm in elsewhere.arms)
    assert {arm.reasons for arm in elsewhere.arms} == {("Not in published.",), ("Not in test.",)}


def test_settings_that_nobody_states_are_not_taken_as_equal() -> None:
    bare = {"validation": None, "tokenizer": None}
    made = compare(other(sweep(1.2), "one", **bare), other(sweep(1.2), "two", **bare))
    assert made.differences == (
        "nano: neither sweep states validation set, tokenizer, so whether these differ is not known.",
    )


def test_the_page_says_what_the_value_says() -> None:
    made = compare(sweep(1.4), other(sweep(1.1), name="<script>alert(1)</script>"))
    page = render_comparison(made, "sweeper report a b")
    assert "<script>alert" not in page
    assert "larger in the first" in page
    empty = compare(make_study([], name="one"), make_study([], name="two"))
    assert "no speedup that can be set side by side" in render_comparison(empty, "sweeper report one two")


def gate(study: Study, least: float) -> list[str]:
    return below(summarize(study), least)


def test_the_gate_asks_for_the_lower_end_of_the_interval() -> None:
    study = sweep(1.4)
    speedup = summarize(study).verdicts[0].speedup
    assert isinstance(speedup, Reached)
    assert speedup.interval is not None
    low = speedup.interval[0]
    assert gate(study, low) == []
    assert gate(study, low + 1e-6) == [f"nano tst: lower bound {low:.3f}, asked for at least {low + 1e-6:g}"]
    assert low < speedup.speedup


def test_a_lower_bound_holds_where_the_baseline_never_arrived() -> None:
    study = make_study([*ladder(), *ladder("tst", (8_000,), speedup=3.0)])
    speedup = summarize(study).verdicts[0].speedup
    assert isinstance(speedup, NotReached)
    assert speedup.lower_bound is not None
    assert gate(study, speedup.lower_bound * 0.999) == []
    assert len(gate(study, speedup.lower_bound * 1.001)) == 1


@pytest.mark.parametrize(
    ("study", "why"),
    [
        (make_study([]), "no comparison"),
        (make_study([*tuning("baseline"), *tuning("tst")]), "no lower bound"),
        (make_study([*ladder(budgets=(4_000,)), *ladder("tst", (4_000,), speedup=2.0)]), "no lower bound"),
    ],
    ids=["empty", "search only", "one budget"],
)
def test_the_gate_stays_shut_without_a_bound(study: Study, why: str) -> None:
    assert len(gate(study, 0.0)) == 1
    assert why in gate(study, 0.0)[0]


def test_one_method_that_is_slower_shuts_the_gate_for_all() -> None:
    runs = [*ladder(), *ladder("tst", (4_000,), speedup=1.5), *ladder("slower", (6_000,), speedup=0.8)]
    (line,) = gate(make_study(runs), 1.05)
    assert line.startswith("nano slower: lower bound 0.")
