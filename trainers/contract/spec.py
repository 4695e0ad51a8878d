"""The identity of one trial: what is trained, on what, how, and from which seed.

A spec holds everything that changes the result and nothing else. Device, paths, checkpoint interval and execution
mode are run arguments and live elsewhere; names that are only for people (the corpus's name, the sweep's) do too.
Every layer, and a bare GPU machine, reads this file.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from trainers.contract.errors import InputError
from trainers.contract.reading import pairs_of, value_of
from trainers.contract.schedule import LATER

NUMERICS_VERSION = 2
"""Raised whenever the same spec would train to different weights; a record of an older version is another trial."""

MOST_IN_A_BAG = 1_000_000
"""Tokens, far beyond any."""

Scalar = int | float | str


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The decoder's architecture. Widths are in features, `vocab_size` in tokens; `head_width` is per head."""

    num_layers: int
    width: int
    num_heads: int
    num_kv_heads: int
    head_width: int
    mlp_width: int
    vocab_size: int
    rope_theta: float = 10_000.0
    norm_epsilon: float = 1e-5
    qk_norm: bool = False
    num_experts: int = 0
    experts_per_token: int = 0

    def __post_init__(self) -> None:
        for name in ("num_layers", "width", "num_heads", "num_kv_heads", "head_width", "mlp_width", "vocab_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"shape.{name}: {getattr(self, name)} is not a positive integer")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"shape.num_kv_heads: {self.num_kv_heads} does not divide num_heads = {self.num_heads}")
        if self.head_width % 2:
            raise ValueError(f"shape.head_width: {self.head_width} is odd; rotary embeddings need an even width")
        if (self.num_experts == 0) != (self.experts_per_token == 0) or self.experts_per_token > self.num_experts:
            raise ValueError(
                f"shape.experts_per_token: {self.experts_per_token} of {self.num_experts} experts is impossible"
            )


@dataclass(frozen=True, slots=True)
class Schedule:
    """Warm-up, stable, decay. All lengths in optimizer steps; `learning_rate` is the peak."""

    total_steps: int
    warmup_steps: int
    decay_steps: int
    learning_rate: float

    def __post_init__(self) -> None:
        if self.total_steps < 1 or self.warmup_steps < 0 or self.decay_steps < 0:
            raise ValueError(f"schedule: negative or empty lengths in {self}")
        if self.warmup_steps + self.decay_steps > self.total_steps:
            raise ValueError(
                f"schedule.total_steps: {self.total_steps} is shorter than warm-up plus decay "
                f"({self.warmup_steps} + {self.decay_steps})"
            )
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"schedule.learning_rate: {self.learning_rate} is not a positive number")

    @property
    def decay_start(self) -> int:
        """First step whose learning rate belongs to the decay."""
        return self.total_steps - self.decay_steps


@dataclass(frozen=True, slots=True)
class Optimizer:
    """AdamW with global-norm clipping. `clip_norm` in units of the gradient's L2 norm."""

    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float = 1.0


class Spec:
    """What the spec of every trial has, whoever trains it: enough for a search, a ledger and a report.

    `parameters` are the method's own, sorted by name; the learning rate stands in the schedule.
    """

    __slots__ = ()

    scale: str
    method: str
    parameters: tuple[tuple[str, Scalar], ...]
    schedule: Schedule
    seed: int

    def parameter(self, name: str, default: Scalar) -> Scalar:
        """The method's parameter `name`, or `default` where the method has none of that name."""
        return dict(self.parameters).get(name, default)

    @property
    def bag_size(self) -> int:
        """Tokens averaged into one latent position in the first phase; 1 for methods without bags."""
        return int(self.parameter("bag_size", 1))

    @property
    def step_ratio(self) -> float:
        """Fraction of the steps before the phase boundary; 0 for methods of one phase."""
        return float(self.parameter("step_ratio", 0.0))

    @property
    def spec_id(self) -> str:
        """Sixteen hexadecimal digits of the SHA-256 of the canonical JSON: equal specs, equal id, on every machine."""
        return fingerprint(spec_to_dict(self))


def _refuse_strange(spec: Spec) -> None:
    """Raise `ValueError` for parameters that no report could read: those that every method counts steps and tokens by."""
    given = dict(spec.parameters)
    bag, ratio = given.get("bag_size", 1), given.get("step_ratio", 0.0)
    if isinstance(bag, str | bool) or not 1 <= bag <= MOST_IN_A_BAG or bag != int(bag):
        raise ValueError(f"parameters.bag_size: {bag!r} is not a whole number from 1 to {MOST_IN_A_BAG:,}")
    if isinstance(ratio, str | bool) or not 0 <= ratio <= 1:
        raise ValueError(f"parameters.step_ratio: {ratio!r} is not in [0, 1]")


