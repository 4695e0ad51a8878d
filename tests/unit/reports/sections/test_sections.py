"""What each section decides, as data: no picture is needed to see whether it is right."""

from __future__ import annotations

import math
import tomllib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports.estimate.verdict import Reached
from reports.evidence.study import Study
from reports.evidence.units import LossUnit
from reports.html import theme
from reports.html.blocks import Link, Table
from reports.html.charts import round_ticks
from reports.html.embed import figure_json, json_in_html, thinned
from reports.published import published_study
from reports.sections import appendix, factors, headline, iso_loss, plan, recipe, search, trust, verdict, what_if
from reports.sections.figures import forest
from reports.sections.published_values import published_values
from reports.summary import Summary, summarize
from tests.support.finished_runs import make_study, sweep
from tests.support.report_factory import invented_study
from tests.support.strategies import record_of, spec_of
from trainers.methods import METHODS


def evidence(variant: str) -> tuple[Study, Summary]:
    study = published_study() if variant == "published" else invented_study(variant)
    return study, summarize(study)


# ---- the headline and the plan --------------------------------------------------------------------------------------


def test_the_ruler_places_the_estimate_between_its_bounds() -> None:
    shown = headline.info(*evidence("faster"))
    ruler = shown.ruler
    assert ruler is not None
    assert ruler.estimate is not None
    assert ruler.high is not None
    assert 0 <= ruler.one < ruler.low < ruler.estimate < ruler.high <= 100
    assert shown.certain


def test_a_slower_method_lies_left_of_one_and_costs_money() -> None:
    study, summary = evidence("slower")
    shown = headline.info(study, summary)
    assert shown.ruler is not None
    assert shown.ruler.high is not None
    assert shown.ruler.high < shown.ruler.one
    worth = plan.worth(study, summary)
    assert worth is not None
    saved = worth.saved_money("middle")
    assert saved is not None
    assert saved < 0


def test_an_interval_that_holds_one_is_not_certain() -> None:
    shown = headline.info(*evidence("no-difference"))
    assert not shown.certain
    assert shown.ruler is not None
    assert shown.ruler.high is not None
    assert shown.ruler.low < shown.ruler.one < shown.ruler.high


def test_a_result_of_an_earlier_state_of_the_file_is_not_certain() -> None:
    study, _ = evidence("faster")
    earlier = replace(study, context=replace(study.context, of_file=frozenset()))
    assert not headline.info(earlier, summarize(earlier)).certain


def test_savings_follow_from_the_interval() -> None:
    study, summary = evidence("faster")
    worth = plan.worth(study, summary)
    assert worth is not None
    assert summary.main is not None
    assert isinstance(summary.main.speedup, Reached)
    assert worth.saved_hours("middle") == pytest.approx(worth.plan_hours * (1 - 1 / summary.main.speedup.speedup))
    days = worth.saved_days("middle")
    assert days == pytest.approx(worth.saved_hours("middle") / 24)  # type: ignore[operator]
    paid = sum(run.incurred_gpu_hours or 0 for run in study.runs)
    assert worth.spent_hours == pytest.approx(paid)


@pytest.mark.parametrize("without", [("tst",), ("baseline",), ("tst", "baseline")])
def test_the_clock_is_the_one_that_was_used_and_a_plan_is_in_hours(without: tuple[str, ...]) -> None:
    runs = [replace(run, gpu_hours=None, phases=()) if run.method in without else run for run in sweep().runs]
    study = make_study(runs)
    summary = summarize(study)
    assert summary.clock_label == "model FLOPs"
    assert summary.headline.endswith(" on model FLOPs.")
    assert headline.info(study, summary).clocks == study.clock_label == "CPU-hours"


def test_a_sweep_that_no_run_knows_the_hours_of_is_never_paid_for() -> None:
    study = make_study(
        [replace(run, gpu_hours=None, billed_gpu_hours=None, incurred_gpu_hours=None) for run in sweep().runs]
    )
    summary = summarize(study)
    worth = plan.worth(study, summary)
    assert worth is not None
    assert worth.spent_hours is None
    shown = what_if.info(study, summary)
    assert "payback" not in [row.name for row in shown.rows]
    assert shown.note.startswith("What the sweep took is not known. ")


@pytest.mark.parametrize("variant", ["diverged-only", "baseline-only", "empty", "one-budget"])
def test_without_a_factor_there_is_no_plan(variant: str) -> None:
    assert plan.worth(*evidence(variant)) is None


def test_the_published_headline_number_is_the_matched_pair() -> None:
    shown = headline.info(*evidence("published"))
    assert shown.number == "2.58×"
    assert not shown.certain
    assert shown.banners[0].name == "Published figures."


