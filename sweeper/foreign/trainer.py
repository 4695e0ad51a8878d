"""Another trainer's run arguments: what a worker must know beside the spec. No part of any trial's identity."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sweeper.space.code_files import code_fingerprint
from sweeper.space.foreign_schema import ForeignSpace, Metrics
from trainers.contract.errors import given
from trainers.contract.spec import ForeignSpec
from trainers.planning.command import boundary_of

GRACE_SECONDS = 60.0
"""Between SIGTERM and SIGKILL: time to save a state."""


@dataclass(frozen=True, slots=True)
class ForeignTrainer:
    """`directory` is absolute; `device` is what people call the machine's device, `cpus` the threads of a trial.

    `tokens_per_step` and `flops_per_step` are None where the file does not say.
    """

    directory: str
    metrics: Metrics
    resumes: bool
    stall_seconds: float
    device: str
    cpus: int = 1
    tokens_per_step: int | None = None
    flops_per_step: float | None = None
    grace_seconds: float = GRACE_SECONDS

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


def code_of(space: ForeignSpace, file: Path) -> str:
    """The fingerprint of what the code is now. Raises `UserError` for a file that cannot be read."""
    directory = directory_of(space, file)
    with given(directory):
        return code_fingerprint(directory, space.trainer.code)


def trainer_of(space: ForeignSpace, file: Path, device: str) -> ForeignTrainer:
    """The trainer of a file on a machine whose trials train on `device`."""
    return ForeignTrainer(
        directory=str(directory_of(space, file)),
        metrics=space.trainer.metrics,
        resumes=space.trainer.resumes,
        stall_seconds=60 * space.trainer.stall_minutes,
        device=device,
        cpus=space.resources.cpus,
        tokens_per_step=space.tokens_per_step,
        flops_per_step=space.flops_per_step,
    )
