"""Which states a sweep leaves on the disk, and for which there is room.

Two kinds outlive their stage though no trial that is known goes on from them: those that a later round of the search may go
on from, and the weights at the end of confirmed trials, which are exported. The first are needed to go on cheaply, the second
are kept where there is room. What is deleted, and when, is the book's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress

from sweeper.engine.site import state_bytes, weights_bytes
from sweeper.space.foreign_schema import AnySpace
from trainers.contract.record import RunRecord
from trainers.contract.spec import AnySpec, TrialSpec
from trainers.planning.lineage import Segment, path_of
from trainers.planning.stages import StageBook

EXPORTED_PURPOSE = "confirmation"
"""Of the trials whose weights are kept: winners, on seeds that no search chose."""


def boundaries(specs: Iterable[AnySpec], space: AnySpace, execution: str) -> set[str]:
    """States of tuning trials that a later round of the search may go on from: at the boundary, and without one where the
    decay begins, as long as there is a higher rung."""
    nodes = set()
    for spec in specs:
        path = path_of(spec, execution)
        steps = [phase.end for phase in path.phases[:-1]]
        if not steps and spec.schedule.total_steps < space.methods[spec.method].budgets.rungs[-1]:
            steps = [spec.schedule.decay_start]
        nodes |= {path.node(step) for step in steps if step}
    return nodes


def winners_ends(trials: Iterable[tuple[AnySpec, str]], execution: str) -> set[str]:
    """Where the weights of the confirmed trials lie, of trials with their purpose. Another trainer's are its own affair."""
    return {
        path_of(spec, execution).node(spec.schedule.total_steps)
        for spec, purpose in trials
        if purpose == EXPORTED_PURPOSE and isinstance(spec, TrialSpec)
    }


def final_nodes(records: Iterable[RunRecord]) -> set[str]:
    """The same of trials that have ended."""
    nodes: set[str] = set()
    for record in records:
        if record.final_loss is not None:
            with suppress(ValueError):  # of a method that this version does not know
                nodes |= winners_ends([(record.spec, record.purpose)], record.provenance.execution)
    return nodes


def bytes_left_by(book: StageBook, segment: Segment) -> int:
    """What a stage leaves on the disk when it ends."""
    if book.keeps_state(segment):
        return state_bytes(segment.spec)
    return weights_bytes(segment.spec) if segment.node in book.finals else 0


def disk_left(book: StageBook, disk_bytes: float) -> float:
    """Bytes of the budget that no state has, also none of a running stage."""
    # A running stage has written nothing yet, but its state will come: without this, two workers overrun the budget.
    coming = sum(bytes_left_by(book, segment) for segment in book.running.values())
    return disk_bytes - sum(book.store.states().values()) - coming


def first_affordable(book: StageBook, disk_bytes: float, preferred: Callable[[Segment], bool]) -> Segment | None:
    """The first stage in line that leaves no state that anything goes on from, or one for which the budget has room; a
    `preferred` one where there is any."""
    room, first = disk_left(book, disk_bytes), None
    for segment in book.in_line():
        best = preferred(segment)
        if (best or first is None) and (not book.keeps_state(segment) or state_bytes(segment.spec) <= room):
            if best:
                return segment
            first = segment
    return first


def refuse_weights_without_room(book: StageBook, segment: Segment, disk_bytes: float) -> bool:
    """Give up the final weights of a stage that is about to start where the budget has no room for them: the sweep goes on
    without. Whether it did."""
    if segment.node not in book.finals or book.keeps_state(segment):
        return False
    if weights_bytes(segment.spec) <= disk_left(book, disk_bytes):
        return False
    book.finals.discard(segment.node)
    return True