@dataclass(frozen=True, slots=True)
class TrialSpec(Spec):
    """One trial of our own trainer. `context` and `tokens_per_step` count latent positions, the same in every phase of every
    method.

    `parameters` are the method's own (for TST: bag_size, step_ratio, bag_weighting), sorted by name.
    Raises `ValueError` when the values cannot describe a run.
    """

    scale: str
    shape: ModelShape
    method: str
    parameters: tuple[tuple[str, Scalar], ...]
    corpus_fingerprint: str
    tokenizer_fingerprint: str
    context: int
    tokens_per_step: int
    validation_tokens: int
    schedule: Schedule
    optimizer: Optimizer
    precision: str
    seed: int
    numerics: int = NUMERICS_VERSION

    def __post_init__(self) -> None:
        if self.parameters != tuple(sorted(self.parameters)):
            object.__setattr__(self, "parameters", tuple(sorted(self.parameters)))
        _refuse_strange(self)
        if self.context < 1 or self.tokens_per_step < 1 or self.tokens_per_step % self.context:
            raise ValueError(
                f"tokens_per_step: {self.tokens_per_step} is not a multiple of the context length {self.context}"
            )
        if self.validation_tokens < self.context:
            raise ValueError(f"validation_tokens: {self.validation_tokens} is less than one context of {self.context}")
        if self.precision not in ("fp32", "bf16"):
            raise ValueError(f"precision: {self.precision!r} is not one of fp32, bf16")

    @property
    def sequences_per_step(self) -> int:
        """`B` of the method's description."""
        return self.tokens_per_step // self.context


@dataclass(frozen=True, slots=True)
class ForeignSpec(Spec):
    """One trial of somebody else's trainer: a command, its values, and what its code was.

    `command` and `environment` are as the file writes them, placeholders and all. `scale_values` is what the scale stands
    for, `code` the fingerprint of the files that change a result, `loss_from` where the loss is read. `decayed` says that the
    schedule ends decayed; how it looks is the trainer's, so `schedule` holds no warm-up and no decay.
    """

    scale: str
    scale_values: tuple[tuple[str, Scalar], ...]
    method: str
    parameters: tuple[tuple[str, Scalar], ...]
    command: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]
    code: str
    loss_from: str
    decayed: bool
    schedule: Schedule
    seed: int

    def __post_init__(self) -> None:
        for name in ("scale_values", "parameters", "environment"):
            object.__setattr__(self, name, tuple(sorted(getattr(self, name))))
        _refuse_strange(self)
        if not self.command:
            raise ValueError("command: is empty")


AnySpec = TrialSpec | ForeignSpec
"""A trial, whoever trains it."""


def own(spec: Spec) -> TrialSpec:
    """`spec` as one of our own trainer. Raises `InputError` for another trainer's."""
    if not isinstance(spec, TrialSpec):
        raise InputError(f"trial {spec.spec_id} is of another trainer: only its own command trains it")
    return spec


def fingerprint(value: Any) -> str:
    """Sixteen hexadecimal digits that identify a JSON value; key order and float spelling do not matter."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


FOREIGN = "foreign"
"""Value of the key `trainer` of a spec that another trainer trains; ours have no such key."""
_MAPPINGS = ("parameters", "scale_values", "environment")
"""Fields that are objects in JSON."""


def spec_to_dict(spec: Spec) -> dict[str, Any]:
    """The spec as plain JSON values; inverse of `spec_from_dict`."""
    plain = plain_of(spec)
    plain |= {name: dict(plain[name]) for name in _MAPPINGS if name in plain}
    return {"trainer": FOREIGN, **plain} if isinstance(spec, ForeignSpec) else plain


def plain_of(value: Any) -> Any:
    """A dataclass as plain values, its `LATER` fields at their default left out: they name no other trial than before."""
    if not is_dataclass(value):
        return value
    given = {field.name: (field, getattr(value, field.name)) for field in fields(value)}
    return {
        name: plain_of(held)
        for name, (field, held) in given.items()
        if LATER not in field.metadata or held != field.default
    }


def spec_from_dict(plain: Any) -> AnySpec:
    """Rebuild a spec. Raises `InputError` naming the key that is unknown, missing, of another type or impossible."""
    if not isinstance(plain, Mapping):
        return value_of(TrialSpec, plain, "a trial spec")
    pairs = {name: pairs_of(plain[name], f"a trial spec: {name}") for name in _MAPPINGS if name in plain}
    if plain.get("trainer") != FOREIGN:
        return value_of(TrialSpec, {**plain, **pairs}, "a trial spec")
    return value_of(ForeignSpec, {n: v for n, v in {**plain, **pairs}.items() if n != "trainer"}, "a trial spec")
