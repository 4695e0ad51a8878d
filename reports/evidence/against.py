"""A study with a method in the baseline's place: two methods held against each other by the same estimators.

Which runs may enter was decided when the study was built, and stays.
"""

from __future__ import annotations

from dataclasses import replace

from reports.evidence.runs import BASELINE
from reports.evidence.study import ScaleStudy, Study
from trainers.contract.errors import InputError


def held_against(study: Study, method: str) -> Study:
    """The study in which `method`'s ladder is the one that all other methods are read off.

    The baseline is compared with nothing there, but its seeds still tell how far seeds scatter. Raises `InputError` where
    the study has no such method beside the baseline, or no other one.
    """
    there = dict.fromkeys(arm.method for scale in study.scales for arm in scale.methods)
    if method not in there and method.lower() in there:  # as the names of a table are read
        method = method.lower()
    if method not in there:
        choice = f"one of {', '.join(there)}" if there else "there is none beside the baseline"
        raise InputError(f"{method}: not a method of {study.context.name} to hold others against; {choice}")
    if len(there) < 2:
        raise InputError(f"{method}: {study.context.name} has no other method to hold against it")
    context = replace(study.context, against=method, command=f"{study.context.command} --against {method}")
    return replace(study, context=context, scales=tuple(_in_place(scale, method) for scale in study.scales))


def _in_place(scale: ScaleStudy, method: str) -> ScaleStudy:
    """A scale at which the method did not run has nothing to compare."""
    own = next((arm for arm in scale.methods if arm.method == method), None)
    rivals = tuple(arm for arm in scale.methods if arm.method != method)
    apart = tuple(arm for arm in scale.arms if arm.method == BASELINE or (own is None and arm.method != method))
    return replace(scale, baseline=own, methods=rivals if own is not None else (), apart=apart)
