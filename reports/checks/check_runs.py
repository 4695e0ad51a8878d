"""The checks that read the runs: are they comparable, were both arms tuned alike, did they end well?

What was estimated from the runs is checked in `check_estimates`; the order on the page is in `all_checks`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from reports.estimate.verdict import Check, CheckStatus, ScaleVerdict, worst_status
from reports.evidence.clock import ASSUMED_LOG_ERROR
from reports.evidence.runs import DECAY_NOT_STATED, FinishedRun
from reports.evidence.study import ScaleStudy, Study, StudyArm
from reports.evidence.tuning import edges, own_unit
from reports.html import theme
from trainers.contract.record import SEARCH_PURPOSES

OneCheck = Callable[[Study, tuple[ScaleVerdict, ...]], Check]

STABLE_STEP_TIME = 0.05
UNSTABLE_STEP_TIME = 0.20
TUNED_WITHIN = 4.0
"""At pico the best learning rate drifts from 5.7e-3 at 4,000 steps to 4e-3 at 16,000."""
TUNING_HOURS_RATIO = 1.25


def _confirmed(runs: Iterable[FinishedRun]) -> list[FinishedRun]:
    return [run for run in runs if run.purpose == "confirmation" and run.outcome == "finished"]


def _compared_arms(scale: ScaleStudy) -> list[StudyArm]:
    return [arm for arm in scale.arms if arm.cells]


def check_decayed(study: Study, verdicts: tuple[ScaleVerdict, ...]) -> Check:
    """Only runs whose learning rate has decayed may be read."""
    runs = _confirmed(study.runs)
    decayed = sum(run.decayed for run in runs)
    name = "Schedule decayed"
    if not runs:
        return Check(name, "not_applicable", "0 runs", "No confirmation run has finished.")
    number = f"{decayed} of {len(runs)}"
    if any(DECAY_NOT_STATED in run.notes for run in runs):
        return Check(name, "warn", "not stated", "Some runs do not state whether their learning rate decayed.")
    if decayed == len(runs):
        return Check(name, "pass", number, "Every confirmation run ended with a decayed learning rate.")
    sentence = "Confirmation runs without a decayed learning rate were left out of every estimate."
    return Check(name, "warn" if decayed else "fail", number, sentence)


def setting_check(attribute: str, label: str) -> OneCheck:
    """The check that every comparison inside one scale shares a setting (an attribute of the runs)."""

    def check(study: Study, verdicts: tuple[ScaleVerdict, ...]) -> Check:
        return _check_setting(study, attribute, label)

    return check


def _check_setting(study: Study, attribute: str, label: str) -> Check:
    """Every comparison inside one scale shares the setting."""
    name = f"Same {label}"
    statuses: list[CheckStatus] = []
    most, left_out = 0, 0
    for scale in study.scales:
        values = {getattr(run, attribute) for run in _confirmed(scale.own_runs)}
        if not values:
            continue
        most = max(most, len(values))
        left_out += sum(exclusion.reason.startswith(f"other {label}") for exclusion in scale.exclusions)
        statuses.append("warn" if len(values) > 1 or None in values else "pass")
    if not statuses:
        return Check(name, "not_applicable", "no runs", "No confirmation run has finished.")
    if worst_status(statuses) == "pass":
        return Check(name, "pass", "1 value", f"All compared runs of a scale have the same {label}.")
    if most == 1:
        return Check(name, "warn", "not stated", f"The runs do not state their {label}; it is taken to be the same.")
    return Check(name, "warn", f"{most} values", f"Runs with another {label} were left out: {left_out}.")


def check_identity(study: Study, verdicts: tuple[ScaleVerdict, ...]) -> Check:
    """Every run is one that the sweep's file, as it is now, would ask for."""
    name = "Trained as the file says"
    if study.context.of_file is None:
        return Check(name, "not_applicable", "file unknown", "The search-space file of these runs is not known.")
    if study.asked_for_by_an_earlier_file:
        said = "The search-space file, as it is now, asks for none of these runs: they answer an earlier state of it."
        return Check(name, "fail", f"0 of {len(study.runs)}", said)
    others = sum(len(scale.runs) - len(scale.own_runs) for scale in study.scales)
    if not others:
        return Check(name, "pass", "0 left out", "No run is of an earlier state of the search-space file.")
    sentence = (
        "Runs of an earlier state of the search-space file (another context, batch, text or recipe) were left out."
    )
    return Check(name, "warn", f"{others} left out", sentence)


