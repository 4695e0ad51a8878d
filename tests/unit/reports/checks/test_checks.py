"""Each check can pass and can fail, with its number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from reports.estimate.verdict import Check
from reports.evidence.runs import DECAY_NOT_STATED, FinishedRun
from reports.evidence.study import Study
from reports.published import published_study
from reports.summary import summarize
from tests.support.finished_runs import ladder, make_run, make_study, sweep, true_loss, tuning
from tests.support.strategies import record_of, spec_of
from trainers.contract.record import TextScore

AXES = {
    "baseline": {"learning_rate": (1e-3, 2e-3, 4e-3)},
    "tst": {"learning_rate": (1e-3, 2e-3, 4e-3), "bag_size": (2, 4, 8), "step_ratio": (0.1, 0.25, 0.4)},
}


def check(study: Study, name: str) -> Check:
    (found,) = (check for check in summarize(study).checks if check.name == name)
    return found


def timed(run: FinishedRun, factor: float) -> FinishedRun:
    return replace(
        run,
        phases=tuple(replace(phase, median_step_seconds=factor * phase.median_step_seconds) for phase in run.phases),
    )


def clean_sweep() -> Study:
    budgets = (4_000, 5_000, 6_500, 8_500)
    compared = [*ladder(budgets=budgets), *ladder("tst", (4_000, 4_200), speedup=1.3)]
    runs = [*tuning("baseline"), *tuning("tst")]
    for number, run in enumerate(compared):
        assert run.final_loss is not None
        runs.append(replace(run, final_loss=run.final_loss + 1e-4 * ((7 * number) % 11 - 5)))
    runs = [timed(run, 1 + 0.001 * (number % 7)) for number, run in enumerate(runs)]
    return make_study(runs, axes=AXES, target_scale_params=1.5e5)


def test_a_clean_sweep_passes_everything_that_can_be_checked() -> None:
    statuses = {found.name: found.status for found in summarize(clean_sweep()).checks}
    assert {name for name, status in statuses.items() if status in ("warn", "fail")} == set()
    assert {name for name, status in statuses.items() if status == "not_applicable"} == {
        "Holds as the model grows",
        "Scored on enough text",
        "Trained as the file says",
        "Validation text unseen",
    }


def test_runs_of_an_earlier_state_of_the_file_are_counted() -> None:
    old, new = ladder(), [*ladder(context=128, learning_rate=3e-3), *ladder("tst", (4_000,), context=128)]
    for others, status, number in ((old, "warn", "9 left out"), ([], "pass", "0 left out")):
        study = make_study([*others, *new], of_file=frozenset(run.run_id for run in new))
        found = {check.name: check for check in summarize(study).checks}
        assert (found["Trained as the file says"].status, found["Trained as the file says"].number) == (status, number)
        assert found["Same context length"].status == "pass", "the file's own runs agree"


def test_a_seed_that_an_earlier_state_of_the_file_searched_with_is_fresh() -> None:
    old = [replace(run, run_id=f"old {run.run_id}", seed=1000, context=128) for run in tuning("baseline")]
    new = [*tuning("baseline"), *tuning("tst"), *ladder(), *ladder("tst", (4_000,))]
    study = make_study([*old, *new], of_file=frozenset(run.run_id for run in new))
    found = {check.name: check for check in summarize(study).checks}
    assert found["Fresh confirmation seeds"].status == "pass"


def with_run(**changes: object) -> Study:
    odd = replace(make_run("tst", 4_000, 1003, 2.5), **changes)  # type: ignore[arg-type]
    return make_study([*tuning("baseline"), *tuning("tst"), *ladder(), *ladder("tst", (4_000,), speedup=1.3), odd])


def late_boundary() -> Study:
    runs = [replace(run, boundary_step=3_920) for run in ladder("tst", (4_000,), speedup=1.3)]
    return make_study([*ladder(), *runs])


def never_recovered() -> Study:
    runs = [replace(run, boundary_step=4_000) for run in ladder("tst", (4_000,), speedup=1.3)]
    return make_study([*ladder(), *runs])


def fading_over_budget() -> Study:
    slow = ladder("tst", (5_000,), speedup=1.05)
    return make_study([*ladder(), *ladder("tst", (4_000,), speedup=1.6), *slow])


def fading_over_scale() -> Study:
    runs = []
    for scale, params, speedup in (("a", 1e5, 1.8), ("b", 1e6, 1.2)):
        runs += ladder(scale=scale, params=params)
        runs += ladder("tst", (4_000,), speedup=speedup, scale=scale, params=params)
    return make_study(runs)


def not_monotone() -> Study:
    bumpy = [
        make_run("baseline", steps, 1000 + seed, loss + 0.001 * seed)
        for steps, loss in ((4_000, 2.80), (6_000, 2.82), (8_000, 2.70))
        for seed in range(3)
    ]
    return make_study([*bumpy, *ladder("tst", (4_000,), speedup=1.3)])


def single_seeds() -> Study:
    return make_study([*ladder(offsets=(0.0,)), *ladder("tst", (4_000,), speedup=1.3, offsets=(0.0,))])


def two_confirmed() -> Study:
    lucky = ladder("tst", (4_000,), speedup=1.4, learning_rate=4e-3)
    return make_study([*ladder(), *lucky, *ladder("tst", (4_000,), speedup=1.3)])


def dear_superposition() -> Study:
    runs = [
        replace(run, phases=tuple(replace(p, median_step_seconds=0.9 if p.bag_size > 1 else 0.36) for p in run.phases))
        for run in ladder("tst", (4_000,), speedup=1.5)
    ]
    return make_study([*ladder(), *runs])


def lopsided_tuning() -> Study:
    runs = [*tuning("baseline"), *(replace(run, gpu_hours=10.0) for run in tuning("tst"))]
    return make_study([*runs, *ladder(), *ladder("tst", (4_000,), speedup=1.3)])


def unsteady_clock(factor: float) -> Study:
    runs = [timed(run, 1 + factor * (number % 2)) for number, run in enumerate([*ladder(), *ladder("tst", (4_000,))])]
    return make_study(runs)


def bad_fit() -> Study:
    runs = [
        make_run("baseline", steps, 1000 + seed, true_loss(steps) + 0.002 * seed + 0.0001 * (steps % 7) * seed + bump)
        for steps, bump in ((4_000, 0.0), (5_000, 0.0), (6_500, 0.03), (8_000, 0.0))
        for seed in range(3)
    ]
    return make_study([*runs, *ladder("tst", (4_000,), speedup=1.3)])


@pytest.mark.parametrize(
    ("study", "name", "status", "number"),
    [
        (lambda: with_run(decayed=False), "Schedule decayed", "warn", "12 of 13"),
        (lambda: make_study([replace(run, decayed=False) for run in ladder()]), "Schedule decayed", "fail", "0 of 9"),
        (
            lambda: make_study([replace(r, notes=(DECAY_NOT_STATED,)) for r in ladder()]),
            "Schedule decayed",
            "warn",
            "not stated",
        ),
        (lambda: with_run(validation="other"), "Same validation set", "warn", "2 values"),
        (lambda: with_run(tokenizer="other"), "Same tokenizer", "warn", "2 values"),
        (lambda: with_run(context=32), "Same context length", "warn", "2 values"),
        (lambda: with_run(precision="bf16"), "Same precision", "warn", "2 values"),
        (lambda: with_run(device="other"), "Same device", "warn", "2 values"),
        (lambda: with_run(purpose="tuning", seed=0), "Equal tuning", "fail", "4 against 3"),
        (published_study, "Equal tuning", "warn", "not recorded"),
        (lopsided_tuning, "Equal tuning cost", "warn", "40.00x"),
        (lambda: sweep(1.3, axes={"tst": {"bag_size": (2, 4)}}), "Optimum inside the space", "warn", "1 at an edge"),
        (lambda: with_run(seed=0), "Fresh confirmation seeds", "fail", "1 shared"),
        (two_confirmed, "Winner chosen before confirmation", "fail", "tst"),
        (single_seeds, "Seeds per number", "fail", "1"),
        (published_study, "Seeds per number", "fail", "1"),
        (single_seeds, "Seed deviation measured", "fail", "unknown"),
        (published_study, "Seed deviation measured", "warn", "0.0013 nats"),
        (
            lambda: make_study([*ladder(budgets=(4_000,)), *ladder("tst", (4_000,))]),
            "Baseline is a ladder",
            "fail",
            "1 budget, 1x",
        ),
        (lambda: sweep(1.3, method_budgets=(5_000,)), "Baseline is a ladder", "warn", "3 budgets, 1.6x"),
        (lambda: sweep(3.0), "Target inside the ladder", "warn", "0 of 1"),
        (not_monotone, "Monotone ladder", "warn", "0 of 1"),
        (bad_fit, "Power law fits", "warn", "p = 0.000"),
        (not_monotone, "Monotone interpolation agrees", "not_applicable", "not possible"),
        (dear_superposition, "Hours agree with FLOPs", "warn", "37.5 %"),
        (fading_over_budget, "Holds as the budget grows", "warn", "1.60x to 1.05x"),
        (fading_over_scale, "Holds as the model grows", "warn", "1.80x to 1.20x"),
        (
            lambda: make_study(
                [replace(r, corpus_tokens=1_000_000) for r in [*ladder(), *ladder("tst", (4_000,), speedup=1.4)]]
            ),
            "Enough text",
            "warn",
            "1.25x the text, 4.1 epochs",
        ),
        (lambda: with_run(outcome="diverged", final_loss=None), "Runs that did not finish", "warn", "1 diverged"),
        (lambda: make_study([make_run("tst", 4_000, 1, None)]), "Runs that did not finish", "fail", "1 diverged"),
        (lambda: unsteady_clock(0.15), "Step time stable", "warn", "9.9 %"),
        (lambda: unsteady_clock(0.60), "Step time stable", "fail", "33.2 %"),
        (late_boundary, "Recovery finished", "warn", "2 % of the steps"),
        (never_recovered, "Recovery finished", "fail", "0 % of the steps"),
        (lambda: sweep(1.3, target_scale_params=3e9), "Distance to your model", "fail", "3e+04x"),
        (lambda: sweep(1.3, target_scale_params=5e5), "Distance to your model", "warn", "5x"),
    ],
)
def test_a_check_that_should_not_pass_says_so_with_its_number(
    study: Callable[[], Study], name: str, status: str, number: str
) -> None:
    found = check(study(), name)
    assert (found.status, found.number) == (status, number)
    assert found.sentence.endswith(".")


def test_an_empty_sweep_has_no_check_that_passes_silently() -> None:
    checks = summarize(make_study([])).checks
    assert {found.status for found in checks} == {"not_applicable"}


def test_check_names_are_unique() -> None:
    names = [found.name for found in summarize(sweep()).checks]
    assert len(names) == len(set(names)) >= 25


@pytest.mark.parametrize(("scatter", "status"), [(0.005, "pass"), (0.6, "warn")])
def test_a_text_that_adds_more_error_than_seeds_do_is_told(scatter: float, status: str) -> None:
    """Pieces on which the arms differ; the losses themselves, and so the scatter of seeds, are those of a clean sweep."""
    differences = scatter * np.random.default_rng(0).standard_normal(64)
    runs = []
    for run in clean_sweep().runs:
        pieces = np.full(64, run.final_loss) + (differences - differences.mean()) * (run.method == "tst")
        score = TextScore(65_536, float(run.final_loss or 0.0), 1_024, tuple(pieces.tolist()))
        record = replace(record_of(spec_of(seed=run.seed or 0)), score=score)
        runs.append(replace(run, record=record) if run.purpose == "confirmation" else run)
    (found,) = (check for check in summarize(make_study(runs)).checks if check.name == "Scored on enough text")
    assert found.status == status
    assert "65.5 K tokens put" in found.sentence
    assert ("seeds dominate" in found.sentence) == (status == "pass")


@pytest.mark.parametrize(
    ("num_pieces", "status", "number", "said"),
    [
        (0, "not_applicable", "not known", "do not say how they scored"),
        (3, "warn", "3 pieces", "8 are needed"),
        (9, "not_applicable", "not known", "Not all runs were scored on the same pieces"),
    ],
)
def test_why_the_error_of_the_text_is_not_known_is_told(num_pieces: int, status: str, number: str, said: str) -> None:
    runs = []
    for run in clean_sweep().runs:
        record = record_of(spec_of(seed=run.seed or 0))
        # One run more than the others keeps 9 pieces from being enough: its text is another.
        pieces = (run.final_loss or 0.0,) * (num_pieces + (num_pieces == 9 and run.method == "tst"))
        if num_pieces:
            record = replace(record, score=TextScore(1_024 * len(pieces), pieces[0], 1_024, pieces))
        runs.append(replace(run, record=record) if run.purpose == "confirmation" else run)
    found = check(make_study(runs), "Scored on enough text")
    assert (found.status, found.number) == (status, number)
    assert said in found.sentence


def test_two_clocks_of_which_the_verdict_is_a_bound_are_not_called_one() -> None:
    """The baseline's ladder ends above the method's loss: both clocks are known, and neither has a speedup."""
    runs = [*ladder(), *ladder("tst", (16_000,), speedup=4.0)]
    found = check(make_study(runs), "Hours agree with FLOPs")
    assert (found.status, found.number) == ("not_applicable", "no speedup on both")
    blind = check(make_study([replace(run, flops=None) for run in runs]), "Hours agree with FLOPs")
    assert (blind.number, blind.sentence) == ("one clock", "Only one of the two clocks is known.")


@pytest.mark.parametrize(("share", "status"), [(0.0, "pass"), (0.019, "pass"), (0.195, "warn"), (0.278, "fail")])
def test_validation_text_that_training_holds_too_is_told(share: float, status: str) -> None:
    study = clean_sweep()
    found = check(replace(study, context=replace(study.context, seen_share=share)), "Validation text unseen")
    assert (found.status, found.number) == (status, f"{100 * share:.1f} %")


@pytest.mark.parametrize(
    ("budgets", "status"), [((4_000, 5_000, 6_500, 8_500), "pass"), ((4_000, 8_000, 50_000), "warn")]
)
def test_a_learning_rate_that_was_tuned_at_a_fifth_of_its_length_is_told(budgets: tuple[int, ...], status: str) -> None:
    runs = [*tuning("baseline"), *tuning("tst"), *ladder(budgets=budgets), *ladder("tst", (4_000,), speedup=1.3)]
    found = check(make_study(runs), "Tuned near its length")
    assert found.status == status
    longest = max(run.total_steps for run in tuning("baseline"))
    assert f"baseline at {runs[0].scale}: {budgets[-1] / longest:.2g}x" in found.sentence
