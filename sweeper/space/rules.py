"""What no search space may say, although every single value has its type: the rules between values.

A rule's parameters are the top-level keys that it reads. It is left out when one of them is broken itself, so that one
mistake makes one message. What a value of a method's parameter may be is asked of the method. Text and line numbers are
left to others.

A bag fits when it is a whole number from 1 to 64 and no longer than the context: a longer one would average more text
into one position than the recovery phase ever sees in one sequence. The same holds for whatever else a method counts
(heads, pieces, the tokens of a patch), and the method may ask for more. How often a run reads a corpus over again is told
where the corpus is known (`sweeper.corpora`).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice, pairwise
from typing import Any

from sweeper.ledger.location import is_taken
from sweeper.search.domain import LAST_SEARCH_SEED
from sweeper.space.errors import choose_from, closest, shown
from sweeper.space.rules_text import Finding, corpus_findings, tokenizer_findings
from sweeper.space.schema import (
    MOST_VALUES,
    Axis,
    AxisRange,
    Budgets,
    Grid,
    LogUniformRange,
    Resources,
    Scalar,
    ScheduleSettings,
    Search,
    SearchSpace,
    Seeds,
    Tokenizer,
    UniformRange,
    values_of,
)
from sweeper.space.yaml_lines import Location
from trainers.contract.flops import count_parameters
from trainers.contract.scales import SCALES
from trainers.contract.schedule import steps_of
from trainers.contract.spec import ModelShape, Optimizer, Schedule, TrialSpec
from trainers.methods import (
    BASELINE,
    LEARNING_RATE,
    METHODS,
    PARAMETER_TABLE,
    SAME_OCTAVES,
    Parameter,
    phases_of,
)

LARGEST_EMBEDDING_SHARE = 0.95
"""Of a model's parameters. A vocabulary beyond it leaves no transformer to measure (nano with 128,256 tokens: 0.996)."""
LARGEST_COUNT = 64
"""Of tokens in a bag, and of anything else that a method counts."""
MOST_POINTS = 100_000
"""Of one arm's grid: every strategy holds the grid in memory."""


@dataclass(frozen=True, slots=True)
class SoundArm:
    """A method as far as it is sound: None stands for what is not."""

    budgets: Budgets | None
    axes: Mapping[str, Axis | Scalar | None]
    command: tuple[str, ...] | None = None

    @property
    def sound_axes(self) -> dict[str, Axis | Scalar]:
        """The axes that are sound."""
        return {name: axis for name, axis in self.axes.items() if axis is not None}


Arms = Mapping[str, SoundArm]


Rules = tuple[Callable[..., Iterator[Finding]], ...]


def findings(sound: Mapping[str, Any], rules: Rules) -> Iterator[Finding]:
    """Everything that `rules` object to. `sound` holds the checked values of the keys that have no mistake of their own."""
    for rule in rules:
        read = inspect.signature(rule).parameters
        if read.keys() <= sound.keys():
            yield from rule(**{key: sound[key] for key in read})


def free_name(name: str) -> Iterator[Finding]:
    if is_taken(name):
        yield Finding(("name",), f"{shown(name)} is something else's in a results folder; choose another name")


def _scales(scales: tuple[str, ...]) -> Iterator[Finding]:
    seen: set[str] = set()
    for index, name in enumerate(scales):
        if name not in SCALES:
            yield Finding(("scales", index), f"{shown(name)} is not a scale; {choose_from(name, SCALES)}")
        elif name in seen:
            yield Finding(("scales", index), f"{shown(name)} is given twice")
        seen.add(name)


def _vocabulary(tokenizer: Tokenizer, scales: tuple[str, ...]) -> Iterator[Finding]:
    vocab_size = tokenizer.vocab_size
    for name in dict.fromkeys(scales):
        if name not in SCALES:
            continue
        count = count_parameters(SCALES[name].with_vocabulary(vocab_size))
        share = 2 * count.embedding / count.total
        if share > LARGEST_EMBEDDING_SHARE:
            yield Finding(
                ("tokenizer", "vocab_size"),
                f"{vocab_size} tokens would make {share:.1%} of {name} embeddings; at most "
                f"{LARGEST_EMBEDDING_SHARE:.0%} is allowed: choose fewer tokens or a larger scale",
            )


def _whole_sequences(context: int, tokens_per_step: int) -> Iterator[Finding]:
    if tokens_per_step % context:
        below = tokens_per_step // context * context
        near = " or ".join(str(value) for value in (below, below + context) if value)
        yield Finding(
            ("tokens_per_step",),
            f"{tokens_per_step} is not a multiple of the context of {context}; nearest: {near}",
        )


