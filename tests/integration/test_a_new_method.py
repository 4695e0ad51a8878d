"""A method and a parameter that nobody has heard of, known by a row in each of two tables: from a search-space file through
plan, search, ledger, export and import to the page, in the words of its rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from reports.evidence.exporting import runs_to_csv
from reports.evidence.importing import read_runs
from reports.evidence.runs import run_from_record
from reports.evidence.study import SweepContext, build_study
from reports.pages.report import render_page
from reports.summary import summarize
from sweeper.ledger.entries import parameters, row_of, run_name
from sweeper.plans.costs import StepCost
from sweeper.plans.plan import UNPREPARED, make_plan
from sweeper.space.errors import SearchSpaceError
from sweeper.space.json_schema import search_space_schema
from sweeper.space.load import load_search_space
from sweeper.space.schema import SearchSpace
from sweeper.space.trials import domain_of
from tests.support.tiny_sweep import Desk, Workers
from trainers.contract.record import RunRecord
from trainers.contract.schedule import Phase
from trainers.contract.spec import TrialSpec
from trainers.methods import METHODS, PARAMETER_TABLE, Method
from trainers.methods.parameters import Parameter, boundary_of, divisor, next_token

FILE = """\
name: echoes
question: Do echoes help?
scales: [nano]
context: 16
tokens_per_step: 32
validation_tokens: 257
evaluate_every: 4
schedule: {warmup_steps: 2, decay_fraction: 0.25}
seeds: {tuning: [0, 1], confirmation: [1000, 1001]}
methods:
  baseline:
    budgets: {tuning: 8, confirmation: [8, 12, 16]}
    axes: {learning_rate: 0.004}
  echo:
    budgets: {tuning: 8, confirmation: [8]}
    axes:
      learning_rate: 0.004
      echo_count: {grid: [2, 4, 8]}
      step_ratio: {grid: [0.25, 0.5]}
search: {sampler: grid, trials_per_arm: 12, fan: 2, warm_start: false}
resources: {gpus: 0}
"""


def echo_phases(spec: TrialSpec) -> tuple[Phase, ...]:
    boundary = boundary_of(spec)
    return Phase("echoes", 0, boundary, pieces=divisor(spec, "echo_count")), next_token(spec, boundary)


@pytest.fixture(autouse=True)
def _an_echo(monkeypatch: pytest.MonkeyPatch) -> None:
    row = Parameter(int, "number of echoes", "log", example=1, changes_flops=False, symbol="e", absent=0)
    monkeypatch.setitem(PARAMETER_TABLE, "echo_count", row)
    words = "Every sequence is heard in parts."
    monkeypatch.setitem(METHODS, "echo", Method("echo", "Echo", words, ("echo_count", "step_ratio"), echo_phases))


def read(folder: Path, text: str = FILE) -> SearchSpace:
    path = folder / "echoes.yaml"
    path.write_text(text, encoding="utf-8")
    return load_search_space(path)


def swept(space: SearchSpace) -> list[RunRecord]:
    desk = Desk(space)
    assert Workers().run(desk.open())
    return desk.ledger.records()


def test_the_file_is_checked_by_the_row_and_by_the_method(tmp_path: Path) -> None:
    with pytest.raises(SearchSpaceError, match=r"echoes.yaml:18: echo_count: 3 does not divide the context of 16$"):
        read(tmp_path, FILE.replace("[2, 4, 8]", "[2, 3, 8]"))
    with pytest.raises(SearchSpaceError, match="echo_count: 'two' is not a whole number"):
        read(tmp_path, FILE.replace("{grid: [2, 4, 8]}", "two"))
    with pytest.raises(SearchSpaceError, match="did you mean echo_count"):
        read(tmp_path, FILE.replace("echo_count:", "echo_cuont:"))
    assert "echo" in search_space_schema()["else"]["properties"]["methods"]["properties"]


def test_search_and_plan_know_it(tmp_path: Path) -> None:
    space = read(tmp_path)
    (axis, _) = domain_of(space.methods["echo"], (0,)).axes
    assert (axis.name, axis.values, axis.spacing) == ("echo_count", (2, 4, 8), "log")
    plan = make_plan(
        space, corpus=UNPREPARED, corpus_words="none", cost=StepCost({}, 1e9, "assumed"), workers=1, on_gpu=False
    )
    assert {arm.method: arm.tuning_trials for arm in plan.arms}["echo"] == 12
    assert {stage.label for stage in plan.stages if stage.method == "echo"} >= {"e=4 lr=0.004 seed 0"}


def test_the_ledger_names_it_and_has_a_column_for_every_method(tmp_path: Path) -> None:
    records = swept(read(tmp_path))
    specs = {record.spec for record in records if record.purpose == "tuning"}
    assert len(specs) == 2 + 12
    given = dict.fromkeys(spec.parameter("echo_count", 0) for spec in specs)
    assert sorted(given) == [0, 2, 4, 8]
    spec = next(s for s in specs if s.parameters == (("echo_count", 4), ("step_ratio", 0.25)) and s.seed == 0)
    assert run_name(spec, "tuning") == "nano Echo e=4 r=0.25 lr=4.0e-03 · 8 steps · seed 0 · tuning"
    assert parameters(spec)["echo_count"] == "4"
    assert {parameters(s)["echo_count"] for s in specs if s.method == "baseline"} == {"0"}


def test_runs_from_elsewhere_bring_it_and_the_page_speaks_of_it(tmp_path: Path) -> None:
    """Imported from our own export, so that both pages are of the same runs."""
    records = swept(read(tmp_path))
    ours = build_study(SweepContext("echoes", "Do echoes help?"), [run_from_record(record) for record in records])
    table = tmp_path / "runs.csv"
    table.write_text(runs_to_csv(ours), encoding="utf-8")
    runs = read_runs(table)
    confirmed = [run for run in runs if run.method == "echo" and run.purpose == "confirmation"]
    assert {name for run in confirmed for name, _ in run.parameters} == {"echo_count", "step_ratio"}
    assert all(run.flops is not None for run in confirmed), "a step's FLOPs do not depend on it"
    assert " Echo e=" in row_of(confirmed[0], 0, "key", 0).name
    theirs = build_study(SweepContext("theirs", "Do echoes help?", kind="imported"), runs)
    for study in (ours, theirs):
        page = render_page(study, summarize(study))
        for words in ("Echo. Every sequence is heard in parts.", "e=2 r=", "number of echoes", "echo_count = "):
            assert words in page, words
