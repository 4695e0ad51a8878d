"""A whole sweep replayed: its searches, its tree of stages and its confirmation, with losses from published tables.

Seconds instead of GPU-years, to see what a search-space file would do. Nothing is trained: losses are a table's plus seed
noise, step times are assumed, the ledger lives in memory, and the study is of kind "replay", so that its page, its
headline and its numbers all say so. Racing strategies on a table is `race`'s.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from sweeper.engine.site import Site
from sweeper.engine.sweep import Sweep
from sweeper.executors.simulated import SimulatedExecutor, trains_nothing
from sweeper.ledger.in_memory import MemoryLedger
from sweeper.options import CorpusFacts
from sweeper.plans.costs import step_cost, step_seconds
from sweeper.replay.loss_table import (
    SEED_DEVIATION,
    TABLE_METHODS,
    LossTable,
    answered_domain,
    refuse_other_methods,
    seed_noise,
)
from sweeper.reporting import searched_values
from sweeper.search import Axis, Domain
from sweeper.space.schema import SearchSpace
from sweeper.space.trials import FAN_AXIS, domain_of
from trainers.contract.errors import InputError
from trainers.contract.record import Failed, Provenance, RunRecord
from trainers.contract.spec import Spec
from trainers.methods import PARAMETER_TABLE
from trainers.planning.store import MemoryStore
from trainers.training.provenance import provenance

if TYPE_CHECKING:
    from reports.evidence.study import Study

SUFFIX = "-replay"
"""Of the sweep's name, so that no replay is taken for the sweep itself."""
DEVICE = "replay, step times assumed"


@dataclass(frozen=True, slots=True)
class TableSurface:
    """Final losses of trials from tables of one scale, one a budget.

    Between two budgets the loss is linear in the logarithm of the steps; beyond them it falls by `per_doubling` nats with
    every doubling from the nearest table, or is not known (None). `deviation` is the seed noise in nats.
    """

    tables: tuple[LossTable, ...]
    deviation: float = SEED_DEVIATION
    per_doubling: float | None = None

    def loss(self, spec: Spec) -> float:
        """Raises `InputError` for a method, a budget, a cell or a bag weighting that the tables do not know."""
        refuse_other_methods(spec)
        weighting = spec.parameter("bag_weighting", self.tables[0].bag_weighting)
        known = {table.total_steps: table for table in self.tables if table.bag_weighting == weighting}
        # The weighting of a bag means nothing without bags: the baseline of any table will do.
        if spec.bag_size == 1 or not spec.step_ratio:
            known = known or {table.total_steps: table for table in self.tables}
        if not known:
            words = ", ".join(dict.fromkeys(table.bag_weighting for table in self.tables))
            raise InputError(f"bag_weighting: {weighting!r} is not in the table, which has {words}")
        noise = seed_noise(spec.seed, 0, spec.step_ratio, spec.bag_size, self.deviation)
        return self._at(spec.schedule.total_steps, known, spec.step_ratio, spec.bag_size) + noise

    def _at(self, steps: int, known: dict[int, LossTable], ratio: float, bag: int) -> float:
        low = max((budget for budget in known if budget <= steps), default=None)
        high = min((budget for budget in known if budget >= steps), default=None)
        if low is not None and high is not None:
            first, last = known[low].loss(ratio, bag), known[high].loss(ratio, bag)
            # Losses fall about evenly with the logarithm of the steps over one doubling, which is all that lies
            # between two tables.
            share = math.log(steps / low) / math.log(high / low) if high > low else 0.0
            return first + share * (last - first)
        if self.per_doubling is None:
            budgets = ", ".join(f"{budget:,}" for budget in sorted(known))
            raise InputError(f"total_steps: {steps:,} is not a budget of the table ({budgets})")
        nearest = low if low is not None else high
        assert nearest is not None
        return known[nearest].loss(ratio, bag) - self.per_doubling * math.log2(steps / nearest)

    def refusal(self, spec: Spec) -> str | None:
        """Why `loss` has no answer, None where it has one."""
        try:
            self.loss(spec)
        except InputError as error:
            return str(error)
        return None

    def knows_budget(self, steps: int) -> bool:
        """Whether trials of so many steps have a loss."""
        budgets = [table.total_steps for table in self.tables]
        return self.per_doubling is not None or min(budgets) <= steps <= max(budgets)


@dataclass(frozen=True, slots=True)
class ReplayedSweep:
    """What a replayed sweep left: its study, how many trials the table knew no loss for, and why (each reason once)."""

    study: Study
    trials: int
    failed: int
    reasons: tuple[str, ...]


def tables_of_scale(tables: Sequence[LossTable], scale: str) -> tuple[LossTable, ...]:
    """The tables of a scale by their `params`, upper and lower case aside; a single size stands in for any scale.

    Raises `InputError` naming the sizes that there are.
    """
    sizes = list(dict.fromkeys(table.params for table in tables))
    found = tuple(table for table in tables if table.params.casefold() == scale.casefold())
    if not found and len(sizes) == 1:
        found = tuple(tables)
    if not found:
        raise InputError(
            f"scales: {scale} is not in the table, which has {', '.join(sizes)}; --params {sizes[0]} lets one stand in"
        )
    return found


