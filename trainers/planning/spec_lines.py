"""Trials to train as JSON Lines, in the order of their worth: what a machine without an orchestrator is given.

A line is `{"spec": {...}, "stage": "tuning"}`, or a bare spec, which is a confirmation run. With `"winner": true` the
spec's learning rate and method parameters are replaced by those that won the tuning trials of the same file: one file
holds a whole sweep. Winners are chosen once every tuning trial of the scale has ended, for all methods alike.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trainers.contract.errors import InputError
from trainers.contract.record import PURPOSES, RunRecord
from trainers.contract.record_lines import BadLinesError, read_lines
from trainers.contract.spec import NUMERICS_VERSION, TrialSpec, own, spec_from_dict, spec_to_dict
from trainers.methods import phases_of

CONFIRMATION, TUNING = "confirmation", "tuning"


@dataclass(frozen=True, slots=True)
class TrialLine:
    """A trial and why it is run (one of `PURPOSES`). `winner`: its tuned values are yet to be filled in.

    `number` is its line in the file, from 1; 0 where it is in none.
    """

    spec: TrialSpec
    purpose: str = CONFIRMATION
    winner: bool = False
    number: int = 0


def _trial(number: int, value: Any) -> TrialLine:
    if not isinstance(value, dict):
        raise InputError("not a trial: a line is one JSON object")
    wrapped: dict[str, Any] = value if "spec" in value else {"spec": value}
    unknown = set(wrapped) - {"spec", "stage", "winner"}
    if unknown:
        raise InputError(f"unknown: {', '.join(sorted(unknown))}; a line has spec, stage and winner")
    spec = own(spec_from_dict(wrapped["spec"]))
    phases_of(spec)
    line = TrialLine(spec, wrapped.get("stage", CONFIRMATION), wrapped.get("winner", False), number)
    if line.purpose not in PURPOSES:
        raise InputError(f"stage: {line.purpose!r} is not one of {', '.join(PURPOSES)}")
    if not isinstance(line.winner, bool) or (line.winner and line.purpose == TUNING):
        raise InputError(f"winner: {line.winner!r} is not true or false, with false for tuning")
    if spec.numerics != NUMERICS_VERSION:
        raise InputError(f"numerics: {spec.numerics}, this version trains {NUMERICS_VERSION}; make the specs anew")
    return line


def read_trials(path: Path) -> tuple[TrialLine, ...]:
    """The trials of a file in its order. Raises `BadLinesError` with every line that cannot be trained."""
    trials = read_lines(path, _trial)
    problems: list[str] = []
    first: dict[tuple[str, bool], int] = {}
    tuned = {(line.spec.scale, line.spec.method) for line in trials if line.purpose == TUNING}
    for line in trials:
        if (key := (line.spec.spec_id, line.winner)) in first:
            problems.append(f"{path.name}:{line.number}: the trial of line {first[key]} again")
        first.setdefault(key, line.number)
        if line.winner and (line.spec.scale, line.spec.method) not in tuned:
            problems.append(
                f"{path.name}:{line.number}: winner: no tuning trial of {line.spec.scale} {line.spec.method} in the file"
            )
    if problems:
        raise BadLinesError(problems)
    if not trials:
        raise BadLinesError([f"{path.name}: holds no trial"])
    return tuple(trials)


def trials_to_text(trials: Iterable[TrialLine]) -> str:
    """The text that `read_trials` reads."""
    lines = []
    for trial in trials:
        marked = {"winner": True} if trial.winner else {}
        plain = {"stage": trial.purpose, **marked, "spec": spec_to_dict(trial.spec)}
        lines.append(json.dumps(plain, allow_nan=False) + "\n")
    return "".join(lines)


def winner_of(records: Sequence[RunRecord]) -> TrialSpec | None:
    """A trial with the values that won: lowest mean final loss at the highest budget, over as many seeds as any has.

    None where no trial has finished. There is no model between trials here as in `sweeper.search`: a design of few
    cells, each trained, needs none.
    """
    ended = [record for record in records if record.final_loss is not None]
    # Losses of different budgets do not compare, and a shorter run's says less.
    top = max((record.spec.schedule.total_steps for record in ended), default=0)
    cells: dict[Any, list[RunRecord]] = defaultdict(list)
    for record in ended:
        if record.spec.schedule.total_steps == top:
            cells[record.spec.parameters, record.spec.schedule.learning_rate].append(record)
    most = max((len(cell) for cell in cells.values()), default=0)

    def mean_loss(cell: list[RunRecord]) -> float:
        return math.fsum(record.final_loss or 0.0 for record in cell) / len(cell)

    # A mean over one seed is luckier than one over three: only cells with as many seeds as any compete.
    full = [cell for cell in cells.values() if len(cell) == most]
    # Ties by the spec's own text: the file's order must not choose.
    best = min(full, key=lambda cell: (mean_loss(cell), str(cell[0].spec)), default=None)
    return own(best[0].spec) if best else None


def filled_in(trials: Sequence[TrialLine], ended: Mapping[str, RunRecord]) -> list[tuple[TrialSpec, str]]:
    """The trials that can be trained now, with their purposes, in order. `ended` are records by spec id.

    Trials of winners are left out until every tuning trial of their scale is in `ended`, and where none finished.
    """
    tuning = [line.spec for line in trials if line.purpose == TUNING]
    # By scale, not by arm: confirmations of one arm before the other's would spend a short machine on half a
    # comparison.
    open_scales = {spec.scale for spec in tuning if spec.spec_id not in ended}
    found: dict[str, tuple[TrialSpec, str]] = {}
    for line in trials:
        spec = line.spec
        if line.winner:
            own = [s.spec_id for s in tuning if (s.scale, s.method) == (spec.scale, spec.method)]
            won = None if spec.scale in open_scales else winner_of([ended[spec_id] for spec_id in own])
            if won is None:
                continue
            rate = won.schedule.learning_rate
            spec = replace(spec, parameters=won.parameters, schedule=replace(spec.schedule, learning_rate=rate))
        found.setdefault(spec.spec_id, (spec, line.purpose))
    return list(found.values())
