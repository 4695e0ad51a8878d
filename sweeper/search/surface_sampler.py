"""The surface as one of Optuna's samplers, for any study: `optuna.create_study(sampler=SurfaceSampler())`.

A study's distributions become a grid, its trials become observations, and the same chooser that a sweep asks says which
cell comes next. Nothing is kept in between: what is asked follows from the study, so that workers and restarts agree. Trials
that are asked at once, in threads, processes or machines, choose one after the other, each knowing what the others chose.
Values of a study need not be nats, so they are put on the model's scale by their own spread. What Optuna's samplers lack:
with a `fan_axis`, trials are asked for in fans that leave one trunk, and the model recommends (`recommend`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, RandomSampler
from optuna.search_space import IntersectionSearchSpace
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from sweeper.search.choosers import Situation, by_surface
from sweeper.search.domain import Axis, Domain, Parameters
from sweeper.search.surface import Observation

FAN = "surface:fan"
"""System attribute of a trial that leads a fan: the parameters of its mates."""
MATE_OF = "surface:mate_of"
"""System attribute of a mate: its leader's number."""
CHOSEN = "surface:chosen"
"""System attribute of a trial that runs: its parameters, before Optuna has written them down."""
CAME = "surface:came"
"""System attribute of a trial that wants to choose: since when, in seconds since 1970."""
TURN = "surface:turn"
"""System attribute of a trial that waits to choose: the lowest one is next, of equals the trial of the lowest number."""
PATIENCE = 20.0
"""Seconds after which a trial that came and has not chosen is no longer waited for: its process may be gone."""
_POLL_SECONDS = 0.02
SEED = "seed"
"""User attribute that says which seed a trial ran on; trials without it are each on their own."""

FINEST = 33
"""Values of an axis that has more, or infinitely many."""
COARSEST = 3
"""Values that every axis is given; where that makes too many cells, the study has too many axes for this model."""
TYPICAL_HEIGHT = 0.015
"""Nats from the best trial to the median one of a usual study: to this other units are scaled."""


def axis_of(name: str, distribution: BaseDistribution, most: int) -> Axis:
    """The grid of one parameter, with at most `most` values unless it is a category, whose values are its indices."""
    if isinstance(distribution, CategoricalDistribution):
        return Axis(name, tuple(range(len(distribution.choices))), "category")
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high, step, log = distribution.low, distribution.high, distribution.step, distribution.log
    if low == high:
        return Axis(name, (low,))
    if step is not None and (high - low) / step < most:
        values = [low + step * index for index in range(round((high - low) / step) + 1)]
    else:
        values = list(np.geomspace(low, high, most) if log else np.linspace(low, high, most))
        values = [low, *values[1:-1], high]
        if step is not None:
            values = [low + step * round((value - low) / step) for value in values]
    kind = int if isinstance(distribution, IntDistribution) else float
    return Axis(name, tuple(sorted({kind(value) for value in values})), "log" if log else "linear")


@dataclass(frozen=True, slots=True)
class _Grid:
    """A study's space as cells. `domain` has one budget; `told` and the rest are what the study's trials say."""

    space: Mapping[str, BaseDistribution]
    domain: Domain

    def cell(self, params: Mapping[str, Any]) -> int:
        """The cell nearest to the parameters of a trial."""
        places = {name: self._place(name, params[name]) for name in self.space}
        points = self.domain.points
        return min(range(len(points)), key=lambda cell: (round(self.domain.distance(points[cell], places), 12), cell))

    def params(self, point: Parameters) -> dict[str, Any]:
        """A point in the study's own values."""
        return {name: self._value(name, value) for name, value in point}

    def point(self, params: Mapping[str, Any]) -> Parameters:
        """The point nearest to `params`, of which names outside the space are ignored."""
        return self.domain.points[self.cell(params)]

    def _place(self, name: str, value: Any) -> float:
        distribution, axis = self.space[name], self.domain.axis(name)
        if isinstance(distribution, CategoricalDistribution):
            return float(distribution.to_internal_repr(value))
        return axis.coordinate(value)

    def _value(self, name: str, value: Any) -> Any:
        distribution = self.space[name]
        return distribution.choices[value] if isinstance(distribution, CategoricalDistribution) else value