# ---- the verdict ----------------------------------------------------------------------------------------------------


def test_the_forest_has_a_row_for_each_scale_and_the_published_values_beside() -> None:
    shown = verdict.info(*evidence("four-scales"))
    kinds = [row.kind for row in shown.rows]
    assert kinds == ["measured"] * 4 + ["mean"] + ["published"] * len(published_values())
    assert shown.finding == "Faster in all 4 comparisons"


def test_published_values_are_those_of_nearly_equal_losses() -> None:
    values = {value.scale: round(value.speedup, 2) for value in published_values()}
    assert values == {"3b": 1.79, "10b-a1b": 2.58}


def test_not_reached_is_a_bound_and_never_a_value() -> None:
    row = verdict.info(*evidence("not-reached")).rows[0]
    assert row.kind == "bound"
    assert row.value is None
    assert row.low is not None
    assert row.low > 1


def test_runs_of_unequal_loss_are_no_pair() -> None:
    _, summary = evidence("one-budget")
    assert summary.main is not None
    assert summary.main.matched_pair is not None
    assert forest.close_pair(summary.main) is None


def test_the_recipe_is_the_confirmed_one_and_its_snippet_is_toml() -> None:
    shown = recipe.info(*evidence("faster"))
    assert shown is not None
    parsed = tomllib.loads(recipe.snippet(shown.main))
    assert parsed["tst"] == {
        "bag_size": 3,
        "step_ratio": 0.2,
        "boundary_step": 1200,
        "bag_weighting": "uniform",
    }
    assert parsed["training"] == {"steps": 6000, "seq_len": 64, "global_batch_size": 8}
    assert parsed["optimizer"]["lr"] == 2e-3
    assert shown.main.tokens == 512 * (3 * 1200 + 4800)


def test_the_optimizer_is_named_where_our_own_trainer_trained_and_never_invented() -> None:
    for ours in (True, False):
        runs = [replace(run, record=record_of(spec_of()) if ours else None) for run in sweep().runs]
        study = make_study(runs)
        shown = recipe.info(study, summarize(study))
        assert shown is not None
        optimizer = tomllib.loads(recipe.snippet(shown.main))["optimizer"]
        assert optimizer == {"lr": 2e-3} | ({"name": "AdamW"} if ours else {})


def test_a_recipe_that_lost_is_not_recommended() -> None:
    shown = recipe.info(*evidence("slower"))
    assert shown is not None
    assert "not a recommendation" in shown.advice


def test_what_a_source_lacks_is_left_out_of_the_snippet() -> None:
    shown = recipe.info(*evidence("published"))
    assert shown is not None
    parsed = tomllib.loads(recipe.snippet(shown.main))
    assert "lr_scheduler" not in parsed
    assert parsed["tst"]["boundary_step"] == 12_483


# ---- iso-loss -------------------------------------------------------------------------------------------------------


def test_every_confirmed_cell_is_an_end_point_and_every_curve_is_cut_at_its_boundary() -> None:
    study, summary = evidence("faster")
    chart = iso_loss.info(study, summary).comparisons[0].chart
    scale = study.scales[0]
    expected = {(arm.method, cell.total_steps, cell.mean_loss) for arm in scale.arms for cell in arm.cells}
    assert {(point.method, point.total_steps, point.mean_loss) for point in chart.points} == expected
    for curve in chart.curves:
        if curve.method == "baseline":
            assert curve.boundary_cost is None
            assert len(curve.early_cost) == 0
        else:
            assert curve.boundary_cost is not None
            assert curve.early_cost.max() <= curve.boundary_cost * (1 + 1e-6) < curve.late_cost.min()


def test_a_training_loss_is_not_called_a_validation_loss() -> None:
    labels = {one.chart.loss_label for one in iso_loss.info(*evidence("published")).comparisons}
    assert labels == {"training loss"}
    assert iso_loss.info(*evidence("faster")).comparisons[0].chart.loss_label == "validation loss"


@pytest.mark.parametrize(
    ("context", "unit", "last"),
    [
        ({}, None, None),
        ({"bytes_per_token": 4.0}, LossUnit(), 4.0),
        ({}, LossUnit("bits_per_byte", 4.2), 4.2),
    ],
)
def test_final_losses_stand_in_the_units_that_others_report(
    context: dict[str, float], unit: LossUnit | None, last: float | None
) -> None:
    runs = [replace(run, record=None, loss_unit=unit or run.loss_unit) for run in sweep().runs]
    study = make_study(runs, **context)
    shown = iso_loss.info(study, summarize(study))
    (scale,) = study.scales
    cells = [(arm.method, cell.total_steps, cell.mean_loss) for arm in scale.arms for cell in arm.cells]
    assert [(end.method, end.total_steps, end.losses[0]) for end in shown.ends] == cells
    for end in shown.ends:
        expected = [math.exp(end.losses[0]), *([] if last is None else [end.losses[0] / math.log(2) / last])]
        assert end.losses[1:] == pytest.approx(expected)
    (table,) = (block for block in iso_loss.figure(shown) if isinstance(block, Table) and block.folded)
    assert len(table.rows) == len(cells)
    assert table.folded.startswith("Final losses in nats per token, perplexity")
    assert ("bits per byte" in table.folded) == (last is not None)


