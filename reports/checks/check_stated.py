"""The checks that only some pages have: how runs from elsewhere were executed, what their losses are in, and whether runs
from here were timed by different clocks."""

from __future__ import annotations

from collections.abc import Callable

from reports.estimate.verdict import Check
from reports.evidence.clock import NO_HOURS, clock_note
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


def check_clock(study: Study) -> Check | None:
    """Compared runs that were timed by different clocks were put on one that all have; None where nothing had to be."""
    note = clock_note(study.runs)
    lost = any(NO_HOURS in run.notes for run in study.runs)
    number = "no hours" if lost else "whole wall time"
    return Check("Same clock", "fail" if lost else "warn", number, note) if note else None
