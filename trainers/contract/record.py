"""What a trial leaves behind: its curve, its clock, its costs, where it ran, how it ended.

The contract between training, ledger and report. No record can hold a NaN: a run that diverged
says so in its outcome.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, assert_never

from trainers.contract.errors import InputError
from trainers.contract.faults import without_login
from trainers.contract.reading import pairs_of, value_of
from trainers.contract.routing import RoutingPoint, RoutingShift, load_shift
from trainers.contract.spec import AnySpec, spec_from_dict, spec_to_dict

PURPOSES: tuple[str, ...] = ("tuning", "probe", "confirmation", "noise_floor")
"""Why a trial was run. Only `confirmation` runs (and `noise_floor`, for the seed deviation) may enter a claim."""
SEARCH_PURPOSES = PURPOSES[:2]
"""Those that choose: trials on search seeds, `probe` those that try the chosen learning rate again at length."""

RECORD_SCHEMA = 1


MOST_SECONDS = 1e10
"""Three centuries: more is no time that a run took, and no moment that a dashboard can show."""
MOST_LOSS = 1e6
"""Nats per token, far beyond any: a loss above it is no loss, and a fit through it would overflow."""
MOST_FLOPS = 1e32
MOST_COUNTED = 2**62
"""Steps and tokens, as databases count them."""


def _loss(name: str, value: float) -> None:
    if not math.isfinite(value):
        raise ValueError(f"{name}: {value} is not a finite number")
    if not 0 <= value <= MOST_LOSS:
        raise ValueError(f"{name}: {value} is not in [0, {MOST_LOSS:g}] nats")


def _duration(name: str, value: float) -> None:
    if not 0 <= value <= MOST_SECONDS:
        raise ValueError(f"{name}: {value} is not a number of seconds in [0, {MOST_SECONDS:g}]")


def _count(name: str, value: int) -> None:
    if not 0 <= value <= MOST_COUNTED:
        raise ValueError(f"{name}: {value} is not in [0, 2**62]")


@dataclass(frozen=True, slots=True)
class EvalPoint:
    """Validation loss (nats per token, next-token, same tokens for every method) after `step` optimizer steps.

    `tokens` counts data tokens read, `flops` model FLOPs, `seconds` the steady-state step clock up to here. `routing` is
    that of step `step - 1`, for a mixture of experts.
    """

    step: int
    tokens: int
    flops: float
    seconds: float
    loss: float
    phase: str
    routing: RoutingPoint | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        _loss("EvalPoint.loss", self.loss)
        if not 0 <= self.flops <= MOST_FLOPS:
            raise ValueError(f"EvalPoint.flops: {self.flops} is not in [0, {MOST_FLOPS:g}]")
        for name in ("step", "tokens"):
            _count(f"EvalPoint.{name}", getattr(self, name))
        _duration("EvalPoint.seconds", self.seconds)


@dataclass(frozen=True, slots=True)
class TextScore:
    """The loss at the end of a schedule on all of the validation text: `loss` nats per token over `tokens` predicted tokens.

    `pieces` are the losses of its parts of `piece_tokens` tokens in the text's order (the last few tokens belong to none),
    rounded: they scatter by 0.07 nats. Two runs that were scored on the same text are compared piece by piece.
    """

    tokens: int
    loss: float
    piece_tokens: int
    pieces: tuple[float, ...] = field(repr=False)

    def __post_init__(self) -> None:
        _count("TextScore.tokens", self.tokens)
        for loss in (self.loss, *self.pieces):
            _loss("TextScore", loss)


@dataclass(frozen=True, slots=True)
class LossCurve:
    """Validation points in order of their step, one a step."""

    points: tuple[EvalPoint, ...]

    def __post_init__(self) -> None:
        steps = [point.step for point in self.points]
        if steps != sorted(set(steps)):
            raise ValueError("LossCurve: steps are not strictly increasing")

    @property
    def routing_shifts(self) -> tuple[RoutingShift, ...]:
        """How the experts' load moved at each change of the phase, where loads were kept on both sides."""
        pairs = zip(self.points, self.points[1:], strict=False)
        return tuple(
            RoutingShift(before.step, after.step, load_shift(before.routing, after.routing))
            for before, after in pairs
            if before.phase != after.phase
            and before.routing is not None
            and after.routing is not None
            and before.routing.load
            and after.routing.load
        )


