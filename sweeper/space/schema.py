"""The shape of a search-space file: its keys, their types, and the range of each value alone.

What two values mean together (a budget and the warm-up, the two arms' learning rates) is `rules`'s, reading text
with line numbers is `yaml_lines`'s, and which trials follow is `plan`'s. Numbers are strict: `true` is not 1, and
`"8"` is not 8.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Strict, Tag, field_validator
from pydantic_core import PydanticCustomError

Scalar = int | float | str

AXIS_HELP = (
    "is neither a constant nor one of grid: [a, b], integers: [low, high], uniform: [low, high], "
    "log_uniform: [low, high]"
)
UNIFORM_CELLS = 8
"""Cells of a uniform range that gives no step."""
MOST_VALUES = 1_000
MOST_SEEDS = 2_000
MOST_BUDGETS = 100
MOST_STEPS = 10**9
"""Of one run: hundreds of times the longest that anybody has published."""
LARGEST_SEED = 2**32 - 1
LARGEST_INTEGER = 10**15
"""Beyond every budget; keeps arithmetic on unchecked numbers finite."""


class Model(BaseModel):
    """Unknown keys are errors, values are frozen, numbers are finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _refuse_other_than_scalars(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise PydanticCustomError("scalar", "is not a number or a word")
    if not isinstance(value, str) and not (-LARGEST_INTEGER <= value <= LARGEST_INTEGER):
        raise PydanticCustomError("scalar", "is not a number between -1e15 and 1e15")
    return value


Integer = Annotated[int, Strict(), Field(ge=-LARGEST_INTEGER, le=LARGEST_INTEGER)]
Count = Annotated[int, Strict(), Field(ge=1, le=LARGEST_INTEGER)]
Steps = Annotated[int, Strict(), Field(ge=1, le=MOST_STEPS)]
NonNegativeInteger = Annotated[int, Strict(), Field(ge=0, le=LARGEST_INTEGER)]
Number = Annotated[float, Strict(), Field(ge=-LARGEST_INTEGER, le=LARGEST_INTEGER)]
PositiveNumber = Annotated[float, Strict(), Field(gt=0, le=LARGEST_INTEGER)]
NonNegativeNumber = Annotated[float, Strict(), Field(ge=0, le=LARGEST_INTEGER)]
Text = Annotated[str, Strict(), Field(min_length=1)]
Switch = Annotated[bool, Strict()]
Constant = Annotated[int | float | str, BeforeValidator(_refuse_other_than_scalars)]


def _refuse_reversed(bounds: tuple[Any, Any]) -> tuple[Any, Any]:
    low, high = bounds
    if low > high:
        raise PydanticCustomError("reversed", "starts above its end; write [low, high]")
    return bounds


class AxisRange(Model):
    """What an arm tries of one parameter. The first key names the kind, and holds a list of values or the ends of a range.

    Every kind is a grid in the end: trials share a prefix of training only where their values are equal to the last bit.
    """

    spacing: ClassVar[Literal["linear", "log"] | None] = None
    """In which unit the values are equally far apart; None: as the parameter's row in the table says."""

    unit: Annotated[
        Literal["own"] | None, Field(description="Of a learning rate: that it is not in the baseline's unit.")
    ] = None

    @property
    def written(self) -> tuple[str, tuple[Scalar, ...]]:
        """The kind's key and what stands behind it."""
        key = next(name for name in type(self).model_fields if name != "unit")
        return key, getattr(self, key)

    @property
    def size(self) -> int:
        """Number of values, however large; a file may ask for `MOST_VALUES`."""
        raise NotImplementedError

    @property
    def values(self) -> tuple[Scalar, ...]:
        """All values, in order."""
        return tuple(self._value(index) for index in range(self.size))

    def _value(self, index: int) -> Scalar:
        raise NotImplementedError


def _count(cells: float) -> int:
    """Points of a range of so many cells, the last one whole but for rounding."""
    return math.floor(cells + 1e-9) + 1 if math.isfinite(cells) else 2**63


class Grid(AxisRange):
    """An explicit list of values, numbers in increasing order, tried as they are."""

    grid: Annotated[tuple[Constant, ...], Field(min_length=1)]

    @property
    def size(self) -> int:
        return len(self.grid)

    def _value(self, index: int) -> Scalar:
        return self.grid[index]


class IntegerRange(AxisRange):
    """Whole numbers `low..high`, both included."""

    integers: tuple[Integer, Integer]

    _order = field_validator("integers")(_refuse_reversed)

    @property
    def size(self) -> int:
        return self.integers[1] - self.integers[0] + 1

    def _value(self, index: int) -> Scalar:
        return self.integers[0] + index


class UniformRange(AxisRange):
    """Real numbers in `[low, high]`, snapped to multiples of `step` from `low` where one is given."""

    spacing = "linear"
    uniform: tuple[Number, Number]
    step: PositiveNumber | None = None

    _order = field_validator("uniform")(_refuse_reversed)

    @property
    def size(self) -> int:
        low, high = self.uniform
        if low == high:
            return 1
        return _count(UNIFORM_CELLS if self.step is None else (high - low) / self.step)

    def _value(self, index: int) -> Scalar:
        low, high = self.uniform
        # Twelve digits, so that equal values are equal bits.
        return round(low + index * (self.step or (high - low) / UNIFORM_CELLS), 12) if low < high else low


class LogUniformRange(AxisRange):
    """Positive numbers in `[low, high]`, searched on a grid of `per_octave` points an octave."""

    spacing = "log"
    log_uniform: tuple[PositiveNumber, PositiveNumber]
    per_octave: Count = 2

    _order = field_validator("log_uniform")(_refuse_reversed)

    @property
    def size(self) -> int:
        low, high = self.log_uniform
        return _count((math.log2(high) - math.log2(low)) * self.per_octave)

    def _value(self, index: int) -> Scalar:
        return float(f"{self.log_uniform[0] * 2 ** (index / self.per_octave):.6g}")


Axis = Grid | IntegerRange | UniformRange | LogUniformRange


def values_of(given: Axis | Scalar) -> tuple[Scalar, ...]:
    """The values of an axis or of a constant."""
    return given.values if isinstance(given, AxisRange) else (given,)


AXIS_TAGS: dict[str, type[Model]] = {
    "<grid>": Grid,
    "<integers>": IntegerRange,
    "<uniform>": UniformRange,
    "<log_uniform>": LogUniformRange,
}
CONSTANT_TAG = "<constant>"


def _kind_of_axis(value: object) -> str | None:
    if isinstance(value, Mapping):
        return next((tag for tag in AXIS_TAGS if tag.strip("<>") in value), None)
    if isinstance(value, int | float | str):
        return CONSTANT_TAG
    return next((tag for tag, model in AXIS_TAGS.items() if isinstance(value, model)), None)


AxisOrConstant = Annotated[
    Annotated[Grid, Tag("<grid>")]
    | Annotated[IntegerRange, Tag("<integers>")]
    | Annotated[UniformRange, Tag("<uniform>")]
    | Annotated[LogUniformRange, Tag("<log_uniform>")]
    | Annotated[Constant, Tag(CONSTANT_TAG)],
    Discriminator(_kind_of_axis, custom_error_type="axis", custom_error_message=AXIS_HELP),
]

DataSet = Annotated[Text | None, Field(description="Data set of the Hugging Face hub, or the folder of a copy.")]
Config = Annotated[Text | None, Field(description="Configuration of the data set, for instance sample-100BT.")]
Split = Annotated[Text, Field(description="Split of the data set that is read; our own split is made of it.")]
Revision = Annotated[Text | None, Field(description="Commit, tag or branch of the hub; the commit is written down.")]
TextField = Annotated[Text, Field(description="Field or column that holds the text.")]
Paths = Annotated[tuple[Text, ...], Field(description="Files, folders or globs; for `files` and `local`.")]


class CorpusPart(Model):
    """One part of a mixture, with the keys of its source and its weight: its share of the training tokens, relative to the
    other parts' weights."""

    source: Literal["huggingface", "local"]
    weight: PositiveNumber
    paths: Paths = ()
    name: DataSet = None
    config: Config = None
    split: Split = "train"
    revision: Revision = None
    field: TextField = "text"


class Corpus(Model):
    """Where text comes from. `stdlib` is the Python standard library's sources, `installed` adds those of the installed
    packages; `files` reads text files by path and compares them with each other. Of any size: `huggingface` streams a data
    set of the hub, `local` reads Parquet, JSON Lines and text by path, `mixture` several of these in `parts`.
    """

    source: Annotated[Text, Field(description="A source of `trainers.data`.")] = "stdlib"
    paths: Paths = ()
    name: DataSet = None
    config: Config = None
    split: Split = "train"
    revision: Revision = None
    field: TextField = "text"
    parts: Annotated[tuple[CorpusPart, ...], Field(description="For `mixture`: sources with weights.")] = ()
    tokens: Annotated[
        Count | None,
        Field(description="Training tokens to prepare of a source of any size; without it, what the sweep needs."),
    ] = None
    validation_fraction: Annotated[Number, Field(gt=0, lt=0.5, description="Share of the documents held out.")] = 0.03
    max_epochs: Annotated[
        PositiveNumber | None, Field(description="A sweep whose runs would read the text more often is refused.")
    ] = None


class Tokenizer(Model):
    """`bpe` trains a byte-level BPE of `vocab_size` tokens on the training split; `file` reads a tokenizer.json, or that of a
    folder, `hub` one of the Hugging Face hub.

    `vocab_size` must then be stated too, and is compared with the tokenizer's when the corpus is prepared: `plan` counts
    parameters and FLOPs without it.
    """

    kind: Literal["bpe", "file", "hub"] = "bpe"
    vocab_size: Annotated[Integer, Field(ge=257, le=2**20, description="Tokens, the separator included.")] = 512
    path: Annotated[Text | None, Field(description="A tokenizer.json or its folder; for `file` only.")] = None
    name: Annotated[Text | None, Field(description="Repository of the hub; for `hub` only.")] = None
    revision: Revision = None
    end_of_document: Annotated[
        Text | None, Field(description="Token that ends a document, where it is not the tokenizer's end of a sequence.")
    ] = None


STEPS_TAG, RUNGS_TAG = "<steps>", "<rungs>"


def _kind_of_tuning(value: object) -> str:
    return RUNGS_TAG if isinstance(value, list | tuple) else STEPS_TAG


Rungs = Annotated[tuple[Steps, ...], Field(min_length=1, max_length=MOST_BUDGETS)]


class Budgets(Model):
    """Total optimizer steps of an arm's runs: for tuning one number, or an increasing list of rungs for successive
    halving (each rung a complete shorter run), and one or more for the confirmation ladder."""

    tuning: Annotated[
        Annotated[Steps, Tag(STEPS_TAG)] | Annotated[Rungs, Tag(RUNGS_TAG)],
        Discriminator(_kind_of_tuning),
        Field(description="Total steps of every tuning trial, or increasing rungs: [2000, 4000]."),
    ]
    confirmation: Annotated[Rungs, Field(description="Total steps of the confirmation runs, increasing.")]

    @property
    def rungs(self) -> tuple[int, ...]:
        """Total steps of the tuning trials, ascending; the last is the budget that is tuned for."""
        return self.tuning if isinstance(self.tuning, tuple) else (self.tuning,)


class Method(Model):
    """One arm: its budgets, and an axis (or a constant) for each of its parameters and for `learning_rate`."""

    shares_trunks: ClassVar[bool] = True
    """Whether trials may be asked for as a fan, to share a prefix."""
    budgets: Budgets
    axes: dict[str, AxisOrConstant]


Name = Annotated[str, Strict(), Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class ScheduleSettings(Model):
    """Warm-up in steps (a fraction would tear shared trunks apart), decay as a fraction of each budget."""

    warmup_steps: Annotated[NonNegativeInteger, Field(description="Steps of linear warm-up, at every budget.")]
    decay_fraction: Annotated[Number, Field(ge=0, le=1, description="Share of a budget that decays to zero.")] = 0.2


class OptimizerSettings(Model):
    """AdamW with decoupled weight decay. What is left out has the value of the published recipe, or of its model families."""

    beta1: Annotated[Number, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[Number, Field(ge=0, lt=1)] = 0.95
    epsilon: PositiveNumber = 1e-8
    weight_decay: NonNegativeNumber = 0.1
    clip_norm: Annotated[PositiveNumber, Field(description="Largest L2 norm of the whole gradient.")] = 1.0


class Seeds(Model):
    """Search seeds lie in 0..99, confirmation seeds from 1000 up, so that they cannot meet."""

    tuning: Annotated[tuple[Annotated[Integer, Field(ge=0, le=99)], ...], Field(min_length=1)] = (0,)
    confirmation: Annotated[
        tuple[Annotated[Integer, Field(ge=1000, le=LARGEST_SEED)], ...], Field(min_length=1, max_length=MOST_SEEDS)
    ] = (1000, 1001, 1002)


class Search(Model):
    """`trials_per_arm` tuning trials for every arm; `fan` values of r are asked for at once from one trunk.

    With `sampler: grid` an arm is done when every point had every tuning seed, also where that is fewer trials.
    """

    sampler: Literal["auto", "surface", "gp", "tpe", "random", "grid"] = "auto"
    trials_per_arm: Count
    fan: Count = 3
    warm_start: Annotated[Switch, Field(description="Begin at the published valley, then at smaller scales' best.")] = (
        True
    )
    seed: Annotated[Integer, Field(ge=0, le=LARGEST_SEED, description="Of the sampler, not of the training.")] = 0
    probe: Annotated[
        Switch,
        Field(description="Try learning rates again at length where a budget is above 4 times the tuning budget."),
    ] = True


def _refuse_other_than_gpus(value: object) -> object:
    if value == "auto" and isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 4096:
        raise PydanticCustomError("gpus", "is neither auto nor a number from 0 to 4096")
    return value


class Resources(Model):
    """Per trial. Zero GPUs means `cpus` cores of a machine without one; `auto` takes a GPU where there is one.

    Several GPUs are ranks that share a trial, one GPU each; without GPUs `ranks` processes share its cores.
    """

    gpus: Annotated[
        Annotated[float, Field(ge=0, le=4096)] | Literal["auto"],
        BeforeValidator(_refuse_other_than_gpus),
        Field(description="GPUs of a trial, or auto."),
    ] = "auto"
    cpus: Count = 1
    ranks: Annotated[Count, Field(description="Processes that share a trial where it has no GPU.")] = 1
    accelerator: Annotated[
        Annotated[str, Strict(), Field(pattern=r"^[A-Za-z0-9-]{1,40}$")] | None,
        Field(description="Kind of GPU that every trial runs on, by Ray's name for it, for instance H200."),
    ] = None
    gpu_memory_gb: Annotated[
        PositiveNumber | None, Field(description="Memory of one GPU, where this machine has none to ask.")
    ] = None
    disk_gb: Annotated[PositiveNumber, Field(description="Most disk for checkpoints, in gigabytes.")] = 20.0
    stall_minutes: Annotated[PositiveNumber, Field(description="Silence after which a worker is ended.")] = 10.0

    @property
    def num_ranks(self) -> int:
        """Processes of a trial: one for each of several GPUs, else `ranks`."""
        return int(self.gpus) if self.gpus != "auto" and self.gpus > 1 else self.ranks


class Price(Model):
    """What a device-hour costs; the report's default, editable there."""

    per_gpu_hour: NonNegativeNumber
    currency: Annotated[Text, Field(max_length=8)] = "USD"


class Budget(Model):
    """What a sweep may spend, all of its runs together; `--max-gpu-hours` takes its place."""

    gpu_hours: Annotated[NonNegativeNumber, Field(description="After which nothing more is started.")]


class Space(Model):
    """What every sweep says, whoever trains: the question, how it is searched, on what, and what it costs."""

    name: Annotated[Name, Field(description="Names the results; letters, digits, . _ -")]
    question: Annotated[Text, Field(description="What the sweep is to answer, for people.")]
    seeds: Seeds = Seeds()
    search: Search
    resources: Resources = Resources()
    budget: Budget | None = None
    price: Price | None = None
    target_loss: Annotated[
        PositiveNumber | None, Field(description="Nats per token: the report says what every arm pays for this loss.")
    ] = None


class SearchSpace(Space):
    """One sweep: the question, what is trained on what, and which values each arm may try.

    Constructed directly it is checked for types and ranges only; `load_search_space` checks what values mean together.
    """

    corpus: Corpus = Corpus()
    tokenizer: Tokenizer = Tokenizer()
    scales: Annotated[tuple[Text, ...], Field(min_length=1, description="Model sizes by name, small to large.")]
    context: Annotated[Count, Field(description="Latent positions of a sequence, the same in every phase.")]
    tokens_per_step: Annotated[Count, Field(description="Latent positions of a step; a multiple of `context`.")]
    validation_tokens: Annotated[
        Count, Field(description="Held-out tokens that the end of a trial is scored on, the same for every trial.")
    ] = 100_000
    evaluate_every: Annotated[
        NonNegativeInteger, Field(description="Steps between evaluations; 0: at the ends of phases.")
    ] = 0
    evaluate_tokens: Annotated[
        NonNegativeInteger,
        Field(description="Held-out tokens that evaluations before the end are scored on; 0: all. No part of a trial."),
    ] = 65_536
    precision: Literal["fp32", "bf16"] = "fp32"
    schedule: ScheduleSettings
    optimizer: OptimizerSettings = OptimizerSettings()
    methods: Annotated[dict[str, Method], Field(description="The arms, `baseline` among them.")]

    def of_one_scale(self, scale: str) -> SearchSpace:
        """The same sweep of a single scale."""
        return self.model_copy(update={"scales": (scale,)})