def test_a_limit_on_curves_leaves_both_arms_theirs() -> None:
    study, _ = evidence("faster")
    first = iso_loss._seed_by_seed(list(study.scales[0].arms))[:6]
    assert [(run.method, run.seed) for run in first] == [("baseline", 1000)] * 4 + [("tst", 1000)] * 2


def test_the_arrow_is_as_long_as_the_speedup() -> None:
    study, summary = evidence("faster")
    chart = iso_loss.info(study, summary).comparisons[0].chart
    assert chart.baseline_cost is not None
    assert chart.method_cost is not None
    assert summary.main is not None
    assert isinstance(summary.main.speedup, Reached)
    assert chart.baseline_cost / chart.method_cost == pytest.approx(summary.main.speedup.speedup, rel=1e-6)


def test_a_baseline_that_does_not_reach_the_target_has_no_arrow_head_on_a_curve() -> None:
    chart = iso_loss.info(*evidence("not-reached")).comparisons[0].chart
    assert chart.baseline_cost is None
    assert chart.arrow_text.startswith("not reached, > ")


# ---- trust, factors, search, appendix -------------------------------------------------------------------------------


def test_the_worst_checks_stand_first_and_none_is_lost() -> None:
    study, summary = evidence("published")
    rows = trust.info(study, summary).rows
    order = [trust.ORDER.index(row.status) for row in rows]
    assert order == sorted(order)
    assert sorted(row.name for row in rows) == sorted(check.name for check in summary.checks)
    assert trust.info(study, summary).limits


def test_the_factors_multiply_to_the_speedup() -> None:
    study, summary = evidence("four-scales")
    for row, judged in zip(factors.info(study, summary).rows, summary.verdicts, strict=True):
        assert isinstance(judged.speedup, Reached)
        assert row.speedup == pytest.approx(judged.speedup.speedup, rel=1e-6)


def test_the_phases_rates_are_positions_over_seconds() -> None:
    shown = factors.info(*evidence("faster"))
    superposed = next(phase for phase in shown.phases if phase.bag_size == 3)
    assert superposed.positions_per_second == pytest.approx(512 / (superposed.milliseconds / 1000))
    assert superposed.tokens_per_second == pytest.approx(3 * 512 / (superposed.milliseconds / 1000))
    assert superposed.utilisation is None


def test_the_map_shows_the_best_learning_rate_of_each_cell_at_the_largest_budget() -> None:
    study, summary = evidence("faster")
    (shown,) = search.info(study, summary).scales[0].loss_maps
    arm = study.scales[0].methods[0]
    for (bag, ratio), loss in shown.losses.items():
        runs = [run for run in arm.search if (run.bag_size, run.step_ratio) == (bag, ratio) and run.final_loss]
        assert loss == pytest.approx(min(run.final_loss for run in runs if run.final_loss is not None))
    assert shown.confirmed == (3, 0.2)


def test_spending_ends_at_all_hours_of_the_arm_and_never_rises() -> None:
    study, summary = evidence("faster")
    for spent, arm in zip(search.info(study, summary).scales[0].spending, study.scales[0].arms, strict=True):
        assert spent.hours[-1] == pytest.approx(sum(run.incurred_gpu_hours or 0 for run in arm.search))
        assert list(spent.losses) == sorted(spent.losses, reverse=True)


def test_every_run_is_listed_with_its_outcome() -> None:
    study, summary = evidence("faster")
    shown = appendix.info(study, summary)
    assert len(shown.runs) == len(study.runs)
    outcomes = [str(line.cells[-1]) for line in shown.runs]
    assert sum(text.startswith("diverged") for text in outcomes) == 1
    assert len(shown.exclusions) == len(study.exclusions)


@pytest.mark.parametrize(
    ("address", "safe"),
    [("https://host/x", True), ("#/experiments/1", True), ("javascript:alert(1)", False), ("data:text/html,x", False)],
)
def test_only_harmless_addresses_become_links(address: str, safe: bool) -> None:
    assert Link("run", address).safe is safe