@dataclass(frozen=True, slots=True)
class PhaseTiming:
    """The steady-state clock of one phase: `steps` of `median_step_seconds` each, one step being `bag_size` wide."""

    phase: str
    bag_size: int
    steps: int
    median_step_seconds: float

    def __post_init__(self) -> None:
        _count("PhaseTiming.steps", self.steps)
        _duration("PhaseTiming.median_step_seconds", self.median_step_seconds)


WALL, PROCESSOR = "wall", "processor"


@dataclass(frozen=True, slots=True)
class Timing:
    """`step_seconds` is the run's clock as if trained alone; `billed_seconds` adds start-up, compilation, evaluation,
    checkpoints and restarts; `incurred_seconds` is what this sweep paid after shared prefixes. All per device.

    `clock` is what step times count: `wall` time, or `processor` time of all threads over `devices`, which other people's
    work on the same cores does not move. Billed and incurred seconds are wall time.

    `devices` below 1 is the trial's share of a device that several used at once: step times were measured under that
    contention, and hours are that share of the time."""

    phases: tuple[PhaseTiming, ...]
    devices: float
    billed_seconds: float
    incurred_seconds: float
    clock: str = WALL

    def __post_init__(self) -> None:
        for name in ("billed_seconds", "incurred_seconds"):
            _duration(f"Timing.{name}", getattr(self, name))
        if not 0 < self.devices <= MOST_COUNTED:
            raise ValueError(f"Timing.devices: {self.devices} is not a positive number of devices")

    @property
    def step_seconds(self) -> float:
        """Steps times the median step time of their phase, in seconds."""
        return sum(phase.steps * phase.median_step_seconds for phase in self.phases)

    @property
    def gpu_hours(self) -> float:
        """Device-hours of the steady-state clock: what enters a speedup."""
        return self.devices * self.step_seconds / 3600

    @property
    def billed_gpu_hours(self) -> float:
        """Device-hours with everything outside the clock, as if trained alone."""
        return self.devices * self.billed_seconds / 3600

    @property
    def incurred_gpu_hours(self) -> float:
        """Device-hours that this sweep spent for the trial; the shared parts are booked on the trial that ran them."""
        return self.devices * self.incurred_seconds / 3600


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a result comes from. `device` is the name people compare (`NVIDIA H200`, `AMD EPYC ...`),
    `device_kind` is `cuda` or `cpu`; `execution` is the step's form (eager, compiled, captured)."""

    git_commit: str
    git_dirty: bool
    device: str
    device_kind: str
    execution: str
    versions: tuple[tuple[str, str], ...]
    started_at: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The schedule ran to its end; `final_loss` is the validation loss there."""

    final_loss: float

    def __post_init__(self) -> None:
        _loss("Finished.final_loss", self.final_loss)


@dataclass(frozen=True, slots=True)
class Stopped:
    """Ended on request before the schedule did, after `step` steps."""

    step: int
    reason: str


@dataclass(frozen=True, slots=True)
class Diverged:
    """The loss stopped being a finite number (or left all bounds) at `step`."""

    step: int
    reason: str


LOG_ENDS = "; its log ends: "
"""What stands in a reason before the last lines of a log, which differ where the reason does not."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The program or the machine failed; says nothing about the method."""

    reason: str


