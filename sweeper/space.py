"""The search-space file: what may be said in it, and what each value means.

Only the shape of the file is decided here; which trials follow from it is `plan`'s. Reading a file runs no code.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

Scalar = int | float | str


class Model(BaseModel):
    """Unknown keys are errors, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Grid(Model):
    """An explicit list of values, tried as they are."""

    grid: Annotated[tuple[Scalar, ...], Field(min_length=1)]


class IntegerRange(Model):
    """Whole numbers `low..high`, both included."""

    integers: tuple[int, int]


class UniformRange(Model):
    """Real numbers in `[low, high]`, snapped to multiples of `step` from `low` where one is given."""

    uniform: tuple[float, float]
    step: PositiveFloat | None = None


class LogUniformRange(Model):
    """Positive numbers in `[low, high]`, searched on a grid of `per_octave` points an octave."""

    log_uniform: tuple[PositiveFloat, PositiveFloat]
    per_octave: PositiveInt = 2


Axis = Grid | IntegerRange | UniformRange | LogUniformRange


class Corpus(Model):
    """Where text comes from. `stdlib` is the Python standard library's sources; `files` reads text files by path."""

    source: Literal["stdlib", "files"] = "stdlib"
    paths: tuple[str, ...] = ()
    validation_fraction: Annotated[float, Field(gt=0, lt=0.5)] = 0.03


class Tokenizer(Model):
    """Byte-level BPE of `vocab_size` tokens, trained on the corpus's training split."""

    kind: Literal["bpe"] = "bpe"
    vocab_size: Annotated[int, Field(ge=257)] = 512


class Budgets(Model):
    """Total optimizer steps of an arm's runs: one for tuning, one or more for the confirmation ladder."""

    tuning: PositiveInt
    confirmation: Annotated[tuple[PositiveInt, ...], Field(min_length=1)]


class Method(Model):
    """One arm: its budgets, and an axis (or a constant) for each of its parameters and for `learning_rate`."""

    budgets: Budgets
    axes: dict[str, Axis | Scalar]


class ScheduleSettings(Model):
    """Warm-up in steps (a fraction would tear shared trunks apart), decay as a fraction of each budget."""

    warmup_steps: Annotated[int, Field(ge=0)]
    decay_fraction: Annotated[float, Field(ge=0, le=1)] = 0.2


class OptimizerSettings(Model):
    """AdamW. See `trainers.spec.Optimizer`."""

    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float = 1.0


class Seeds(Model):
    """Search seeds lie in 0..99, confirmation seeds from 1000 up, so that they cannot meet."""

    tuning: Annotated[tuple[int, ...], Field(min_length=1)] = (0,)
    confirmation: Annotated[tuple[int, ...], Field(min_length=1)] = (1000, 1001, 1002)


class Search(Model):
    """`trials_per_arm` tuning trials for every arm; `fan` values of r are asked for at once from one trunk."""

    sampler: Literal["auto", "gp", "tpe", "random", "grid"] = "auto"
    trials_per_arm: PositiveInt
    fan: PositiveInt = 3
    warm_start: bool = True
    seed: int = 0


class Resources(Model):
    """Per trial. Zero GPUs means `cpus` cores of a machine without one; `auto` takes a GPU where there is one."""

    gpus: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"
    cpus: PositiveInt = 1
    disk_gb: PositiveFloat = 20.0


class Price(Model):
    """What a device-hour costs; the report's default, editable there."""

    per_gpu_hour: Annotated[float, Field(ge=0)]
    currency: str = "USD"


class SearchSpace(Model):
    """One sweep."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    question: str
    corpus: Corpus = Corpus()
    tokenizer: Tokenizer = Tokenizer()
    scales: Annotated[tuple[str, ...], Field(min_length=1)]
    context: PositiveInt
    tokens_per_step: PositiveInt
    validation_tokens: PositiveInt = 100_000
    evaluate_every: Annotated[int, Field(ge=0)] = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    schedule: ScheduleSettings
    optimizer: OptimizerSettings = OptimizerSettings()
    seeds: Seeds = Seeds()
    methods: dict[str, Method]
    search: Search
    resources: Resources = Resources()
    price: Price | None = None