# ---- numbers, ticks, embedding --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (theme.speedup(1.2949), "1.29×"),
        (theme.hours(443.0), "443 h"),
        (theme.hours(0.5), "30.0 min"),
        (theme.hours(0.001), "3.60 s"),
        (theme.count(105e9), "105 B"),
        (theme.count(1_234), "1,234"),
        (theme.money(-21.56, "USD"), "−$21.56"),
        (theme.money(1_838.2, "EUR"), "€1,838"),
        (theme.money(5, "CHF"), "5.00 CHF"),
        (theme.learning_rate(2.8e-3), "2.8e−3"),
        (theme.percent(0.077, 1), "7.7 %"),
        (theme.day("2026-05-04T18:20:00+00:00"), "4 May 2026"),
        (theme.day("once"), "once"),
        (theme.speedup(None), "–"),
    ],
)
def test_numbers_are_written_for_people(text: str, expected: str) -> None:
    assert text == expected


def test_a_method_looks_the_same_whatever_stands_beside_it() -> None:
    styles = {name: theme.method_style(name) for name in ("baseline", "tst", "tst_reinit_embeddings", "input_only")}
    assert styles["baseline"].color != styles["tst"].color
    assert styles["baseline"].symbol != styles["tst"].symbol
    assert theme.method_style("tst_reinit_embeddings") == styles["tst_reinit_embeddings"]


def test_no_two_methods_that_are_built_look_alike() -> None:
    styles = [theme.method_style(name) for name in METHODS]
    assert len({style.color for style in styles}) == len(METHODS)
    assert len({style.symbol for style in styles}) == len(METHODS)
    assert [style.label for style in styles] == [row.label for row in METHODS.values()]


def test_every_dark_twin_is_another_colour() -> None:
    twins = theme.DARK_TWIN
    assert all(len(color) == 7 for pair in twins.items() for color in pair)
    assert not set(twins) & set(twins.values())
    assert len(set(twins.values())) == len(twins)


@given(st.floats(1e-6, 1e9), st.floats(1.02, 1e8))
def test_ticks_lie_inside_and_are_few(low: float, ratio: float) -> None:
    ticks = round_ticks(low, low * ratio)
    assert len(ticks) <= 7
    assert ticks == sorted(set(ticks))
    assert all(low * (1 - 1e-6) <= tick <= low * ratio * (1 + 1e-6) for tick in ticks)


@given(st.text())
def test_json_in_the_page_reads_back_and_holds_no_markup(text: str) -> None:
    import json

    embedded = str(json_in_html({"text": text}))
    assert json.loads(embedded) == {"text": text}
    assert not set("<>&\u2028\u2029") & set(embedded)


def test_a_figure_keeps_its_arrays_as_typed_arrays_and_its_text_inside() -> None:
    import plotly.graph_objects as go

    figure = go.Figure(go.Scatter(x=np.arange(3, dtype=np.float32), y=[1, 2, 3], name="</script>"))
    embedded = str(figure_json(figure))
    assert "</script" not in embedded
    assert '"dtype":"f4"' in embedded


@given(
    st.integers(2, 5_000).flatmap(
        lambda size: st.tuples(st.just(size), st.floats(1e-6, 10.0), st.floats(0.2, 3.0), st.integers(0, 10_000))
    )
)
def test_thinned_curves_are_short_ascending_and_end_where_the_run_ends(case: tuple[int, float, float, int]) -> None:
    size, start, power, seed = case
    x = start * (np.arange(1, size + 1) ** power)
    y = np.random.default_rng(seed).normal(size=size)
    thin_x, thin_y = thinned(x, y, bins=300)
    assert len(thin_x) == len(thin_y) <= 300
    assert np.all(np.diff(thin_x) >= 0)
    assert thin_x[-1] == np.float32(x[-1])
    assert thin_y[-1] == np.float32(y[-1])
    assert thin_y.min() >= y.min() - 1e-6
    assert thin_y.max() <= y.max() + 1e-6


def test_thinning_is_even_on_a_logarithmic_axis() -> None:
    x = np.arange(1, 100_001, dtype=np.float64)
    thin_x, _ = thinned(x, x, bins=300)
    first_half = np.sum(np.log(thin_x) < math.log(x[-1]) / 2)
    assert first_half > 0.2 * len(thin_x)


def test_of_names_from_elsewhere_only_known_acronyms_are_capitals() -> None:
    names = ("deep", "muon", "adam_h", "moe", "sgd", "baseline")
    assert [theme.method_label(name) for name in names] == [
        "deep",
        "muon",
        "adam h",
        "MOE",
        "SGD",
        "Baseline",
    ]
