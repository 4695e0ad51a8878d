"""A stage as a value: what a worker is given, what it reports on the way, what it leaves behind.

A stage is the piece of training between two forks of the trials that share it (a whole trial where nothing is shared). Who
trains it is `trainers.training.stage`'s, which stages there are `trainers.planning`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainers.contract.errors import InputError
from trainers.contract.reading import json_value, value_of
from trainers.contract.record import WALL, Diverged, Failed, PhaseTiming, Stopped, TextScore
from trainers.contract.routing import RoutingPoint
from trainers.contract.spec import AnySpec, spec_from_dict, spec_to_dict

RESULT = "result.json"
STATE = "state"
"""What a stage leaves in its folder of the store."""


class ParentLostError(RuntimeError):
    """The state that a stage starts from is missing or damaged: its parent has to be trained again."""


@dataclass(frozen=True, slots=True)
class PointCost:
    """What a run had cost at a point by its trainer's own count: `seconds` of its clock, data `tokens`, model `flops`; 0 for
    a count that is not known."""

    seconds: float
    tokens: int = 0
    flops: float = 0.0


@dataclass(frozen=True, slots=True)
class StagePoint:
    """Validation loss in nats per token after `step` steps, on the part of the text that points are scored on; `phase` is
    the one that trained the last of them.

    `routing` is that step's, for a mixture of experts; `score` that on all of the text, where a trial may end here. `cost` is
    what another trainer counted; ours follows from the spec.
    """

    step: int
    loss: float
    phase: str
    routing: RoutingPoint | None = None
    score: TextScore | None = None
    cost: PointCost | None = None


@dataclass(frozen=True, slots=True)
class StageJob:
    """All that a worker needs. Paths are absolute; `parent` is a node of the store, or None for a start from the seed.

    `keep_state` says whether anything goes on from the end of this stage, `keep_weights` whether its model is wanted: without
    moments, where nothing goes on. `execution` is resolved: not `auto`.
    Points before a trial's end are scored on the first `evaluate_tokens` validation tokens, all of them where it is 0.
    `devices` is what a second of this stage costs in device-seconds; `micro_sequences` is for each rank.
    """

    node: str
    parent: str | None
    start: int
    end: int
    spec: AnySpec
    booked_by: str
    store: str
    corpus: str
    stop_file: str
    device: str
    execution: str
    evaluate_every: int
    checkpoint_seconds: float = 30.0
    micro_sequences: int | None = None
    keep_state: bool = True
    checkpoint_activations: bool = False
    devices: float = 1
    evaluate_tokens: int = 0
    keep_weights: bool = False


def job_to_dict(job: StageJob) -> dict[str, Any]:
    """Plain JSON values; inverse of `job_from_dict`."""
    return {**asdict(job), "spec": spec_to_dict(job.spec)}


def job_from_dict(plain: dict[str, Any]) -> StageJob:
    """Rebuild a job. Raises `InputError` for anything else."""
    others = {name: value for name, value in plain.items() if name != "spec"}
    return value_of(StageJob, others, "a stage's job", spec=spec_from_dict(plain["spec"]))


@dataclass(frozen=True, slots=True)
class StageResult:
    """A stage's end. `outcome` None means that `end` was reached, `Failed` that no further attempt would help. Seconds are
    per device.

    `device` is the name that people compare (`NVIDIA H200`), `attention` that of the kernel of its attention.
    `clock` is what the step times count, as in `Timing`.
    `busy_seconds` is time in the loop with evaluations; `billed_seconds` adds building, loading, compiling and saving.
    """

    node: str
    parent: str | None
    start: int
    end: int
    outcome: Stopped | Diverged | Failed | None
    points: tuple[StagePoint, ...]
    timings: tuple[PhaseTiming, ...]
    busy_seconds: float
    billed_seconds: float
    skipped_steps: int
    booked_by: str
    device: str
    execution: str
    devices: float = 1
    attention: str = ""
    clock: str = WALL


def result_to_dict(result: StageResult) -> dict[str, Any]:
    """Plain JSON values; inverse of `result_from_dict`."""
    plain = asdict(result)
    plain["diverged"] = isinstance(result.outcome, Diverged)
    if isinstance(result.outcome, Failed):
        plain["failed"] = True
    return plain


def result_from_dict(plain: Any) -> StageResult:
    """Rebuild a result. Raises `InputError` for anything else."""
    what = "a stage's result"
    if not isinstance(plain, Mapping) or not {"diverged", "outcome"} <= plain.keys():
        raise InputError(f"not {what}: diverged or outcome missing")
    if not isinstance(plain["diverged"], bool) or (plain["diverged"] and plain["outcome"] is None):
        raise InputError(f"not {what}: diverged does not go with the outcome")
    kind = Failed if plain.get("failed") is True else Diverged if plain["diverged"] else Stopped
    outcome = None if plain["outcome"] is None else value_of(kind, plain["outcome"], f"{what}: outcome")
    others = {name: value for name, value in plain.items() if name not in ("diverged", "failed", "outcome")}
    return value_of(StageResult, others, what, outcome=outcome)


def read_result(store: Path, node: str) -> StageResult | None:
    """The result of a stage that ended (reached its end, or diverged), None where it has not, or another's lies there."""
    try:
        found = result_from_dict(json_value((store / node / RESULT).read_bytes()))
    except (OSError, InputError):
        return None
    return found if found.node == node else None
