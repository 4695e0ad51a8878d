"""One method at one scale in one sweep: what it tries, what won, what is run again on fresh seeds.

Tuning spends the same number of trials for every arm; the winner by the search's own model (not the luckiest observation),
its learning rate probed at length where that is asked for, is confirmed on seeds that the search never used. Scheduling is
left to `sweep`.

A search is asked in rounds of a fixed number of trials, and hears of a round when all of it has ended, in the order in
which it was asked: which trials there are depends on no worker, no clock and no kill.

What earlier sweeps in the same ledger found are points for a search to begin at, never values. Losses compare only between
trials of one identity: the same scale, method, model, text, tokenizer, batch, schedule's warm-up, optimizer and precision.
Budget, learning rate, the method's parameters and the seed may differ.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from sweeper.engine.probes import PROBE, best_rate, probed_rates, rate_of, with_rate
from sweeper.options import CorpusFacts
from sweeper.search import Domain, Proposal, Recommendation, Strategy
from sweeper.search.domain import LAST_SEARCH_SEED, Parameters
from sweeper.space.foreign_schema import AnySpace
from sweeper.space.trials import as_asked_now, domain_of
from trainers.contract.record import RunRecord, outcome_name
from trainers.contract.spec import AnySpec, Scalar, Spec, fingerprint, spec_to_dict
from trainers.methods import LEARNING_RATE

NOISE_FLOOR_SEEDS = 5
"""Seeds of the noise-floor cell, where confirmation has one seed and so shows no spread of its own."""

ROUNDS = 4
"""In which a search that learns is asked for its trials. More of them know more each time, and let fewer workers work."""

SpecMaker = Callable[[Mapping[str, Scalar], int, int], AnySpec]
"""Parameters (with the learning rate), total steps and seed to a spec of this arm."""


def proposal_of(spec: Spec) -> Proposal:
    """The search's view of a tuning trial."""
    parameters = (*spec.parameters, (LEARNING_RATE, spec.schedule.learning_rate))
    return Proposal(tuple(sorted(parameters)), spec.schedule.total_steps, spec.seed)