def check_equal_trials(study: Study, verdicts: tuple[ScaleVerdict, ...]) -> Check:
    """Both arms were given the same number of tuning trials over the same ranges at the same budget."""
    name = "Equal tuning"
    if not verdicts:
        return Check(name, "not_applicable", "no method", "There is no method to compare.")
    unequal = [verdict for verdict in verdicts if verdict.equal_tuning is False]
    if unequal:
        first = unequal[0]
        number = f"{first.trials_method} against {first.trials_baseline}"
        return Check(name, "fail", number, f"UNEQUAL TUNING at {first.scale}: {first.tuning_difference}.")
    if any(verdict.equal_tuning is None for verdict in verdicts):
        return Check(name, "warn", "not recorded", "How the arms were tuned is not recorded with these runs.")
    counts = sorted({verdict.trials_method for verdict in verdicts if verdict.trials_method is not None})
    number = " / ".join(f"{count} each" for count in counts)
    if any(own_unit(arm) for scale in study.scales for arm in scale.arms):
        sentence = "Both arms had equal trials at equal budgets; a learning rate in a unit of its own, equal octaves."
        return Check(name, "pass", number, sentence)
    return Check(name, "pass", number, "Both arms had equal trials over equal learning rates at equal budgets.")


def check_tuning_hours(study: Study, verdicts: tuple[ScaleVerdict, ...]) -> Check:
    """Tuning cost both arms about the same."""
    name = "Equal tuning cost"
    ratios = [
        method / baseline
        for scale in study.scales
        if scale.baseline is not None and (baseline := _tuning_hours(scale.baseline)) > 0
        for arm in scale.methods
        if (method := _tuning_hours(arm)) > 0
    ]
    if not ratios:
        return Check(name, "not_applicable", "not recorded", "The cost of tuning is not recorded for both arms.")
    ratio = max(ratios, key=lambda value: abs(value - 1))
    within = 1 / TUNING_HOURS_RATIO <= ratio <= TUNING_HOURS_RATIO
    sentence = "Hours spent on tuning, the method's over the baseline's, as if every trial had been trained alone."
    return Check(name, "pass" if within else "warn", f"{ratio:.2f}x", sentence)


def _tuning_hours(arm: StudyArm) -> float:
    return sum(run.gpu_hours or 0.0 for run in arm.search)


def check_tuning_length(study: Study, verdicts: tuple[ScaleVerdict, ...]) -> Check:
    """Learning rates are not carried far beyond the length that they were tuned for: their optimum falls as runs grow."""
    name = "Tuned near its length"
    probed = [
        f"{arm.method} at {scale.scale}: {len(arm.probes)} at {max(run.total_steps for run in arm.probes):,} steps"
        for scale in study.scales
        for arm in _compared_arms(scale)
        if arm.probes
    ]
    factors = {
        f"{arm.method} at {scale.scale}": arm.budgets[-1] / max(run.total_steps for run in arm.search)
        for scale in study.scales
        for arm in _compared_arms(scale)
        if arm.search and arm.budgets
    }
    if not factors:
        return Check(name, "not_applicable", "not recorded", "The budgets of the tuning trials are not recorded.")
    said = "; ".join(f"{arm}: {factor:.2g}x" for arm, factor in factors.items())
    number = f"{max(factors.values()):.2g}x"
    if len(probed) == len(factors):
        sentence = (
            f"An arm's largest confirmed budget over the largest that it was tuned at ({said}). The learning rate was "
        )
        return Check(
            name, "pass", f"{number}, probed", f"{sentence}tried again at its longest budget ({'; '.join(probed)})."
        )
    status: CheckStatus = "pass" if max(factors.values()) <= TUNED_WITHIN else "warn"
    sentence = (
        f"An arm's largest confirmed budget over the largest that it was tuned at ({said}). Further beyond, a learning "
    )
    sentence += "rate that was best for the short runs may be too high for the long ones, the baseline's above all."
    return Check(name, status, number, sentence)


def check_edges(study: Study, verdicts: tuple[ScaleVerdict, ...]) -> Check:
    """The best setting lies inside the space that was searched."""
    name = "Optimum inside the space"
    if not study.context.axes:
        return Check(name, "not_applicable", "space unknown", "The searched ranges are not recorded.")
    arms = [(arm, scale) for scale in study.scales for arm in _compared_arms(scale)]
    if not arms:
        return Check(name, "not_applicable", "no runs", "No arm has confirmation runs.")
    found = [
        f"{arm.method} at {scale.scale}: {edge.name} = {edge.value:g}, the {edge.side} searched"
        for arm, scale in arms
        for edge in edges(arm, study.context.axes.get(arm.method, {}))
    ]
    if not found:
        return Check(name, "pass", "0 edges", "No best setting lies on the edge of its range.")
    sentence = f"On the edge of the range: {'; '.join(found)}. A wider range may move the optimum."
    return Check(name, "warn", f"{len(found)} at an edge", sentence)


