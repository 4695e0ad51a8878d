"""From a search space to trials: one choice of values to the `TrialSpec` that a trainer takes, and a method's axes to the
domain that its search moves in. Pure functions.

Values get one type each here (a step ratio of `1` and of `1.0` are the same trial, so they must be the same bits). Which
choices are made is left to the search.
"""

from __future__ import annotations

from collections.abc import Mapping

from sweeper.search import Axis, Domain
from sweeper.search.rungs import rung_sizes
from sweeper.space.schema import AxisRange, Method, Scalar, SearchSpace
from trainers.contract.scales import SCALES
from trainers.contract.schedule import steps_of
from trainers.contract.spec import Optimizer, Schedule, TrialSpec
from trainers.methods import LEARNING_RATE, PARAMETER_TABLE, phases_of

FAN_AXIS = "step_ratio"
"""Trials that differ in nothing else share their first phase; each leaves it at its own boundary."""


def make_spec(
    space: SearchSpace,
    *,
    scale: str,
    method: str,
    parameters: Mapping[str, Scalar],
    total_steps: int,
    seed: int,
    corpus_fingerprint: str,
    tokenizer_fingerprint: str,
    vocab_size: int,
) -> TrialSpec:
    """One trial. `parameters` hold the method's own and `learning_rate`; `vocab_size` is the prepared tokenizer's.

    Raises `ValueError`, naming the value, when the choice cannot be trained: an unknown scale or method, a parameter
    missing, foreign, of the wrong type or out of range, a budget shorter than warm-up plus decay.
    """
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
    spacing = given.spacing or PARAMETER_TABLE[name].spacing
    if any(isinstance(value, str) for value in values):
        spacing = "category"
    return Axis(name, values, spacing)


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
    fan_axis = next((axis.name for axis in axes if axis.name == FAN_AXIS and len(axis.values) > 1), None)
    return Domain(tuple(axes), method.budgets.rungs, tuple(constants), seeds, fan_axis)


def grid_trials(domain: Domain, trials: int) -> int:
    """Trials of a grid search that may have `trials` at most: every cell once with every seed, and of several rungs at
    the lowest one, with the part of it that halving runs again."""
    most = len(domain.points) * len(domain.seeds)
    while trials > most and rung_sizes(len(domain.rungs), trials)[0] > most:
        trials -= 1
    return trials
