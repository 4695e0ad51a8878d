"""The values of a verdict: what was estimated, how sure, and in which words. No arithmetic here.

`speedup` fills them, the checks, `summary` and the page read them. Losses are nats per token, costs device-hours, model
FLOPs, data tokens or optimizer steps; `S > 1` always means that the method is faster.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from reports.evidence.runs import FloatArray
from reports.evidence.study import Configuration

Clock = Literal["gpu_hours", "flops", "tokens", "steps"]
CLOCKS: tuple[Clock, ...] = ("gpu_hours", "flops", "tokens", "steps")
PAID_CLOCKS: tuple[Clock, ...] = ("gpu_hours", "flops", "steps")
"""What a run costs, in the order of what a reader pays: the first that is known is taken. Steps always are."""
COUNTED_CLOCKS: dict[Clock, str] = {"flops": "model FLOPs", "tokens": "data tokens", "steps": "optimizer steps"}
"""What is counted rather than timed, for people; hours are GPU-hours or CPU-hours, as the study says."""


class Words(StrEnum):
    """What the page may say. Follows the interval, nothing else."""

    FASTER = "faster"
    NO_DIFFERENCE = "no difference detected"
    SLOWER = "slower"
    NOT_REACHED = "not reached"
    LOSS_GAP_ONLY = "loss gap only"
    NO_INTERVAL = "no interval"
    UNCONFIRMED = "not confirmed"


class Flag(StrEnum):
    """What a reader must know beside the number. The value is the spelling in the JSON."""

    EXTRAPOLATED = "extrapolated"
    BELOW_ASYMPTOTE = "target_below_asymptote"
    EXPONENT_AT_BOUND = "exponent_at_bound"
    NOT_MONOTONE = "ladder_not_monotone"
    LACK_OF_FIT = "lack_of_fit"
    FIT_NOT_TESTABLE = "fit_not_testable"
    PCHIP_DISAGREES = "pchip_disagrees"
    SIGMA_FROM_PRIOR = "sigma_from_prior"
    SIGMA_UNKNOWN = "sigma_unknown"
    TWO_BUDGETS = "two_budgets"
    ONE_BUDGET = "one_budget"
    LADDER_TOO_SHORT = "ladder_too_short"
    UNEQUAL_TUNING = "unequal_tuning"
    TUNING_UNKNOWN = "tuning_unknown"
    EDGE_OF_SPACE = "optimum_at_edge"
    SINGLE_SEED = "single_seed"
    CLOCKS_DISAGREE = "clocks_disagree"
    CHOSEN_ON_CONFIRMATION = "chosen_on_confirmation"
    CLOCK_ASSUMED = "clock_uncertainty_assumed"


@dataclass(frozen=True, slots=True)
class SeedDeviation:
    """The deviation of a final loss between seeds, pooled within the cells of one scale.

    `total` = square root of trunk variance + branch variance, `trunk_share` = the part of the variance that branches of
    one trunk have in common (None: not estimable). `degrees_of_freedom` count trunks, not branches (infinite for a
    prior). `num_cells` are the cells that it was pooled over.
    """

    total: float
    trunk_share: float | None
    degrees_of_freedom: float
    num_cells: int
    source: Literal["confirmation", "confirmation and noise floor", "noise floor", "prior", "unknown"]


@dataclass(frozen=True, slots=True)
class LossErrors:
    """Standard errors, in nats, of the difference between the target and the baseline's ladder there: from seeds, and from
    the validation text, which is one sample of the text that there is (None: losses of pieces were not kept)."""

    seeds: float
    sampling: float | None


@dataclass(frozen=True, slots=True)
class Reached:
    """The baseline gets to the target: `speedup` with its 95 % interval (None: no deviation to make one from)."""

    speedup: float
    interval: tuple[float, float] | None
    log_standard_error: float | None
    degrees_of_freedom: float | None
    extrapolated: bool = False
    systematic: float = 0.0
    """Half-width on ln S that the choice of the asymptote adds (two budgets)."""


@dataclass(frozen=True, slots=True)
class NotReached:
    """The baseline's largest budget ends above the target: `S > lower_bound` (95 %, one-sided t-test; None without a
    seed deviation). `projected` is what the fit says far outside its data; it is never a claim."""

    lower_bound: float | None
    projected: float | None


Speedup = Reached | NotReached


@dataclass(frozen=True, slots=True)
class LossGap:
    """Baseline loss minus method loss (nats; positive: the method is better) at the cost of the method.

    `equal_cost` is False where the baseline has no budget at that cost and no curve through it: the gap is then to the
    nearest budget, which costs `cost_ratio` times as much as the method's.
    """

    gap: float
    interval: tuple[float, float] | None
    equal_cost: bool
    cost_ratio: float = 1.0


@dataclass(frozen=True, slots=True)
class MatchedPair:
    """Two measured cells side by side, nothing fitted: the method's largest confirmed budget and the baseline budget
    whose mean final loss is closest. The convention of the published comparison. `speedup` is on the verdict's clock,
    `flops_ratio` the same in model FLOPs."""

    speedup: float
    baseline_hours: float | None
    method_hours: float | None
    baseline_loss: float
    method_loss: float
    baseline_steps: int
    method_steps: int
    data_multiplier: float | None
    flops_ratio: float | None


@dataclass(frozen=True, slots=True)
class Factors:
    """`S = fewer_steps * cheaper_steps` on the GPU-hour clock."""

    fewer_steps: float
    cheaper_steps: float


@dataclass(frozen=True, slots=True, eq=False)
class LadderCurve:
    """A fitted ladder `L(C) = asymptote + amplitude * C^-exponent`, sampled for drawing, on the GPU-hour clock.

    Arrays `[samples]`; `measured` marks samples between the smallest and the largest budget (the rest is drawn
    dashed). `asymptote` and `amplitude` are None where the fit is an interpolation of two budgets. `low`, `high` are
    the 95 % band of the mean loss (None without a seed deviation). `lack_of_fit_p` is None where it is not testable.
    """

    method: str
    clock: Clock
    asymptote: float | None
    amplitude: float | None
    exponent: float | None
    at_bound: bool
    monotone: bool
    lack_of_fit_p: float | None
    cost: FloatArray
    loss: FloatArray
    low: FloatArray | None
    high: FloatArray | None
    measured: FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class SpeedupCurve:
    """`S` as a function of the target loss, arrays `[targets]`, GPU-hours. Needs two budgets of the method or more."""

    target: FloatArray
    speedup: FloatArray
    low: FloatArray | None
    high: FloatArray | None


@dataclass(frozen=True, slots=True)
class BudgetSpeedup:
    """`S` with the method's cell at one budget as the target."""

    total_steps: int
    target_loss: float
    speedup: Speedup | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleVerdict:
    """One method against the baseline at one scale.

    `by_clock` holds `S` on every clock that the runs know; `speedup` is the GPU-hour one (or FLOPs, where no run has
    hours: `clock` says which). `baseline_cost` and `method_cost` are on that clock, at `target_loss`.
    `upper_bound`: `S < upper_bound` (95 %, one-sided), where the baseline's cheapest run already ends below the target.
    `resolution` is the smallest `S - 1` that this sweep finds in four cases of five. `worst_caveat` is one sentence.
    `budgets` are all budgets of the method, ascending; the one that gave the target is `target_steps`. What has a default
    exists only where both arms are confirmed. `against` is the arm in the baseline's place. `needed_steps`: a baseline
    budget has to be larger than this before it can tell whether the method is faster (None: the ladder can tell).
    `one_more_seed` is about the interval with a further seed in both arms, where the noise of seeds is most of it.
    `unfinished`: why runs that an arm has do not confirm it, in words, where it has no others. `wall_time_only`: hours are
    wall time from elsewhere, so that FLOPs stand beside them where the two differ.
    """

    scale: str
    method: str
    params: float | None
    clock: Clock
    clock_label: str
    target_loss: float | None
    target_steps: int | None
    speedup: Speedup | None = None
    upper_bound: float | None = None
    by_clock: tuple[tuple[Clock, Speedup], ...] = ()
    baseline_cost: float | None = None
    method_cost: float | None
    matched_pair: MatchedPair | None = None
    factors: Factors | None = None
    data_multiplier: float | None = None
    sigma: SeedDeviation | None
    seeds_baseline: int
    seeds_method: int
    trials_baseline: int | None
    trials_method: int | None
    equal_tuning: bool | None
    tuning_difference: str
    best: Configuration | None
    baseline_best: Configuration | None
    budgets: tuple[BudgetSpeedup, ...] = ()
    loss_gap: LossGap | None = None
    resolution: float | None = None
    words: Words
    flags: tuple[Flag, ...] = ()
    worst_caveat: str = ""
    errors: LossErrors | None = None
    scored_tokens: int | None = None
    baseline_ladder: LadderCurve | None = None
    method_ladder: LadderCurve | None = None
    speedup_curve: SpeedupCurve | None = None
    pchip_speedup: float | None = None
    against: str = "baseline"
    needed_steps: int | None = None
    one_more_seed: tuple[float, float] | None = None
    unfinished: tuple[str, ...] = ()
    wall_time_only: bool = False


