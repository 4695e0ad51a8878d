"""The shape of a search-space file of another trainer: its `trainer` block, and what stands beside it.

What both kinds of file have is `schema`'s, what values mean together `foreign_rules`'s.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field, Strict

from sweeper.space.schema import (
    MOST_STEPS,
    Constant,
    Count,
    Method,
    Model,
    Name,
    PositiveNumber,
    SearchSpace,
    Space,
    Switch,
    Text,
)
from trainers.contract.record import MOST_FLOPS

Word = Annotated[str, Strict()]
Command = Annotated[tuple[Word, ...], Field(min_length=1)]
POINT_KEYS = ("step", "loss", "final_loss", "seconds", "tokens", "flops", "phase")
"""What a trainer may say in one point."""
VISIBLE = "CUDA_VISIBLE_DEVICES"


class ForeignMethod(Method):
    """An arm of another trainer. `command` takes the place of the trainer's for this arm."""

    shares_trunks: ClassVar[bool] = False
    command: Annotated[Command | None, Field(description="A command of this arm's own, as a list of words.")] = None


class TensorboardTags(Model):
    """Names of scalars in TensorBoard's event files below the trial's folder."""

    loss: Annotated[Text, Field(description="The validation loss, in nats per token.")]
    seconds: Annotated[Text | None, Field(description="Seconds of training so far.")] = None
    tokens: Annotated[Text | None, Field(description="Data tokens read so far.")] = None


class Metrics(Model):
    """Where a trainer says how far it is: one of the three."""

    points: Annotated[Text | None, Field(description="File of JSON lines in the trial's folder.")] = None
    log: Annotated[
        Text | None, Field(description="Regular expression with the groups step and loss, for its output.")
    ] = None
    tensorboard: TensorboardTags | None = None


class TrainerSettings(Model):
    """Somebody else's trainer: a command for each trial, and how its trials are read, ended and gone on with."""

    command: Annotated[Command | None, Field(description="The words of the command; {name} is a placeholder.")] = None
    directory: Annotated[Text, Field(description="Where the command runs; relative to this file.")] = "."
    environment: Annotated[
        dict[str, Word],
        Field(default_factory=dict, description="Variables for the command; placeholders work here, too."),
    ]
    code: Annotated[
        tuple[Text, ...],
        Field(min_length=1, description="Files below `directory`, as globs, whose content changes a result."),
    ]
    metrics: Metrics = Metrics(points="points.jsonl")
    decayed: Annotated[Switch, Field(description="The schedule ends decayed; without it no claim.")] = False
    resumes: Annotated[Switch, Field(description="The same command in the same folder goes on where it was.")] = False
    stall_minutes: Annotated[PositiveNumber, Field(description="Silence after which a trial is ended.")] = 30


class ForeignSpace(Space):
    """One sweep of another trainer. A scale is its own values for the command; `tokens_per_step` are data tokens of an
    ordinary step, and with `flops_per_step` make the clocks that the trainer does not keep."""

    evaluate_every: ClassVar[int] = 0
    evaluate_tokens: ClassVar[int] = 0
    trainer: TrainerSettings
    scales: Annotated[
        dict[Name, dict[Name, Constant]],
        Field(min_length=1, description="Values of each scale, small to large, for placeholders such as {scale.size}."),
    ]
    methods: Annotated[dict[Name, ForeignMethod], Field(description="The arms, `baseline` among them.")]
    tokens_per_step: Annotated[
        Count | None, Field(description="Data tokens of an ordinary step; a bag reads bag_size times as many.")
    ] = None
    flops_per_step: Annotated[
        Annotated[float, Strict(), Field(gt=0, le=MOST_FLOPS / MOST_STEPS)] | None,
        Field(description="Model FLOPs of a step, in every phase."),
    ] = None

    def of_one_scale(self, scale: str) -> ForeignSpace:
        """The same sweep of a single scale."""
        return self.model_copy(update={"scales": {scale: self.scales[scale]}})


AnySpace = SearchSpace | ForeignSpace
