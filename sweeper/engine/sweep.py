"""A sweep as a state machine: what to train next, what a result means, when it is over.

Executors ask for stages and bring results; every executor drives this same machine, so that a sweep has the same trials
wherever it runs. Small scales come first. Per scale both arms are tuned at the same time; an arm whose search is over is
confirmed on fresh seeds while the other still searches. Searches are asked round by round, so that a sweep has the same
trials however many workers it has and however often it was killed.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import partial
from typing import Protocol

from sweeper.engine.arms import ROUNDS, Arm, SpecMaker, earlier_points, of_this_file
from sweeper.engine.bad_ends import BadEnds
from sweeper.engine.probes import is_probed
from sweeper.engine.site import Site, state_bytes
from sweeper.engine.states import (
    boundaries,
    final_nodes,
    first_affordable,
    refuse_weights_without_room,
    winners_ends,
)
from sweeper.options import CorpusFacts
from sweeper.search import UNLEARNED, Domain, make_strategy
from sweeper.search.domain import Parameters
from sweeper.search.warm_start import starting_points
from sweeper.space.foreign_schema import AnySpace
from sweeper.space.trials import domain_of, grid_trials, make_spec
from trainers.contract.errors import InputError
from trainers.contract.record import Failed, Provenance, RunRecord, Stopped
from trainers.contract.spec import AnySpec, Scalar
from trainers.contract.stage import PointCost, StageJob, StageResult
from trainers.methods import BASELINE
from trainers.planning.assemble import assemble_record
from trainers.planning.lineage import ROOT, Segment, path_of
from trainers.planning.stages import StageBook
from trainers.planning.store import StageStore


class SweepLedger(Protocol):
    """What the sweep needs of its ledger."""

    def schedule(self, spec: AnySpec, purpose: str) -> None:
        """Note that a trial was asked for."""
        ...

    def started(self, spec: AnySpec) -> None:
        """A trial that was asked for runs."""
        ...

    def reopen(self, spec: AnySpec) -> None:
        """A trial that failed is tried again."""
        ...

    def write(self, record: RunRecord) -> None:
        """A trial has ended."""
        ...

    def records(self) -> list[RunRecord]:
        """Trials that have ended."""
        ...

    def pending(self) -> list[tuple[AnySpec, str]]:
        """Trials that were asked for and have not ended, with their purpose."""
        ...


MAX_DAMAGES = 3
"""How often a damaged state is trained again before what goes on from it fails."""


class Idle(Enum):
    """Why there is no stage to start: some may come when a running one ends, or the sweep is over."""

    WAIT = "wait"
    OVER = "over"


@dataclass
class Sweep:
    """One run of one sweep. `max_hours` are device-hours of the whole sweep, earlier runs included; None has no limit.

    `earlier` are records of other sweeps, for warm starts. `at_once` asks every search for all of its trials before it knows
    a result, as a list for a machine without a sweep has to. `refusal` says why a trial cannot be run, None where it can: what
    a replay's table lacks is never asked for. `open_hours` are spent on stages without a result; whoever watches sets them.
    """

    space: AnySpace
    corpus: CorpusFacts
    ledger: SweepLedger
    store: StageStore
    site: Site
    provenance: Provenance
    max_hours: float | None = None
    earlier: tuple[RunRecord, ...] = ()
    at_once: bool = False
    refusal: Callable[[AnySpec], str | None] | None = None
    arms: list[Arm] = field(default_factory=list)
    stopping: str | None = None
    latest: str = ""
    spent_hours: float = 0.0
    open_hours: float = 0.0
    losses: dict[str, tuple[int, float]] = field(default_factory=dict)
    arm_hours: defaultdict[tuple[str, str], float] = field(default_factory=lambda: defaultdict(float))
    arm_steps: Counter[tuple[str, str]] = field(default_factory=Counter)
    step_hours: defaultdict[tuple[str, str], float] = field(default_factory=lambda: defaultdict(float))

    def __post_init__(self) -> None:
        self.book = StageBook(self.store)
        self.book.adopt(self.store.states())
        self.finished: dict[str, RunRecord] = {}
        self.of_earlier_files: set[str] = set()
        self._purpose_of: dict[str, str] = {}
        self._begun: set[str] = set()
        self._damages: Counter[str] = Counter()
        self._bad_ends = BadEnds()
        records = self.ledger.records()
        self.spent_hours += self.store.device_seconds({record.spec.spec_id for record in records}) / 3600
        for record in records:
            # A failure says nothing about the method, so another run of the sweep tries again. A divergence is a
            # result.
            if isinstance(record.outcome, Failed):
                self.ledger.reopen(record.spec)
            else:
                self.finished[record.spec.spec_id] = record
                if not of_this_file(self.space, self.corpus, record):
                    self.of_earlier_files.add(record.spec.spec_id)
            # Of failed trials, too: a limit on hours is on what is paid, not on what was useful.
            self.spent_hours += record.timing.incurred_gpu_hours
            self.arm_hours[record.spec.scale, record.spec.method] += record.timing.incurred_gpu_hours
        self.book.finals = final_nodes(self.finished.values())
        self._optima: list[dict[str, Parameters]] = []
        self._open_scale()

    # what to do next

    def next_job(self) -> StageJob | Idle:
        """The stage that a free worker should train now. The worker has it from here on."""
        self.stop_when_spent()
        if self.stopping is not None:
            return Idle.WAIT if self.book.running else Idle.OVER
        while True:
            found = self._next_in_line()
            # States that no open trial needs are kept as long as there is room, since a later trial of the search may
            # start from them. Only when nothing else can start are they given up.
            if found is None and (waiting := next(self.book.in_line(), None)) is not None:
                self.book.sweep_out(self.site.disk_bytes - state_bytes(waiting.spec))
                if (found := self._next_in_line()) is None:
                    return self._wait_for_disk(waiting)
            # Tuning first: every later proposal of a search waits for its losses, a confirmation holds nobody up.
            if found is not None and self._purpose_of[found.trials[0]] == "tuning":
                return self._start(found)
            # Then ask the searches for more, before a confirmation takes the worker.
            if self._ask_tuning():
                continue
            if found is not None:
                return self._start(found)
            if not self._confirm_or_move_on():
                break
        return Idle.WAIT if self.book.running else Idle.OVER

    def stop_when_spent(self) -> None:
        """Start nothing more once the hours that were given are spent, those of stages that run among them."""
        spent = self.spent_hours + self.open_hours
        if self.max_hours is not None and spent >= self.max_hours and self.stopping is None:
            self.stopping = f"{spent:.3g} of at most {self.max_hours:g} device-hours are spent"

    def _next_in_line(self) -> Segment | None:
        """The next stage for which there is room, a tuning trial's where there is one."""
        searching = any(arm.round for arm in self.arms)
        return first_affordable(
            self.book, self.site.disk_bytes, lambda s: not searching or self._purpose_of[s.trials[0]] == "tuning"
        )

    def _wait_for_disk(self, segment: Segment) -> Idle:
        """A running stage may free a state; where none runs, the budget is too small and the sweep stops with that word."""
        if not self.book.running:
            self.stopping = (
                f"resources.disk_gb: {self.site.disk_bytes / 1e9:g} GB hold no further state of "
                f"{state_bytes(segment.spec) / 1e9:.3g} GB; raise it"
            )
        return Idle.WAIT if self.book.running else Idle.OVER

    def _start(self, segment: Segment) -> StageJob:
        if refuse_weights_without_room(self.book, segment, self.site.disk_bytes):
            self.latest = (
                f"resources.disk_gb: no room to keep the final weights of {segment.spec.scale} {segment.spec.method}"
            )
        self.book.start(segment)
        for spec_id in segment.trials:
            if spec_id not in self._begun:
                self._begun.add(spec_id)
                self.ledger.started(self.book.paths[spec_id].spec)
        return StageJob(
            node=segment.node,
            parent=None if segment.parent == ROOT else segment.parent,
            start=segment.start,
            end=segment.end,
            spec=segment.spec,
            booked_by=segment.trials[0],
            store=self.site.store,
            corpus=self.corpus.directory,
            stop_file=self.site.stop_file,
            device="cuda:0" if self.site.on_gpu else "cpu",
            execution=self.site.execution,
            evaluate_every=self.space.evaluate_every,
            evaluate_tokens=self.space.evaluate_tokens,
            checkpoint_seconds=self.site.checkpoint_seconds,
            micro_sequences=self.site.micro_sequences,
            checkpoint_activations=self.site.checkpoint_activations,
            keep_state=self.book.keeps_state(segment),
            keep_weights=segment.node in self.book.finals,
            devices=self.site.devices_per_trial,
        )

    def _ask_tuning(self) -> bool:
        """Ask the arm that is least far for more trials; False when none has any to ask for now. Before anything is confirmed:
        each trial of a search waits for the one before, confirmations wait for nothing."""
        searching = (arm for arm in self.arms if arm.winner is None)
        for arm in sorted(searching, key=lambda arm: len(arm.asked) / arm.trials):
            if specs := arm.ask():
                self._want([(spec, "tuning") for spec in specs])
                # A file whose tuning budget was raised may ask for what was a probe.
                for record in [self.finished[s.spec_id] for s in specs if s.spec_id in self.finished]:
                    self.finished[record.spec.spec_id] = replace(record, purpose="tuning")
                    self.ledger.write(self.finished[record.spec.spec_id])
                    arm.tell(self.finished[record.spec.spec_id])
                return True
        return False

    def _confirm_or_move_on(self) -> bool:
        """Confirm an arm whose search is over, or go to the next scale. False when there is nothing of the kind."""
        for arm in self.arms:
            if arm.winner is None and arm.tuning_done and not arm.confirming and not arm.probing:
                return self._conclude(arm)
        if not self.book.paths and not self.book.running and len(self._optima) < len(self.space.scales):
            return self._next_scale()
        return False

    def _conclude(self, arm: Arm) -> bool:
        """Ask for what follows an arm's search: its probes, where it has any, then its confirmation."""
        if probes := arm.probe():
            self.latest = f"{arm.scale} {arm.method}: probing the learning rate at length"
            self._want(probes)
            for spec, _ in probes:
                if spec.spec_id in self.finished:
                    arm.probes = {**(arm.probes or {}), spec.spec_id: self.finished[spec.spec_id]}
            if arm.probing:
                return True
        trials = arm.confirm()
        self.book.protected -= boundaries(arm.asked.values(), self.space, self.site.execution)
        self._want(trials)
        self.latest = f"{arm.scale} {arm.method}: {'confirming the winner' if trials else arm.without_a_winner}"
        if not trials:
            self.arms.remove(arm)
        return True

    def _next_scale(self) -> bool:
        self._optima.append({arm.method: arm.winner.parameters for arm in self.arms if arm.winner})
        if len(self._optima) == len(self.space.scales):
            return False
        self._open_scale()
        return True

    def _open_scale(self) -> None:
        scale = tuple(self.space.scales)[len(self._optima)]
        self.arms = [self._open_arm(scale, method) for method in self.space.methods]
        for arm in self.arms:
            self._take_up(arm)
        for arm in list(self.arms):  # at once, so that states of confirmations under way are not taken for spare ones
            if arm.tuning_done:
                self._conclude(arm)

    def _open_arm(self, scale: str, method: str) -> Arm:
        space = self.space
        settings = space.methods[method]
        make = partial(self._make_spec, scale, method)
        domain = domain_of(settings, space.seeds.tuning)
        if self.refusal is not None:
            domain = _answered(domain, make, self.refusal, f"{scale} {method}")
        trials = space.search.trials_per_arm
        if space.search.sampler == "grid":
            trials = grid_trials(domain, trials)
        # A method's search begins at the smaller scale's winner, since the published valley of bag size and ratio moves
        # little with size. The baseline has only a learning rate, whose whole axis is cheap to search anew.
        smaller = self._optima[-1].get(method) if self._optima and method != BASELINE else None
        example = make(dict(domain.points[0]), domain.rungs[-1], domain.seeds[0])
        found = earlier_points(self.earlier, example)
        warm = starting_points(domain, smaller_scale=smaller, finished=found) if space.search.warm_start else ()
        search = space.search
        strategy = make_strategy(
            search.sampler, domain, trials=trials, fan=search.fan, seed=search.seed, warm_start=warm
        )
        return Arm(
            scale=scale,
            method=method,
            domain=domain,
            strategy=strategy,
            make=make,
            trials=trials,
            confirmation=settings.budgets.confirmation,
            seeds=space.seeds.confirmation,
            noise_floor=method == BASELINE and len(space.seeds.confirmation) == 1,
            probes={} if is_probed(space) else None,
            rounds=1 if self.at_once or strategy.sampler in UNLEARNED else ROUNDS,
        )

    def _make_spec(self, scale: str, method: str, parameters: Mapping[str, Scalar], steps: int, seed: int) -> AnySpec:
        return make_spec(
            self.space,
            scale=scale,
            method=method,
            parameters=parameters,
            total_steps=steps,
            seed=seed,
            corpus_fingerprint=self.corpus.fingerprint,
            tokenizer_fingerprint=self.corpus.tokenizer_fingerprint,
            vocab_size=self.corpus.vocab_size,
            code=self.corpus.code,
        )

    def _take_up(self, arm: Arm) -> None:
        """What earlier runs of the sweep left: finished tuning trials are told, unfinished ones go on."""
        finished = [r for r in self.finished.values() if r.purpose == "tuning" and arm.belongs(r.spec)]
        pending = [
            spec
            for spec, purpose in self.ledger.pending()
            if purpose == "tuning" and spec.spec_id not in self.finished and arm.belongs(spec)
        ]
        # Cut to the number of trials: a file that asks for fewer than an earlier run did is tuned alike in both arms.
        arm.replay(finished[: arm.trials], pending[: max(0, arm.trials - len(finished))])
        if not arm.tuning_done:
            self.book.protected |= boundaries(arm.asked.values(), self.space, self.site.execution)
        self._want([(spec, "tuning") for spec in arm.asked.values() if spec.spec_id not in arm.tuned])

    def _want(self, trials: Iterable[tuple[AnySpec, str]]) -> None:
        new = [(spec, purpose) for spec, purpose in trials if spec.spec_id not in self.finished]
        for spec, purpose in new:
            self.ledger.schedule(spec, purpose)
            self._purpose_of[spec.spec_id] = purpose
        self.book.add(path_of(spec, self.site.execution) for spec, _ in new)
        tuning = (spec for spec, purpose in new if purpose == "tuning")
        self.book.protected |= boundaries(tuning, self.space, self.site.execution)
        self.book.finals |= winners_ends(new, self.site.execution)
        self._settle([spec.spec_id for spec, _ in new])

    # what happened

    def finish(self, result: StageResult) -> None:
        """A worker has trained a stage to its end, or to a divergence, or was stopped (`outcome`)."""
        segment = self.book.running[result.node]
        if isinstance(result.outcome, Stopped):
            self.book.abandon(result.node)
            self.stopping = self.stopping or result.outcome.reason
            return
        self.book.finish(result)
        self.losses.pop(result.node, None)
        arm, hours = (segment.spec.scale, segment.spec.method), result.devices * result.billed_seconds / 3600
        self.spent_hours += hours
        self.arm_hours[arm] += hours
        self.arm_steps[arm] += segment.steps
        self.step_hours[arm] += hours
        self._settle(self.book.trials_through(result.node))
        self.book.sweep_out(self.site.disk_bytes)
        if result.outcome is not None:
            self.latest = self._bad_ends.said(segment.spec, result.outcome)

    def fail(self, node: str, reason: str) -> None:
        """A stage failed for good: its trials are recorded as failed, the rest of the sweep goes on."""
        self.book.abandon(node)
        for spec_id in self.book.trials_through(node):
            self._record(spec_id, failure=reason)
        self.latest = f"a stage failed: {reason}"

    def give_back(self, node: str) -> None:
        """A stage's worker is gone through no fault of the stage: another one may have it."""
        self.book.abandon(node)

    def lose_parent(self, job: StageJob) -> None:
        """The state that a stage starts from is damaged: train the parent again, but not for ever."""
        if job.parent is not None:
            self._damages[job.parent] += 1
            # A disk that damages whatever is written would otherwise have the same steps trained for ever.
            if self._damages[job.parent] > MAX_DAMAGES:
                times = f"{MAX_DAMAGES + 1} times; check the disk"
                self.fail(job.node, f"the state at step {job.start} was damaged {times}")
                return
            self.book.lose(job.parent)
        self.book.abandon(job.node)
        self.latest = f"the state at step {job.start} is damaged and is trained again"

    def point(self, node: str, step: int, loss: float, cost: PointCost | None = None) -> None:
        """A running stage has evaluated: for the screen."""
        self.losses[node] = (step, loss)

    def _settle(self, spec_ids: Iterable[str]) -> None:
        for spec_id in spec_ids:
            if spec_id in self.book.paths and self.book.chain(spec_id)[1]:
                self._record(spec_id)

    def _provenance(self, chain: Sequence[StageResult]) -> Provenance:
        """Where this trial ran: the workers know their device, the driver the rest."""
        devices = list(dict.fromkeys(part.device for part in chain)) or [self.provenance.device]
        return replace(
            self.provenance,
            device=" + ".join(devices),
            device_kind="cuda" if self.site.on_gpu else "cpu",
            execution=self.site.execution,
        )

    def _record(self, spec_id: str, failure: str | None = None) -> None:
        spec, (chain, _) = self.book.paths[spec_id].spec, self.book.chain(spec_id)
        record = assemble_record(
            spec,
            self._purpose_of[spec_id],
            chain,
            self._provenance(chain),
            devices=self.site.devices_per_trial,
            corpus_tokens=self.corpus.train_tokens,
            evaluate_every=self.space.evaluate_every,
            failure=failure,
        )
        self.ledger.write(record)
        self.finished[spec_id] = record
        self.book.remove(spec_id)
        for arm in self.arms:
            if spec_id in arm.asked and record.purpose == "tuning":
                arm.tell(record)
            elif spec_id in (arm.probes or {}):
                arm.probes = {**(arm.probes or {}), spec_id: record}
        if record.final_loss is not None:
            steps = spec.schedule.total_steps
            self.latest = f"{spec.scale} {spec.method} ended at {record.final_loss:.4f} after {steps:,} steps"


def _answered(domain: Domain, make: SpecMaker, refusal: Callable[[AnySpec], str | None], arm: str) -> Domain:
    """The points that can be run at every budget that is tuned on. Raises `InputError` where none can."""
    reasons = {
        point: next(filter(None, (refusal(make(dict(point), steps, domain.seeds[0])) for steps in domain.rungs)), None)
        for point in domain.points
    }
    if all(reasons.values()):
        raise InputError(f"{arm}: nothing can be asked: {next(iter(reasons.values()))}")
    return domain.only(lambda point: reasons[point] is None)
