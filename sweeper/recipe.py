"""The winner of a sweep for the reader's trainer: its command with the values filled in, and what to expect of it."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from sweeper.reporting import read_study
from trainers.contract.errors import InputError
from trainers.contract.schedule import boundary_step
from trainers.contract.spec import ForeignSpec
from trainers.planning.command import OUT, PYTHON, TRIAL, reads_file, shell_line, trial_to_dict

FAR = 4.0
"""Times the ladder's longest run beyond which a forecast is only a guess."""
MACHINE = {TRIAL: "TRIAL.json", OUT: "OUT", PYTHON: "python"}


@dataclass(frozen=True, slots=True)
class TakeHome:
    """`command` is None for the built-in trainer, whose settings are a snippet; `lines` are for people."""

    command: str | None
    snippet: str
    lines: tuple[str, ...]


def recipe(results: Path, name: str, total_steps: int | None, tracking_uri: str | None) -> TakeHome:
    """The recipe of sweep `name` at `total_steps`, by default at the budget of its verdict.

    Raises `LedgerError` where there is no such sweep, `InputError` where it has confirmed no method.
    """
    from reports.estimate.targets import forecast
    from reports.html import theme
    from reports.sections.recipe import info, snippet
    from reports.summary import summarize

    study = read_study(results, name, tracking_uri)
    found = info(study, summarize(study))
    if found is None:
        raise InputError(f"{name}: has confirmed no method yet; there is no recipe to take home")
    main = found.main
    scale = next(one for one in study.scales if one.scale == main.scale)
    arm = next(one for one in scale.arms if one.method == main.method)
    steps = total_steps or main.total_steps
    boundary = boundary_step(float(dict(main.parameters).get("step_ratio", 0.0)), steps)
    tokens = None if main.tokens is None else main.tokens * steps / main.total_steps
    shown = replace(main, total_steps=steps, boundary_step=boundary, tokens=tokens)
    if main.decay_steps is not None:
        shown = replace(shown, decay_steps=round(main.decay_steps * steps / main.total_steps))
    to_come = forecast(scale, arm, steps)
    clock = scale.clock_label
    lines = [found.advice, f"{main.scale} {theme.method_label(main.method)}, {steps:,} steps"]
    lines += [f"boundary step: {boundary:,}"] if boundary else []
    lines += [f"data tokens: {theme.count(tokens)}"] if tokens is not None else []
    if to_come.loss is None:
        lines.append("expected loss: not known; the baseline has no ladder that can be read there")
    else:
        between = "" if to_come.interval is None else f" (95 %: {to_come.interval[0]:.4f} to {to_come.interval[1]:.4f})"
        how = "measured" if to_come.measured else "read off the baseline's ladder"
        far = f", {to_come.beyond:.3g} times its longest run: a guess" if to_come.beyond > FAR else ""
        lines.append(f"expected loss: {to_come.loss:.4f}{between}, {how}{far}")
    lines += [f"expected cost: {to_come.hours:.3g} {clock}"] if to_come.hours is not None else []
    record = arm.cells[-1].runs[0].record
    if record is None or not isinstance(record.spec, ForeignSpec):
        return TakeHome(None, snippet(shown), tuple(lines))
    # As long as the reader's run; its folder is theirs to name.
    longer = replace(record.spec, schedule=replace(record.spec.schedule, total_steps=steps))
    if reads_file(longer):
        lines.append(f"{MACHINE[TRIAL]}: {json.dumps(trial_to_dict(longer, MACHINE[OUT], resumes=False))}")
    return TakeHome(shell_line(longer, MACHINE), snippet(shown), tuple(lines))
