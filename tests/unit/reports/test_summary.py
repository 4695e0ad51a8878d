"""The summary: the promised keys, plain JSON, and a headline that says what the numbers say."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from reports.estimate.verdict import Reached
from reports.estimate.wording import percent, seeds_sentence, times
from reports.evidence.study import Study
from reports.summary import summarize, summary_to_json
from tests.support.finished_runs import ladder, make_run, make_study, sweep, tuning

PROMISED = {
    "scale": None,
    "method": None,
    "target_loss": None,
    "speedup": None,
    "interval": None,
    "reached": None,
    "lower_bound": None,
    "matched_pair": {"speedup": None, "hours": {"baseline": None, "method": None}},
    "hours": {"baseline": None, "method": None},
    "data_multiplier": None,
    "sigma": None,
    "seeds": {"baseline": None, "method": None},
    "trials": {"baseline": None, "method": None},
    "best": {"parameters": {}, "bag_size": None, "step_ratio": None, "learning_rate": None},
    "baseline_best": {"learning_rate": None},
    "flags": None,
}


def assert_has(found: object, promised: object, path: str = "") -> None:
    if isinstance(promised, dict):
        assert isinstance(found, dict), path
        for key, value in promised.items():
            assert key in found, f"{path}.{key}"
            if found[key] is not None:
                assert_has(found[key], value, f"{path}.{key}")


STUDIES = {
    "faster": sweep(1.5),
    "slower": make_study([*ladder(), *ladder("tst", (8_000,), speedup=0.7)]),
    "not reached": sweep(3.0),
    "one budget": make_study([*ladder(budgets=(4_000,)), *ladder("tst", (4_000,), speedup=1.3)]),
    "single seed": make_study([*ladder(offsets=(0.0,)), *ladder("tst", (4_000,), speedup=1.3, offsets=(0.0,))]),
    "tuning only": make_study([*tuning("baseline"), *tuning("tst")]),
    "method only": make_study(ladder("tst", (4_000,))),
    "baseline only": make_study(ladder()),
    "diverged only": make_study(
        [
            make_run("tst", 4_000, 1000, None, outcome="diverged"),
            make_run("baseline", 4_000, 1000, None, outcome="failed"),
        ]
    ),
    "empty": make_study([]),
}


@pytest.mark.parametrize("study", STUDIES.values(), ids=STUDIES.keys())
def test_every_sweep_has_a_summary_in_plain_json(study: Study) -> None:
    plain = summary_to_json(summarize(study))
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert (plain["schema"], plain["name"]) == (1, "test")
    assert {"clock", "device", "scales"} <= set(plain)
    for scale in plain["scales"]:
        assert_has(scale, PROMISED)
    assert plain["headline"].endswith(".")
    assert plain["headline"].count(". ") <= 1


def test_the_json_of_a_reached_speedup() -> None:
    (scale,) = summary_to_json(summarize(sweep(1.5)))["scales"]
    assert scale["speedup"] == pytest.approx(1.5, rel=1e-4)
    assert scale["interval"][0] < 1.5 < scale["interval"][1]
    assert scale["reached"] is True
    assert scale["lower_bound"] is None
    assert scale["hours"]["baseline"] == pytest.approx(0.6, rel=1e-4)
    assert scale["hours"]["method"] == pytest.approx(0.4)
    assert scale["matched_pair"]["speedup"] == pytest.approx(1.5)
    own = {"bag_size": 4, "step_ratio": 0.25}
    assert scale["best"] == {"parameters": own, **own, "learning_rate": 2e-3}
    assert scale["baseline_best"] == {"learning_rate": 2e-3}
    assert scale["seeds"] == {"baseline": 3, "method": 3}
    assert scale["trials"] == {"baseline": 3, "method": 3}
    assert scale["sigma"] == pytest.approx(0.004)


def test_the_json_of_a_censored_speedup() -> None:
    (scale,) = summary_to_json(summarize(sweep(3.0)))["scales"]
    assert (scale["speedup"], scale["interval"], scale["reached"]) == (None, None, False)
    assert scale["lower_bound"] == pytest.approx(2.0)
    assert scale["hours"]["baseline"] is None


def test_a_processor_counts_cpu_hours() -> None:
    assert summary_to_json(summarize(sweep()))["clock"] == "CPU-hours"
    gpu = [replace(run, device_kind="cuda") for run in [*ladder(), *ladder("tst", (4_000,))]]
    assert summary_to_json(summarize(make_study(gpu)))["clock"] == "GPU-hours"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("faster", "TST is 1.50x faster (95 %: "),
        ("slower", "TST is slower at nano: 0.70x (95 %: "),
        ("not reached", "The baseline did not reach TST's loss at nano: not reached; S > 2.00x (95 %)."),
        ("one budget", "nats lower than the baseline at equal cost"),
        ("single seed", "TST reads 1.30x at nano, without an interval."),
        ("tuning only", "Nothing is confirmed yet"),
        ("method only", "Nothing is confirmed yet"),
        ("baseline only", "No comparison yet: 9 of 9 runs finished"),
        ("diverged only", "Nothing is confirmed yet"),
        ("empty", "No runs yet."),
    ],
)
def test_the_headline_says_what_happened(name: str, words: str) -> None:
    assert words in summarize(STUDIES[name]).headline


def test_no_difference_says_what_could_have_been_resolved() -> None:
    wide = (-0.1, 0.0, 0.1)
    study = make_study([*ladder(offsets=wide), *ladder("tst", (4_000,), speedup=1.2, offsets=wide)])
    text = summarize(study).headline
    assert text.startswith("No difference detected between TST and the baseline at nano: 1.20x")
    assert "this sweep could resolve" in text


def test_unequal_tuning_opens_the_headline_with_both_counts() -> None:
    study = make_study(
        [*tuning("baseline"), *tuning("tst"), *tuning("tst", (3e-3,)), *ladder(), *ladder("tst", (4_000,))]
    )
    assert summarize(study).headline.startswith("UNEQUAL TUNING (4 trials against 3). ")


def test_the_headline_speaks_of_the_largest_confirmed_scale() -> None:
    runs = [
        *ladder(scale="small", params=1e5),
        *ladder("tst", (4_000,), speedup=1.9, scale="small", params=1e5),
        *ladder(scale="large", params=1e7),
        *ladder("tst", (4_000,), speedup=1.2, scale="large", params=1e7),
        *tuning("tst", scale="huge", params=1e8),
    ]
    summary = summarize(make_study(runs))
    assert summary.main is not None
    assert summary.main.scale == "large"
    assert "1.20x" in summary.headline
    assert "1.90x" not in summary.headline


def test_numbers_are_short_and_never_flatter() -> None:
    assert [times(value) for value in (1.3249, 12.34, 345.6, 2e5)] == ["1.32x", "12.3x", "346x", "more than 100,000x"]
    assert [percent(value) for value in (0.0123, 0.18, 12.0)] == ["1.2 %", "18 %", "more than 1,000 %"]


def test_the_caveat_is_the_check_that_failed_and_without_one_the_worst_flag() -> None:
    """A step time that scatters by 31 % is worse news than a fit that could not be tested."""
    steady = sweep(1.5)
    assert summarize(steady).worst_caveat.startswith("A step time was measured once")
    (first, *others) = steady.runs[-3:]
    slow = [replace(phase, median_step_seconds=2 * phase.median_step_seconds) for phase in first.phases]
    shaken = summarize(make_study([*steady.runs[:-3], replace(first, phases=tuple(slow)), *others]))
    assert shaken.worst_caveat.startswith("Step time stable: ")
    assert shaken.worst_caveat.endswith("the pooled median enters the clock.")


def test_text_in_the_place_of_hours_is_a_line_of_its_own() -> None:
    """The method of these runs reads 1.75 tokens a position: 1.5 times fewer steps, and more text all the same."""
    line = summarize(sweep(1.5)).equal_data
    assert line.startswith("At equal data (tokens read instead of CPU-hours): TST is slower: 0.86x (95 %: ")
    assert summary_to_json(summarize(sweep(1.5)))["equal_data"] == line
    silent = [replace(run, tokens=None) for run in sweep(1.5).runs]
    assert summary_to_json(summarize(make_study(silent)))["equal_data"] is None


def test_a_bound_below_one_is_no_finding_and_says_what_is_needed() -> None:
    """The ladder ends at 2,600 steps, the method was given 4,000."""
    study = make_study([*ladder(budgets=(1_000, 1_600, 2_600)), *ladder("tst", (4_000,), speedup=1.3)])
    summary = summarize(study)
    assert summary.headline == (
        "Not known whether TST is faster at nano: no run of the baseline ends as low (S > 0.65x, 95 %); "
        "needs budgets of the baseline above 4,000 steps."
    )
    (scale,) = summary_to_json(summary)["scales"]
    assert (scale["lower_bound"], scale["needed_steps"]) == (pytest.approx(0.65), 4_000)
    assert summary_to_json(summarize(sweep(3.0)))["scales"][0]["needed_steps"] is None


def test_confirmations_that_failed_are_named() -> None:
    """Budgets that lost the same seeds are one clause."""
    failed = [make_run("tst", steps, seed, None, outcome="failed") for steps in (6_000, 4_000) for seed in (1001, 1000)]
    failed.append(make_run("tst", 8_000, 1000, None))
    summary = summarize(make_study([*tuning("baseline"), *tuning("tst"), *ladder(), *failed]))
    assert summary.headline == (
        "Nothing is confirmed yet at nano: the confirmation of TST failed at 4,000 and 6,000 steps (seeds 1000, 1001); "
        "the confirmation of TST diverged at 8,000 steps (seed 1000)."
    )


def test_runs_whose_decay_is_not_said_are_named_with_the_line_that_says_it() -> None:
    line = "`decayed: true` below `trainer:`"
    runs = [replace(run, decayed=False, undecayed=line) for run in (*ladder(), *ladder("tst", (4_000,)))]
    summary = summarize(make_study([*tuning("baseline"), *tuning("tst"), *runs]))
    assert summary.headline == (
        "Nothing is confirmed yet at nano: the confirmation of the baseline and TST does not count, its schedule is not "
        "said to end decayed; where it does, say so by `decayed: true` below `trainer:`, for new trials."
    )


def test_a_search_that_found_nothing_is_named() -> None:
    lost = [make_run("tst", 2_500, 0, None, purpose="tuning", learning_rate=rate) for rate in (1e-3, 2e-3, 4e-3)]
    summary = summarize(make_study([*tuning("baseline"), *lost, *ladder()]))
    assert summary.headline == "Nothing is confirmed yet at nano: no tuning trial of TST has finished: 3 diverged."


def test_a_search_without_a_choice_is_equal_tuning() -> None:
    """One arm's rate is an axis of one value, the other's a constant that no axis names."""
    rates = (2e-3,)
    runs = [*tuning("baseline", rates), *tuning("tst", rates), *ladder(), *ladder("tst", (4_000,))]
    axes = {"baseline": {"learning_rate": rates}, "tst": {"step_ratio": (0.25,)}}
    (verdict,) = summarize(make_study(runs, axes=axes)).verdicts
    assert (verdict.equal_tuning, verdict.tuning_difference) == (True, "")


@pytest.mark.parametrize(
    ("mine", "theirs", "words"),
    [
        ((1e-3, 2e-3, 4e-3), (1e-3, 4e-3), "learning rates 0.001, 0.004 against 0.001, 0.002, 0.004"),
        ((1e-3, 2e-3), (1e-3, 4e-3), "learning rates 0.001 to 0.004 against 0.001 to 0.002"),
        ((1e-3,), (1.0000001e-3,), "learning rates 0.0010000001 against 0.001"),
    ],
)
def test_unequal_learning_rates_are_named_where_they_differ(
    mine: tuple[float, ...], theirs: tuple[float, ...], words: str
) -> None:
    axes = {"baseline": {"learning_rate": mine}, "tst": {"learning_rate": theirs}}
    runs = [*tuning("baseline"), *tuning("tst"), *ladder(), *ladder("tst", (4_000,))]
    (verdict,) = summarize(make_study(runs, axes=axes)).verdicts
    assert verdict.tuning_difference == words


def test_one_more_seed_narrows_an_interval_that_seeds_make_wide() -> None:
    """Three seeds: two thirds of the variance of a mean would be three quarters, with half as many degrees of freedom more."""
    (verdict,) = summarize(sweep(1.5)).verdicts
    assert isinstance(verdict.speedup, Reached)
    assert verdict.speedup.interval is not None
    assert verdict.one_more_seed is not None
    assert (
        verdict.speedup.interval[0]
        < verdict.one_more_seed[0]
        < 1.5
        < verdict.one_more_seed[1]
        < verdict.speedup.interval[1]
    )
    said = seeds_sentence(verdict)
    assert said.startswith(
        "Seeds make up most of this interval: one more seed a budget in both arms would narrow it from "
    )
    (alone,) = summarize(STUDIES["single seed"]).verdicts
    assert (alone.one_more_seed, seeds_sentence(alone)) == (None, "")


def timed_elsewhere(study: Study, longer: float = 1.0, *, flops: bool = True) -> Study:
    """Hours without phases, as a table states them; the method's last `longer` times as long, and nothing else moves."""
    runs = []
    for run in study.runs:
        hours = run.gpu_hours and run.gpu_hours * (longer if run.method == "tst" else 1.0)
        runs.append(replace(run, phases=(), gpu_hours=hours, flops=run.flops if flops else None))
    return make_study(runs)


