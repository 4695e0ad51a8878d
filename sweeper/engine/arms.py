"""One method at one scale in one sweep: what it tries, what won, what is run again on fresh seeds.

Tuning spends the same number of trials for every arm; then the winner by the search's own model (not the luckiest
observation) is confirmed on seeds that the search never used. Scheduling is left to `sweep`.

What earlier sweeps in the same ledger found are points for a search to begin at, never values. Losses compare only between
trials of one identity: the same scale, method, model, text, tokenizer, batch, schedule's warm-up, optimizer and precision.
Budget, learning rate, the method's parameters and the seed may differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from sweeper.search import Domain, Proposal, Recommendation, Strategy
from sweeper.search.domain import Parameters
from trainers.contract.record import RunRecord
from trainers.contract.spec import AnySpec, Scalar, Spec, fingerprint, spec_to_dict
from trainers.methods import LEARNING_RATE

NOISE_FLOOR_SEEDS = 5
"""Seeds of the noise-floor cell, where confirmation has one seed and so shows no spread of its own."""

SpecMaker = Callable[[Mapping[str, Scalar], int, int], AnySpec]
"""Parameters (with the learning rate), total steps and seed to a spec of this arm."""


def proposal_of(spec: Spec) -> Proposal:
    """The search's view of a tuning trial."""
    parameters = (*spec.parameters, (LEARNING_RATE, spec.schedule.learning_rate))
    return Proposal(tuple(sorted(parameters)), spec.schedule.total_steps, spec.seed)


@dataclass
class Arm:
    """`confirmation` are total steps, ascending; `seeds` the confirmation seeds."""

    scale: str
    method: str
    domain: Domain
    strategy: Strategy
    make: SpecMaker
    trials: int
    confirmation: tuple[int, ...]
    seeds: tuple[int, ...]
    noise_floor: bool
    tuned: dict[str, RunRecord] = field(default_factory=dict)
    asked: dict[str, AnySpec] = field(default_factory=dict)
    winner: Recommendation | None = None
    confirming: dict[str, str] = field(default_factory=dict)

    def belongs(self, spec: Spec) -> bool:
        """Whether `spec` is a tuning trial that this arm's search could have asked for, in its present space."""
        if (spec.scale, spec.method) != (self.scale, self.method):
            return False
        proposal = proposal_of(spec)
        try:
            self.domain.refuse_outside(proposal)
        except ValueError:
            return False
        # The ids, not the parts: a trial on another text or batch has the same proposal and another loss.
        return self.make(dict(proposal.parameters), proposal.total_steps, proposal.seed).spec_id == spec.spec_id

    def replay(self, finished: Iterable[RunRecord], pending: Iterable[AnySpec]) -> None:
        """Rebuild the search from what an earlier run of the sweep left in the ledger."""
        for record in finished:
            self.asked[record.spec.spec_id] = record.spec
            self.tuned[record.spec.spec_id] = record
            self.strategy.tell(proposal_of(record.spec), record.final_loss)
        for spec in pending:
            self.asked[spec.spec_id] = spec
            self.strategy.adopt(proposal_of(spec))

    def ask(self) -> list[AnySpec]:
        """The next tuning trials, a fan at a time; none once every trial has been asked for."""
        room = self.trials - len(self.asked)
        if room <= 0:
            return []
        specs = [
            self.make(dict(proposal.parameters), proposal.total_steps, proposal.seed)
            for proposal in self.strategy.ask(room)
        ]
        self.asked.update((spec.spec_id, spec) for spec in specs)
        return specs

    def tell(self, record: RunRecord) -> None:
        """A tuning trial has ended."""
        self.tuned[record.spec.spec_id] = record
        self.strategy.tell(proposal_of(record.spec), record.final_loss)

    @property
    def tuning_done(self) -> bool:
        """Whether all trials have been asked for and have ended."""
        return len(self.tuned) >= self.trials

    @property
    def best(self) -> RunRecord | None:
        """The lowest tuning loss so far, at the highest rung that has one: for the screen. The winner is the model's."""
        ended = [record for record in self.tuned.values() if record.final_loss is not None]
        # Losses of different budgets do not compare: the shorter run of a better point is behind the longer one of a
        # worse.
        top = max((record.spec.schedule.total_steps for record in ended), default=0)
        finished = [record for record in ended if record.spec.schedule.total_steps == top]
        return min(finished, key=lambda record: record.final_loss or 0.0, default=None)

    def confirm(self) -> list[tuple[AnySpec, str]]:
        """Choose the winner and give its trials on fresh seeds with their purpose; none where every trial diverged."""
        if self.best is None:
            return []
        self.winner = self.strategy.recommend()
        # The model's mean decides, not the lowest loss: with a seed deviation of 0.005 the luckiest of sixteen trials
        # looks 0.009 better than it is, and the arm with more noise would win by it.
        trials = self.confirmations(self.winner.parameters)
        self.confirming = {spec.spec_id: purpose for spec, purpose in trials}
        return trials

    def confirmations(self, values: Parameters) -> list[tuple[AnySpec, str]]:
        """The trials on fresh seeds, with their purpose, of these values."""
        parameters = dict(values)
        trials = [
            (self.make(parameters, steps, seed), "confirmation") for steps in self.confirmation for seed in self.seeds
        ]
        # The baseline's cheapest cell, because a deviation costs least there; it is taken for all cells of the scale.
        if self.noise_floor:
            first = max(self.seeds) + 1
            trials += [
                (self.make(parameters, min(self.confirmation), seed), "noise_floor")
                for seed in range(first, first + NOISE_FLOOR_SEEDS - 1)
            ]
        return trials


def identity_of(spec: Spec) -> str:
    """Hash of what two trials must have in common for one to teach the other's search."""
    free = ("parameters", "seed", "schedule")
    fixed = {name: value for name, value in spec_to_dict(spec).items() if name not in free}
    return fingerprint({**fixed, "warmup": spec.schedule.warmup_steps})


def earlier_points(records: Iterable[RunRecord], like: Spec) -> list[tuple[Parameters, float]]:
    """Points and final losses of finished trials with the identity of `like`, at the largest budget that any has."""
    identity = identity_of(like)
    finished = [
        (record.spec, record.final_loss)
        for record in records
        if record.final_loss is not None and identity_of(record.spec) == identity
    ]
    largest = max((spec.schedule.total_steps for spec, _ in finished), default=0)
    return [(proposal_of(spec).parameters, loss) for spec, loss in finished if spec.schedule.total_steps == largest]
