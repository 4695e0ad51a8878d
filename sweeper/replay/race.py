"""How much does each search strategy spend until it would recommend a good cell? Raced on published tables, in seconds.

The winner is decided by a rule that was fixed beforehand: full-budget equivalents until the recommended cell is within
the tolerance of the best of the *smoothed* table. What a trial "ends" at is `loss_table`'s.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import connection, get_context, parent_process
from statistics import median

from reports.pages.replay import Race, ReplayResult, Standing
from sweeper.replay.loss_table import (
    SEED_DEVIATION,
    TOLERANCE,
    LossTable,
    Truth,
    benchmark_domain,
    seed_noise,
    truth_of,
)
from sweeper.search import Domain, Proposal, make_strategy
from sweeper.search.domain import Parameters
from sweeper.search.sharing import alone_cost, shared_cost

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""What tells the libraries below numpy how many threads to start."""


@dataclass(frozen=True, slots=True)
class Contestant:
    """One way to search. `shared`: trials come in fans and trunks are paid once; otherwise one by one, each in full.

    `by_luck` recommends the best observation instead of the model's best mean, as a plain tuner does.
    """

    sampler: str
    shared: bool = True
    warm: bool = False
    by_luck: bool = False

    @property
    def name(self) -> str:
        """As written in tables."""
        parts = [self.sampler, *(["warm start"] if self.warm else []), *(["best observation"] if self.by_luck else [])]
        return " + ".join(parts)


CONTESTANTS: tuple[Contestant, ...] = tuple(
    Contestant(sampler, shared, warm)
    for shared in (True, False)
    for sampler, warm in (
        ("random", False),
        ("grid", False),
        ("tpe", False),
        ("gp", False),
        ("surface", False),
        ("gp", True),
        ("surface", True),
    )
)
PLAIN: tuple[Contestant, ...] = tuple(Contestant(name, shared=False, by_luck=True) for name in ("random", "tpe", "gp"))
COLD: tuple[Contestant, ...] = tuple(one for one in CONTESTANTS if not one.warm)
"""Without a warm start, for tables that have nothing to do with each other."""
SLOW = "gp"
"""Raced where it is asked for by name: its answers cost Optuna a hundred times as long as the others'."""
RACES_A_TASK = 8
"""Seeds that one process races in a row, on one table."""


@dataclass(frozen=True, slots=True)
class Rules:
    """`trials` each contestant may spend, `fan` of those that share; a race ends when the answer has held `patience`
    more trials."""

    trials: int = 40
    fan: int = 3
    patience: int = 4
    seed_deviation: float = SEED_DEVIATION
    tolerance: float = TOLERANCE

    def deviation_of(self, table: LossTable) -> float:
        """Seed noise in nats: the table's own, else that of these rules."""
        return self.seed_deviation if table.seed_deviation is None else table.seed_deviation


def run_race(
    table: LossTable,
    domain: Domain,
    contestant: Contestant,
    rules: Rules,
    seed: int,
    warm_start: Sequence[Parameters] = (),
) -> Race:
    """Ask, look up, tell, until the recommendation has held or the trials are spent."""
    truth = _truth(table, domain)
    # Without sharing a fan has no advantage, and asking three at once on old knowledge would be a handicap.
    fan = rules.fan if contestant.shared else 1
    trials = _trials(domain, rules.trials)
    strategy = make_strategy(contestant.sampler, domain, trials=trials, fan=fan, seed=seed, warm_start=warm_start)
    told: list[Proposal] = []
    course: list[tuple[float, float]] = []
    lucky: tuple[float, Parameters] = (math.inf, ())
    spent = held = None
    at_spent: Parameters = ()
    held_since = 0
    while proposals := strategy.ask():
        for proposal in proposals:
            ratio, bag = float(proposal.value("step_ratio")), int(proposal.value("bag_size"))
            # Noise by cell and seed, not by turn: every strategy that asks for a cell sees the same loss there, so
            # races differ in the choices alone.
            loss = table.loss(ratio, bag) + seed_noise(proposal.seed, seed, ratio, bag, rules.deviation_of(table))
            strategy.tell(proposal, loss)
            lucky = min(lucky, (loss, proposal.parameters))
        told.extend(proposals)
        found = lucky[1] if contestant.by_luck else strategy.recommend().parameters
        # Every trial is paid for, whether or not it helped.
        cost = shared_cost(domain, told) if contestant.shared else alone_cost(domain, told)
        course.append((cost, truth.smoothed_regret[found]))
        if truth.smoothed_regret[found] <= rules.tolerance + 1e-12:
            if held is None:
                held, held_since = cost, len(told)
            if spent is None:
                spent, at_spent = cost, found
            # The first hit may be luck. A race goes on until the answer has stood for a while, and what it cost is
            # read at the hit.
            if len(told) - held_since >= rules.patience:
                break
        else:
            # Lost again: whoever stops here would walk away with a worse cell.
            held = None
    answer = at_spent or found
    return Race(
        seed=seed,
        spent=spent,
        held=held,
        regret=truth.smoothed_regret[answer],
        raw_regret=truth.raw_regret[answer],
        trials=len(told),
        course=tuple(course),
    )


