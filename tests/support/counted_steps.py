"""Counts the steps of a sweep in all of its processes, with those that were trained again after something had died.

What is counted is each call of the training step, whoever makes it: a line in a file, which outlives its process.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).with_name("counting")


def counting(file: Path, seconds_between_states: float | None = None) -> Mapping[str, str]:
    """What a sweep's environment needs for its steps to be counted in `file`; with states oftener than the sweep's own."""
    path = os.pathsep.join([str(FOLDER), *filter(None, [os.environ.get("PYTHONPATH")])])
    often = {} if seconds_between_states is None else {"COUNTED_SECONDS": str(seconds_between_states)}
    return {"COUNTED_STEPS": str(file), "PYTHONPATH": path, **often}


@dataclass(frozen=True)
class Counted:
    """Steps that were `trained`, those of them that had been trained before (`repeated`), and by how many `attempts` of a
    stage; `beyond` are repeated although a state had held them."""

    trained: int
    repeated: int
    attempts: int
    beyond: int


def counted(file: Path) -> Counted:
    """What the processes of a sweep have written down so far."""
    trained: dict[str, set[int]] = {}
    saved: dict[str, int] = {}
    steps = repeated = attempts = beyond = 0
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        node, what, number = line.rsplit(" ", 2)
        if what == "begun":
            attempts += 1
        elif what == "saved":
            saved[node] = max(saved.get(node, 0), int(number))
        else:
            steps += 1
            again = int(number) in trained.setdefault(node, set())
            repeated += again
            beyond += again and int(number) < saved.get(node, 0)
            trained[node].add(int(number))
    return Counted(steps, repeated, attempts, beyond)