def check_fresh_seeds(study: Study, verdicts: tuple[ScaleVerdict, ...]) -> Check:
    """Winners were run again on seeds that the search never used."""
    name = "Fresh confirmation seeds"
    shared: set[int] = set()
    known = False
    for scale in study.scales:
        searched = {run.seed for run in scale.own_runs if run.purpose in SEARCH_PURPOSES and run.seed is not None}
        confirmed = {run.seed for run in scale.own_runs if run.purpose == "confirmation" and run.seed is not None}
        known = known or bool(searched and confirmed)
        shared |= searched & confirmed
    if shared:
        listed = ", ".join(str(seed) for seed in sorted(shared))
        return Check(name, "fail", f"{len(shared)} shared", f"Seeds of the search were left out: {listed}.")
    if not known:
        return Check(name, "not_applicable", "not recorded", "The seeds of a search are not recorded.")
    return Check(name, "pass", "0 shared", "No confirmation run used a seed of the search.")


def check_chosen_blindly(study: Study, verdicts: tuple[ScaleVerdict, ...]) -> Check:
    """The reported configuration was chosen before its confirmation losses were seen."""
    name = "Winner chosen before confirmation"
    arms = [arm for scale in study.scales for arm in _compared_arms(scale)]
    lucky = [arm.method for arm in arms if arm.chosen_by == "confirmation"]
    if not arms:
        return Check(name, "not_applicable", "no runs", "No arm has confirmation runs.")
    if lucky:
        sentence = "The best of several confirmed settings was picked by the losses that are reported: it is lucky."
        return Check(name, "fail", ", ".join(sorted(set(lucky))), sentence)
    return Check(name, "pass", f"{len(arms)} arms", "No arm's setting was picked by the losses that are reported.")


def check_outcomes(study: Study, verdicts: tuple[ScaleVerdict, ...]) -> Check:
    """Runs that did not finish are counted, with their reasons in the appendix."""
    name = "Runs that did not finish"
    counts = {kind: sum(run.outcome == kind for run in study.runs) for kind in ("diverged", "failed", "stopped")}
    total = sum(counts.values())
    number = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count) or "0"
    if not study.runs:
        return Check(name, "not_applicable", "no runs", "There are no runs.")
    if not total:
        return Check(name, "pass", number, f"All {len(study.runs)} runs finished.")
    status: CheckStatus = "fail" if 2 * total > len(study.runs) else "warn"
    return Check(name, status, number, f"Of {len(study.runs)} runs these did not finish; none of them enters a number.")


def check_step_time(study: Study, verdicts: tuple[ScaleVerdict, ...]) -> Check:
    """The clock that hours are counted with does not wander between runs."""
    name = "Step time stable"
    deviations = [
        (time.log_deviation, time)
        for scale in study.scales
        for time in scale.step_times
        if time.log_deviation is not None
    ]
    if not deviations:
        said = "No step time was measured twice"
        if any(time.assumed for scale in study.scales for time in scale.step_times):
            said += f", so that the clock's own error is assumed to be {theme.percent(ASSUMED_LOG_ERROR)}"
        return Check(name, "not_applicable", "one run a phase", f"{said}.")
    deviation, time = max(deviations, key=lambda item: item[0])
    status: CheckStatus = (
        "pass" if deviation <= STABLE_STEP_TIME else "warn" if deviation <= UNSTABLE_STEP_TIME else "fail"
    )
    where = f"{time.phase}{f' (s = {time.bag_size})' if time.bag_size > 1 else ''} at {time.scale}"
    sentence = f"Largest scatter of a step time between runs, in {where}; the pooled median enters the clock."
    return Check(name, status, theme.percent(deviation, 1), sentence)


def check_recovery(study: Study, verdicts: tuple[ScaleVerdict, ...]) -> Check:
    """The method's runs had time to recover from the phase boundary before their learning rate decayed."""
    name = "Recovery finished"
    statuses: list[CheckStatus] = []
    shortest = 1.0
    for scale in study.scales:
        for arm in scale.methods:
            for run in (run for cell in arm.cells for run in cell.runs if run.boundary_step):
                assert run.boundary_step is not None
                share = 1 - run.boundary_step / run.total_steps
                shortest = min(shortest, share)
                schedule = run.record.spec.schedule if run.record is not None else None
                # Runs that are compared have decayed: a schedule without a decay is one that was not told.
                told = schedule is not None and schedule.decay_steps > 0
                decay_start = schedule.decay_start if schedule is not None and told else 0.9 * run.total_steps
                late = run.boundary_step > decay_start
                statuses.append("fail" if share <= 0 else "warn" if late else "pass")
    if not statuses:
        return Check(name, "not_applicable", "one phase", "No compared run has a phase boundary.")
    sentence = {
        "pass": "Shortest part of a run after the phase boundary; each boundary lies before the decay.",
        "warn": "A phase boundary lies inside the learning rate's decay: recovery may be cut short.",
        "fail": "A run never left its first phase: its final loss is not a next-token model's.",
    }[worst_status(statuses)]
    return Check(name, worst_status(statuses), f"{theme.percent(shortest)} of the steps", sentence)