@dataclass(frozen=True, slots=True)
class _Task:
    """Some seeds of every contestant on one table; `other` is the table that a warm start comes from."""

    table: LossTable
    domain: Domain
    other: tuple[LossTable, Domain]
    contestants: tuple[Contestant, ...]
    rules: Rules
    seeds: range

    def races(self) -> list[list[Race]]:
        """`[contestant][seed]`."""
        return [[self._race(contestant, seed) for seed in self.seeds] for contestant in self.contestants]

    def _race(self, contestant: Contestant, seed: int) -> Race:
        known: tuple[Parameters, ...] = ()
        if contestant.warm:
            # Another table with other noise: a warm start on its own table would be told the answer.
            known = (_recommended_on(*self.other, contestant.sampler, self.rules, seed),)
        return run_race(self.table, self.domain, contestant, self.rules, seed, known)


def compare_strategies(
    tables: Sequence[LossTable],
    contestants: Sequence[Contestant] = CONTESTANTS,
    *,
    seeds: int = 100,
    rules: Rules | None = None,
    domains: Sequence[Domain] | None = None,
    workers: int = 1,
    watch: Callable[[int], None] | None = None,
) -> ReplayResult:
    """Race every contestant on every table with seeds 0, 1, ... `domains` (one a table) default to the benchmark's;
    `watch` is called with the number of races that have ended, out of `num_races`. The result does not depend on `workers`,
    the processes that race.

    A warm start is what the same sampler recommended after `rules.trials` / 2 trials on another table (the one before it
    in the list, the last one for the first); contestants that need one are left out where there is a single table.
    """
    rules = rules or Rules()
    domains = [benchmark_domain(table) for table in tables] if domains is None else domains
    racing = _racing(contestants, len(tables))
    tasks = [
        _Task(table, domain, (tables[index - 1], domains[index - 1]), racing, rules, chunk)
        for index, (table, domain) in enumerate(zip(tables, domains, strict=True))
        for chunk in _chunks(seeds)
    ]
    ended = 0
    found: list[list[list[Race]]] = []
    for races in _run(tasks, workers):
        found.append(races)
        ended += sum(map(len, races))
        if watch is not None:
            watch(ended)
    standings = []
    per_table = len(_chunks(seeds))
    for index, table in enumerate(tables):
        parts = found[index * per_table : (index + 1) * per_table]
        for place, contestant in enumerate(racing):
            races_here = [race for part in parts for race in part[place]]
            standings.append(_standing(_label(table, tables), table.params, contestant, races_here))
    return replay_result(standings, seeds, rules)


def num_races(contestants: Sequence[Contestant], num_tables: int, seeds: int) -> int:
    """How many races `compare_strategies` will run."""
    return num_tables * seeds * len(_racing(contestants, num_tables))


def _racing(contestants: Sequence[Contestant], num_tables: int) -> tuple[Contestant, ...]:
    return tuple(one for one in contestants if not one.warm or num_tables > 1)


def _chunks(seeds: int) -> list[range]:
    return [range(first, min(first + RACES_A_TASK, seeds)) for first in range(0, seeds, RACES_A_TASK)]


