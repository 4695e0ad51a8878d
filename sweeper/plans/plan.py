"""What a sweep will train, cost and be able to say, before anything is spent.

A plan is the sweep itself, run by an executor that trains nothing: the same searches, the same tree of stages, the same
confirmation. Searches are adaptive, so the points are one likely course; counts, steps and costs are what it will be.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from statistics import variance

from reports.estimate.noise import PRIOR_MINIMUM_PARAMS, PRIOR_SIGMA
from reports.estimate.resolution import what_it_can_resolve
from reports.pages.plan import PlannedArm, PlannedStage
from sweeper.engine.arms import NOISE_FLOOR_SEEDS, identity_of, of_this_file
from sweeper.engine.probes import PROBE
from sweeper.engine.site import STATE_BYTES, WEIGHT_BYTES, Site, state_bytes
from sweeper.engine.sweep import Sweep
from sweeper.executors.simulated import SimulatedExecutor, trains_nothing
from sweeper.ledger.in_memory import MemoryLedger
from sweeper.options import CorpusFacts
from sweeper.plans.costs import Costs, run_seconds, step_seconds
from sweeper.plans.fits import ScaleFit
from sweeper.space.foreign_schema import AnySpace
from sweeper.space.schema import SearchSpace
from sweeper.space.trials import FAN_AXIS
from trainers.contract.record import SEARCH_PURPOSES, Provenance, RunRecord
from trainers.contract.schedule import phase_at
from trainers.contract.spec import AnySpec
from trainers.methods import BASELINE, describe_parameters, facts_of, phases_of
from trainers.planning.lineage import path_of
from trainers.planning.store import MemoryStore

TINY_DEVIATION, TINY_PARAMS = 0.01, 110_000
"""Seed deviation in nats of models of pico's and nano's size, and the parameters up to which it is assumed."""
UNPREPARED = CorpusFacts("unprepared", "unprepared", 0, 0, "")
SIMULATED = Provenance(
    git_commit="",
    git_dirty=False,
    device="simulated",
    device_kind="cpu",
    execution="simulated",
    versions=(),
    started_at="",
)


@dataclass(frozen=True, slots=True)
class ScalePlan:
    """One scale. `disk_bytes` is the most that checkpoints take at once, `models_bytes` what the final weights of its `models`
    winners take in the end; `resolves` the smallest speedup, or why none; `fit` says on which devices it fits, where that was
    asked."""

    scale: str
    parameters: int | None
    arms: tuple[PlannedArm, ...]
    step_seconds: float
    wall_hours: float
    disk_bytes: float
    resolves: float | None
    resolves_reason: str
    fit: ScaleFit | None = None
    models: int = 0
    models_bytes: float = 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole sweep. Hours are device-hours with `workers` trials at a time; checkpoints may take `disk_budget` bytes.
    `commands` are those of another trainer, one a method, as they would run, and what else is to be said of it. Of the runs
    that the ledger holds, `of_earlier_files` were asked for by an earlier state of the file and count for nothing."""

    name: str
    question: str
    scales: tuple[ScalePlan, ...]
    stages: tuple[PlannedStage, ...]
    workers: int
    clock: str
    cost_source: str
    corpus: str
    price_per_hour: float | None
    currency: str
    disk_budget: float
    commands: tuple[str, ...] = ()
    of_earlier_files: int = 0

    @property
    def arms(self) -> tuple[PlannedArm, ...]:
        """Of all scales."""
        return tuple(arm for scale in self.scales for arm in scale.arms)

    @property
    def hours_alone(self) -> float:
        """Device-hours with every trial trained by itself."""
        return sum(arm.hours_alone for arm in self.arms)

    @property
    def hours_shared(self) -> float:
        """Device-hours with shared prefixes."""
        return sum(arm.hours_shared for arm in self.arms)

    @property
    def steps_saved(self) -> float:
        """Fraction of the steps that sharing saves."""
        alone = sum(arm.steps_alone for arm in self.arms)
        return 1 - sum(arm.steps_shared for arm in self.arms) / alone if alone else 0.0