def test_flops_stand_beside_wall_time_from_elsewhere_where_the_two_differ() -> None:
    said = summarize(timed_elsewhere(sweep(1.5), longer=1.1)).headline
    assert said.startswith("TST is 1.36x faster (95 %: ")
    assert "at nano; in model FLOPs 1.50x (95 %: " in said
    for alike in (
        timed_elsewhere(sweep(1.5), longer=1.01),
        timed_elsewhere(sweep(1.5), longer=1.1, flops=False),
        sweep(1.5),
    ):
        assert "FLOPs" not in summarize(alike).headline


def test_a_bound_in_wall_time_has_one_in_flops_beside_it() -> None:
    said = summarize(timed_elsewhere(sweep(3.0), longer=1.1)).headline
    assert said == (
        "The baseline did not reach TST's loss at nano: not reached; S > 1.82x (95 %); in model FLOPs S > 2.00x (95 %)."
    )


def test_a_pair_in_wall_time_has_its_ratio_in_flops() -> None:
    pair = make_study([*ladder(budgets=(8_000,)), *ladder("tst", (4_000,), speedup=1.9)])
    said = summarize(timed_elsewhere(pair, longer=1.1)).headline
    assert "with 1.82x the CPU-hours and 2.00x the model FLOPs at nano; that is one pair of runs" in said
    assert "FLOPs" not in summarize(pair).headline
