"""All methods in one sweep with real training on real text: the records, the plan's figures, and the page that names them."""

from __future__ import annotations

from collections import Counter

import pytest

from reports.evidence.runs import run_from_record
from reports.evidence.study import Study, SweepContext, build_study
from reports.pages.report import render_page
from reports.summary import summarize
from sweeper.engine.site import Site
from sweeper.engine.sweep import Sweep
from sweeper.executors.inline import InlineExecutor
from sweeper.executors.worker import train_stage
from sweeper.ledger.in_memory import MemoryLedger
from sweeper.options import corpus_facts
from sweeper.plans.costs import StepCost, step_cost
from sweeper.plans.plan import UNPREPARED, make_plan
from sweeper.space.trials import domain_of
from tests.conformance.sweep_of import prepare_text
from tests.support.method_specs import TYPICAL
from tests.support.strategies import PROVENANCE
from tests.support.tiny_sweep import space_of
from trainers.contract.record import Finished, RunRecord
from trainers.contract.schedule import NEXT_TOKEN
from trainers.methods import BASELINE, METHODS, phases_of
from trainers.planning.store import DiskStore

pytestmark = pytest.mark.slow

RATES = {"grid": (0.004, 0.008)}
SPACE = space_of(
    scales=("pico",),
    seeds={"tuning": (0,), "confirmation": (1000, 1001)},
    methods={
        method: {
            "budgets": {"tuning": 12, "confirmation": (16, 24, 32) if method == BASELINE else (16,)},
            "axes": {
                "learning_rate": RATES,
                **{name: TYPICAL[name] for name in METHODS[method].parameters},
                **({"step_ratio": {"grid": (0.25, 0.5)}} if "step_ratio" in METHODS[method].parameters else {}),
            },
        }
        for method in METHODS
    },
    search={"sampler": "surface", "trials_per_arm": 2, "fan": 2, "warm_start": False},
)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[RunRecord]:
    folder = tmp_path_factory.mktemp("methods")
    corpus, ledger, store = prepare_text(folder / "cache"), MemoryLedger(), folder / "stages"
    site = Site(store=str(store), stop_file=str(folder / "stop"), execution="eager", checkpoint_seconds=0.0)
    sweep = Sweep(SPACE, corpus_facts(corpus), ledger, DiskStore(store), site, PROVENANCE)
    InlineExecutor(max_failures=1).run(sweep, train_stage, lambda: None)
    return ledger.records()


@pytest.fixture(scope="module")
def study(records: list[RunRecord]) -> Study:
    context = SweepContext(
        name="methods",
        question="Which of them is faster?",
        command="sweeper report methods",
        created_at="2026-05-04T18:20:00+00:00",
        git_commit="c0ffee",
        axes={
            name: {axis.name: axis.values for axis in domain_of(method, (0,)).axes}
            for name, method in SPACE.methods.items()
        },
    )
    return build_study(context, [run_from_record(record) for record in records])


def test_every_arm_is_tuned_alike_and_confirmed(records: list[RunRecord]) -> None:
    assert all(isinstance(record.outcome, Finished) for record in records)
    assert Counter(r.spec.method for r in records if r.purpose == "tuning") == dict.fromkeys(METHODS, 2)
    confirmed = Counter(r.spec.method for r in records if r.purpose == "confirmation")
    assert confirmed == {method: 6 if method == BASELINE else 2 for method in METHODS}


def test_a_verdict_for_every_method_in_the_order_of_the_file(study: Study) -> None:
    summary = summarize(study)
    others = [name for name in METHODS if name != BASELINE]
    assert [verdict.method for verdict in summary.verdicts] == others
    assert all(verdict.equal_tuning for verdict in summary.verdicts)
    assert summary.main is not None
    assert summary.main.method == "tst", "the headline speaks about the method that the file names first"
    assert not study.scales[0].exclusions


def test_a_boundary_is_known_for_every_method_that_has_one(study: Study, records: list[RunRecord]) -> None:
    specs = {record.spec.spec_id: record.spec for record in records}
    for run in study.runs:
        phases = phases_of(specs[run.run_id])
        assert run.boundary_step == (phases[0].end if len(phases) > 1 else 0)


def test_the_page_names_every_arm(study: Study) -> None:
    page = render_page(study, summarize(study))
    for row in METHODS.values():
        assert row.label in page
    for words in ("3 heads", "1/2 length", "patches", "bagged input", "patch size s", "heads=3"):
        assert words in page


def test_the_plan_knows_what_the_records_cost(records: list[RunRecord]) -> None:
    """FLOPs are exact; measured FLOP/s of this machine are what the next plan counts with."""

    plan = make_plan(
        SPACE,
        corpus=UNPREPARED,
        corpus_words="none",
        cost=StepCost({}, 1e9, "assumed"),
        workers=1,
        on_gpu=False,
    )  # fmt: skip
    for arm in plan.arms:
        mine = [record for record in records if record.spec.method == arm.method]
        assert arm.tuning_trials + arm.confirmation_trials == len(mine)
        assert arm.hours_alone == pytest.approx(arm.flops / 1e9 / 3600)
        assert arm.hours_shared <= arm.hours_alone * (1 + 1e-9)
    by_method = {arm.method: arm for arm in plan.arms}
    per_step = {name: arm.flops / arm.steps_alone for name, arm in by_method.items()}
    assert (
        per_step["patch"] < per_step["length_warmup"] < per_step[BASELINE] == per_step["tst"] < per_step["multi_token"]
    )
    assert {stage.phase for stage in plan.stages} >= {NEXT_TOKEN, "decay", "superposition", "patches", "3 heads"}
    cost = step_cost(records, records[0].provenance.device, on_gpu=False)
    assert set(cost.measured) == {("pico", SPACE.tokens_per_step)}
