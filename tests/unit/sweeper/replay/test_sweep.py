"""A whole sweep against a table: real searches and trees, losses of the table, and a report that says what it is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from reports.summary import summarize, summary_to_json
from sweeper.cli.app import app
from sweeper.replay.loss_table import LossTable, read_tables, seed_noise
from sweeper.replay.race import Contestant, Rules, compare_strategies
from sweeper.replay.report import markdown_table
from sweeper.replay.sweep import TableSurface, race_domain, replay_sweep, tables_of_scale
from sweeper.space.load import load_own_space
from sweeper.space.schema import SearchSpace
from sweeper.space.trials import make_spec
from tests.support.places import ROOT
from tests.support.tiny_sweep import space_of
from trainers.contract.spec import TrialSpec

PUBLISHED = ROOT / "reports" / "published" / "final_loss_by_r_and_s.csv"
PAPER_GRID = ROOT / "search_spaces" / "paper-grid.yaml"


def table_of(steps: int = 8, params: str = "1M", shift: float = 0.0) -> LossTable:
    """Best at a bag of 3 and a ratio of a half; the baseline is worst."""
    cells = [
        (ratio, bag, shift + 3 + 0.1 * abs(bag - 3) + 0.2 * abs(ratio - 0.5))
        for ratio in (0.25, 0.5, 0.75)
        for bag in (2, 3, 4)
    ]
    return LossTable("made", params, steps, "uniform", ((0.0, 1, shift + 3.5), *cells))


def spec_of(ratio: float = 0.5, bag: int = 3, steps: int = 8, seed: int = 0, weighting: str = "uniform") -> TrialSpec:
    return make_spec(
        space_of(),
        scale="nano",
        method="tst",
        parameters={"learning_rate": 0.004, "bag_size": bag, "step_ratio": ratio, "bag_weighting": weighting},
        total_steps=steps,
        seed=seed,
        corpus_fingerprint="c",
        tokenizer_fingerprint="t",
        vocab_size=300,
    )


def replayed(space: SearchSpace, *tables: LossTable, **more: Any) -> Any:
    return replay_sweep(space, "text", tables, command="sweeper replay", source="made.csv", **more)


def methods(**budgets: Any) -> dict[str, Any]:
    plain = {name: method.model_dump() for name, method in space_of().methods.items()}
    for method in plain.values():
        method["budgets"] |= budgets
    return plain


def test_losses_are_the_tables_with_the_noise_of_seed_and_cell() -> None:
    surface = TableSurface((table_of(),), deviation=0.01)
    assert surface.loss(spec_of(seed=4)) == table_of().loss(0.5, 3) + seed_noise(4, 0, 0.5, 3, 0.01)
    assert surface.loss(spec_of(0.6, 3)) > surface.loss(replace(spec_of(0.6, 3), seed=0)) - 1e-12
    with pytest.raises(ValueError, match="bag_weighting: 'power_law'"):
        surface.loss(spec_of(weighting="power_law"))
    with pytest.raises(ValueError, match="method: tst_fresh_embedding is not in the table, which has baseline, tst"):
        surface.loss(replace(spec_of(), method="tst_fresh_embedding"))


def test_between_budgets_losses_are_interpolated_and_beyond_only_by_a_stated_slope() -> None:
    surface = TableSurface((table_of(8), table_of(32, shift=-0.4)), deviation=0.0)
    assert surface.loss(spec_of(steps=16)) == pytest.approx(table_of().loss(0.5, 3) - 0.2)
    with pytest.raises(ValueError, match=r"total_steps: 64 is not a budget of the table \(8, 32\)"):
        surface.loss(spec_of(steps=64))
    sloped = replace(surface, per_doubling=0.1)
    assert sloped.loss(spec_of(steps=64)) == pytest.approx(table_of().loss(0.5, 3) - 0.5)
    assert sloped.loss(spec_of(steps=16)) == surface.loss(spec_of(steps=16))


def test_a_size_is_found_by_name_and_a_single_one_stands_in() -> None:
    two = table_of(params="270M"), table_of(params="600M")
    assert tables_of_scale(two, "600m") == two[1:]
    assert tables_of_scale(two[:1], "nano") == two[:1]
    with pytest.raises(ValueError, match="nano is not in the table, which has 270M, 600M"):
        tables_of_scale(two, "nano")


def test_a_replayed_sweep_finds_the_best_cell_and_is_labelled() -> None:
    arms = {**methods(), "baseline": methods(confirmation=(8, 16, 32))["baseline"]}
    arms["tst"]["axes"] |= {"bag_size": {"grid": (2, 3, 4)}}
    search = {"sampler": "grid", "trials_per_arm": 12, "fan": 2}
    done = replayed(space_of(methods=arms, search=search), table_of(), per_doubling=0.4)
    assert (done.trials, done.failed) == (4 + 12 + 6 + 2, 0)
    study = done.study
    assert study.context.kind == "replay"
    assert study.context.name == "tiny-replay"
    assert "stands in for nano" in study.context.question
    assert "0.4 nats" in study.context.question
    summary = summarize(study)
    assert summary.headline.startswith("Replay: ")
    plain = summary_to_json(summary)
    assert plain["kind"] == "replay"
    assert plain["scales"][0]["best"]["bag_size"] == 3
    assert plain["scales"][0]["words"] == "faster"
    assert 0 < plain["cost"]["saved"] < 1
    assert plain["cost"]["hours_incurred"] == pytest.approx(sum(run.incurred_gpu_hours or 0 for run in study.runs))
    assert plain["cost"]["hours_alone"] == pytest.approx(sum(run.billed_gpu_hours or 0 for run in study.runs))


def test_curves_hold_the_end_only_because_a_table_knows_no_more() -> None:
    for run in replayed(space_of(methods=methods(confirmation=(8,))), table_of()).study.runs:
        assert run.record is not None
        assert [point.step for point in run.record.curve.points] == [8]


def test_what_the_table_lacks_fails_and_the_rest_goes_on() -> None:
    done = replayed(space_of(), table_of())
    assert done.failed == 2 * 2  # the baseline's 12 and 16 steps on two seeds
    assert done.reasons == (
        "total_steps: 12 is not a budget of the table (8)",
        "total_steps: 16 is not a budget of the table (8)",
    )
    assert sum(run.outcome == "finished" for run in done.study.runs) == done.trials - 4


def test_tuning_that_the_table_lacks_is_refused_before_anything_runs() -> None:
    with pytest.raises(
        ValueError, match=r"methods\.baseline\.budgets\.tuning: 8 steps are not a budget .*per-doubling"
    ):
        replayed(space_of(), table_of(20))
    with pytest.raises(ValueError, match="decay_fraction: 0 cannot be replayed"):
        replayed(space_of(schedule={"warmup_steps": 2, "decay_fraction": 0}), table_of())


def test_a_replayed_climb_over_rungs_saves_what_the_lower_rung_trained() -> None:
    space = space_of(
        methods=methods(tuning=(8, 32), confirmation=(32,)), search={"sampler": "auto", "trials_per_arm": 8}
    )
    done = replayed(space, table_of(8), table_of(32, shift=-0.4))
    assert done.failed == 0
    by_budget = {steps: [run for run in done.study.runs if run.total_steps == steps] for steps in (8, 32)}
    climbed = [run for run in by_budget[32] if run.purpose == "tuning"]
    assert climbed
    assert all((run.incurred_gpu_hours or 0) < (run.billed_gpu_hours or 0) for run in climbed)


def test_a_replayed_sweep_never_asks_for_a_cell_that_is_missing_at_some_budget() -> None:
    # The best cell is missing at the larger budget only, so that its shorter runs would lead nowhere.
    large = table_of(32, shift=-0.4)
    large = replace(large, losses=tuple(cell for cell in large.losses if cell[0] != 0.75 and cell[1] != 3))
    arms = methods(tuning=(8, 32), confirmation=(32,))
    arms["tst"]["axes"] |= {"step_ratio": {"grid": (0.5, 0.75)}, "bag_size": {"grid": (2, 4)}}
    done = replayed(space_of(methods=arms, search={"sampler": "auto", "trials_per_arm": 8}), table_of(8), large)
    assert done.failed == 0
    assert {run.step_ratio for run in done.study.runs if run.method == "tst"} == {0.5}
    with pytest.raises(ValueError, match=r"nano tst: nothing can be asked: step_ratio 0\.\d+, bag_size 2 lies outside"):
        replayed(space_of(methods=arms), table_of(8), replace(large, losses=large.losses[:1]))


def test_the_axes_of_a_file_are_the_race_s_domain() -> None:
    space = load_own_space(PAPER_GRID)
    small, large = read_tables(PUBLISHED)
    assert len(race_domain(space, small).points) == 150
    assert dict(race_domain(space, large).points[-1])["bag_size"] == 13
    with pytest.raises(ValueError, match=r"bag_size: 2, 3 are all outside the table"):
        race_domain(space_of(), replace(small, losses=tuple(cell for cell in small.losses if cell[1] > 4)))
    with pytest.raises(ValueError, match="no method has axes bag_size and step_ratio"):
        race_domain(space_of(methods={"baseline": space_of().methods["baseline"]}), small)


def test_courses_end_where_the_race_was_won() -> None:
    (standing,) = compare_strategies(
        read_tables(PUBLISHED)[:1], [Contestant("surface")], seeds=3, rules=Rules(trials=20)
    ).standings
    for race in standing.races:
        assert [spent for spent, _ in race.course] == sorted(spent for spent, _ in race.course)
        assert race.spent is not None
        assert race.regret_at(race.spent) <= 0.0015 + 1e-9
        assert race.regret_at(0.5) == float("inf")
    spent = [cost for cost, _ in standing.course]
    assert spent == sorted(spent)
    assert standing.course[-1][1] <= 0.0015 + 1e-9


def test_tables_that_differ_in_budget_only_have_names_of_their_own() -> None:
    result = compare_strategies([table_of(8), table_of(32)], [Contestant("random")], seeds=1, rules=Rules(trials=2))
    assert [standing.table for standing in result.standings] == ["made, 8 steps, uniform", "made, 32 steps, uniform"]


def test_the_markdown_table_has_a_row_a_strategy_and_no_number_for_what_was_not_reached() -> None:
    contestants = [Contestant("random"), Contestant("random", shared=False), Contestant("random", False, by_luck=True)]
    result = compare_strategies(read_tables(PUBLISHED)[:1], contestants, seeds=3, rules=Rules(trials=1))
    lines = markdown_table(result).splitlines()
    assert len(lines) == 2 + 2
    assert len({line.count("|") for line in lines}) == 1
    assert "replay, 3 seeds" in lines[0]
    assert "> 1" in lines[-1]


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["replay", *arguments])


def test_the_command_prints_json_of_a_race(tmp_path: Path) -> None:
    done = invoke("--seeds", "2", "--sampler", "random", "--params", "270M", "--json", "--out", str(tmp_path))
    assert done.exit_code == 0, done.stderr
    plain = json.loads(done.stdout)
    assert (plain["kind"], plain["seeds"]) == ("replay", 2)
    assert {standing["sampler"] for standing in plain["standings"]} == {"random"}
    assert json.loads((tmp_path / "replay.json").read_text("utf-8")) == plain
    page = (tmp_path / "replay.html").read_text("utf-8")
    assert "<b>Replay.</b>" in page
    assert "nothing was trained" in page


def test_a_table_with_nothing_to_ask_is_left_out_in_one_line_or_ends_it(tmp_path: Path) -> None:
    head = "table,params,total_steps,bag_weighting,step_ratio,bag_size,final_loss\n"
    table = tmp_path / "made.csv"
    table.write_text(head + "1,1M,100,uniform,0,1,3\n1,1M,200,uniform,0.2,3,3\n", encoding="utf-8")
    done = invoke("--table", str(table), "--seeds", "1", "--sampler", "random", "--json")
    assert done.exit_code == 0, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "left out: 1M, 100 steps, uniform (table 1): nothing can be asked" in done.stderr
    assert {standing["median_spent"] for standing in json.loads(done.stdout)["standings"]} == {1.0}
    table.write_text(head + "1,1M,100,uniform,0,1,3\n", encoding="utf-8")
    done = invoke("--table", str(table), "--seeds", "1")
    assert done.exit_code == 2
    assert len(done.stderr.splitlines()) == 1
    assert "nothing can be asked" in done.stderr


def test_cells_that_the_table_lacks_are_not_in_a_file_s_race() -> None:
    space = load_own_space(PAPER_GRID)
    table = read_tables(PUBLISHED)[0]
    holes = replace(table, losses=tuple(cell for cell in table.losses if cell[:2] not in {(1.0, 2), (1.0, 3)}))
    domain = race_domain(space, holes)
    assert len(domain.points) == 148
    (standing,) = compare_strategies(
        [holes], [Contestant("grid", shared=False)], seeds=1, rules=Rules(trials=148, patience=148), domains=[domain]
    ).standings
    assert standing.races[0].trials == 148


def test_the_command_fits_a_terminal_of_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    done = invoke("--seeds", "1", "--sampler", "random", "--trials", "3")
    assert done.exit_code == 0, done.stderr
    assert "Replay" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "random + best observation" in done.stdout


def test_the_command_replays_a_sweep_to_a_labelled_report(tmp_path: Path) -> None:
    table = tmp_path / "made.csv"
    head = "table,params,total_steps,bag_weighting,step_ratio,bag_size,final_loss"
    rows = [f"made,nano,30,uniform,{ratio},{bag},{loss}" for ratio, bag, loss in table_of().losses]
    table.write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")
    file = ROOT / "tests" / "integration" / "tiny.yaml"
    done = invoke(str(file), "--sweep", "--table", str(table), "--per-doubling", "0.1", "--out", str(tmp_path / "out"))
    assert done.exit_code == 0, done.stderr
    headline, page = done.stdout.splitlines()
    assert headline.startswith("Replay: ")
    assert "<b>Replay.</b>" in Path(page).read_text("utf-8")
    assert json.loads((tmp_path / "out" / "summary.json").read_text("utf-8"))["kind"] == "replay"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--sweep",), "--sweep: needs a search-space file"),
        (("--sampler", "best"), "--sampler: 'best' is not one of random, grid, tpe, gp, surface"),
        (("--params", "7B"), "--params: '7B' is not in the table, which has 270M, 600M"),
        (("--per-doubling", "0.1"), "--per-doubling: is for --sweep"),
        (("--valleys", "other"), "--valleys: 'other' is not one of fitted, held-back"),
        (("--valleys", "fitted", "--table", "t.csv"), "--valleys: fitted stands instead of --table t.csv"),
        (("--table", "nowhere.csv"), "nowhere.csv"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments: tuple[str, ...], said: str) -> None:
    done = invoke(*arguments)
    assert done.exit_code == 2
    (line,) = done.stderr.splitlines()
    assert said in line