def guessed_loss(spec: AnySpec) -> float:
    """A stand-in surface that steers simulated searches: the published valley, and a middle learning rate."""
    # Only the course of an adaptive search depends on it; steps and hours hardly do. The jitter breaks ties the same
    # way every time.
    log_bag, log_rate = math.log2(max(spec.bag_size, 1)), math.log2(spec.schedule.learning_rate)
    valley = 0.01 * (log_bag - math.log2(6)) ** 2 + 2 * (spec.step_ratio - 0.25) ** 2
    jitter = int(spec.spec_id, 16) % 1000 / 1e6
    return 3 + 0.02 * (log_rate % 1 - 0.5) ** 2 + valley + jitter - 0.1 * math.log(spec.schedule.total_steps)


def plan_scale(
    space: AnySpace,
    scale: str,
    *,
    corpus: CorpusFacts,
    cost: Costs,
    workers: int,
    known: Iterable[RunRecord],
    devices_per_trial: float,
    earlier: Iterable[RunRecord] = (),
) -> tuple[ScalePlan, tuple[PlannedStage, ...]]:
    """Simulate one scale, with what the ledger holds already; `earlier` are other sweeps' records."""
    # Scale by scale, so that each has a wall time and a peak of its own disk.
    one = space.of_one_scale(scale)
    # A corpus that is not prepared yet has no tokenizer; the file says how large its vocabulary will be.
    if corpus.vocab_size == 0 and isinstance(space, SearchSpace):
        corpus = replace(corpus, vocab_size=space.tokenizer.vocab_size)
    known = [record for record in known if record.spec.scale == scale]
    ledger, store = MemoryLedger(), MemoryStore()
    for record in known:
        # What has ended is told first: the search then asks only for the rest, as a resumed sweep does.
        ledger.write(record)
    site = Site(store="", stop_file="", execution="simulated", devices_per_trial=devices_per_trial)
    sweep = Sweep(one, corpus, ledger, store, site, SIMULATED)
    executor = SimulatedExecutor(guessed_loss, partial(step_seconds, cost), workers)
    disk = _Disk(store, sweep)
    executor.run(sweep, trains_nothing, disk.look)
    done = {record.spec.spec_id for record in known}
    wanted = [(spec, purpose) for spec, purpose in ledger.asked.values()]
    fresh = [spec for spec, _ in wanted if spec.spec_id not in done]
    arms = tuple(
        _planned_arm(
            [(spec, purpose) for spec, purpose in wanted if spec.method == method],
            done,
            executor,
            cost=cost,
            corpus_tokens=corpus.train_tokens,
            devices=devices_per_trial,
        )
        for method in space.methods
    )
    example = next(spec for spec, _ in wanted if spec.method == BASELINE)
    parameters = facts_of(example).params
    # What another trainer calls a scale is its own: seeds scatter alike where its code is the same.
    others = [r for r in earlier if r.spec.scale == scale and getattr(r.spec, "code", "") == corpus.code]
    largest = max(state_bytes(spec) for spec, _ in wanted)
    resolves, reason = _resolution(space, expected_deviation(known, others, parameters))
    return ScalePlan(
        scale=scale,
        parameters=None if parameters is None else int(parameters),
        arms=arms,
        step_seconds=cost.seconds(example, phases_of(example)[0]),
        wall_hours=executor.wall_seconds / 3600,
        disk_bytes=disk.peak * largest,
        models=disk.models,
        models_bytes=disk.models * MODEL * largest,
        resolves=resolves,
        resolves_reason=reason,
    ), _planned_stages(store, fresh, cost, devices_per_trial)


MODEL = WEIGHT_BYTES / STATE_BYTES
"""Size of a model in states."""


@dataclass
class _Disk:
    """What a simulated sweep has on its disk: the most at once, in states, and how many final models."""

    store: MemoryStore
    sweep: Sweep
    peak: float = 0.0
    models: int = 0

    def look(self) -> None:
        self.models = len(self.store.kept & self.sweep.book.finals)
        self.peak = max(self.peak, len(self.store.kept) - self.models * (1 - MODEL))


