"""From a search space to trials: one choice of values to the `TrialSpec` that a trainer takes, and a method's axes to the
domain that its search moves in. Pure functions.

Values get one type each here (a step ratio of `1` and of `1.0` are the same trial, so they must be the same bits). Which
choices are made is left to the search.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from sweeper.search import Axis, Domain
from sweeper.search.rungs import rung_sizes
from sweeper.space.foreign_schema import AnySpace, ForeignSpace
from sweeper.space.schema import AxisRange, Method, Scalar
from trainers.contract.scales import SCALES
from trainers.contract.schedule import steps_of
from trainers.contract.spec import AnySpec, ForeignSpec, Optimizer, Schedule, TrialSpec
from trainers.methods import LEARNING_RATE, PARAMETER_TABLE, phases_of

FAN_AXIS = "step_ratio"
"""Trials that differ in nothing else share their first phase; each leaves it at its own boundary."""


def make_spec(
    space: AnySpace,
    *,
    scale: str,
    method: str,
    parameters: Mapping[str, Scalar],
    total_steps: int,
    seed: int,
    corpus_fingerprint: str,
    tokenizer_fingerprint: str,
    vocab_size: int,
    code: str = "",
) -> AnySpec:
    """One trial. `parameters` hold the method's own and `learning_rate`; `vocab_size` is the prepared tokenizer's, `code`
    the fingerprint of another trainer's files.

    Raises `ValueError`, naming the value, when the choice cannot be trained: an unknown scale or method, a parameter
    missing, foreign, of the wrong type or out of range, a budget shorter than warm-up plus decay.
    """
    if isinstance(space, ForeignSpace):
        return _foreign_spec(space, scale, method, parameters, total_steps, seed, code)
    if scale not in SCALES:
        raise ValueError(f"scale: {scale!r} is not one of {', '.join(SCALES)}")
    if LEARNING_RATE not in parameters:
        raise ValueError(f"{LEARNING_RATE}: missing from the parameters {sorted(parameters)}")
    typed = {name: _typed(name, value) for name, value in parameters.items()}
    spec = TrialSpec(
        scale=scale,
        shape=SCALES[scale].with_vocabulary(vocab_size),
        method=method,
        parameters=tuple(sorted((name, value) for name, value in typed.items() if name != LEARNING_RATE)),
        corpus_fingerprint=corpus_fingerprint,
        tokenizer_fingerprint=tokenizer_fingerprint,
        context=space.context,
        tokens_per_step=space.tokens_per_step,
        validation_tokens=space.validation_tokens,
        schedule=Schedule(
            total_steps=total_steps,
            warmup_steps=space.schedule.warmup_steps,
            decay_steps=steps_of(space.schedule.decay_fraction, total_steps),
            learning_rate=float(typed[LEARNING_RATE]),
        ),
        optimizer=Optimizer(
            beta1=space.optimizer.beta1,
            beta2=space.optimizer.beta2,
            epsilon=space.optimizer.epsilon,
            weight_decay=space.optimizer.weight_decay,
            clip_norm=space.optimizer.clip_norm,
        ),
        precision=space.precision,
        seed=seed,
    )
    phases_of(spec)
    return spec


def as_asked_now(
    space: AnySpace, spec: AnySpec, *, corpus_fingerprint: str, tokenizer_fingerprint: str, code: str
) -> AnySpec:
    """The trial that `space` makes of the scale, method, values, budget and seed of `spec`: another context, batch, text,
    recipe or code makes another trial of the same values. Raises `ValueError` where it makes none."""
    if isinstance(space, ForeignSpace) == isinstance(spec, TrialSpec):
        raise ValueError(f"trial {spec.spec_id} is of another kind of trainer")
    if spec.scale not in space.scales or spec.method not in space.methods:
        raise ValueError(f"{spec.scale} {spec.method}: not in the file")
    return make_spec(
        space,
        scale=spec.scale,
        method=spec.method,
        parameters={**dict(spec.parameters), LEARNING_RATE: spec.schedule.learning_rate},
        total_steps=spec.schedule.total_steps,
        seed=spec.seed,
        corpus_fingerprint=corpus_fingerprint,
        tokenizer_fingerprint=tokenizer_fingerprint,
        vocab_size=spec.shape.vocab_size if isinstance(spec, TrialSpec) else 0,
        code=code,
    )


def _foreign_spec(
    space: ForeignSpace,
    scale: str,
    method: str,
    parameters: Mapping[str, Scalar],
    total_steps: int,
    seed: int,
    code: str,
) -> ForeignSpec:
    typed = {name: _typed(name, value) for name, value in parameters.items()}
    trainer = space.trainer
    command = space.methods[method].command or trainer.command
    assert command is not None, "the rules have refused an arm without a command"
    return ForeignSpec(
        scale=scale,
        scale_values=tuple(space.scales[scale].items()),
        method=method,
        parameters=tuple((name, value) for name, value in typed.items() if name != LEARNING_RATE),
        command=command,
        environment=tuple(trainer.environment.items()),
        code=code,
        loss_from=trainer.metrics.model_dump_json(exclude_none=True),
        decayed=trainer.decayed,
        schedule=Schedule(total_steps, 0, 0, float(typed[LEARNING_RATE])),
        seed=seed,
    )


def _typed(name: str, value: Scalar) -> Scalar:
    row = PARAMETER_TABLE.get(name)
    if row is None:
        return value
    if isinstance(value, bool) or not row.holds(value):
        raise ValueError(f"{name}: {value!r} is not {row.type_words}")
    return row.type(value)


def axis_of(name: str, given: AxisRange) -> Axis:
    """The grid of one axis. Words are categories."""
    values = given.values
    numbers = [value for value in values if not isinstance(value, str)]
    if len(numbers) < len(values):
        return Axis(name, values, "category")
    known = PARAMETER_TABLE.get(name)
    spacing = given.spacing or (known.spacing if known is not None else _spacing(numbers))
    return Axis(name, values, spacing)


def _spacing(numbers: list[int | float]) -> Literal["linear", "log"]:
    """How far apart numbers of an unknown parameter are: by ratio where they span a factor of ten."""
    return "log" if numbers[0] > 0 and numbers[-1] >= 10 * numbers[0] else "linear"


def domain_of(method: Method, seeds: tuple[int, ...]) -> Domain:
    """What an arm's tuning may try. A method whose axes are all constants has one point."""
    axes: list[Axis] = []
    constants: list[tuple[str, Scalar]] = []
    for name, given in sorted(method.axes.items()):
        if isinstance(given, AxisRange):
            axes.append(axis_of(name, given))
        else:
            constants.append((name, given))
    if not axes:
        name, value = constants.pop()
        axes = [Axis(name, (value,), "category")]
    fans = (axis.name for axis in axes if axis.name == FAN_AXIS and len(axis.values) > 1)
    fan_axis = next(fans, None) if method.shares_trunks else None
    return Domain(tuple(axes), method.budgets.rungs, tuple(constants), seeds, fan_axis)


def grid_trials(domain: Domain, trials: int) -> int:
    """Trials of a grid search that may have `trials` at most: every cell once with every seed, and of several rungs at
    the lowest one, with the part of it that halving runs again."""
    most = len(domain.points) * len(domain.seeds)
    while trials > most and rung_sizes(len(domain.rungs), trials)[0] > most:
        trials -= 1
    return trials
