"""How much does each search strategy spend until it would recommend a good cell? Raced on published tables, in seconds.

The winner is decided by a rule that was fixed beforehand: full-budget equivalents until the recommended cell is within
the tolerance of the best of the *smoothed* table. What a trial "ends" at is `loss_table`'s.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from reports.pages.replay import Race, ReplayResult, Standing
from sweeper.replay.loss_table import SEED_DEVIATION, LossTable, benchmark_domain, seed_noise, truth_of
from sweeper.search import Domain, Proposal, make_strategy
from sweeper.search.domain import Parameters
from sweeper.search.sharing import alone_cost, shared_cost

TOLERANCE = 0.0015
"""Nats above the best of the smoothed table that count as found."""


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


@dataclass(frozen=True, slots=True)
class Rules:
    """`trials` each contestant may spend, `fan` of those that share; a race ends when the answer has held `patience`
    more trials."""

    trials: int = 40
    fan: int = 3
    patience: int = 4
    seed_deviation: float = SEED_DEVIATION
    tolerance: float = TOLERANCE


def run_race(
    table: LossTable,
    domain: Domain,
    contestant: Contestant,
    rules: Rules,
    seed: int,
    warm_start: Sequence[Parameters] = (),
) -> Race:
    """Ask, look up, tell, until the recommendation has held or the trials are spent."""
    truth = truth_of(table, domain)
    # Without sharing a fan has no advantage, and asking three at once on old knowledge would be a handicap.
    fan = rules.fan if contestant.shared else 1
    strategy = make_strategy(contestant.sampler, domain, trials=rules.trials, fan=fan, seed=seed, warm_start=warm_start)
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
            loss = table.loss(ratio, bag) + seed_noise(proposal.seed, seed, ratio, bag, rules.seed_deviation)
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


def compare_strategies(
    tables: Sequence[LossTable],
    contestants: Sequence[Contestant] = CONTESTANTS,
    *,
    seeds: int = 100,
    rules: Rules | None = None,
    domains: Sequence[Domain] | None = None,
    watch: Callable[[Standing], None] | None = None,
) -> ReplayResult:
    """Race every contestant on every table with seeds 0, 1, ... `domains` (one a table) default to the benchmark's;
    `watch` is called with each standing as it is known.

    A warm start is what the same sampler recommended after `rules.trials` / 2 trials on another table (the one before it
    in the list, the last one for the first); contestants that need one are left out where there is a single table.
    """
    rules = rules or Rules()
    domains = [benchmark_domain(table) for table in tables] if domains is None else domains
    standings = []
    for index, (table, domain) in enumerate(zip(tables, domains, strict=True)):
        for contestant in contestants:
            if contestant.warm and len(tables) == 1:
                continue
            races = []
            for seed in range(seeds):
                known: tuple[Parameters, ...] = ()
                if contestant.warm:
                    # Another table with other noise: a warm start on its own table would be told the answer.
                    known = (_recommended_on(tables[index - 1], domains[index - 1], contestant, rules, seed),)
                races.append(run_race(table, domain, contestant, rules, seed, known))
            standings.append(_standing(_label(table, tables), table.params, contestant, races))
            if watch is not None:
                watch(standings[-1])
    return replay_result(standings, seeds, rules)


def num_standings(contestants: Sequence[Contestant], num_tables: int) -> int:
    """How many standings `compare_strategies` will make."""
    return num_tables * sum(not contestant.warm or num_tables > 1 for contestant in contestants)


def replay_result(standings: Iterable[Standing], seeds: int, rules: Rules) -> ReplayResult:
    """Standings of one set of rules, put together."""
    return ReplayResult(seeds, rules.trials, rules.fan, rules.seed_deviation, rules.tolerance, tuple(standings))


def _recommended_on(table: LossTable, domain: Domain, contestant: Contestant, rules: Rules, seed: int) -> Parameters:
    """What the sampler recommends after a search of the other table, with other noise."""
    strategy = make_strategy(contestant.sampler, domain, trials=max(1, rules.trials // 2), fan=rules.fan, seed=seed)
    while proposals := strategy.ask():
        for proposal in proposals:
            ratio, bag = float(proposal.value("step_ratio")), int(proposal.value("bag_size"))
            noise = seed_noise(proposal.seed, seed + 1_000_000, ratio, bag, rules.seed_deviation)
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
