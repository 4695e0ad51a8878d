"""One arm's search: it is asked for the next fan and told how runs ended, and counts so that both arms get the same.

Everything it says follows from its settings and from the trials it knows: the sweep rebuilds it from the ledger with
`tell` for finished trials and `adopt` for trials that were asked but have not ended.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from sweeper.search.choosers import CHOOSERS, Situation
from sweeper.search.domain import Domain, Parameters, Proposal, Recommendation
from sweeper.search.rungs import promoted_fan, ranking, rung_sizes
from sweeper.search.surface import Observation, Surface, fit_surface
from sweeper.search.warm_start import nearest_point

STRATEGIES: tuple[str, ...] = (*CHOOSERS, "auto")
UNLEARNED = frozenset({"grid", "random"})
"""Samplers whose next trial follows from no loss."""


class Strategy:
    """Use `make_strategy`. `trials` counts every proposal of every rung, finished or not."""

    def __init__(
        self,
        domain: Domain,
        sampler: str,
        *,
        trials: int,
        fan: int,
        seed: int,
        warm_start: tuple[Parameters, ...],
    ) -> None:
        self.domain, self.sampler, self.trials = domain, sampler, trials
        self._fan, self._seed, self._warm_start = fan, seed, warm_start
        self._sizes = rung_sizes(len(domain.rungs), trials)
        self._cells = {point: cell for cell, point in enumerate(domain.points)}
        self._told: dict[Proposal, float | None] = {}
        self._pending: set[Proposal] = set()

    @property
    def pending(self) -> int:
        """Trials asked or adopted, and not told yet."""
        return len(self._pending)

    @property
    def remaining(self) -> int:
        """Trials that may still be asked."""
        return max(0, self.trials - len(self._told) - len(self._pending))

    def ask(self, max_trials: int | None = None) -> tuple[Proposal, ...]:
        """The next fan: at most `max_trials`, equal but for the fan axis. May be called while earlier ones run.

        Empty when all trials are asked, or, with `remaining` above zero, when the next rung waits for pending ones.
        """
        limit = min(self.remaining, self._fan, self._fan if max_trials is None else max_trials)
        if limit < 1:
            return ()
        asked = [*self._told, *self._pending]
        for rung, (steps, size) in enumerate(zip(self.domain.rungs, self._sizes, strict=True)):
            room = size - sum(proposal.total_steps == steps for proposal in asked)
            # Trials that were told without being asked may overfill any rung; what is left then goes to the last one.
            if room < 1 and steps != self.domain.rungs[-1]:
                continue
            fan = self._next(rung, min(limit, max(room, 1)))
            self._pending.update(fan)
            return fan
        raise AssertionError("the last rung takes what is left")

    def tell(self, proposal: Proposal, loss: float | None) -> None:
        """Final validation loss in nats of a finished, decayed run; None when it diverged, failed or was stopped.

        A trial that this strategy never asked counts as asked. Raises `ValueError` outside the domain, for a loss that
        is not finite, and for a second, different answer.
        """
        self.domain.refuse_outside(proposal)
        if loss is not None and not math.isfinite(loss):
            raise ValueError(f"loss: {loss} is not a finite number; tell None for a run that diverged")
        if proposal in self._told and self._told[proposal] != loss:
            raise ValueError(f"{proposal} was told as {self._told[proposal]} and now as {loss}")
        self._pending.discard(proposal)
        self._told[proposal] = loss

    def adopt(self, proposal: Proposal) -> None:
        """Count a trial that was asked before and has not ended. Raises `ValueError` outside the domain."""
        self.domain.refuse_outside(proposal)
        if proposal not in self._told:
            self._pending.add(proposal)

    def recommend(self) -> Recommendation:
        """The best cell by the model of the highest rung that has a finished trial; the order of telling is irrelevant.

        Raises `ValueError` when no trial has finished.
        """
        for rung in reversed(range(len(self.domain.rungs))):
            if any(trial.loss is not None for trial in self._observations(rung)):
                return self._surface(rung).recommend()
        raise ValueError("no trial of this arm has finished, so that nothing can be recommended")

    def _next(self, rung: int, limit: int) -> tuple[Proposal, ...]:
        steps = self.domain.rungs[rung]
        at_rung = {
            (self._cells[p.parameters], p.seed) for p in self._pending | set(self._told) if p.total_steps == steps
        }
        if rung > 0 and self._sizes[rung - 1] > 0:
            # Promotions before the rung below has ended would depend on which worker was faster.
            if any(proposal.total_steps < steps for proposal in self._pending):
                return ()
            # Same cell, same seed: the run goes on from the trunk that it has left.
            promoted = promoted_fan(self.domain, ranking(self._surface(rung - 1)), at_rung, limit, self._sizes[rung])
            if promoted:
                return tuple(Proposal(self.domain.points[t.cell], steps, t.seed) for t in promoted)
        situation = self._situation(rung, at_rung, limit)
        cells = CHOOSERS[self.sampler](situation)
        seeds = [situation.next_seed(cell) for cell in cells]
        return tuple(
            Proposal(self.domain.points[cell], steps, seed)
            for cell, seed in zip(cells, seeds, strict=True)
            if seed is not None
        )

    def _situation(self, rung: int, at_rung: set[tuple[int, int]], limit: int) -> Situation:
        used: dict[int, frozenset[int]] = {}
        for cell, seed in at_rung:
            used[cell] = used.get(cell, frozenset()) | {seed}
        steps = self.domain.rungs[rung]
        return Situation(
            domain=self.domain,
            told=self._observations(rung),
            pending=tuple(sorted({self._cells[p.parameters] for p in self._pending if p.total_steps == steps})),
            seeds_used=used,
            leads=tuple(self._cells[point] for point in self._warm_start),
            centre=self._centre(rung),
            fan=limit,
            asked=len(self._told) + len(self._pending),
            seed=self._seed,
        )

    def _observations(self, rung: int) -> tuple[Observation, ...]:
        steps = self.domain.rungs[rung]
        found = [
            Observation(self._cells[proposal.parameters], proposal.seed, loss)
            for proposal, loss in self._told.items()
            if proposal.total_steps == steps
        ]
        return tuple(sorted(found, key=lambda trial: (trial.cell, trial.seed)))

    def _centre(self, rung: int) -> Parameters | None:
        """Where the optimum is expected: the best point of the rung below, else the warm start's first point."""
        if rung > 0 and any(trial.loss is not None for trial in self._observations(rung - 1)):
            return self._surface(rung - 1).recommend().parameters
        if rung > 0:
            return self._centre(rung - 1)
        return self._warm_start[0] if self._warm_start else None

    def _surface(self, rung: int) -> Surface:
        return fit_surface(self.domain, self._observations(rung), self._centre(rung))


def make_strategy(
    sampler: str,
    domain: Domain,
    *,
    trials: int,
    fan: int = 3,
    seed: int = 0,
    warm_start: Sequence[Parameters] = (),
) -> Strategy:
    """A search of one arm at one scale. `warm_start` are points to look at first, moved to the nearest cell.

    `auto` is the grid when `trials` cover every cell equally often at one budget, else the surface.
    Raises `ValueError` for an unknown sampler, for no trials, and for more trials than cells and search seeds allow.
    """
    if sampler not in STRATEGIES:
        raise ValueError(f"sampler: {sampler!r} is not one of {', '.join(STRATEGIES)}")
    if trials < 1 or fan < 1:
        raise ValueError(f"search: trials = {trials} and fan = {fan} must be at least 1")
    num_points = len(domain.points)
    # Raises here, before anything runs, rather than at the first trial without a seed.
    domain.seed_of_repeat(-(-trials // num_points) - 1)
    if sampler == "auto":
        sampler = "grid" if len(domain.rungs) == 1 and trials % num_points == 0 else "surface"
    points = tuple(dict.fromkeys(nearest_point(domain, point) for point in warm_start))
    return Strategy(domain, sampler, trials=trials, fan=fan, seed=seed, warm_start=points)
