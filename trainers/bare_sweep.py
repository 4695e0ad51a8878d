"""A list of trials trained one after the other in this process, to a file of records: a sweep without an orchestrator.

Trials that share a prefix of training share its stages, as in an orchestrated sweep, and each record is that of a trial
trained alone. The file of records says which trials have ended, the folder of stages how far the others are, so the
same call goes on after any stop. Which trials there are, and in which order, is the list's; there is no search here.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from trainers.contract.record import Diverged, Failed, Provenance, RunRecord, Stopped, outcome_name, reason_of
from trainers.contract.record_lines import BadLinesError, RecordsFile
from trainers.contract.spec import TrialSpec
from trainers.contract.stage import STATE, ParentLostError, StageJob, StageResult
from trainers.planning.assemble import assemble_record
from trainers.planning.lineage import ROOT, Segment, Tree, build_tree, path_of
from trainers.planning.spec_lines import TrialLine, filled_in
from trainers.training.provenance import UNKNOWN, provenance
from trainers.training.stage import run_stage

PARENT_ATTEMPTS = 2
"""How often a trial whose parent's state is damaged goes back and trains the parent again."""


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
    """Trials with a record, those of them that failed or diverged, and how many have none yet."""

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
            todo = [trial for trial in filled_in(self.trials, self.ended) if trial[0].spec_id not in self.ended]
            if not todo:
                break
            ended = self._train(*todo[0])
            if ended is not None:
                self.records.write(ended)
                self.ended[ended.spec.spec_id] = ended
                self._tell(ended)
                if ended.final_loss is not None:
                    self._export(ended.spec)
                self._drop_states()
        known = [
            self.ended[spec.spec_id] for spec, _ in filled_in(self.trials, self.ended) if spec.spec_id in self.ended
        ]
        left = len(self.trials) - len(known)
        if left and not todo:
            self.say(
                f"{left} trials are left out: their values were to be those of a winner, and no tuning trial finished"
            )
        return BareEnd(len(known), sum(record.final_loss is None for record in known), left)

    def _tree(self) -> Tree:
        """Of all trials, ended ones too: the cuts stay where they were when a call goes on."""
        return build_tree(path_of(spec, self.site.execution) for spec, _ in filled_in(self.trials, self.ended))

    def _train(self, spec: TrialSpec, stage: str) -> RunRecord | None:
        """A trial's record; None where it was stopped."""
        tree, where = self._tree(), self._provenance()
        chain: list[StageResult] = []
        failure: str | None = None
        for _ in range(PARENT_ATTEMPTS):
            chain.clear()
            try:
                self._follow(tree.ways[spec.spec_id], tree, chain)
            except ParentLostError as error:
                failure = reason_of(error)
                self._forget(tree.ways[spec.spec_id])
            except Exception as error:  # whatever fails is this trial's outcome, never the end of the others
                failure = reason_of(error)
                break
            else:
                failure = None
                break
        if failure is None and isinstance(chain[-1].outcome, Stopped):
            return None
        return assemble_record(
            spec,
            stage,
            chain,
            where,
            devices=self.site.devices,
            corpus_tokens=self.corpus.train_tokens,
            evaluate_every=self.site.evaluate_every,
            failure=failure,
        )

    def _follow(self, way: tuple[str, ...], tree: Tree, chain: list[StageResult]) -> None:
        """Train a trial's stages, or find them trained, into `chain`; breaks off where training ended early."""
        for node in way:
            chain.append(self._stage(tree.segments[node], tree))
            if chain[-1].outcome is not None:
                return

    def _stage(self, segment: Segment, tree: Tree) -> StageResult:
        spec, site = segment.spec, self.site
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
            micro_sequences=site.micro_sequences,
            checkpoint_activations=site.checkpoint_activations,
            keep_state=bool(tree.children(segment.node)) or self._exported(segment, tree),
        )
        name, total = self._name(spec), spec.schedule.total_steps
        return run_stage(
            job,
            self.corpus,
            lambda point: self.say(f"{name}: step {point.step:,} of {total:,}, loss {point.loss:.4f}"),
        )

    def _exported(self, segment: Segment, tree: Tree) -> bool:
        return self.site.export is not None and any(tree.ways[trial][-1] == segment.node for trial in segment.trials)

    def _export(self, spec: TrialSpec) -> None:
        """Write the model of a trial that has just finished."""
        from trainers.export import export_state

        if self.site.export is None:
            return
        state, out = self.site.scratch / self._tree().ways[spec.spec_id][-1] / STATE, self.site.export / spec.spec_id
        try:
            export_state(state, self.corpus.directory, out)
        except (ValueError, OSError) as error:  # the record is safe, and the other trials wait
            self.say(f"not exported: {reason_of(error)}")
        else:
            self.say(f"exported {out}")

    def _forget(self, way: tuple[str, ...]) -> None:
        """Train a whole way again: which of its states is damaged is not worth finding out."""
        for node in way:
            shutil.rmtree(self.site.scratch / node, ignore_errors=True)

    def _drop_states(self) -> None:
        """Delete the states that no trial without a result goes on from."""
        over = {spec_id for spec_id, r in self.ended.items() if not isinstance(r.outcome, Failed)}
        tree = self._tree()
        for node in tree.segments:
            waiting = {trial for child in tree.children(node) for trial in child.trials} - over
            if not waiting:
                shutil.rmtree(self.site.scratch / node / STATE, ignore_errors=True)

    def _provenance(self) -> Provenance:
        found = provenance(self.site.execution, self.site.device)
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
