"""What may enter a claim, and what is refused with which reason."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from reports.estimate.readings import clock_error
from reports.estimate.verdict import Words
from reports.evidence.clock import clock_shares
from reports.evidence.runs import FinishedRun, run_from_record
from reports.evidence.study import Configuration, Exclusion, Study
from reports.summary import summarize
from tests.support.finished_runs import STEP_SECONDS, ladder, make_run, make_study, sweep, tuning
from trainers.contract.record import PhaseTiming


def reasons(study: Study) -> list[str]:
    return [exclusion.reason for exclusion in study.exclusions]


def test_arms_cells_and_trials_are_sorted_out() -> None:
    (scale,) = sweep().scales
    assert scale.baseline is not None
    assert scale.baseline.budgets == (4_000, 6_000, 8_000)
    assert [cell.num_seeds for cell in scale.baseline.cells] == [3, 3, 3]
    assert [arm.method for arm in scale.methods] == ["tst"]
    assert scale.methods[0].num_trials == scale.baseline.num_trials == 3
    assert scale.methods[0].chosen_by == "only"
    assert scale.clock_label == "CPU-hours"
    assert not scale.exclusions


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"decayed": False}, "learning rate not decayed"),
        ({"outcome": "diverged", "final_loss": None, "reason": "loss is not finite"}, "diverged: loss is not finite"),
        ({"outcome": "stopped", "final_loss": None}, "stopped"),
        ({"device": "another processor"}, "other device: another processor, the comparison has a processor"),
        ({"validation": "other/65536"}, "other validation set"),
        ({"tokenizer": None}, "other tokenizer: not stated"),
        ({"context": 128}, "other context length"),
        ({"precision": "bf16"}, "other precision"),
        ({"recipe": "other"}, "other training recipe"),
        ({"seed": 0}, "seed 0 was used by the search"),
    ],
)
def test_a_run_that_may_not_enter_is_excluded_with_its_reason(changes: dict[str, object], reason: str) -> None:
    odd = replace(make_run("tst", 4_000, 1003, 2.5), **changes)  # type: ignore[arg-type]
    study = make_study([*tuning("baseline"), *ladder(), *ladder("tst", (4_000,)), odd])
    assert len(reasons(study)) == 1
    assert reasons(study)[0].startswith(reason)
    assert study.scales[0].methods[0].cells[0].num_seeds == 3


def test_the_same_run_enters_once() -> None:
    runs = ladder()
    study = make_study([*runs, runs[0]])
    assert reasons(study) == ["the same run a second time"]


def test_a_seed_counts_once_in_its_setting() -> None:
    again = replace(ladder()[0], run_id="again", purpose="noise_floor")
    assert reasons(make_study([*ladder(), again])) == [
        "seed 1000 a second time in the same setting: it is no further seed"
    ]


def test_the_comparison_uses_the_device_that_has_both_arms() -> None:
    elsewhere = [
        replace(run, run_id=f"x{run.run_id}", device="many GPUs") for run in ladder() + ladder(budgets=(9_000,))
    ]
    study = make_study([*elsewhere, *ladder(), *ladder("tst", (4_000,))])
    assert study.scales[0].device == "a processor"
    assert {exclusion.run.device for exclusion in study.exclusions} == {"many GPUs"}


def test_the_winner_is_the_best_of_the_search_not_of_the_confirmation() -> None:
    lucky = ladder("tst", (4_000,), speedup=2.0, learning_rate=4e-3)
    tuned = ladder("tst", (4_000,), speedup=1.1, learning_rate=1e-3)
    study = make_study([*ladder(), *lucky, *tuned, *tuning("tst")])
    (arm,) = study.scales[0].methods
    assert arm.configuration is not None
    assert arm.configuration.learning_rate == 1e-3  # the tuning losses of `tuning` grow with the learning rate
    assert arm.chosen_by == "search"
    assert len(arm.other_cells) == 1


def test_a_winner_by_its_own_confirmation_is_said_to_be_one() -> None:
    study = make_study(
        [*ladder(), *ladder("tst", (4_000,), learning_rate=4e-3), *ladder("tst", (4_000,), learning_rate=1e-3)]
    )
    assert study.scales[0].methods[0].chosen_by == "confirmation"


def test_the_configuration_with_most_budgets_represents_an_arm() -> None:
    study = make_study([*ladder(), *ladder(budgets=(4_000,), learning_rate=1e-3)])
    assert study.scales[0].baseline is not None
    assert study.scales[0].baseline.configuration == Configuration((), 2e-3)
    assert study.scales[0].baseline.chosen_by == "coverage"


def slower_clock(run: FinishedRun, factor: float) -> FinishedRun:
    phases = tuple(replace(phase, median_step_seconds=factor * phase.median_step_seconds) for phase in run.phases)
    return replace(run, phases=phases)


def test_equal_work_has_an_equal_price_however_noisy_the_clocks_were() -> None:
    runs = [*ladder(), *ladder("tst", (4_000,))]
    noisy = [slower_clock(run, 1 + 0.1 * (number % 5)) for number, run in enumerate(runs)]
    (scale,) = make_study(noisy).scales
    hours = {run.total_steps: scale.hours[run.run_id] for run in noisy if run.method == "baseline"}
    assert hours[8_000] == pytest.approx(2 * hours[4_000])
    next_token = next(time for time in scale.step_times if time.phase == "next-token")
    assert next_token.seconds == pytest.approx(1.2 * STEP_SECONDS)
    assert next_token.spread == pytest.approx(1.4)


def test_a_clock_inherited_from_a_trunk_counts_once() -> None:
    (scale,) = make_study(ladder()).scales
    assert [time.num_runs for time in scale.step_times] == [1]
    assert scale.step_times[0].assumed


def slower_bags(run: FinishedRun, factor: float) -> FinishedRun:
    phases = tuple(
        replace(phase, median_step_seconds=(factor if phase.bag_size > 1 else 1.0) * phase.median_step_seconds)
        for phase in run.phases
    )
    return replace(run, phases=phases)


def test_a_machine_that_grows_faster_between_the_arms_moves_no_price() -> None:
    baseline, method = ladder(), ladder("tst", (4_000,))
    (quiet,) = make_study([*baseline, *method]).scales
    runs = [
        *(slower_clock(run, 1.3 + 0.01 * number) for number, run in enumerate(baseline)),
        *(slower_clock(run, 1 + 0.01 * number) for number, run in enumerate(method)),
    ]
    (scale,) = make_study(runs).scales
    for key, pool in quiet.pools.items():
        assert scale.pools[key].seconds / scale.pools[min(quiet.pools)].seconds == pytest.approx(
            pool.seconds / quiet.pools[min(quiet.pools)].seconds
        )
    assert clock_error(runs[0], runs[-1], scale.pools).variance == pytest.approx(
        0
    )  # within each run the ratio is the same


def test_only_the_ratio_of_two_phases_within_a_run_tilts_a_comparison() -> None:
    method = [slower_bags(run, 1 + 0.02 * number) for number, run in enumerate(ladder("tst", (4_000,)))]
    runs = [*(slower_clock(run, 1 + 0.01 * number) for number, run in enumerate(ladder())), *method]
    (scale,) = make_study(runs).scales
    assert clock_error(runs[0], runs[0], scale.pools).variance == 0
    shares = clock_shares(method[0], scale.pools)
    assert sum(shares.values()) == pytest.approx(1)
    bags = next(key for key in shares if key[2] == "superposition")
    deviation = np.log([1 + 0.02 * number for number in range(len(method))]).std(ddof=1)
    error = deviation / np.sqrt(len(method))
    assert scale.pools[bags].log_standard_error == pytest.approx(error)
    assert clock_error(runs[0], method[0], scale.pools).variance == pytest.approx((shares[bags] * error) ** 2)


def test_curves_are_drawn_on_the_pooled_clock() -> None:
    from reports.evidence.runs import RunCurve

    steps = np.array([500.0, 1_000.0, 4_000.0])
    run = make_run("tst", 4_000, 1000, 2.5, curve=RunCurve(steps, np.array([5.0, 4.0, 2.5])))
    run = replace(run, phases=(PhaseTiming("superposition", 4, 1_000, 0.72), PhaseTiming("next-token", 1, 3_000, 0.36)))
    (scale,) = make_study([run]).scales
    hours = scale.curve_hours(run)
    assert hours is not None
    assert hours.tolist() == pytest.approx([0.1, 0.2, 0.5])
    assert scale.hours[run.run_id] == pytest.approx(0.5)


def test_runs_without_phases_keep_their_own_hours() -> None:
    runs = [
        replace(run, phases=(), gpu_hours=hours)
        for run, hours in zip(ladder(offsets=(0.0,)), (1, 1.5, 2.2), strict=True)
    ]
    (scale,) = make_study(runs).scales
    assert sorted(scale.hours.values()) == [1, 1.5, 2.2]
    (pool,) = scale.step_times
    assert (pool.phase, pool.num_runs) == ("whole run", 2)  # 1 h / 4,000 and 1.5 h / 6,000 are one price


def test_a_run_cannot_hold_a_nan() -> None:
    with pytest.raises(ValueError, match="final_loss is nan"):
        make_run("tst", 4_000, 1, float("nan"))
    with pytest.raises(ValueError, match="outcome diverged"):
        make_run("tst", 4_000, 1, 2.5, outcome="diverged")


def test_an_empty_study_is_a_study() -> None:
    study = make_study([])
    assert study.scales == ()
    assert study.exclusions == ()
    assert study.clock_label == "GPU-hours"


def test_exclusions_keep_the_run() -> None:
    run = make_run("tst", 4_000, 1000, 2.5, decayed=False)
    assert make_study([run]).exclusions == (
        Exclusion(run, "learning rate not decayed: reading it would favour the method"),
    )


def test_our_own_records_become_runs() -> None:
    from tests.support.report_factory import Invented, records_of

    records = records_of(Invented())
    runs = [run_from_record(record) for record in records]
    finished = [run for run in runs if run.outcome == "finished"]
    assert finished
    for run in finished:
        assert run.record is not None
        assert run.final_loss == run.record.final_loss
        assert run.gpu_hours == pytest.approx(run.record.timing.gpu_hours)
        assert run.tokens == run.record.tokens
    trunks = {(run.method, run.learning_rate, run.bag_size, run.seed) for run in runs}
    assert len({run.trunk for run in runs}) == len(trunks)


def test_the_identity_of_the_file_makes_the_verdict_and_the_rest_is_listed() -> None:
    """Twelve runs of an earlier context beside seven of the file's: the file decides, not the number of runs."""
    old = [*ladder(), *ladder("tst", (4_000,), speedup=2.0), *tuning("tst")]
    changes = {"context": 128, "learning_rate": 3e-3}
    new = [*ladder(offsets=(0.0, 0.002), **changes), *ladder("tst", (4_000,), speedup=1.2, **changes)]
    of_file = frozenset(run.run_id for run in new)
    (scale,) = make_study([*old, *new], of_file=of_file).scales
    assert {run.context for arm in scale.arms for cell in arm.cells for run in cell.runs} == {128}
    assert {exclusion.run.run_id for exclusion in scale.exclusions} == {run.run_id for run in old}
    assert {exclusion.reason for exclusion in scale.exclusions} == {
        "of another identity than the sweep's file: other context length: 64, the file's runs have 128"
    }
    assert set(scale.own_runs) == set(new)
    assert [arm.num_trials for arm in scale.arms] == [None, None], "another identity's trials are no tuning of this one"
    (before,) = make_study([*old, *new]).scales
    assert {run.context for arm in before.arms for cell in arm.cells for run in cell.runs} == {64}


