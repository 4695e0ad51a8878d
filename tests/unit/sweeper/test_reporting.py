"""Which records of a ledger are the sweep's own: those that its file, as it is now, would ask for."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from reports.evidence.tuning import own_unit
from sweeper.ledger.about import SweepAbout
from sweeper.reporting import study_from
from sweeper.space.load import parse_search_space
from sweeper.space.trials import make_spec
from tests.support.places import ROOT
from tests.support.report_factory import Invented, record_of
from trainers.contract.record import RunRecord
from trainers.contract.spec import TrialSpec

FILE = ROOT / "search_spaces" / "quickstart.yaml"
TEXT = FILE.read_text(encoding="utf-8")


def about(text: str) -> SweepAbout:
    return SweepAbout(
        name="quickstart",
        question="?",
        search_space_text=text,
        search_space_file=FILE.name,
        command="",
        price_per_gpu_hour=None,
        currency="USD",
        corpus_fingerprint="corpus",
        tokenizer_fingerprint="tokenizer",
        corpus_description="",
        corpus_tokens=1_000,
        git_commit="",
        git_dirty=False,
        versions=(),
        device="a processor",
        started_at="",
    )


def spec_of(text: str, method: str, steps: int, seed: int) -> TrialSpec:
    values = {"bag_size": 6, "step_ratio": 0.3, "bag_weighting": "uniform"} if method == "tst" else {}
    return make_spec(
        parse_search_space(text, FILE),
        scale="pico",
        method=method,
        parameters={**values, "learning_rate": 5.7e-3},
        total_steps=steps,
        seed=seed,
        corpus_fingerprint="corpus",
        tokenizer_fingerprint="tokenizer",
        vocab_size=512,
    )


def records(text: str, method: str, budgets: tuple[int, ...], seeds: int) -> list[RunRecord]:
    noise = random.Random(0)
    specs = [spec_of(text, method, steps, 1000 + seed) for steps in budgets for seed in range(seeds)]
    return [record_of(Invented("pico"), spec, "confirmation", noise) for spec in specs]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("context: 64", "context: 32"),
        ("tokens_per_step: 512", "tokens_per_step: 1024"),
        ("warmup_steps: 200", "warmup_steps: 100"),
        ("decay_fraction: 0.2", "decay_fraction: 0.3"),
        ("precision: fp32", "precision: bf16"),
    ],
)
def test_the_file_as_it_is_now_makes_the_verdict(before: str, after: str) -> None:
    assert before in TEXT
    now = TEXT.replace(before, after)
    old = [*records(TEXT, "baseline", (8_000, 12_000, 16_000), 3), *records(TEXT, "tst", (8_000,), 3)]
    new = [*records(now, "baseline", (8_000, 12_000), 2), *records(now, "tst", (8_000,), 2)]
    (scale,) = study_from(about(now), [*old, *new], "").scales
    compared = {run.run_id for arm in scale.arms for cell in arm.cells for run in cell.runs}
    assert compared == {record.spec.spec_id for record in new}
    assert len(scale.exclusions) == len(old)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("[4000, 6000, 9000]", "[4000, 6000]"),
        ("[4, 6, 8, 12]", "[2, 4]"),
        ("trials_per_arm: 8", "trials_per_arm: 4"),
    ],
)
def test_budgets_values_and_trials_are_no_identity(before: str, after: str) -> None:
    assert before in TEXT
    old = [*records(TEXT, "baseline", (8_000, 12_000, 16_000), 2), *records(TEXT, "tst", (8_000,), 2)]
    (scale,) = study_from(about(TEXT.replace(before, after)), old, "").scales
    assert not scale.exclusions


def test_what_an_earlier_version_trained_stays_the_files_own() -> None:
    """The model's shape and the numerics are the tool's, not the file's."""
    old = records(TEXT, "baseline", (8_000,), 2)
    changed = [
        replace(record, spec=replace(record.spec, numerics=0, shape=replace(record.spec.shape, rope_theta=5e4)))
        for record in old
    ]
    other = records(TEXT.replace("context: 64", "context: 32"), "baseline", (8_000,), 2)
    (scale,) = study_from(about(TEXT), [*changed, *other], "").scales
    assert {item.run.run_id for item in scale.exclusions} == {record.spec.spec_id for record in other}


def test_a_learning_rate_in_a_unit_of_its_own_is_compared_by_octaves() -> None:
    """The method's rates are ten times the baseline's, over as many octaves."""
    own = TEXT.replace("learning_rate: *learning_rate", "learning_rate: {grid: [4e-2, 5.7e-2, 8e-2, 0.113], unit: own}")
    assert own != TEXT
    runs = [*records(own, "baseline", (6_000, 10_000, 16_000), 2), *records(own, "tst", (6_000,), 2)]
    (scale,) = study_from(about(own), runs, "").scales
    assert scale.baseline is not None
    assert not own_unit(scale.baseline)
    assert [own_unit(arm) for arm in scale.methods] == [True]