def _end_with_parent() -> None:
    """For a process of the pool. It waits for tasks, and would for ever where the command was killed."""
    parent = parent_process()
    assert parent is not None, "it was started by a pool"

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _run(tasks: Sequence[_Task], workers: int) -> Iterator[list[list[Race]]]:
    """What the tasks found, in their order."""
    workers = min(workers, len(tasks))
    if workers < 2:
        yield from (task.races() for task in tasks)
        return
    # Fresh processes: a fork of one whose libraries have threads may hang. One thread each, or they would fight for the
    # cores.
    threads = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    try:
        with ProcessPoolExecutor(workers, get_context("spawn"), _end_with_parent) as pool:
            yield from pool.map(_Task.races, tasks)
    finally:
        for name, before in threads.items():
            if before is None:
                del os.environ[name]
            else:
                os.environ[name] = before


def replay_result(standings: Iterable[Standing], seeds: int, rules: Rules) -> ReplayResult:
    """Standings of one set of rules, put together."""
    return ReplayResult(seeds, rules.trials, rules.fan, rules.seed_deviation, rules.tolerance, tuple(standings))


def _trials(domain: Domain, most: int) -> int:
    """At most what the cells and search seeds of a small table allow."""
    return min(most, len(domain.points) * domain.most_repeats)


@lru_cache(maxsize=16)
def _truth(table: LossTable, domain: Domain) -> Truth:
    return truth_of(table, domain)


@lru_cache(maxsize=RACES_A_TASK)
def _recommended_on(table: LossTable, domain: Domain, sampler: str, rules: Rules, seed: int) -> Parameters:
    """What the sampler recommends after a search of the other table, with other noise."""
    trials = _trials(domain, max(1, rules.trials // 2))
    strategy = make_strategy(sampler, domain, trials=trials, fan=rules.fan, seed=seed)
    while proposals := strategy.ask():
        for proposal in proposals:
            ratio, bag = float(proposal.value("step_ratio")), int(proposal.value("bag_size"))
            noise = seed_noise(proposal.seed, seed + 1_000_000, ratio, bag, rules.deviation_of(table))
            strategy.tell(proposal, table.loss(ratio, bag) + noise)
    return strategy.recommend().parameters


def _label(table: LossTable, tables: Sequence[LossTable]) -> str:
    """The table's number, with its budget and weighting where the number alone names several."""
    same = [other for other in tables if (other.table, other.params) == (table.table, table.params)]
    return table.table if len(same) == 1 else f"{table.table}, {table.total_steps:,} steps, {table.bag_weighting}"


def _standing(label: str, params: str, contestant: Contestant, races: Sequence[Race]) -> Standing:
    return Standing(
        table=label,
        params=params,
        sampler=contestant.sampler,
        contestant=contestant.name,
        shared=contestant.shared,
        warm_start=contestant.warm,
        median_spent=_median(race.spent for race in races),
        ninetieth_spent=_ninetieth([race.spent for race in races]),
        median_held=_median(race.held for race in races),
        median_regret=median(race.regret for race in races),
        median_raw_regret=median(race.raw_regret for race in races),
        reached=sum(race.spent is not None for race in races) / len(races),
        course=_median_course(races),
        races=tuple(races),
    )


def _median_course(races: Sequence[Race]) -> tuple[tuple[float, float], ...]:
    end = max((race.course[-1][0] for race in races if race.course), default=0.0)
    costs = [1 + index / 2 for index in range(int(2 * max(0.0, end - 1)) + 2)]
    medians = [(cost, median(race.regret_at(cost) for race in races)) for cost in costs]
    return tuple(pair for pair in medians if math.isfinite(pair[1]))


def _median(values: Iterable[float | None]) -> float | None:
    """The median with None as infinity."""
    found = median(math.inf if value is None else value for value in values)
    return found if math.isfinite(found) else None


def _ninetieth(values: Sequence[float | None]) -> float | None:
    """The smallest value that nine in ten do not exceed, with None as infinity."""
    ranked = sorted(math.inf if value is None else value for value in values)
    found = ranked[math.ceil(0.9 * len(ranked)) - 1]
    return found if math.isfinite(found) else None