def _planned_stages(
    store: MemoryStore, fresh: Iterable[AnySpec], cost: Costs, devices: float
) -> tuple[PlannedStage, ...]:
    """The stages that were trained for the `fresh` trials, in the order in which they ended."""
    specs = {spec.spec_id: spec for spec in fresh}
    below: Counter[str] = Counter()
    for spec in specs.values():
        node: str | None = path_of(spec, "simulated").node(spec.schedule.total_steps)
        # A trial pays for every stage on its way, and shares each with all whose way leads through it.
        while node is not None and (result := store.results.get(node)) is not None:
            below[node] += 1
            node = result.parent
    lines = []
    for result in store.results.values():
        if (owner := specs.get(result.booked_by)) is not None:
            # Stages are cut where the decay begins, so a stage lies on one side of it.
            decays = result.start >= owner.schedule.decay_start
            phase = phase_at(phases_of(owner), result.start)
            lines.append(
                PlannedStage(
                    node=result.node,
                    parent=result.parent,
                    scale=owner.scale,
                    method=owner.method,
                    start=result.start,
                    end=result.end,
                    label=_label(owner),
                    phase="decay" if decays else phase.name,
                    trials=below[result.node],
                    hours=(result.end - result.start) * cost.seconds(owner, phase) * devices / 3600,
                )
            )
    return tuple(lines)


def _label(spec: AnySpec) -> str:
    """What the trials of a trunk have in common: everything but the axis on which they leave it."""
    shared = tuple((name, value) for name, value in spec.parameters if name != FAN_AXIS)
    words = [describe_parameters(shared), f"lr={spec.schedule.learning_rate:g}", f"seed {spec.seed}"]
    return " ".join(word for word in words if word)


def _planned_arm(
    mine: list[tuple[AnySpec, str]],
    done: set[str],
    executor: SimulatedExecutor,
    *,
    cost: Costs,
    corpus_tokens: int,
    devices: float,
) -> PlannedArm:
    """One arm from its trials with their purpose; `done` are spec ids with a record, `executor` has run the sweep."""
    scale, method = mine[0][0].scale, mine[0][0].method
    fresh = [spec for spec, _ in mine if spec.spec_id not in done]
    alone = sum(spec.schedule.total_steps for spec in fresh)
    tokens = max(cost.counts(spec)[0] for spec, _ in mine)
    return PlannedArm(
        scale=scale,
        method=method,
        tuning_trials=sum(purpose == "tuning" for _, purpose in mine),
        probe_trials=sum(purpose == PROBE for _, purpose in mine),
        confirmation_trials=sum(purpose not in SEARCH_PURPOSES for _, purpose in mine),
        finished=sum(spec.spec_id in done for spec, _ in mine),
        steps_alone=alone,
        # What the simulated sweep trained, not what the tree of all its trials holds: a search may ask for a boundary that
        # its trunk has already passed, which costs steps that the tree does not show.
        steps_shared=executor.trained_steps.get(method, 0),
        hours_alone=sum(run_seconds(cost, spec) for spec in fresh) * devices / 3600,
        hours_shared=executor.trained_seconds.get(method, 0.0) * devices / 3600,
        flops=sum(cost.counts(spec)[1] for spec in fresh),
        tokens=tokens,
        epochs=tokens / corpus_tokens if corpus_tokens else None,
    )


def measured_deviation(known: Iterable[RunRecord]) -> float | None:
    """Pooled deviation of final losses within (method, parameters, budget) over confirmation seeds, None without repeats."""
    cells: dict[tuple[object, ...], dict[str, float]] = {}
    for record in known:
        if record.purpose not in SEARCH_PURPOSES and record.final_loss is not None:
            spec = record.spec
            # By id, since two sweeps of a ledger may have trained the same trial.
            key = (identity_of(spec), spec.parameters, spec.schedule)
            cells.setdefault(key, {})[spec.spec_id] = record.final_loss
    repeated = [list(losses.values()) for losses in cells.values() if len(losses) > 1]
    if not repeated:
        return None
    # Pooled, since three seeds of one cell say little and six cells of three a good deal. A plan can do without the
    # trunks that a report separates.
    freedom = sum(len(losses) - 1 for losses in repeated)
    return math.sqrt(sum(variance(losses) * (len(losses) - 1) for losses in repeated) / freedom)


