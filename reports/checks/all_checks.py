"""Can I trust this? Automatic checks, each with its number and one sentence, in the order of the page.

A check that cannot be made says so (`not_applicable`), for a missing check would look like one that passed.
"""

from __future__ import annotations

from reports.checks import check_estimates as estimates
from reports.checks import check_runs as runs
from reports.checks import check_stated as stated
from reports.checks.check_runs import OneCheck
from reports.estimate.verdict import Check, ScaleVerdict
from reports.evidence.study import SETTINGS, Study

CHECKS: tuple[OneCheck, ...] = (
    runs.check_decayed,
    *(runs.setting_check(attribute, label) for attribute, label in SETTINGS),
    runs.check_identity,
    runs.check_equal_trials,
    runs.check_tuning_hours,
    runs.check_tuning_length,
    runs.check_edges,
    runs.check_fresh_seeds,
    runs.check_chosen_blindly,
    estimates.check_seeds,
    estimates.check_sigma,
    estimates.check_validation_text,
    estimates.check_ladder,
    estimates.check_bracketed,
    estimates.check_monotone,
    estimates.check_lack_of_fit,
    estimates.check_pchip,
    estimates.check_clocks,
    estimates.check_budget_trend,
    estimates.check_scale_trend,
    estimates.check_data,
    estimates.check_unseen,
    runs.check_outcomes,
    runs.check_step_time,
    runs.check_recovery,
    estimates.check_target_size,
)

WHERE_STATED: tuple[stated.StatedCheck, ...] = (stated.check_execution, stated.check_one_clock, stated.check_loss_unit)
"""Checks of what only some tables of runs from elsewhere say; without it they are left out."""


def run_checks(study: Study, verdicts: tuple[ScaleVerdict, ...]) -> tuple[Check, ...]:
    """All checks in the order of the page."""
    found = [check(study) for check in WHERE_STATED]
    return (*(check(study, verdicts) for check in CHECKS), *(check for check in found if check is not None))