def reason_of(error: BaseException) -> str:
    """An exception as one line, which goes into ledger and page: without the login of an address."""
    text = " ".join(without_login(str(error)).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


Outcome = Finished | Stopped | Diverged | Failed


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One trial's result. `purpose` is one of `PURPOSES`; JSON and MLflow call it "stage".

    Points of the curve before its last are scored on a part of the validation text; `score` is that of the end, None where
    there is none and in records from before it was kept.
    """

    spec: AnySpec
    purpose: str
    outcome: Outcome
    curve: LossCurve
    timing: Timing
    provenance: Provenance
    corpus_tokens: int
    score: TextScore | None = None

    def __post_init__(self) -> None:
        if self.purpose not in PURPOSES:
            raise ValueError(f"stage: {self.purpose!r} is not one of {', '.join(PURPOSES)}")

    @property
    def final_loss(self) -> float | None:
        """The loss at the end of a finished schedule, otherwise None."""
        return self.outcome.final_loss if isinstance(self.outcome, Finished) else None

    @property
    def tokens(self) -> int:
        """Data tokens read up to the last point of the curve."""
        return self.curve.points[-1].tokens if self.curve.points else 0

    @property
    def epochs(self) -> float:
        """Passes over the training split."""
        return self.tokens / self.corpus_tokens if self.corpus_tokens else 0.0


def outcome_name(outcome: Outcome) -> str:
    """`finished`, `stopped`, `diverged` or `failed`."""
    match outcome:
        case Finished():
            return "finished"
        case Stopped():
            return "stopped"
        case Diverged():
            return "diverged"
        case Failed():
            return "failed"
        case _:
            assert_never(outcome)


_OUTCOMES: dict[str, type[Finished] | type[Stopped] | type[Diverged] | type[Failed]] = {
    "finished": Finished,
    "stopped": Stopped,
    "diverged": Diverged,
    "failed": Failed,
}


_PARTS = ("spec", "outcome", "curve", "timing", "provenance", "score")


def record_to_dict(record: RunRecord) -> dict[str, Any]:
    """The record as plain JSON values; inverse of `record_from_dict`."""
    plain = {"stage" if name == "purpose" else name: value for name, value in asdict(record).items()}
    plain["schema"] = RECORD_SCHEMA
    if record.score is None:
        del plain["score"]
    for point in plain["curve"]["points"]:
        if point["routing"] is None:
            del point["routing"]
    plain["spec"] = spec_to_dict(record.spec)
    plain["outcome"] = {"kind": outcome_name(record.outcome), **asdict(record.outcome)}
    plain["provenance"]["versions"] = dict(record.provenance.versions)
    return plain


def record_from_dict(plain: Any) -> RunRecord:
    """Rebuild a record. Raises `InputError` when it is of another schema, or a value is missing, of another type or not
    finite."""
    what = "a run record"
    if not isinstance(plain, Mapping):
        raise InputError(f"not {what}: a line is one JSON object")
    if plain.get("schema") != RECORD_SCHEMA:
        raise InputError(f"record schema {plain.get('schema')!r} is not {RECORD_SCHEMA}")
    try:
        outcome, where = dict(plain["outcome"]), dict(plain["provenance"])
        kind = _OUTCOMES[outcome.pop("kind")]
        where["versions"] = pairs_of(where["versions"], f"{what}: provenance.versions")
        score = plain.get("score")
        others = {name: value for name, value in plain.items() if name not in ("schema", "stage", *_PARTS)}
        return value_of(
            RunRecord,
            {**others, "purpose": plain["stage"]},
            what,
            spec=spec_from_dict(plain["spec"]),
            outcome=value_of(kind, outcome, f"{what}: outcome"),
            curve=value_of(LossCurve, plain["curve"], f"{what}: curve"),
            timing=value_of(Timing, plain["timing"], f"{what}: timing"),
            provenance=value_of(Provenance, where, f"{what}: provenance"),
            score=None if score is None else value_of(TextScore, score, f"{what}: score"),
        )
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"not {what}: {error}") from error