def replay_sweep(
    space: SearchSpace,
    text: str,
    tables: Sequence[LossTable],
    *,
    command: str,
    source: str,
    deviation: float = SEED_DEVIATION,
    per_doubling: float | None = None,
    workers: int = 8,
) -> ReplayedSweep:
    """Run the sweep of `space` (whose file reads `text`) against tables from `source`.

    The tables know no learning rates, so every rate ends at the same loss. Raises `InputError` where a scale or a tuning
    budget is not in the tables, and for runs without a decay: the tables hold decayed runs. Confirmation budgets that they
    lack fail.
    """
    surfaces = {scale: TableSurface(tables_of_scale(tables, scale), deviation, per_doubling) for scale in space.scales}
    _refuse_unknown_budgets(space, surfaces)
    # A device name of its own: the check for equal devices then keeps a replay from being compared with trained runs.
    where = replace(provenance("replay"), device=DEVICE, device_kind="cuda")
    ledger = MemoryLedger()
    facts = CorpusFacts("replay", "replay", space.tokenizer.vocab_size, 0, "")
    site = Site(store="", stop_file="", execution="replay", on_gpu=True)
    sweep = Sweep(
        space, facts, ledger, MemoryStore(), site, where, refusal=lambda spec: surfaces[spec.scale].refusal(spec)
    )
    cost = step_cost((), DEVICE, on_gpu=True)
    # The same engine as a real sweep, only that a stage "trains" by looking its end up: what is asked and shared is
    # what would be.
    seconds = partial(step_seconds, cost)
    executor = SimulatedExecutor(lambda spec: surfaces[spec.scale].loss(spec), seconds, workers, DEVICE)
    executor.run(sweep, trains_nothing, lambda: None)
    records = ledger.records()
    reasons = [record.outcome.reason for record in records if isinstance(record.outcome, Failed)]
    study = _study(
        space,
        records,
        text=text,
        command=command,
        source=source,
        where=where,
        assumptions=_assumptions(surfaces),
    )
    return ReplayedSweep(study, len(records), len(reasons), tuple(dict.fromkeys(reasons)))


def _refuse_unknown_budgets(space: SearchSpace, surfaces: dict[str, TableSurface]) -> None:
    if space.schedule.decay_fraction == 0:
        raise InputError("schedule.decay_fraction: 0 cannot be replayed; the table's runs were decayed")
    for surface in surfaces.values():
        for name, method in space.methods.items():
            for steps in method.budgets.rungs:
                if not surface.knows_budget(steps):
                    budgets = ", ".join(f"{table.total_steps:,}" for table in surface.tables)
                    raise InputError(
                        f"methods.{name}.budgets.tuning: {steps:,} steps are not a budget of the table ({budgets}); "
                        "--per-doubling says how many nats a doubling of the budget is worth"
                    )


def _assumptions(surfaces: dict[str, TableSurface]) -> str:
    """What the replay takes for granted beyond the table, in words; empty where it is nothing."""
    said = [
        f"{surface.tables[0].params} stands in for {scale}"
        for scale, surface in surfaces.items()
        if surface.tables[0].params.casefold() != scale.casefold()
    ]
    falls = {surface.per_doubling for surface in surfaces.values()} - {None}
    said += [f"a doubled budget is assumed to be worth {fall:g} nats where the table ends" for fall in falls]
    return "; ".join(said)


def _study(
    space: SearchSpace,
    records: Sequence[RunRecord],
    *,
    text: str,
    command: str,
    source: str,
    where: Provenance,
    assumptions: str,
) -> Study:
    from reports.evidence.runs import run_from_record
    from reports.evidence.study import SweepContext, build_study

    context = SweepContext(
        name=space.name + SUFFIX,
        question=f"{space.question} (Replay: {assumptions}.)" if assumptions else space.question,
        kind="replay",
        command=command,
        created_at=where.started_at,
        git_commit=where.git_commit,
        git_dirty=where.git_dirty,
        corpus_description=f"none: losses are those of {source}",
        search_space_text=text,
        price_per_gpu_hour=space.price.per_gpu_hour if space.price else None,
        currency=space.price.currency if space.price else "USD",
        axes=searched_values(space),
    )
    return build_study(context, [run_from_record(record) for record in records])


def race_domain(space: SearchSpace, table: LossTable) -> Domain:
    """The cells of a search space that lie within a table, at the table's budget, for racing strategies.

    Axes that the table does not know (the learning rate) are left out. Raises `InputError` when no method has a bag size
    and a step ratio, or nothing of its range is in the table.
    """
    for name, method in space.methods.items():
        if name in TABLE_METHODS and {"bag_size", FAN_AXIS} <= set(method.axes):
            break
    else:
        raise InputError(f"{space.name}: no method has axes bag_size and {FAN_AXIS}, which a table is made of")
    searched = domain_of(method, space.seeds.tuning)
    constants = dict(searched.constants)
    # Cells without superposition are the table's baseline, not a corner of the method's space.
    bags = [bag for ratio, bag, _ in table.losses if ratio > 0 and bag > 1]
    ratios = [ratio for ratio, bag, _ in table.losses if ratio > 0 and bag > 1]
    if not bags:
        raise InputError(
            f"{table.name}: nothing can be asked, it has no cell with step_ratio above 0 and bag_size above 1"
        )
    axes = []
    for name, low, high in (("bag_size", min(bags), max(bags)), (FAN_AXIS, min(ratios), max(ratios))):
        values = (constants[name],) if name in constants else searched.axis(name).values
        inside = tuple(value for value in values if not isinstance(value, str) and low <= value <= high)
        if not inside:
            raise InputError(f"{name}: {', '.join(map(str, values))} are all outside the table of {table.name}")
        axes.append(Axis(name, inside, PARAMETER_TABLE[name].spacing))
    return answered_domain(table, *axes, seeds=space.seeds.tuning)
