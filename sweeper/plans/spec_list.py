"""A sweep as a list of trials, for a machine where no orchestrator runs: what the sweep would ask for before any result.

Trials that the ledger has no record of, tuning first. While the search is open, confirmations stand for the winner that
the list itself finds (`trainers.planning.spec_lines`); once the ledger holds the tuning, they are the sweep's own. Every record
that comes back through `sweeper import` is one that the sweep would have trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from sweeper.corpora import prepared_text
from sweeper.engine.site import Site
from sweeper.engine.sweep import Sweep
from sweeper.ledger.in_memory import MemoryLedger
from sweeper.options import CorpusFacts, RunOptions, corpus_facts
from sweeper.plans.known import known_records
from sweeper.search import UNLEARNED
from sweeper.space.load import load_own_space
from sweeper.space.schema import SearchSpace
from trainers.contract.errors import given
from trainers.contract.record import Provenance, RunRecord
from trainers.contract.spec import own
from trainers.contract.stage import StageJob
from trainers.planning.spec_lines import TUNING, TrialLine, trials_to_text
from trainers.planning.store import MemoryStore


@dataclass(frozen=True, slots=True)
class SpecList:
    """The trials of the sweep `name` in the order of their worth; `corpus` is the folder that goes with them, `notes` are
    for people."""

    name: str
    trials: tuple[TrialLine, ...]
    corpus: str
    evaluate_every: int
    evaluate_tokens: int
    notes: tuple[str, ...]


def list_trials(space: SearchSpace, corpus: CorpusFacts, known: Iterable[RunRecord]) -> SpecList:
    """What is to be trained at the first scale that is not done, given the records that there are."""
    ledger = MemoryLedger()
    for record in known:
        ledger.write(record)
    nowhere = Provenance(
        git_commit="", git_dirty=False, device="", device_kind="cpu", execution="", versions=(), started_at=""
    )
    site = Site(store="", stop_file="", execution="")
    sweep = Sweep(space, corpus, ledger, MemoryStore(), site, nowhere, at_once=True)
    # As if there were a worker for everything and nothing ever ended: all that is asked for before the first result.
    while isinstance(sweep.next_job(), StageJob):
        pass
    asked = [TrialLine(own(spec), purpose) for spec, purpose in ledger.pending()]
    tuning = [line for line in asked if line.purpose == TUNING]
    notes: list[str] = []
    if tuning:
        # Those that have ended, too: a list that finds its own winner has to know all of them.
        tuning = [TrialLine(own(spec), purpose) for spec, purpose in ledger.asked.values() if purpose == TUNING]
        tuning = [line for line in tuning if any(line.spec.spec_id in arm.asked for arm in sweep.arms)]
    confirming = [line for line in asked if line.purpose != TUNING]
    short = [arm for arm in sweep.arms if len(arm.asked) < arm.trials]
    if short:
        notes.append(
            f"{short[0].scale}: the search goes on from results: these are its first trials; "
            "import their records and make the next list"
        )
    else:
        if tuning and any(arm.probes is not None for arm in sweep.arms):
            notes.append(
                f"{sweep.arms[0].scale}: learning rates are tried again at length before they are confirmed: "
                "import these records and make the next list"
            )
        for arm in sweep.arms:
            if arm.winner is None and arm.probes is None:
                confirming += [
                    TrialLine(own(spec), purpose, winner=True)
                    for spec, purpose in arm.confirmations(arm.domain.points[0])
                ]
        if tuning and sweep.arms[0].strategy.sampler not in UNLEARNED:
            notes.append("the search chose all of its tuning trials before it saw a result")
    if sweep.arms and space.scales[-1] != sweep.arms[0].scale:
        notes.append(f"only {sweep.arms[0].scale}: larger scales begin from what it finds")
    # A seed of every arm and budget at a time: a list that is cut short has then confirmed all arms alike, on fewer seeds.
    confirming.sort(key=lambda line: (line.purpose == "noise_floor", line.spec.seed))
    return SpecList(
        space.name, (*tuning, *confirming), corpus.directory, space.evaluate_every, space.evaluate_tokens, tuple(notes)
    )


def write_specs(options: RunOptions, path: Path, say: Callable[[str], None]) -> SpecList:
    """Prepare the corpus where that is still to do, and write the list. Raises what a run raises before it trains."""
    from trainers.contract.writing import write_atomically

    space = load_own_space(options.file)
    corpus = prepared_text(space, options, say)
    known = known_records(options.results, space.name, options.tracking_uri)
    made = list_trials(space, corpus_facts(corpus), known)
    with given(path):
        write_atomically(path, trials_to_text(made.trials))
    return made
