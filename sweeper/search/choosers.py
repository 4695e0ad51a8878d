"""How the next fan is chosen at one budget: at random, along the grid, by the surface, or led by one of Optuna's samplers.

A chooser is a function of the history alone, so that a sweep that was killed goes on as if it had not been. Budgets,
counting and seeds are `strategies`' business.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sweeper.search.acquisition import choose_fan
from sweeper.search.domain import Domain, Parameters
from sweeper.search.surface import Observation, Surface, fit_surface, layout_of
from sweeper.search.warm_start import nearest_point

LEAST_TOLD = 6
"""Trials before the surface is asked whether it has left a part of the grid out."""
HOLE = 2.4
"""How far a cell may lie from all trials, in half ranges, times the root of the number of trials (of the order of the axes)."""
CELLS_A_REPEAT = 4
"""Different cells that the surface must have tried for each further repeat of one."""


@dataclass(frozen=True)
class Situation:
    """What is known at one budget. Cells index `domain.points`; `seeds_used` holds asked seeds by cell.

    `leads` are cells to try first; `centre` is where the optimum is expected. `asked` counts all trials of the arm and
    `seed` is the search's own; together they decide every random choice.
    """

    domain: Domain
    told: tuple[Observation, ...]
    pending: tuple[int, ...]
    seeds_used: Mapping[int, frozenset[int]]
    leads: tuple[int, ...]
    centre: Parameters | None
    fan: int
    asked: int
    seed: int

    @cached_property
    def surface(self) -> Surface:
        """The search's model of this budget."""
        return fit_surface(self.domain, self.told, self.centre)

    def next_seed(self, cell: int) -> int | None:
        """Seed of the next repeat of a cell, None when the search seeds are used up."""
        used = self.seeds_used.get(cell, frozenset())
        for repeat in range(len(used) + 1):
            try:
                seed = self.domain.seed_of_repeat(repeat)
            except ValueError:
                return None
            if seed not in used:
                return seed
        return None

    @cached_property
    def trunks(self) -> tuple[tuple[int, ...], ...]:
        """All cells, grouped by everything but the fan axis."""
        found: dict[Parameters, list[int]] = {}
        for cell, point in enumerate(self.domain.points):
            found.setdefault(self._shared(point), []).append(cell)
        return tuple(tuple(members) for members in found.values())

    def _shared(self, point: Parameters) -> Parameters:
        return tuple(pair for pair in point if pair[0] != self.domain.fan_axis)

    def families(self, cells: Iterable[int]) -> dict[Hashable, tuple[int, ...]]:
        """`cells` by what a fan has in common: everything but the fan axis, and the seed. Used-up cells are left out."""
        found: dict[Hashable, list[int]] = {}
        points = self.domain.points
        for cell in cells:
            seed = self.next_seed(cell)
            if seed is not None:
                found.setdefault((self._shared(points[cell]), seed), []).append(cell)
        return {key: tuple(members) for key, members in found.items()}

    @cached_property
    def open_families(self) -> dict[Hashable, tuple[int, ...]]:
        """Families without the cells that are pending; with them where there is nothing else left."""
        idle = self.families(sorted(set(range(len(self.domain.points))) - set(self.pending)))
        return idle or self.families(range(len(self.domain.points)))

    @property
    def fan_limit(self) -> int:
        """Most trials of one fan: one where no axis fans out."""
        return self.fan if self.domain.fan_axis is not None else 1

    def unseen_lead(self) -> int | None:
        """The next cell of `leads` that was never asked."""
        return next((cell for cell in self.leads if not self.seeds_used.get(cell)), None)

    def least_tried(self) -> list[int]:
        """Cells with the fewest trials, pending ones counted as tried."""
        cells = range(len(self.domain.points))
        fewest = min(len(self.seeds_used.get(cell, ())) for cell in cells)
        return [cell for cell in cells if len(self.seeds_used.get(cell, ())) == fewest]


Chooser = Callable[[Situation], tuple[int, ...]]


def by_chance(situation: Situation) -> tuple[int, ...]:
    """A cell at random among the least tried, and others of its family at random."""
    # The number of trials asked is the state of the generator: after a stop it stands where it stood.
    random = np.random.default_rng([situation.seed, situation.asked])
    families = list(situation.families(situation.least_tried()).values())
    candidates = sorted(cell for members in families for cell in members)
    if not candidates:
        return ()
    lead = situation.unseen_lead()
    first = int(random.choice(candidates)) if lead is None or lead not in candidates else lead
    others = [cell for cell in _home(families, first) if cell != first]
    return (first, *(int(cell) for cell in random.permutation(others)[: situation.fan_limit - 1]))