def _validation(context: int, validation_tokens: int) -> Iterator[Finding]:
    if validation_tokens < context:
        yield Finding(("validation_tokens",), f"{validation_tokens} is less than one context of {context}")


def _target(target_loss: float | None, tokenizer: Tokenizer) -> Iterator[Finding]:
    guessing = math.log(tokenizer.vocab_size)
    if target_loss is not None and target_loss >= guessing:
        yield Finding(
            ("target_loss",),
            f"{target_loss:g} is no loss to aim at in nats per token: guessing among {tokenizer.vocab_size} tokens has "
            f"{guessing:.2f}",
        )


def fresh_seeds(seeds: Seeds) -> Iterator[Finding]:
    """Seeds that are given twice."""
    for stage, given in (("tuning", seeds.tuning), ("confirmation", seeds.confirmation)):
        for index, seed in enumerate(given):
            if seed in given[:index]:
                yield Finding(("seeds", stage, index), f"{seed} is given twice")


def whole_gpus(resources: Resources) -> Iterator[Finding]:
    """A number of GPUs that no trial can have."""
    gpus = resources.gpus
    if not isinstance(gpus, str) and gpus > 1 and gpus != int(gpus):
        yield Finding(("resources", "gpus"), f"{gpus:g} is above 1 and not whole; only one GPU can be shared")
    if gpus == 0 and resources.accelerator is not None:
        kind = shown(resources.accelerator)
        yield Finding(("resources", "accelerator"), f"{kind} is a kind of GPU, and gpus: 0 takes none")


def _ranks(resources: Resources) -> Iterator[Finding]:
    if resources.ranks > 1 and resources.gpus != 0:
        yield Finding(("resources", "ranks"), f"{resources.ranks} is for gpus: 0; with GPUs a trial has a rank on each")
    elif resources.cpus % resources.ranks:
        yield Finding(("resources", "ranks"), f"{resources.ranks} ranks cannot share {resources.cpus} cpus alike")


def _lanes(context: int, tokens_per_step: int, resources: Resources) -> Iterator[Finding]:
    sequences, ranks = tokens_per_step // context, resources.num_ranks
    if sequences % ranks and not tokens_per_step % context:
        yield Finding(
            ("tokens_per_step",),
            f"{tokens_per_step} are {sequences} sequences of {context}, which {ranks} ranks cannot share alike",
        )


def _methods(methods: Arms) -> Iterator[Finding]:
    unknown = [name for name in methods if name not in METHODS]
    for name in unknown:
        yield Finding(("methods", name), f"unknown method; {choose_from(name, METHODS)}")
    if BASELINE not in methods and BASELINE not in [closest(name, METHODS) for name in unknown]:
        yield Finding(("methods", BASELINE), "missing; every other method is held against it")


def _budgets(methods: Arms, schedule: ScheduleSettings) -> Iterator[Finding]:
    for name, arm in methods.items():
        if arm.budgets is None:
            continue
        for stage, ladder in (("tuning", arm.budgets.rungs), ("confirmation", arm.budgets.confirmation)):
            for index, total in enumerate(ladder):
                place = ("methods", name, "budgets", stage, index)
                decay = steps_of(schedule.decay_fraction, total)
                if schedule.warmup_steps + decay > total:
                    yield Finding(
                        place, f"{total} steps are fewer than warm-up plus decay ({schedule.warmup_steps} + {decay})"
                    )
                elif schedule.decay_fraction > 0 and decay == 0:
                    yield Finding(
                        place, f"{total} steps have no decay: {schedule.decay_fraction:g} of them rounds to 0 steps"
                    )


def increasing_budgets(methods: Arms) -> Iterator[Finding]:
    """Ladders and rungs that do not go up."""
    for name, arm in methods.items():
        ladders = (arm.budgets.rungs, arm.budgets.confirmation) if arm.budgets is not None else ()
        for stage, ladder in zip(("tuning", "confirmation"), ladders, strict=False):
            for index, (before, total) in enumerate(pairwise(ladder), start=1):
                if total <= before:
                    place = ("methods", name, "budgets", stage, index)
                    yield Finding(place, f"{total} is not above the {before} before it; budgets increase")