@dataclass
class Arm:
    """`confirmation` are total steps, ascending; `seeds` the confirmation seeds. `probes` are None where there are to be
    none, and otherwise hold those that have been asked for, with their records once they have ended."""

    scale: str
    method: str
    domain: Domain
    strategy: Strategy
    make: SpecMaker
    trials: int
    confirmation: tuple[int, ...]
    seeds: tuple[int, ...]
    noise_floor: bool
    rounds: int = ROUNDS
    tuned: dict[str, RunRecord] = field(default_factory=dict)
    asked: dict[str, AnySpec] = field(default_factory=dict)
    probes: dict[str, RunRecord | None] | None = None
    round: dict[str, AnySpec] = field(default_factory=dict)
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
        """Rebuild the search from what an earlier run of the sweep left in the ledger.

        The search is asked again, round by round, and answered from the ledger. Where it asks for other trials than the
        ledger holds (the file, what is known of other sweeps or the search itself has changed), all that is there is one
        round that was asked before.
        """
        ended = {record.spec.spec_id: record for record in finished}
        there = {**{spec_id: record.spec for spec_id, record in ended.items()}, **{s.spec_id: s for s in pending}}
        untouched = copy.deepcopy(self.strategy)
        left = set(there)
        while left and self.ask():
            if not left >= self.round.keys() and left > left & self.round.keys():
                break
            left -= self.round.keys()
            for spec_id in [spec_id for spec_id in self.round if spec_id in ended]:
                self.tell(ended[spec_id])
        if not left:
            return
        self.strategy, self.asked, self.tuned = untouched, dict(there), {}
        self.round = dict(there)
        for spec in there.values():
            self.strategy.adopt(proposal_of(spec))
        for record in ended.values():
            self.tell(record)

    def ask(self) -> list[AnySpec]:
        """The next round of tuning trials; none while one is under way, and once every trial has been asked for."""
        if self.round:
            return []
        room = self.trials - len(self.asked)
        wanted = min(room, max(1, self.trials // self.rounds))
        while len(self.round) < wanted:
            proposals = self.strategy.ask(room - len(self.round))
            if not proposals:  # the next rung waits for this round
                break
            specs = [self.make(dict(one.parameters), one.total_steps, one.seed) for one in proposals]
            self.round |= {spec.spec_id: spec for spec in specs}
        self.asked |= self.round
        return list(self.round.values())

    def tell(self, record: RunRecord) -> None:
        """A tuning trial has ended."""
        self.tuned[record.spec.spec_id] = record
        if self.round.keys() <= self.tuned.keys():
            for spec_id, spec in self.round.items():
                self.strategy.tell(proposal_of(spec), self.tuned[spec_id].final_loss)
            self.round = {}

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

    @property
    def without_a_winner(self) -> str:
        """Why nothing of a search is confirmed."""
        ends = Counter(outcome_name(record.outcome) for record in self.tuned.values())
        if len(ends) == 1:
            return f"every trial {next(iter(ends))}"
        return f"no trial finished: {', '.join(f'{count} {end}' for end, count in sorted(ends.items()))}"

    def probe(self) -> list[tuple[AnySpec, str]]:
        """The probes of the winner's learning rate that are still to be asked for, with their purpose; they hold up the
        confirmation. None where there are to be none, or every trial diverged."""
        if self.probes != {} or self.best is None:
            return []
        values, steps = self.strategy.recommend().parameters, self.confirmation[-1]
        grid = next((axis.values for axis in self.domain.axes if axis.name == LEARNING_RATE), ())
        rates = probed_rates(rate_of(values), [float(rate) for rate in grid])
        # From a tuning trial's trunk where there may be one; an arm that was tuned at this very length has them already, and is
        # probed as often as the others all the same.
        seed = LAST_SEARCH_SEED if steps in self.domain.rungs else self.domain.seeds[0]
        specs = [self.make(dict(with_rate(values, rate)), steps, seed) for rate in rates]
        self.probes = {spec.spec_id: None for spec in specs}
        return [(spec, PROBE) for spec in specs]

    @property
    def probing(self) -> bool:
        """Whether a probe that was asked for has not ended."""
        return self.probes is not None and None in self.probes.values()

    def confirm(self) -> list[tuple[AnySpec, str]]:
        """Choose the winner and give its trials on fresh seeds with their purpose; none where every trial diverged."""
        if self.best is None:
            return []
        # The model's mean decides, not the lowest loss: with a seed deviation of 0.005 the luckiest of sixteen trials
        # looks 0.009 better than it is, and the arm with more noise would win by it.
        winner = self.strategy.recommend()
        ended = [record for record in (self.probes or {}).values() if record is not None]
        rate = best_rate(ended, rate_of(winner.parameters))
        self.winner = replace(winner, parameters=with_rate(winner.parameters, rate))
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


def of_this_file(space: AnySpace, corpus: CorpusFacts, record: RunRecord) -> bool:
    """Whether the file as it is now may ask for this very trial; what an earlier state of it asked for (another context, batch,
    text, code, value, budget or seed) counts as no progress of this one."""
    spec = record.spec
    try:
        asked = as_asked_now(
            space,
            spec,
            corpus_fingerprint=corpus.fingerprint,
            tokenizer_fingerprint=corpus.tokenizer_fingerprint,
            code=corpus.code,
        )
        if record.purpose == "tuning":
            domain_of(space.methods[spec.method], space.seeds.tuning).refuse_outside(proposal_of(spec))
    except ValueError:
        return False
    if asked.spec_id != spec.spec_id or record.purpose != "confirmation":
        return asked.spec_id == spec.spec_id
    budgets = space.methods[spec.method].budgets.confirmation
    return spec.schedule.total_steps in budgets and spec.seed in space.seeds.confirmation


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
