"""Whether the program of each method's command is there, asked before anything starts: else every trial would find out."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from sweeper.foreign.dry import example_specs
from sweeper.foreign.trainer import ForeignTrainer
from sweeper.foreign.worker import TrialFolder, environment_of, machine_of
from sweeper.space.errors import shown
from sweeper.space.foreign_schema import ForeignSpace
from sweeper.space.load import refusal
from trainers.planning.command import OUT, TRIAL, command_line, placeholders


def refuse_missing_programs(space: ForeignSpace, trainer: ForeignTrainer, file: Path) -> None:
    """Look where starting it would: a name in the PATH that the command is given, a path relative to its directory.

    Raises `SearchSpaceError` with the line of the word that names no program. One below a trial's own folder may come later.
    """
    folder = TrialFolder(Path(trainer.directory) / "TRIAL")
    for spec in example_specs(space, trainer.fingerprint):
        if {TRIAL, OUT} & {*placeholders(spec.command[0])}:
            continue
        program = command_line(spec, machine_of(folder))[0]
        searched = environment_of(trainer, spec, folder).get("PATH", os.defpath)
        # Relative entries are meant from where the command runs.
        path = os.pathsep.join(os.path.join(trainer.directory, entry) for entry in searched.split(os.pathsep))
        named = os.path.join(trainer.directory, program) if os.path.dirname(program) else program
        if shutil.which(named, path=path) is None:
            own = space.methods[spec.method].command is not None
            where = f"in {trainer.directory}" if os.path.dirname(program) else "in the PATH that it is given"
            said = f"{shown(program)} is no program {where}, so that nothing could be started"
            raise refusal(file, ("methods", spec.method, "command", 0) if own else ("trainer", "command", 0), said)