def _axis_names(methods: Arms) -> Iterator[Finding]:
    """Axes that a method does not know, and axes that it lacks."""
    for name, arm in _known(methods):
        allowed = _parameters(name)
        place = ("methods", name, "axes")
        unknown = [axis for axis in arm.axes if axis not in allowed]
        for axis in unknown:
            yield Finding((*place, axis), f"unknown axis of {name}; {choose_from(axis, allowed)}")
        misspelt = {closest(axis, allowed) for axis in unknown}
        for axis in allowed:
            if axis not in arm.axes and axis not in misspelt:
                yield Finding((*place, axis), f"missing; {name} needs a constant or an axis for it")


def _values(methods: Arms, context: int) -> Iterator[Finding]:
    """Axes in a wrong order or too long, and values that the parameter cannot take."""
    for name, arm in _known(methods):
        place = ("methods", name, "axes")
        for parameter, axis in arm.sound_axes.items():
            if parameter in _parameters(name):
                form = list(axis_form((*place, parameter), PARAMETER_TABLE[parameter], axis))
                objection = partial(_objection, name, parameter, context=context)
                yield from form or refused_values((*place, parameter), axis, objection)
        yield from few_points(place, arm)


def few_points(place: Location, arm: SoundArm) -> Iterator[Finding]:
    """More combinations than a search can hold."""
    sizes = [_size(axis) for axis in arm.sound_axes.values()]
    if math.prod(sizes) > MOST_POINTS and max(sizes) <= MOST_VALUES:
        yield Finding(place, f"{math.prod(sizes):,} combinations; at most {MOST_POINTS:,} are allowed")


def _equal_learning_rates(methods: Arms) -> Iterator[Finding]:
    """A speedup over a baseline that was tuned over other learning rates is none. In a unit of its own they are as many
    octaves."""
    yield from equal_axes(dict(_known(methods)), LEARNING_RATE, "learning rates")


def equal_axes(methods: Arms, parameter: str, words: str) -> Iterator[Finding]:
    """Arms that are tuned over other values of a parameter than the baseline."""
    axes = {name: arm.sound_axes[parameter] for name, arm in methods.items() if parameter in arm.sound_axes}
    for name, axis in axes.items() if BASELINE in axes else ():
        place = ("methods", name, "axes", parameter)
        if isinstance(axis, AxisRange) and axis.unit is not None and name != BASELINE:
            wide, others = (_octaves_of(given) for given in (axis, axes[BASELINE]))
            if abs(wide - others) > SAME_OCTAVES:
                yield Finding(
                    place,
                    f"{_axis_shown(axis)} spans {wide:.2g} octaves and the baseline's {others:.2g}; "
                    "arms are tuned over equally many",
                )
        elif _offered(axis) != _offered(axes[BASELINE]):
            yield Finding(
                place,
                f"{_axis_shown(axis)} is not the baseline's {_axis_shown(axes[BASELINE])}; "
                f"arms are tuned over equal {words}",
            )


def _trials(methods: Arms, search: Search, seeds: Seeds) -> Iterator[Finding]:
    yield from enough_points(dict(_known(methods)), search, seeds)


def enough_points(methods: Arms, search: Search, seeds: Seeds) -> Iterator[Finding]:
    """More trials than an arm has points and search seeds. The grid sampler stops by itself."""
    if search.sampler == "grid":
        return
    num_seeds = len(seeds.tuning) + LAST_SEARCH_SEED - max(seeds.tuning)
    for name, arm in methods.items():
        points = math.prod(_size(axis) for axis in arm.sound_axes.values())
        if None not in arm.axes.values() and search.trials_per_arm > points * num_seeds:
            yield Finding(
                ("search", "trials_per_arm"),
                f"{search.trials_per_arm} is more than {name}'s {points} points times {num_seeds} search seeds",
            )


def _octaves_of(axis: Axis | Scalar) -> float:
    """How far the values of a learning rate's axis reach; 0 where it cannot be said."""
    numbers = (
        [value for value in values_of(axis) if not isinstance(value, str) and value > 0] if _size(axis) > 1 else []
    )
    return math.log2(numbers[-1] / numbers[0]) if numbers else 0.0


def _known(methods: Arms) -> Iterator[tuple[str, SoundArm]]:
    return ((name, arm) for name, arm in methods.items() if name in METHODS)


def _parameters(method: str) -> list[str]:
    return sorted((*METHODS[method].parameters, LEARNING_RATE))


def _size(axis: Axis | Scalar) -> int:
    return axis.size if isinstance(axis, AxisRange) else 1


def _offered(axis: Axis | Scalar) -> object:
    """Equal for axes that offer equal values; one that is too long to be written out stands for itself."""
    return values_of(axis) if _size(axis) <= MOST_VALUES else axis