class SurfaceSampler(BaseSampler):
    """The search of this project for a study with one objective and a handful of parameters.

    `fan_axis` names a parameter that trials of one fan may differ in while they share training up to it (a fraction of the
    run, in [0, 1]); then up to `fan` trials in a row leave one trunk. `centre` are parameters near which the best is
    expected, else the middle of every range; the first trial is there. `cells` bounds the grid that is laid over the space:
    float parameters take its values, and a study whose parameters make more cells at three values each is refused with a
    `ValueError`. `unit` is what a nat is in the objective's unit; None scales by the spread of the values seen. A user
    attribute `seed` says which trials ran on one seed. `seed` draws parameters that only some trials have, nothing else.
    """

    def __init__(
        self,
        *,
        fan_axis: str | None = None,
        fan: int = 3,
        centre: Mapping[str, Any] | None = None,
        cells: int = 1000,
        unit: float | None = None,
        seed: int = 0,
    ) -> None:
        if fan < 1 or cells < 1 or (unit is not None and not unit > 0):
            raise ValueError(f"SurfaceSampler: fan = {fan}, cells = {cells} and unit = {unit} must be above 0")
        self._fan_axis, self._fan, self._centre = fan_axis, fan, dict(centre or {})
        self._cells, self._unit, self._seed = cells, unit, seed

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The parameters that all finished trials have."""
        if len(study.directions) > 1:
            raise ValueError(f"SurfaceSampler: {len(study.directions)} objectives; it searches for the best of one")
        space: dict[str, BaseDistribution] = IntersectionSearchSpace().calculate(study)
        return {name: distribution for name, distribution in space.items() if not distribution.single()}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The next cell: a mate of a fan that is under way, else the first of a new fan."""
        if not search_space:
            return {}
        _wait_for_turn(study, trial)
        chosen: dict[str, Any] = {}
        try:
            chosen = self._choose(study, trial, search_space)
        finally:
            # Told before Optuna does: whoever is next, in another thread or process, chooses something else.
            study._storage.set_trial_system_attr(trial._trial_id, CHOSEN, chosen)
        return chosen

    def _choose(self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        trials = [one for one in study.get_trials(deepcopy=False) if one.number != trial.number]
        grid = self._grid(search_space)
        mate = self._waiting_mate(trials, search_space)
        if mate is not None:
            leader, params = mate
            study._storage.set_trial_system_attr(trial._trial_id, MATE_OF, leader)
            return params
        situation = self._situation(study, trials, grid)
        chosen = [grid.params(grid.domain.points[cell]) for cell in by_surface(situation)]
        if len(chosen) > 1:
            study._storage.set_trial_system_attr(trial._trial_id, FAN, chosen[1:])
        return chosen[0] if chosen else {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """The centre in the first trial; at random until one has finished, and what only some trials have."""
        if trial.number > 0:
            key = [self._seed, trial.number, crc32(param_name.encode())]
            random = RandomSampler(seed=int(np.random.default_rng(key).integers(2**31)))
            return random.sample_independent(study, trial, param_name, param_distribution)
        if param_name in self._centre and param_distribution._contains(
            param_distribution.to_internal_repr(self._centre[param_name])
        ):
            return self._centre[param_name]
        axis = axis_of(param_name, param_distribution, FINEST)
        ordered = axis.values if axis.spacing != "category" else axis.values[:1]
        middle = ordered[len(ordered) // 2]
        if isinstance(param_distribution, CategoricalDistribution):
            return param_distribution.choices[int(middle)]
        return middle

    def recommend(self, study: Study) -> dict[str, Any]:
        """Parameters of the best cell by the model, which is rarely the luckiest trial's.

        Raises `ValueError` while no trial has finished with a finite value.
        """
        trials = study.get_trials(deepcopy=False)
        space = IntersectionSearchSpace().calculate(study)
        if not any(one.state == TrialState.COMPLETE for one in trials) or not space:
            raise ValueError(f"study {study.study_name}: no trial has finished, so that nothing can be recommended")
        grid = self._grid(space)
        situation = self._situation(study, trials, grid)
        if all(one.loss is None for one in situation.told):
            raise ValueError(f"study {study.study_name}: no value is finite, so that nothing can be recommended")
        return grid.params(situation.surface.recommend().parameters)

    def _grid(self, space: Mapping[str, BaseDistribution]) -> _Grid:
        """The finest grid of at most `cells` cells."""
        for most in range(FINEST, COARSEST - 1, -1):
            axes = tuple(axis_of(name, distribution, most) for name, distribution in sorted(space.items()))
            count = math.prod(len(axis.values) for axis in axes)
            if count <= self._cells:
                fans = self._fan_axis if self._fan_axis in space else None
                return _Grid(space, Domain(axes, rungs=(1,), fan_axis=fans))
        raise ValueError(
            f"SurfaceSampler: {', '.join(sorted(space))} make {count} cells at {COARSEST} values each, more than cells = "
            f"{self._cells}; give it fewer parameters, or use a sampler such as TPESampler"
        )

    def _waiting_mate(
        self, trials: Sequence[FrozenTrial], space: Mapping[str, BaseDistribution]
    ) -> tuple[int, dict[str, Any]] | None:
        """The next member of the latest fan that nobody has taken, with its leader's number."""
        leader = next((one for one in reversed(trials) if one.system_attrs.get(FAN)), None)
        if leader is None:
            return None
        taken = sum(one.system_attrs.get(MATE_OF) == leader.number for one in trials)
        mates = leader.system_attrs[FAN]
        if taken >= len(mates) or set(mates[taken]) != set(space):
            return None
        return leader.number, mates[taken]

    def _situation(self, study: Study, trials: Sequence[FrozenTrial], grid: _Grid) -> Situation:
        known = [one for one in trials if one.state.is_finished() and set(grid.space) <= set(one.params)]
        begun = {one.number: {**one.system_attrs.get(CHOSEN, {}), **one.params} for one in trials}
        running = [
            one for one in trials if one.state == TrialState.RUNNING and set(grid.space) <= set(begun[one.number])
        ]
        sign = -1.0 if study.direction == StudyDirection.MAXIMIZE else 1.0
        values = {
            one.number: sign * one.value
            for one in known
            if one.state == TrialState.COMPLETE and one.value is not None and math.isfinite(one.value)
        }
        nats = self._nats(list(values.values()))
        cells = {one.number: grid.cell(begun[one.number]) for one in (*known, *running)}
        seeds = {one.number: _seed_of(one) for one in (*known, *running)}
        used: dict[int, frozenset[int]] = {}
        for number, cell in cells.items():
            used[cell] = used.get(cell, frozenset()) | {seeds[number]}
        told = tuple(
            Observation(
                cells[one.number], seeds[one.number], nats * values[one.number] if one.number in values else None
            )
            for one in known
        )
        centre = grid.point(self._centre) if set(grid.space) <= set(self._centre) else None
        return Situation(
            domain=grid.domain,
            told=told,
            pending=tuple(sorted({cells[one.number] for one in running})),
            seeds_used=used,
            leads=(),
            centre=centre,
            fan=self._fan if grid.domain.fan_axis else 1,
            asked=len(trials),
            seed=self._seed,
        )

    def _nats(self, values: Sequence[float]) -> float:
        """What a value is multiplied by before the model sees it."""
        if self._unit is not None:
            return 1.0 / self._unit
        heights = [value - min(values) for value in values]
        spread = float(np.median([height for height in heights if height > 0] or [0.0]))
        return TYPICAL_HEIGHT / spread if spread > 0 else 1.0


def _wait_for_turn(study: Study, trial: FrozenTrial) -> None:
    """Return once no other trial is choosing that came before, wherever it is asked (Lamport's bakery, 1974).

    A storage can neither lock nor compare and set, but what is written there is seen by all.
    """
    storage, identity = study._storage, trial._trial_id
    storage.set_trial_system_attr(identity, CAME, time.time())
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    turn = 1 + max((one.system_attrs.get(TURN, 0) for one in running), default=0)
    storage.set_trial_system_attr(identity, TURN, turn)
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        if not any(_goes_first(one, (turn, trial.number)) for one in running if one.number != trial.number):
            return
        time.sleep(_POLL_SECONDS)


def _goes_first(other: FrozenTrial, turn: tuple[int, int]) -> bool:
    attributes = other.system_attrs
    if CHOSEN in attributes or time.time() - attributes.get(CAME, 0.0) > PATIENCE:
        return False
    # One that came and has no turn yet may be about to get a lower one.
    return TURN not in attributes or (attributes[TURN], other.number) < turn


def _seed_of(trial: FrozenTrial) -> int:
    """The seed that it says, if that is one; else it is on its own."""
    seed = trial.user_attrs.get(SEED)
    return seed if isinstance(seed, int) else trial.number
