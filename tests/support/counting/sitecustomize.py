"""Python loads this in every process that has this folder in `PYTHONPATH`: there each step of training that is begun, and each
state that is saved, is a line of the file that `COUNTED_STEPS` names. `tests.support.counted_steps` reads it.

Where `COUNTED_SECONDS` is set, that is the time between two states, so that a stage of seconds has several.
"""

from __future__ import annotations

import os
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

STAGE = "trainers.training.stage"


class Counting(MetaPathFinder):
    """Finds the module that trains stages as Python would, and has it count."""

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != STAGE:
            return None
        spec = PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            spec.loader = Counted(spec.loader)
        return spec


class Counted(Loader):
    """Runs another loader's module and then wraps three functions in it."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        count(module)


def count(module: Any) -> None:
    from dataclasses import replace

    file = os.open(os.environ["COUNTED_STEPS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    run_stage, save, run = module.run_stage, module.save_checkpoint, module.TrainingStep.run
    seconds = float(os.environ.get("COUNTED_SECONDS", "0"))
    node = ""

    def told(*words: object) -> None:
        os.write(file, (" ".join(map(str, words)) + "\n").encode())

    def run_counted(job: Any, *more: Any, **named: Any) -> Any:
        nonlocal node
        node = job.node
        told(node, "begun", os.getpid())
        return run_stage(replace(job, checkpoint_seconds=seconds or job.checkpoint_seconds), *more, **named)

    def save_told(folder: Any, state: Any, note: Any) -> None:
        save(folder, state, note)
        told(node, "saved", state.step)

    def run_told(self: Any, index: int, phase: Any) -> Any:
        told(node, "step", index)
        return run(self, index, phase)

    module.run_stage, module.save_checkpoint, module.TrainingStep.run = run_counted, save_told, run_told


if "COUNTED_STEPS" in os.environ:
    sys.meta_path.insert(0, Counting())
