"""From a search space to trials: one choice of values to the `TrialSpec` that a trainer takes, and a method's axes to the
domain that its search moves in. Pure functions.

Values get one type each here (a step ratio of `1` and of `1.0` are the same trial, so they must be the same bits). Which
choices are made is left to the search.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from sweeper.search import Axis, Domain, integers, log_uniform, uniform
from sweeper.search.rungs import rung_sizes
from sweeper.space.schema import (
    Grid,
    IntegerRange,
    LogUniformRange,
    Method,
    Scalar,
    ScheduleSettings,
    SearchSpace,
    UniformRange,
)
from trainers.contract.scales import SCALES
from trainers.contract.spec import Optimizer, Schedule, TrialSpec
from trainers.methods import phases_of

LEARNING_RATE = "learning_rate"
"""Searched like a parameter of every method, and kept in the spec's schedule."""
FAN_AXIS = "step_ratio"
"""Trials that differ in nothing else share their first phase; each leaves it at its own boundary."""
UNIFORM_CELLS = 8
"""Cells of a uniform range that gives no step."""
LOG_AXES = ("learning_rate", "bag_size", "heads", "patch_size", "pieces")


@dataclass(frozen=True, slots=True)
class ParameterKind:
    """What type a parameter's values have, in words for messages, and one value that every method accepts."""

    type: type[int] | type[float] | type[str]
    words: str
    example: Scalar

    def holds(self, value: Scalar) -> bool:
        """Whether `value` can be given without changing what it says."""
        if self.type is float:
            return isinstance(value, int | float)
        return isinstance(value, self.type)


PARAMETER_KINDS: dict[str, ParameterKind] = {
    LEARNING_RATE: ParameterKind(float, "a number", 1e-3),
    "bag_size": ParameterKind(int, "a whole number", 2),
    "bag_weighting": ParameterKind(str, "a word", "uniform"),
    "heads": ParameterKind(int, "a whole number", 2),
    "patch_size": ParameterKind(int, "a whole number", 1),
    "pieces": ParameterKind(int, "a whole number", 1),
    "step_ratio": ParameterKind(float, "a number", 0.5),
}
"""A method with a parameter of a new name adds a row; parameters without one are passed on as they are."""


def decay_steps(schedule: ScheduleSettings, total_steps: int) -> int:
    """Steps of the linear decay at the end of a run: `floor(decay_fraction * total_steps + 0.5)`."""
    return math.floor(schedule.decay_fraction * total_steps + 0.5)


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
            decay_steps=decay_steps(space.schedule, total_steps),
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
    kind = PARAMETER_KINDS.get(name)
    if kind is None:
        return value
    if isinstance(value, bool) or not kind.holds(value):
        raise ValueError(f"{name}: {value!r} is not {kind.words}")
    return kind.type(value)


def axis_of(name: str, given: Grid | IntegerRange | UniformRange | LogUniformRange) -> Axis:
    """The grid of one axis. Words are categories; learning rates and whatever counts are equally spaced in their logarithm."""
    match given:
        case IntegerRange(integers=(low, high)):
            return integers(name, low, high)
        case UniformRange(uniform=(low, high), step=step):
            if low == high:
                return Axis(name, (low,))
            return uniform(name, low, high, step or (high - low) / UNIFORM_CELLS)
        case LogUniformRange(log_uniform=(low, high), per_octave=per_octave):
            return log_uniform(name, low, high, per_octave)
        case Grid(grid=values):
            if any(isinstance(value, str) for value in values):
                return Axis(name, values, "category")
            return Axis(name, values, "log" if name in LOG_AXES else "linear")


def domain_of(method: Method, seeds: tuple[int, ...]) -> Domain:
    """What an arm's tuning may try. A method whose axes are all constants has one point."""
    axes: list[Axis] = []
    constants: list[tuple[str, Scalar]] = []
    for name, given in sorted(method.axes.items()):
        if isinstance(given, int | float | str):
            constants.append((name, given))
        else:
            axes.append(axis_of(name, given))
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
