"""The checks of what runs from elsewhere state about themselves: how they were executed, and what their losses are in."""

from __future__ import annotations

from collections.abc import Callable

from reports.estimate.verdict import Check
from reports.evidence.clock import WHOLE_COMMAND
from reports.evidence.runs import strangest_loss
from reports.evidence.study import Study
from reports.evidence.units import NATS, know_nothing
from reports.html import theme

StatedCheck = Callable[[Study], Check | None]


def check_execution(study: Study) -> Check | None:
    """An arm whose runs were executed in several ways has several clocks; None where no run states it."""
    name = "Same execution"
    arms = [{run.execution for cell in arm.cells for run in cell.runs} for scale in study.scales for arm in scale.arms]
    known = sorted({way for ways in arms for way in ways if way is not None})
    if not known:
        return None
    words = ", ".join(known)
    if any(len(ways) > 1 for ways in arms):
        return Check(name, "warn", "several in one arm", f"Runs of one arm were executed in several ways: {words}.")
    if len(known) > 1 or any(None in ways for ways in arms):
        sentence = f"The arms were executed in several ways, which moves their hours: {words}."
        return Check(name, "warn", f"{len(known)} stated", sentence)
    return Check(name, "pass", "1 value", f"All compared runs were executed in the same way: {words}.")


def check_one_clock(study: Study) -> Check | None:
    """Whether runs of another trainer had to be brought to one clock; None where all had the same."""
    runs = [run for run in study.runs if WHOLE_COMMAND in run.notes and run.purpose == "confirmation"]
    if not runs:
        return None
    sentence = (
        "Some runs said too little to time their steps (fewer than three points), so that all of a scale are timed by the "
        "whole command, start-up included. Give seconds with the points, or say them oftener."
    )
    return Check("Same clock", "warn", f"{len(runs)} runs", sentence)


def check_loss_unit(study: Study) -> Check | None:
    """Losses are nats per token, as stated or as converted; None where nothing was converted and nothing is strange.

    Warns above ln V, the loss of a model that knows nothing: it may be a perplexity, or of another unit.
    """
    name = "Losses in nats"
    runs = [run for run in study.runs if run.record is None and run.final_loss is not None]
    words = ", ".join(sorted({run.loss_unit.words for run in runs}))
    if (strange := strangest_loss(runs)) is not None:
        sentence = (
            f"A final loss lies above ln V = {theme.number(know_nothing(strange.vocab_size))}, that of a model that knows "
            f"nothing: were the losses, read as {words}, of another unit?"
        )
        return Check(name, "warn", theme.loss(strange.final_loss), sentence)
    if all(run.loss_unit.name == NATS for run in runs):
        return None
    return Check(name, "pass", words, f"The table's losses were in {words}; all losses here are nats per token.")