def _axis_shown(axis: Axis | Scalar) -> str:
    return shown(axis.model_dump(exclude_defaults=True), longest=90) if isinstance(axis, AxisRange) else shown(axis)


def axis_form(place: Location, row: Parameter | None, axis: Axis | Scalar) -> Iterator[Finding]:
    """Objections to an axis as such, whatever its values mean to the method; `row` is what is known of its parameter."""
    if _size(axis) > MOST_VALUES:
        yield Finding(place, f"{_size(axis):,} values; at most {MOST_VALUES:,} are allowed")
    if isinstance(axis, AxisRange) and axis.unit is not None and (place[-1] != LEARNING_RATE or BASELINE in place):
        yield Finding((*place, "unit"), "is for the learning rate of a method, which the baseline's is compared with")
    if isinstance(axis, Grid):
        yield from _order((*place, "grid"), axis.grid)
    elif isinstance(axis, UniformRange | LogUniformRange) and row is not None and row.type is not float:
        yield Finding(place, f"a range of real numbers, but it is {row.type_words}; use integers or grid")


def _order(place: Location, values: tuple[Scalar, ...]) -> Iterator[Finding]:
    words = [value for value in values if isinstance(value, str)]
    if words and len(words) < len(values):
        yield Finding(place, f"{shown(values)} mixes numbers and words")
        return
    for index in range(1, len(values)):
        value, before = values[index], values[index - 1]
        if value in values[:index]:
            yield Finding((*place, index), f"{shown(value)} is given twice")
        elif not isinstance(value, str) and not isinstance(before, str) and value < before:
            yield Finding((*place, index), f"{shown(value)} stands after {shown(before)}; numbers increase")


def refused_values(
    place: Location, axis: Axis | Scalar, objection_to: Callable[[Scalar], str | None]
) -> Iterator[Finding]:
    """Values that cannot be: all that the file states, else the first of those between."""

    def objections(values: Iterable[tuple[Location, Scalar]]) -> Iterator[Finding]:
        for location, value in values:
            if (objection := objection_to(value)) is not None:
                yield Finding(location, objection)

    if not isinstance(axis, AxisRange):
        yield from objections([(place, axis)])
        return
    key, written = axis.written
    told = list(objections(((*place, key, index), value) for index, value in enumerate(written)))
    yield from told or islice(objections(((*place, key), value) for value in axis.values), 1)


def _objection(method: str, parameter: str, value: Scalar, context: int) -> str | None:
    """Why `value` cannot be the method's parameter, or None."""
    row = PARAMETER_TABLE[parameter]
    if not row.holds(value):
        return f"{shown(value)} is not {row.type_words}"
    if parameter == LEARNING_RATE:
        positive = not isinstance(value, str) and value > 0
        return None if positive else f"{shown(value)} is not a positive number"
    limit = min(LARGEST_COUNT, context)
    if isinstance(value, int) and row.type is int and not 1 <= value <= limit:
        reason = " (the context)" if limit < LARGEST_COUNT else ""
        return f"{value} is not a whole number from 1 to {limit}{reason}"
    try:
        _try(method, parameter, value, context)
    except ValueError as error:
        return str(error).split(": ", 1)[-1]
    return None


def _try(method: str, parameter: str, value: Scalar, context: int) -> None:
    """Raise the method's own `ValueError` for a value of one parameter, the others being harmless."""
    harmless = {name: PARAMETER_TABLE[name].example for name in METHODS[method].parameters}
    spec = TrialSpec(
        scale="",
        shape=ModelShape(1, 2, 1, 1, 2, 2, 257),
        method=method,
        parameters=tuple({**harmless, parameter: value}.items()),
        corpus_fingerprint="",
        tokenizer_fingerprint="",
        context=context,
        tokens_per_step=context,
        validation_tokens=context,
        schedule=Schedule(1_000, 100, 100, 1e-3),
        optimizer=Optimizer(),
        precision="fp32",
        seed=0,
    )
    phases_of(spec)


RULES: Rules = (
    free_name,
    _scales,
    corpus_findings,
    tokenizer_findings,
    _vocabulary,
    _whole_sequences,
    _validation,
    _target,
    fresh_seeds,
    whole_gpus,
    _ranks,
    _lanes,
    _methods,
    _budgets,
    increasing_budgets,
    _axis_names,
    _values,
    _equal_learning_rates,
    _trials,
)
assert all(inspect.signature(rule).parameters.keys() <= SearchSpace.model_fields.keys() for rule in RULES)
