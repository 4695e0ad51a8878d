"""A list of trials trained one after the other in this process, to a file of records: a sweep without an orchestrator.

Trials that share a prefix of training share its stages, as in an orchestrated sweep, and each record is that of a trial
trained alone. The file of records says which trials have ended, the folder of stages how far the others are, so the
same call goes on after any stop. Which trials there are, and in which order, is the list's; there is no search here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from trainers.contract.record import Diverged, Failed, Provenance, RunRecord, Stopped, outcome_name, reason_of
from trainers.contract.record_lines import BadLinesError, RecordsFile
from trainers.contract.spec import TrialSpec, own
from trainers.contract.stage import STATE, ParentLostError, StageJob, StageResult
from trainers.planning.assemble import assemble_record
from trainers.planning.lineage import ROOT, Segment, TrialPath, path_of
from trainers.planning.spec_lines import TrialLine, filled_in
from trainers.planning.stages import StageBook
from trainers.planning.store import DiskStore
from trainers.training.provenance import UNKNOWN, provenance
from trainers.training.stage import run_stage

PARENT_ATTEMPTS = 2
"""How often one state may be found damaged; it is trained again every time but the last."""


@dataclass(frozen=True, slots=True)
class BareSite:
    """How to run, without influence on what comes out. `devices` enter the clock: one GPU, or the CPU threads in use.

    `commit` is that of the code where it is no checkout; `micro_sequences` None takes the whole batch at a time; models
    are exported into folders of `export` by spec id, None exports none.
    """

    scratch: Path
    device: str
    execution: str
    devices: int = 1
    evaluate_every: int = 0
    evaluate_tokens: int = 0
    micro_sequences: int | None = None
    checkpoint_activations: bool = False
    commit: str | None = None
    export: Path | None = None

    @property
    def stop_file(self) -> Path:
        """Training ends, its state saved, soon after this file appears."""
        return self.scratch / "stop"


@dataclass(frozen=True, slots=True)
class BareEnd:
    """How many trials have a record, how many of those failed or diverged, and how many have none yet."""

    ended: int
    unfinished: int
    left: int


def refuse_unfit(trials: tuple[TrialLine, ...], corpus: Any, site: BareSite, name: str) -> None:
    """Raise `BadLinesError` for trials of another text or batch than this call can train; `name` is the file's."""
    problems = []
    for line in trials:
        spec, place = line.spec, f"{name}:{line.number}"
        if (spec.corpus_fingerprint, spec.tokenizer_fingerprint) != (corpus.fingerprint, corpus.tokenizer_fingerprint):
            problems.append(
                f"{place}: is for the corpus {spec.corpus_fingerprint} with the tokenizer {spec.tokenizer_fingerprint}; "
                f"--corpus holds {corpus.fingerprint} with {corpus.tokenizer_fingerprint} ({corpus.description})"
            )
        elif spec.shape.vocab_size != corpus.vocab_size:
            problems.append(f"{place}: shape.vocab_size: {spec.shape.vocab_size}, the corpus has {corpus.vocab_size}")
        elif spec.validation_tokens > corpus.validation_tokens:
            problems.append(
                f"{place}: validation_tokens: {spec.validation_tokens}, the corpus has {corpus.validation_tokens}"
            )
        if site.micro_sequences and spec.sequences_per_step % site.micro_sequences:
            problems.append(
                f"{place}: --micro-sequences {site.micro_sequences} does not divide its "
                f"{spec.sequences_per_step} sequences"
            )
    if len(problems) > 1 and len({problem.partition(": ")[2] for problem in problems}) == 1:
        problems = [f"{name}: every trial {problems[0].partition(': ')[2]}"]
    if problems:
        raise BadLinesError(problems)


def _say_with_time(line: str) -> None:
    print(f"{datetime.now():%H:%M:%S} {line}", flush=True)


