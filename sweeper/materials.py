"""What a sweep trains with and on: our own worker and a prepared text, or somebody's command.

The only place of a run that asks which of the two it is; engine, ledger and report see trials.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from sweeper.corpora import corpus_request, prepared_text, refuse_little_asked, refuse_little_text, reread_text
from sweeper.executors.inline import Train
from sweeper.foreign.costs import command_cost
from sweeper.foreign.dry import NO_CLAIM, DryResult, DryRun, example_specs, measured_by_a_dry_run
from sweeper.foreign.program import refuse_missing_programs
from sweeper.foreign.trainer import ForeignTrainer, trainer_of
from sweeper.foreign.worker import TrialFolder, machine_of, run_command
from sweeper.options import CORPORA, STAGES, CorpusFacts, RunOptions, corpus_facts
from sweeper.plans.costs import Costs, step_cost
from sweeper.plans.plan import UNPREPARED
from sweeper.plans.room import Room, find_room, gpus_here
from sweeper.space.foreign_schema import AnySpace, ForeignSpace
from sweeper.space.load import load_search_space
from sweeper.space.schema import SearchSpace
from trainers.bench.result import FOLDER as BENCH
from trainers.bench.result import read_figures
from trainers.contract.errors import InputError
from trainers.contract.record import RunRecord
from trainers.methods import TRAINERS_OWN
from trainers.planning.command import shell_line

COMMAND = "command"
"""Execution of a trial that is one."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Materials:
    """`train` trains a stage wherever it is called; `execution` is the form of its step. The rest is what the ledger is told
    of the text."""

    train: Train
    corpus: CorpusFacts
    description: str
    seen_share: float | None
    bytes_per_token: float | None
    execution: str


@dataclass(frozen=True, slots=True)
class Expected:
    """What a plan may know before anything is prepared: the text, what steps cost, what is to be said of another trainer."""

    corpus: CorpusFacts
    words: str
    cost: Costs
    commands: tuple[str, ...] = ()


def ranks_of(space: AnySpace) -> int:
    """Processes of ours that share a trial. A command starts its own."""
    return space.resources.num_ranks if isinstance(space, SearchSpace) else 1


def materials_of(space: AnySpace, options: RunOptions, room: Room, say: Say) -> Materials:
    """Prepare what `space` needs. Raises `UserError` before anything is trained."""
    if isinstance(space, ForeignSpace):
        trainer = _trainer(space, options, room)
        if not space.trainer.decayed:
            say(f"schedule: {NO_CLAIM}")
        return Materials(partial(run_command, trainer), _no_corpus(trainer), TRAINERS_OWN, None, None, COMMAND)
    import torch

    from sweeper.executors.worker import train_stage
    from trainers.training.execution import resolve_execution

    corpus = prepared_text(space, options, say)
    device = torch.device("cuda" if room.on_gpu else "cpu")
    execution = resolve_execution(options.execution, device, say, space.resources.num_ranks)
    facts = corpus_facts(corpus)
    return Materials(train_stage, facts, corpus.description, corpus.seen_share, corpus.bytes_per_token, execution)


def expected(space: AnySpace, options: RunOptions, room: Room, known: Sequence[RunRecord]) -> Expected:
    """What is known of it all now; prepares nothing. Raises `UserError` where a prepared text is too little."""
    if isinstance(space, ForeignSpace):
        trainer = _trainer(space, options, room)
        facts = _no_corpus(trainer)
        dry = measured_by_a_dry_run(options.results / space.name, facts.code)
        cost = command_cost(trainer, known, room.devices, dry)
        notes = () if space.trainer.decayed else (f"schedule: {NO_CLAIM}",)
        return Expected(facts, TRAINERS_OWN, cost, (*_commands(space, options, facts.code), *notes))
    facts, words = _prepared(space, options)
    # By what was measured on this very device where there is any; a plan says which of the three sources it used.
    own = step_cost(
        known,
        room.device,
        on_gpu=room.on_gpu,
        bench=read_figures(options.results / BENCH, room.device),
        devices=room.devices,
        ranks=room.gpus if 0 < room.gpus < 1 else space.resources.num_ranks,
    )
    return Expected(facts, words, own)


def dry_run(options: RunOptions, say: Say) -> DryResult:
    """Run each method's command once at a small budget. Raises `UserError` for a file without a trainer of its own."""
    space = load_search_space(options.file)
    if not isinstance(space, ForeignSpace):
        raise InputError(
            f"{options.file}: --dry is for a file with a trainer: of its own; `sweeper plan` checks this one"
        )
    room = find_room(space, options)
    trainer = _trainer(space, options, room)
    lacking = room.on_gpu and room.gpus > gpus_here()
    if lacking:
        say(
            f"resources.gpus: {room.gpus:g} wanted for a trial, this machine has {gpus_here()}; its step times are not kept"
        )
    return DryRun(space, trainer, (options.results / space.name).resolve(), say, timed=not lacking).run()


def _trainer(space: ForeignSpace, options: RunOptions, room: Room) -> ForeignTrainer:
    """The trainer of a file. Raises `UserError` for a program that is not there; what a cluster's machines have, they know."""
    trainer = trainer_of(space, options.file, room.device, room.gpus)
    if options.address is None:
        refuse_missing_programs(space, trainer, options.file)
    return trainer


def _no_corpus(trainer: ForeignTrainer) -> CorpusFacts:
    return CorpusFacts("unknown", "unknown", 0, 0, "", code=trainer.fingerprint)


def _prepared(space: SearchSpace, options: RunOptions) -> tuple[CorpusFacts, str]:
    from trainers.data.documents import MissingTextError
    from trainers.data.prepare import find_prepared

    request = corpus_request(space)
    try:
        manifest = find_prepared(request, options.results / CORPORA)
    except MissingTextError as error:  # the machine that trains may have it
        return UNPREPARED, f"unprepared ({error})"
    if manifest:
        refuse_little_text(space, manifest)
        said = reread_text(space, manifest.train_tokens)
        return corpus_facts(manifest), f"{manifest.description}, prepared{f'; {said}' if said else ''}"
    if request.tokens is None:
        return UNPREPARED, f"{space.corpus.source}, unprepared"
    refuse_little_asked(space, request.tokens)
    said = reread_text(space, request.tokens)
    words = f"{space.corpus.source}, unprepared{f'; {said}' if said else ''}"
    return replace(UNPREPARED, train_tokens=request.tokens), words


def _commands(space: ForeignSpace, options: RunOptions, code: str) -> list[str]:
    """A command of each method, as it would run: the folder is that of the trial that it is of."""
    store = (options.results / space.name / STAGES).resolve()
    machine = machine_of(TrialFolder(Path(store) / "TRIAL"))
    return [f"{spec.method}: {shell_line(spec, machine)}" for spec in example_specs(space, code)]
