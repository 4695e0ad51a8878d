"""A foreign trial's points and clock, gathered over its attempts: which loss is its last, and what a step took.

The clock is the trainer's own where it gives one, else the wall's between the first and the last point of each attempt, so that
start-up is no part of it: by when they were written, where that is known, else by when they came. Which of them it was is said.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from sweeper.foreign.points import Sighting
from trainers.contract.record import MOST_LOSS

OWN, BETWEEN, WHOLE = "trainer's own", "point-to-point wall", "whole-command wall"
"""Clocks: `WHOLE` where there are too few points, so that start-up is in it."""
LEAST_ARRIVALS = 3
"""Times at which points came, below which the wall's clock between them is none: they may have waited in a buffer."""
MOST_POINTS = 1_000
"""Of a curve; a trainer may say a loss after every step."""


@dataclass
class Span:
    """What one attempt showed: its points lie between two steps, `seconds` of the wall apart, and came at `arrivals` times."""

    first: int
    last: int
    seconds: float = 0.0
    arrivals: int = 0

    @property
    def steps(self) -> int:
        """Steps between its points."""
        return max(0, self.last - self.first)


@dataclass
class Track:
    """All that a trial has said. `spans` are of attempts that were watched, this one last."""

    total_steps: int
    points: dict[int, Sighting] = field(default_factory=dict)
    final: Sighting | None = None
    diverged: tuple[int, str] | None = None
    objection: str | None = None
    spans: list[Span] = field(default_factory=list)
    _began: float | None = None
    _heard: float | None = None

    def add(self, sightings: Sequence[Sighting], now: float | None) -> None:
        """Take in what was said; `now` is the wall's clock in seconds, None for what was said before anybody watched."""
        for seen in sightings:
            step = self.step if seen.step is None else seen.step
            if not math.isfinite(seen.loss) or seen.loss > MOST_LOSS:
                self.diverged = self.diverged or (step, f"the loss is {seen.loss:g}")
            elif seen.loss < 0:
                self.objection = self.objection or f"a loss of {seen.loss:g} is none in nats per token"
            elif seen.step is None:
                self.final = seen
            elif step > self.total_steps:
                self.objection = self.objection or f"it trains step {step:,} of {self.total_steps:,}"
            else:
                self.points[step] = seen
                if now is not None:
                    self._time(step, now if seen.at is None else seen.at)

    def _time(self, step: int, now: float) -> None:
        if self._began is None or not self.spans:
            self._began = now
            self.spans.append(Span(step, step))
        span = self.spans[-1]
        if now != self._heard:
            self._heard, span.arrivals = now, span.arrivals + 1
        if step > span.last:
            span.last, span.seconds = step, now - self._began

    @property
    def step(self) -> int:
        """The last step that a point is of."""
        return max(self.points, default=0)

    @property
    def reached_the_end(self) -> bool:
        """Whether a final loss was said, or the last point is of the last step, counted from 0 or from 1."""
        return self.final is not None or self.step >= self.total_steps - 1

    @property
    def final_loss(self) -> float | None:
        """The loss at the end, None where there is none."""
        if not self.reached_the_end or (self.final is None and not self.points):
            return None
        return self.final.loss if self.final is not None else self.points[self.step].loss

    def clock(self, command_seconds: float) -> tuple[str, float]:
        """Which clock, and seconds a step by it; `command_seconds` are those of all attempts."""
        steps = max(1, self.step if self.points else self.total_steps)
        own = self._own_seconds()
        if own is not None:
            return OWN, own
        spanned = sum(span.steps for span in self.spans)
        seconds = sum(span.seconds for span in self.spans if span.steps)
        # Output that was held back comes at once, when the training that it tells of is long over.
        if spanned and seconds > 0 and sum(span.arrivals for span in self.spans) >= LEAST_ARRIVALS:
            return BETWEEN, seconds / spanned
        return WHOLE, command_seconds / steps

    def seconds_at(self, step: int, seen: Sighting, clock: str, step_seconds: float) -> float:
        """The clock at a point: as the trainer said, where it said so at every point and never went back."""
        told = [point.seconds for _, point in sorted(self.points.items())]
        steady = all(a is not None and b is not None and a <= b for a, b in pairwise(told))
        return seen.seconds if clock == OWN and steady and seen.seconds is not None else step * step_seconds

    def _own_seconds(self) -> float | None:
        """Seconds a step by the trainer's clock: its last word, or the rate between words where it was set back."""
        if self.final is not None and self.final.seconds:
            return self.final.seconds / self.total_steps
        told = [(step, seen.seconds) for step, seen in sorted(self.points.items()) if seen.seconds is not None]
        if not told or not told[-1][0] or not told[-1][1]:
            return None
        pairs = [(after[0] - before[0], after[1] - before[1]) for before, after in pairwise(told)]
        if all(seconds >= 0 for _, seconds in pairs):
            return told[-1][1] / told[-1][0]
        forward = [(steps, seconds) for steps, seconds in pairs if seconds >= 0]
        return sum(s for _, s in forward) / sum(n for n, _ in forward) if forward else None

    def curve(self) -> list[tuple[int, Sighting]]:
        """The points in order, thinned evenly; the last is the end's, with the final loss."""
        points = sorted(self.points.items())
        loss = self.final_loss
        if loss is not None:
            last = points[-1][1] if points else Sighting(self.total_steps, loss)
            if points and points[-1][0] >= self.total_steps - 1:
                points.pop()
            ending = self.final if self.final is not None and self.final.seconds is not None else last
            points.append(
                (
                    self.total_steps,
                    Sighting(self.total_steps, loss, ending.seconds, last.tokens, last.flops, last.phase),
                )
            )
        if len(points) <= MOST_POINTS:
            return points
        end = len(points) - 1
        return [points[round(index * end / (MOST_POINTS - 1))] for index in range(MOST_POINTS)]