@dataclass
class BareSweep:
    """Use `run`. `corpus` is an open `trainers.data` corpus; `records` take each trial's record as it ends."""

    trials: tuple[TrialLine, ...]
    corpus: Any
    site: BareSite
    records: RecordsFile
    say: Callable[[str], None] = _say_with_time
    ended: dict[str, RunRecord] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.book = StageBook(DiskStore(self.site.scratch))
        self.book.adopt(self.book.store.states())
        self._paths: dict[str, TrialPath] = {}
        self._damages: Counter[str] = Counter()

    def run(self) -> BareEnd:
        """Train until nothing is left or a stop is asked for. A trial that failed in an earlier call is tried again."""
        before = {record.spec.spec_id: record for record in self.records.records}
        for spec, _ in filled_in(self.trials, before):
            if spec.spec_id in before and not isinstance(before[spec.spec_id].outcome, Failed | Stopped):
                self.ended[spec.spec_id] = before[spec.spec_id]
        if self.ended:
            self.say(f"{len(self.ended)} of {len(self.trials)} trials have ended before")
        todo: list[tuple[TrialSpec, str]] = []
        while not self.site.stop_file.exists():
            todo = self._take_up()
            if not todo:
                break
            # One trial at a time, in the order of the list: what is cut short by a deadline has finished what matters
            # most.
            first, where = todo[0][0].spec_id, self._provenance()
            failure = self._train(first)
            self._settle(todo, {first: failure} if failure else {}, where)
        known = [
            self.ended[spec.spec_id] for spec, _ in filled_in(self.trials, self.ended) if spec.spec_id in self.ended
        ]
        left = len(self.trials) - len(known)
        if left and not todo and not self.site.stop_file.exists():
            self.say(
                f"{left} trials are left out: their values were to be those of a winner, and no tuning trial finished"
            )
        return BareEnd(len(known), sum(record.final_loss is None for record in known), left)

    def _take_up(self) -> list[tuple[TrialSpec, str]]:
        """The trials that can be trained now and have not ended, with their purposes, all of them in the book."""
        trials = filled_in(self.trials, self.ended)
        for spec, _ in trials:
            if spec.spec_id not in self._paths:
                self._paths[spec.spec_id] = path_of(spec, self.site.execution)
        todo = [trial for trial in trials if trial[0].spec_id not in self.ended]
        self.book.add(self._paths[spec.spec_id] for spec, _ in todo if spec.spec_id not in self.book.paths)
        return todo

    def _train(self, spec_id: str) -> str | None:
        """Train the stages that a trial still needs, until it has ended or is stopped; returns why it failed, if it did."""
        while not self._complete(spec_id):
            segment = self._next_stage(spec_id)
            self.book.start(segment)
            try:
                result = self._stage(segment)
            except ParentLostError as error:
                self.book.abandon(segment.node)
                self.book.lose(segment.parent)
                self._damages[segment.parent] += 1
                # The parent is trained again. A disk that damages every state would otherwise keep one trial busy for
                # ever.
                if self._damages[segment.parent] >= PARENT_ATTEMPTS:
                    return reason_of(error)
            except Exception as error:  # whatever fails is this trial's outcome, never the end of the others
                self.book.abandon(segment.node)
                self.book.protected.add(segment.parent)  # the next call tries the trial again, from there
                return reason_of(error)
            else:
                if isinstance(result.outcome, Stopped):
                    self.book.abandon(segment.node)
                    return None
                self.book.finish(result)
        return None

    def _complete(self, spec_id: str) -> bool:
        """Whether every stage of a trial has ended. The last one is trained again where the model is to be exported and its
        state is gone."""
        chain, whole = self.book.chain(spec_id)
        if whole and self.site.export and chain[-1].outcome is None and not self.book.store.has_state(chain[-1].node):
            self.book.lose(chain[-1].node)
            return False
        return whole

    def _settle(self, todo: Sequence[tuple[TrialSpec, str]], failures: Mapping[str, str], where: Provenance) -> None:
        """Keep the records of the trials that have ended, with `failures` by spec id, and their models where wanted; then
        delete the states that nothing goes on from. One stage can end several trials: it diverged and they share it, or
        they differ in nothing that is trained."""
        ended = [
            self._record(spec, purpose, failures.get(spec.spec_id), where)
            for spec, purpose in todo
            if spec.spec_id in failures or self._complete(spec.spec_id)
        ]
        for record in ended:
            self.records.write(record)
            self.ended[record.spec.spec_id] = record
            self._tell(record)
            if record.final_loss is not None and self.site.export is not None:
                self._export(own(record.spec), self.site.export / record.spec.spec_id)
        for record in ended:
            # Only when all records are safe: a state that is deleted too early would have to be trained again.
            self.book.remove(record.spec.spec_id)
        self._take_up()  # trials of winners may go on from the tuning's states
        self.book.sweep_out(math.inf, self._own_states())

    def _own_states(self) -> dict[str, int]:
        """States that this list's trials go through: the folder may hold those of other lists, and anything else."""
        store = self.book.store
        ends = {node: result.end for node in store.states() if (result := store.result(node)) is not None}
        return {node: 0 for node, end in ends.items() if any(path.node(end) == node for path in self._paths.values())}

    def _record(self, spec: TrialSpec, purpose: str, failure: str | None, where: Provenance) -> RunRecord:
        return assemble_record(
            spec,
            purpose,
            self.book.chain(spec.spec_id)[0],
            where,
            devices=self.site.devices,
            corpus_tokens=self.corpus.train_tokens,
            evaluate_every=self.site.evaluate_every,
            failure=failure,
        )

    def _next_stage(self, spec_id: str) -> Segment:
        """The first of the trial's stages that has to be trained."""
        way = self.book.way(spec_id)
        return next(segment for segment in self.book.in_line() if segment.node in way)

    def _stage(self, segment: Segment) -> StageResult:
        spec, site = own(segment.spec), self.site
        job = StageJob(
            node=segment.node,
            parent=None if segment.parent == ROOT else segment.parent,
            start=segment.start,
            end=segment.end,
            spec=spec,
            booked_by=segment.trials[0],
            store=str(site.scratch),
            corpus=str(self.corpus.directory),
            stop_file=str(site.stop_file),
            device=site.device,
            execution=site.execution,
            evaluate_every=site.evaluate_every,
            evaluate_tokens=site.evaluate_tokens,
            micro_sequences=site.micro_sequences,
            checkpoint_activations=site.checkpoint_activations,
            keep_state=self.book.keeps_state(segment),
            keep_weights=self._exported(segment),
        )
        name, total = self._name(spec), spec.schedule.total_steps
        return run_stage(
            job,
            self.corpus,
            lambda point: self.say(f"{name}: step {point.step:,} of {total:,}, loss {point.loss:.4f}"),
        )

    def _exported(self, segment: Segment) -> bool:
        ends = (self.book.way(trial)[-1] for trial in segment.trials)
        return self.site.export is not None and segment.node in ends

    def _export(self, spec: TrialSpec, out: Path) -> None:
        """Write the model of a trial that has just finished."""
        from trainers.export import export_state

        state = self.site.scratch / self.book.way(spec.spec_id)[-1] / STATE
        try:
            export_state(state, self.corpus.directory, out)
        except (ValueError, OSError) as error:  # the record is safe, and the other trials wait
            self.say(f"not exported: {reason_of(error)}")
        else:
            self.say(f"exported {out}")

    def _provenance(self) -> Provenance:
        found = provenance(self.site.execution, self.site.device)
        # Code that was copied to a machine is no checkout; its commit is then what the caller says.
        known = self.site.commit is None or found.git_commit != UNKNOWN
        return found if known else replace(found, git_commit=str(self.site.commit))

    def _name(self, spec: TrialSpec) -> str:
        parameters = "".join(f" {name}={value}" for name, value in spec.parameters)
        schedule = spec.schedule
        return (
            f"[{len(self.ended) + 1}/{len(self.trials)}] {spec.scale} {spec.method}{parameters} "
            f"learning_rate={schedule.learning_rate:g} seed={spec.seed} steps={schedule.total_steps}"
        )

    def _tell(self, record: RunRecord) -> None:
        match record.outcome:
            case Failed(reason) | Diverged(_, reason) | Stopped(_, reason):
                how = f"{outcome_name(record.outcome)}: {reason}"
            case _:
                how = f"final loss {record.final_loss:.4f}"
        spec, timing = record.spec, record.timing
        self.say(
            f"ended {len(self.ended)}/{len(self.trials)} {spec.spec_id} {spec.method}: {how}; {timing.step_seconds:.1f} s "
            f"of steps, {timing.incurred_seconds:.1f} s spent"
        )