def assumed_deviation(parameters: float) -> float:
    """Seed deviation in nats by size, where nothing has measured it: public runs' from 100M parameters up, `TINY_DEVIATION`
    for tiny models, and between the two a straight line in the logarithms."""
    share = math.log(parameters / TINY_PARAMS) / math.log(PRIOR_MINIMUM_PARAMS / TINY_PARAMS)
    return TINY_DEVIATION * math.exp(math.log(PRIOR_SIGMA / TINY_DEVIATION) * min(max(share, 0.0), 1.0))


def expected_deviation(
    known: Iterable[RunRecord], earlier: Iterable[RunRecord], parameters: float | None
) -> tuple[float, str]:
    """The seed deviation to plan with, in nats, and where it is from: this sweep, an earlier one at the scale, or the size.
    An unknown model's is that of a tiny one, which is the largest."""
    for records, source in ((known, "measured"), (earlier, "measured by earlier sweeps at this scale")):
        if measured := measured_deviation(records):
            return measured, source
    if parameters is None:
        return TINY_DEVIATION, "assumed for a small model"
    if parameters >= PRIOR_MINIMUM_PARAMS:
        return PRIOR_SIGMA, "assumed: that of public runs from 100M parameters up"
    if parameters <= TINY_PARAMS:
        return TINY_DEVIATION, "assumed for a model this small"
    between = f"between {TINY_DEVIATION:g} at 110K parameters and {PRIOR_SIGMA:g} at 100M"
    return assumed_deviation(parameters), f"assumed by size, {between}"


def _resolution(space: AnySpace, deviation: tuple[float, str]) -> tuple[float | None, str]:
    methods = [name for name in space.methods if name != BASELINE]
    if not methods:
        return None, "there is no method beside the baseline"
    seeds = len(space.seeds.confirmation)
    sigma, source = deviation
    result = what_it_can_resolve(
        baseline_budgets=space.methods[BASELINE].budgets.confirmation,
        method_budget=max(space.methods[methods[0]].budgets.confirmation),
        baseline_seeds=seeds,
        method_seeds=seeds,
        sigma=sigma,
        noise_floor_seeds=NOISE_FLOOR_SEEDS - 1 if seeds == 1 else 0,
    )
    reason = f"with a seed deviation of {sigma:.2g} nats, {source}"
    return result.smallest_speedup, f"{result.reason}; {reason}" if result.reason else reason


def make_plan(
    space: AnySpace,
    *,
    corpus: CorpusFacts,
    corpus_words: str,
    cost: Costs,
    workers: int,
    on_gpu: bool,
    known: Iterable[RunRecord] = (),
    earlier: Iterable[RunRecord] = (),
    devices_per_trial: float = 1,
    fits: Mapping[str, ScaleFit] | None = None,
    commands: tuple[str, ...] = (),
) -> Plan:
    """The plan of `space` on `workers` workers. `known` are the records that the ledger holds already, `earlier` those of
    its other sweeps, `fits` what is known of the scales' memory, `commands` those of another trainer."""
    held, earlier = tuple(known), tuple(earlier)
    known = tuple(record for record in held if of_this_file(space, corpus, record))
    parts = [
        plan_scale(
            space,
            scale,
            corpus=corpus,
            cost=cost,
            workers=workers,
            known=known,
            devices_per_trial=devices_per_trial,
            earlier=earlier,
        )
        for scale in space.scales
    ]
    return Plan(
        name=space.name,
        question=space.question,
        scales=tuple(replace(part, fit=(fits or {}).get(part.scale)) for part, _ in parts),
        stages=tuple(line for _, lines in parts for line in lines),
        workers=workers,
        clock="GPU-hours" if on_gpu else "CPU-hours",
        cost_source=cost.source,
        corpus=corpus_words,
        price_per_hour=space.price.per_gpu_hour if space.price else None,
        currency=space.price.currency if space.price else "USD",
        disk_budget=space.resources.disk_gb * 1e9,
        commands=commands,
        of_earlier_files=len(held) - len(known),
    )
