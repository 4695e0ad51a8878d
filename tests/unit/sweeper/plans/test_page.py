"""The plan as values, JSON and a page: what is counted is what the simulated sweep trained, and lanes never collide."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
from typer.testing import CliRunner

from reports.pages.plan import lay_out
from sweeper.cli.app import app
from sweeper.plans.costs import StepCost
from sweeper.plans.page import plan_to_json, write_plan_page
from sweeper.plans.plan import UNPREPARED, Plan, make_plan
from sweeper.space.load import load_search_space
from tests.support.places import ROOT
from tests.support.tiny_sweep import space_of
from tests.unit.sweeper.engine.test_rungs import RUNGS, rung_space
from trainers.contract.errors import UserError

COST = StepCost({}, 1e12, "assumed")


def planned(file: str = "") -> Plan:
    space = load_search_space(ROOT / "search_spaces" / file) if file else space_of(price={"per_gpu_hour": 2.0})
    return make_plan(
        space, corpus=UNPREPARED, corpus_words="none", cost=COST, workers=2, on_gpu=False
    )  # fmt: skip


@cache
def paper_grid() -> Plan:
    return planned("paper-grid.yaml")


def test_stages_add_up_to_what_the_plan_counts() -> None:
    plan = planned()
    for arm in plan.arms:
        mine = [stage for stage in plan.stages if stage.method == arm.method]
        assert sum(stage.end - stage.start for stage in mine) == arm.steps_shared < arm.steps_alone
        assert sum(stage.hours for stage in mine) == pytest.approx(arm.hours_shared)
        assert sum((stage.end - stage.start) * stage.trials for stage in mine) == arm.steps_alone
    assert {stage.phase for stage in plan.stages} == {"superposition", "next-token", "decay"}


def test_a_grid_whose_fan_is_the_axis_trains_each_prefix_once() -> None:
    """The published grid saves 40 % and more, and nothing is trained twice for the order of asking."""
    plan = paper_grid()
    assert plan.steps_saved > 0.4
    assert sum(arm.steps_shared for arm in plan.arms) == 155_000 + 1_710_000


def test_a_plan_with_rungs_counts_them() -> None:
    plan = make_plan(rung_space(), corpus=UNPREPARED, corpus_words="none", cost=COST, workers=1, on_gpu=False)
    for arm in plan.arms:
        assert arm.tuning_trials == 7
    ends = {stage.end for stage in plan.stages if stage.method == "tst"}
    assert set(RUNGS) <= ends


def test_a_run_that_nobody_would_see_the_end_of_is_one_line() -> None:
    budgets = {"tuning": 100, "confirmation": (10**9,)}
    methods = {"baseline": {"budgets": budgets, "axes": {"learning_rate": 0.002}}}
    slow = replace(COST, flops_per_second=1e6)
    with pytest.raises(
        UserError, match=r"^budgets: 1,000,000,000 steps of baseline at nano take [\d,]+ years; .* 317$"
    ):
        make_plan(space_of(methods=methods), corpus=UNPREPARED, corpus_words="none", cost=slow, workers=1, on_gpu=False)


def test_json_is_plain_and_holds_both_costs() -> None:
    plain = plan_to_json(planned())
    assert json.loads(json.dumps(plain, allow_nan=False)) == json.loads(json.dumps(plain))
    total = plain["total"]
    assert total["steps_shared"] < total["steps_alone"]
    assert total["price_alone"] == pytest.approx(2 * total["hours_alone"])
    assert total["steps_saved"] == pytest.approx(1 - total["steps_shared"] / total["steps_alone"])
    assert len(plain["stages"]) == len(planned().stages)
    assert plain["disk_budget"] == 20e9


@pytest.mark.parametrize("big", [False, True])
def test_lanes_never_collide_and_a_trunk_is_one_lane(big: bool) -> None:
    stages = (paper_grid() if big else planned()).stages
    tree = lay_out(stages[0].scale, stages)
    assert set(tree.lanes) == {stage.node for stage in stages}
    spans: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for stage in stages:
        spans[tree.lanes[stage.node]].append((stage.start, stage.end))
    for taken in spans.values():
        taken.sort()
        assert all(before[1] <= after[0] for before, after in pairwise(taken))
    assert sorted(spans) == list(range(tree.num_lanes))
    roots = [stage for stage in stages if stage.parent is None]
    assert len(tree.rows) == len(roots)
    children = defaultdict(list)
    for stage in stages:
        children[stage.parent].append(stage)
    for stage in stages:
        if children[stage.node]:
            straight = [child for child in children[stage.node] if tree.lanes[child.node] == tree.lanes[stage.node]]
            assert len(straight) == 1
            if any(child.phase == stage.phase for child in children[stage.node]):
                assert straight[0].phase == stage.phase
        for child in children[stage.node]:
            assert tree.lanes[child.node] >= tree.lanes[stage.node]


def test_runs_stand_in_the_order_of_their_numbers() -> None:
    stages = paper_grid().stages
    rows = [text for _, text in sorted(lay_out("270m", stages).rows.items())]
    bags = [int(found[1]) for text in rows if (found := re.search(r"s=(\d+) .*seed 0$", text))]
    assert bags == list(range(2, 17))


def test_the_page_is_self_contained_and_says_that_nothing_was_trained(tmp_path: Path) -> None:
    plan = planned()
    write_plan_page(plan, tmp_path / "plan.html")
    page = (tmp_path / "plan.html").read_text(encoding="utf-8")
    assert "<b>Plan.</b> Nothing has been trained" in page
    assert not re.findall(r'(?:src|href)="(?!#|data:)', page)
    embedded = re.search(r'<script type="application/json" id="summary">(.*?)</script>', page, re.DOTALL)
    assert embedded is not None
    assert json.loads(embedded[1])["total"] == plan_to_json(plan)["total"]
    figure = re.search(r'id="figure-tree-0">(.*?)</script>', page, re.DOTALL)
    assert figure is not None
    names = [trace["name"] for trace in json.loads(figure[1])["data"]]
    assert {"superposition", "next-token", "decay", "joints"} == set(names)


def test_the_command_writes_json_and_page(tmp_path: Path) -> None:
    html = tmp_path / "plan.html"
    arguments = ["plan", str(ROOT / "tests" / "integration" / "tiny.yaml"), "--results", str(tmp_path / "results")]
    done = CliRunner().invoke(app, [*arguments, "--json", "--html", str(html)])
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["kind"] == "plan"
    assert html.exists()
    assert not (tmp_path / "results").exists()
