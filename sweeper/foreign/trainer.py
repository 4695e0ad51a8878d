"""Another trainer's run arguments: what a worker must know beside the spec. No part of any trial's identity."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sweeper.space.code_files import code_hashes
from sweeper.space.foreign_schema import ForeignSpace, Metrics
from trainers.contract.errors import given
from trainers.contract.spec import ForeignSpec, fingerprint
from trainers.planning.command import boundary_of

GRACE_SECONDS = 60.0
"""Between SIGTERM and SIGKILL: time to save a state."""


@dataclass(frozen=True, slots=True)
class ForeignTrainer:
    """`directory` is absolute, `code` are its files whose content changes a result, as the globs `patterns` found them when the
    sweep began, by their SHA-256. `device` is what people call the machine's device; a trial has `cpus` threads and sees `gpus`
    devices.

    `tokens_per_step` and `flops_per_step` are None where the file does not say.
    """

    directory: str
    patterns: tuple[str, ...]
    code: Mapping[str, str]
    metrics: Metrics
    resumes: bool
    stall_seconds: float
    device: str
    cpus: int = 1
    gpus: int = 0
    tokens_per_step: int | None = None
    flops_per_step: float | None = None
    grace_seconds: float = GRACE_SECONDS

    @property
    def fingerprint(self) -> str:
        """What a trial's spec says of the code."""
        return fingerprint(dict(self.code))

    def changed(self) -> str | None:
        """What has become of the code since the sweep began, None where nothing has: a trial would be of another identity."""
        directory = Path(self.directory)
        if not directory.is_dir():  # which starting the command says
            return None
        with given(directory):
            now = code_hashes(directory, self.patterns)
        names = sorted(name for name in {*now, *self.code} if now.get(name) != self.code.get(name))
        if not names:
            return None
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        return f"{shown} changed while the sweep ran (trainer.code): by what is there now, all trials are new ones"

    def tokens_at(self, spec: ForeignSpec, step: int) -> int:
        """Data tokens of the first `step` steps: a bag reads `bag_size` times as many. 0 where it is not known."""
        bagged = min(step, boundary_of(spec))
        return (self.tokens_per_step or 0) * (spec.bag_size * bagged + step - bagged)

    def flops_at(self, step: int) -> float:
        """Model FLOPs of the first `step` steps, 0 where it is not known."""
        return (self.flops_per_step or 0.0) * step


def directory_of(space: ForeignSpace, file: Path) -> Path:
    """Where the command of a file runs."""
    return (file.parent / space.trainer.directory).resolve()


def trainer_of(space: ForeignSpace, file: Path, device: str, gpus: float) -> ForeignTrainer:
    """The trainer of a file, with the code that is there now, on a machine whose trials train on `device` and have `gpus` of it
    (0: it has no GPU; a share is of one).

    Raises `UserError` for code that cannot be read.
    """
    directory = directory_of(space, file)
    with given(directory):
        code = code_hashes(directory, space.trainer.code)
    return ForeignTrainer(
        directory=str(directory),
        patterns=space.trainer.code,
        code=code,
        metrics=space.trainer.metrics,
        resumes=space.trainer.resumes,
        stall_seconds=60 * space.trainer.stall_minutes,
        device=device,
        cpus=space.resources.cpus,
        gpus=math.ceil(gpus),
        tokens_per_step=space.tokens_per_step,
        flops_per_step=space.flops_per_step,
    )
