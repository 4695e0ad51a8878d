"""Two methods against each other: a method's ladder in the baseline's place, by the same estimator."""

from __future__ import annotations

import pytest

from reports.estimate.observations import observe
from reports.estimate.verdict import Reached, Words
from reports.evidence.against import held_against
from reports.evidence.study import Study
from reports.pages.report import render_page
from reports.summary import summarize, summary_to_json
from tests.support.finished_runs import ladder, make_study, sweep, tuning
from trainers.contract.errors import InputError


def two_methods() -> Study:
    """In steps, `patch` is 1.2 and `tst` 1.5 times as fast as the baseline."""
    runs = [*tuning("baseline"), *tuning("tst"), *tuning("patch"), *ladder()]
    return make_study([*runs, *ladder("patch", speedup=1.2), *ladder("tst", (5_000,), speedup=1.5)])


def test_the_ratio_of_two_methods_is_read_off_the_other_methods_ladder() -> None:
    summary = summarize(held_against(two_methods(), "patch"))
    (verdict,) = summary.verdicts
    assert (verdict.method, verdict.against, verdict.words) == ("tst", "patch", Words.FASTER)
    assert isinstance(verdict.speedup, Reached)
    assert verdict.speedup.speedup == pytest.approx(1.25, rel=1e-3)
    assert summary.headline.startswith("TST is 1.25x faster (95 %: ")
    assert summary.headline.endswith(" at nano, against Patch-level training.")
    assert summary_to_json(summary)["against"] == "patch"


def test_the_baselines_seeds_still_tell_how_far_seeds_scatter() -> None:
    study = two_methods()
    before, after = (observe(one.scales[0]).deviation for one in (study, held_against(study, "patch")))
    assert (after.total, after.num_cells) == (pytest.approx(before.total), before.num_cells)
    assert after.degrees_of_freedom == pytest.approx(before.degrees_of_freedom)


def test_the_page_says_who_stands_in_the_baselines_place() -> None:
    study = held_against(two_methods(), "patch")
    page = render_page(study, summarize(study))
    assert "where this page says baseline, it means Patch-level training." in page
    assert "published" not in page[page.index('id="verdict"') : page.index('id="iso-loss"')], (
        "those are of TST on a baseline"
    )
    assert study.context.command.endswith(" --against patch")


@pytest.mark.parametrize(
    ("study", "method", "message"),
    [
        (two_methods(), "multi_token", "multi_token: not a method of test to hold others against; one of tst, patch"),
        (two_methods(), "baseline", "baseline: not a method"),
        (sweep(), "tst", "tst: test has no other method to hold against it"),
        (make_study(ladder()), "tst", "there is none beside the baseline"),
    ],
)
def test_what_cannot_be_held_against_is_one_line(study: Study, method: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        held_against(study, method)


def test_a_name_is_found_as_tables_are_read() -> None:
    assert held_against(two_methods(), "Patch").context.against == "patch"