class TargetWords(StrEnum):
    """What an arm's ladder says about a given loss."""

    REACHED = "reached"
    PROJECTED = "projected"
    NOT_REACHED = "not reached"
    PASSED = "already below"
    ONE_BUDGET = "one budget, no curve"
    UNCONFIRMED = "not confirmed"


@dataclass(frozen=True, slots=True)
class TargetReading:
    """What one arm pays for a given loss (nats per token), on one clock for all arms of the scale.

    `cost` with its 95 % interval where the arm's ladder holds the loss, or is projected to it; else `lower_bound` and
    `upper_bound` of the cost (95 %, one-sided), where a test tells a budget from the loss. `budgets` are the arm's; the
    largest ends at `end_loss` for `end_cost`. `given` is the target as the reader gave it, empty where that was in nats;
    `clock_assumed`: the interval holds an error of the clock that was not measured.
    `speedup` is the cost of `against` over this one where both ladders hold it.
    """

    scale: str
    method: str
    clock: Clock
    clock_label: str
    target_loss: float
    words: TargetWords
    cost: float | None = None
    interval: tuple[float, float] | None = None
    lower_bound: float | None = None
    upper_bound: float | None = None
    budgets: int = 0
    end_loss: float | None = None
    end_cost: float | None = None
    speedup: Reached | None = None
    against: str = "baseline"
    given: str = ""
    clock_assumed: bool = False


CheckStatus = Literal["pass", "warn", "fail", "not_applicable"]
_SEVERITY: tuple[CheckStatus, ...] = ("not_applicable", "pass", "warn", "fail")


@dataclass(frozen=True, slots=True)
class Check:
    """One check over the whole sweep: `number` is short (`3 of 3`, `1.4 %`), `sentence` says what it means."""

    name: str
    status: CheckStatus
    number: str
    sentence: str


def worst_status(statuses: Iterable[CheckStatus]) -> CheckStatus:
    """The most severe of several outcomes; `not_applicable` where there are none."""
    return max(statuses, key=_SEVERITY.index, default="not_applicable")
