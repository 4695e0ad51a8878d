"""`sweeper plan FILE --specs LIST`: the trials for a machine without an orchestrator, and the commands that take them there."""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sweeper.session import RunOptions


def list_specs(options: RunOptions, path: Path) -> None:
    """Write the list and print how it is trained and how its records come back. Raises `ValueError` in one line."""
    from sweeper.plans.spec_list import write_specs

    made = write_specs(options, path, lambda line: print(line, file=sys.stderr))
    counts = Counter("confirmation of winners" if line.winner else line.stage for line in made.trials)
    print(f"{path}: {', '.join(f'{count} {stage}' for stage, count in counts.items()) or 'nothing is left to train'}")
    for note in made.notes:
        print(note)
    if not made.trials:
        return
    records = path.with_name("records.jsonl")
    train = ["python", "-m", "trainers.run", path, "--corpus", made.corpus, "--out", records]
    if made.evaluate_every:
        train += ["--evaluate-every", made.evaluate_every]
    back = ["sweeper", "import", records, "--space", options.file, "--name", made.name]
    print("There, with this file and the corpus's folder (`--hours` ends it in time, the same command goes on):")
    print(shlex.join(map(str, train)))
    print("Here, with its records:")
    print(shlex.join(map(str, back)))