def test_a_scale_that_the_file_has_no_run_at_yet_is_not_confirmed_by_older_runs() -> None:
    """The file was changed and its small scale trained again: what is left of the large one must not make the headline."""
    old = [*ladder(scale="large", params=1e7), *ladder("tst", (4_000,), speedup=2.0, scale="large", params=1e7)]
    new = [*ladder(context=128), *ladder("tst", (4_000,), speedup=1.2, context=128)]
    study = make_study([*old, *new], of_file=frozenset(run.run_id for run in new))
    assert {exclusion.run.run_id for exclusion in study.exclusions} == {run.run_id for run in old}
    assert set(reasons(study)) == {"of another identity than the sweep's file, which has no run at this scale yet"}
    summary = summarize(study)
    assert [verdict.words for verdict in summary.verdicts] == [Words.FASTER, Words.UNCONFIRMED]
    assert summary.main is summary.verdicts[0]


def test_a_file_that_asks_for_none_of_the_runs_shows_them_with_a_check_that_failed() -> None:
    runs = [*ladder(), *ladder("tst", (4_000,), speedup=1.5)]
    study = make_study(runs, of_file=frozenset({"another"}))
    assert not study.exclusions
    assert summarize(study).headline.startswith("Of an earlier state of the file: TST is 1.50x faster (95 %: ")
    assert summarize(study).worst_caveat == (
        "Trained as the file says: 0 of 12. "
        "The search-space file, as it is now, asks for none of these runs: they answer an earlier state of it."
    )


@pytest.mark.parametrize(
    ("stated", "params", "found"),
    [
        (("small", "medium", "large"), {}, ["small", "medium", "large"]),
        ((), {}, ["large", "medium", "small"]),
        (("small", "medium", "large"), {"small": 3e6, "medium": 2e6, "large": 1e6}, ["large", "medium", "small"]),
    ],
)
def test_scales_stand_by_size_or_as_the_file_has_them(
    stated: tuple[str, ...], params: dict[str, float], found: list[str]
) -> None:
    runs = [
        replace(run, run_id=f"{scale}{run.run_id}", scale=scale, params=params.get(scale))
        for scale in ("medium", "large", "small")
        for run in (*ladder(), *ladder("tst", (4_000,), speedup=1.3))
    ]
    study = make_study(runs, scales=stated)
    assert [scale.scale for scale in study.scales] == found
    ends = "(the largest of 3 scales)." if stated or params else "(the last of 3 scales)."
    assert summarize(study).headline.endswith(ends)