def along_the_grid(situation: Situation) -> tuple[int, ...]:
    """Every cell once, then every cell with the next seed; families in a shuffled order, so that a part is a sample.

    A family that was begun is finished first.
    """
    families = situation.families(situation.least_tried())
    order = np.random.default_rng(situation.seed).permutation(len(situation.domain.points))
    place = {int(cell): number for number, cell in enumerate(order)}
    trunks = situation.trunks

    def rank(members: tuple[int, ...]) -> tuple[bool, int]:
        mates = _home(trunks, members[0])
        # A family whose mates are partly tried is shorter than its trunk: it sorts first, while its trunk's state is
        # still kept.
        return len(members) == len(mates), min(place[cell] for cell in mates)

    return min(families.values(), key=rank, default=())[: situation.fan_limit]


def _home(families: Iterable[tuple[int, ...]], cell: int) -> tuple[int, ...]:
    return next((members for members in families if cell in members), ())


def by_surface(situation: Situation) -> tuple[int, ...]:
    """The fan of the largest knowledge gradient per cost; the first one holds the first lead, or the grid's middle.

    Further leads are not followed: the model expects the optimum near the first one, and its own questions teach more. Where
    the model may be wrong, it is not asked: no part of the grid is left out for long, and no cell is repeated for ever.
    """
    if situation.seeds_used:
        lead = _hole(situation)
        return _fan(situation, lead, situation.open_families if lead is not None else _fresh_families(situation))
    middle = nearest_point(situation.domain, situation.centre or ())
    first = situation.leads[0] if situation.leads else situation.domain.points.index(middle)
    return _fan(situation, first, situation.open_families)


def _hole(situation: Situation) -> int | None:
    """The cell farthest from all that were tried, where it is farther than an even spread of the trials would leave.

    A model that has found one basin is sure of it, and would never see another. Repeats count as trials here, so that a
    search that only repeats itself is sent away. The first trials are the model's own.
    """
    tried = [cell for cell, seeds in situation.seeds_used.items() if seeds]
    places_PA = layout_of(situation.domain, situation.centre).places_PA
    if len(situation.told) < LEAST_TOLD or not places_PA.shape[1]:
        return None
    gaps_PN = np.sqrt(((places_PA[:, None] - places_PA[None, tried]) ** 2).sum(-1))
    nearest_P = np.round(gaps_PN.min(1), 9)
    cell = int(nearest_P.argmax())
    trials = sum(len(seeds) for seeds in situation.seeds_used.values())
    return cell if nearest_P[cell] > HOLE * trials ** (-1 / places_PA.shape[1]) else None


def _fresh_families(situation: Situation) -> Mapping[Hashable, tuple[int, ...]]:
    """The open families without cells that have had their share of repeats; with them where there is nothing else."""
    tried = {cell: len(seeds) for cell, seeds in situation.seeds_used.items()}
    most = 1 + sum(count > 0 for count in tried.values()) // CELLS_A_REPEAT
    families = {
        key: tuple(cell for cell in members if tried.get(cell, 0) < most)
        for key, members in situation.open_families.items()
    }
    return {key: members for key, members in families.items() if members} or situation.open_families


def _fan(situation: Situation, first: int | None, families: Mapping[Hashable, tuple[int, ...]]) -> tuple[int, ...]:
    return choose_fan(
        situation.domain,
        situation.surface,
        fan=situation.fan_limit,
        pending=situation.pending,
        families=families,
        first=first,
    )


def by_tpe(situation: Situation) -> tuple[int, ...]:
    """Optuna's tree-structured Parzen estimator leads, the surface fills the fan."""
    return _led_by_optuna(situation, "tpe")


def by_gaussian_process(situation: Situation) -> tuple[int, ...]:
    """Optuna's Gaussian-process sampler leads, the surface fills the fan."""
    return _led_by_optuna(situation, "gp")


def _led_by_optuna(situation: Situation, sampler: str) -> tuple[int, ...]:
    lead = situation.unseen_lead()
    if lead is None:
        from sweeper.search.samplers import suggest

        seed = int(np.random.default_rng([situation.seed, situation.asked]).integers(2**31))
        wanted = suggest(situation.domain, sampler, situation.told, situation.pending, seed)
        lead = _nearest(situation, wanted)
    return () if lead is None else _fan(situation, lead, situation.open_families)


def _nearest(situation: Situation, wanted: Mapping[str, float]) -> int | None:
    """The cell on offer that is nearest to the wanted coordinates, each axis measured in its own range."""
    offered = sorted(cell for members in situation.open_families.values() for cell in members)
    points = situation.domain.points
    return min(offered, key=lambda cell: (situation.domain.distance(points[cell], wanted), cell), default=None)


CHOOSERS: dict[str, Chooser] = {
    "random": by_chance,
    "grid": along_the_grid,
    "tpe": by_tpe,
    "gp": by_gaussian_process,
    "surface": by_surface,
}
