"""From runs to comparable arms: what may enter a claim, and what is left out and why.

Decides comparability (finished, decayed, same device, same validation text, fresh seeds), the confirmed configuration
of each arm, its cells (one budget, several seeds) and the pooled clock. Estimates nothing: that is `speedup`'s.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from reports.evidence.clock import PooledStepTime, PoolKey, pool_step_times, pooled_curve_hours, pooled_gpu_hours
from reports.evidence.runs import BASELINE, FinishedRun, FloatArray, Parameters
from trainers.contract.record import SEARCH_PURPOSES
from trainers.contract.spec import Scalar

StudyKind = Literal["sweep", "imported", "published", "replay", "demo"]


@dataclass(frozen=True, slots=True)
class SweepContext:
    """What the report must know about a sweep beyond its runs.

    `axes`: method -> parameter (with `learning_rate`) -> searched values in ascending order, so that the first and the last
    are the edges. `run_links`: run id -> link into the dashboard. `target_scale_params`: the model size that the reader means
    to train, `target_loss` a loss (nats per token) that the reader asks the cost of, `target_given` what the reader called it
    where not in nats. `created_at`: ISO 8601. `price_per_gpu_hour` in `currency` per device-hour. `command` reproduces the
    page. `against`: the arm in the baseline's place. `scales` as the file orders them, small to large. `of_file`: ids of the
    runs that have the identity of the search-space file, None where that is not known. `seen_share` of the validation text is
    in training, too; `bytes_per_token`: bytes of its mean token.
    """

    name: str
    question: str
    kind: StudyKind = "sweep"
    command: str = ""
    created_at: str = ""
    git_commit: str = "unknown"
    git_dirty: bool = False
    seen_share: float | None = None
    bytes_per_token: float | None = None
    corpus_description: str = ""
    search_space_text: str = ""
    price_per_gpu_hour: float | None = None
    currency: str = "USD"
    axes: Mapping[str, Mapping[str, tuple[Scalar, ...]]] = field(default_factory=dict)
    run_links: Mapping[str, str] = field(default_factory=dict)
    target_scale_params: float | None = None
    target_loss: float | None = None
    target_given: str = ""
    num_gpus: int | None = None
    against: str = BASELINE
    scales: tuple[str, ...] = ()
    of_file: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class Configuration:
    """What an arm was trained with: the method's own parameters and the peak learning rate."""

    parameters: Parameters
    learning_rate: float | None


@dataclass(frozen=True, slots=True, eq=False)
class Cell:
    """The confirmation runs of one arm at one budget: the seeds of one number.

    `losses` runs over `runs`. Costs are means over the runs, on the pooled clock; None where a run lacks
    the figure.
    """

    total_steps: int
    runs: tuple[FinishedRun, ...]
    losses: FloatArray
    gpu_hours: float | None
    flops: float | None
    tokens: float | None

    @property
    def mean_loss(self) -> float:
        """Mean final loss, nats per token."""
        return float(self.losses.mean())

    @property
    def num_seeds(self) -> int:
        """Runs in the cell."""
        return len(self.runs)

    def cost(self, clock: str) -> float | None:
        """Cost on `gpu_hours`, `flops`, `tokens` or `steps`."""
        if clock == "steps":
            return float(self.total_steps)
        value: float | None = getattr(self, clock)
        return value


@dataclass(frozen=True, slots=True)
class StudyArm:
    """One method at one scale.

    `cells` are the confirmed configuration's, in ascending budget: the ladder. `search` are the tuning trials with
    every outcome, `noise_floor` the extra seeds for the seed deviation. `other_cells` are confirmed configurations that
    were not chosen. `chosen_by` says how the configuration was picked when several had been confirmed: `only` (there
    was one), `coverage` (most budgets and seeds), `search` (best tuning loss), `confirmation` (best of the same runs:
    lucky).
    `num_trials` is None where the tuning was not recorded. `probes` are the runs that tried the chosen learning rate again
    at length; they count as no tuning trial.
    """

    method: str
    configuration: Configuration | None
    cells: tuple[Cell, ...]
    search: tuple[FinishedRun, ...]
    noise_floor: tuple[FinishedRun, ...]
    other_cells: tuple[Cell, ...]
    chosen_by: Literal["only", "coverage", "search", "confirmation", "none"]
    num_trials: int | None
    probes: tuple[FinishedRun, ...] = ()

    @property
    def budgets(self) -> tuple[int, ...]:
        """Total steps of the cells, ascending."""
        return tuple(cell.total_steps for cell in self.cells)

    @property
    def num_seeds(self) -> int:
        """Seeds in the smallest cell; 0 without cells."""
        return min((cell.num_seeds for cell in self.cells), default=0)


@dataclass(frozen=True, slots=True)
class Exclusion:
    """A run that enters no estimate, and the reason in words."""

    run: FinishedRun
    reason: str


@dataclass(frozen=True, slots=True)
class ScaleStudy:
    """Everything about one model scale. `hours` maps run id to pooled GPU-hours (absent: unknown).

    `baseline` is None where the scale has no baseline run that may enter. `runs` are all runs of the scale,
    `exclusions` those among them that enter nothing. `apart` are arms that are compared with nothing and only say how far
    seeds scatter.
    """

    scale: str
    params: float | None
    device: str | None
    device_kind: str | None
    baseline: StudyArm | None
    methods: tuple[StudyArm, ...]
    runs: tuple[FinishedRun, ...]
    exclusions: tuple[Exclusion, ...]
    pools: Mapping[PoolKey, PooledStepTime]
    hours: Mapping[str, float]
    clock_label: str
    apart: tuple[StudyArm, ...] = ()

    @property
    def step_times(self) -> tuple[PooledStepTime, ...]:
        """The pooled clock, one entry per device, phase and bag size."""
        return tuple(self.pools.values())

    @property
    def own_runs(self) -> tuple[FinishedRun, ...]:
        """Runs of the identity that the sweep's file has now."""
        others = {item.run.run_id for item in self.exclusions if item.reason.startswith(OTHER_IDENTITY)}
        return tuple(run for run in self.runs if run.run_id not in others)

    @property
    def arms(self) -> tuple[StudyArm, ...]:
        """Baseline first, then the methods."""
        return (() if self.baseline is None else (self.baseline,)) + self.methods

    def curve_hours(self, run: FinishedRun) -> FloatArray | None:
        """Pooled GPU-hours at every point of the run's curve `[points]`; None where the clock is unknown."""
        return pooled_curve_hours(run, self.pools)


@dataclass(frozen=True, slots=True)
class Study:
    """A sweep ready for estimation: scales in ascending size, every run exactly once."""

    context: SweepContext
    scales: tuple[ScaleStudy, ...]
    runs: tuple[FinishedRun, ...]

    @property
    def exclusions(self) -> tuple[Exclusion, ...]:
        """All exclusions of all scales."""
        return tuple(exclusion for scale in self.scales for exclusion in scale.exclusions)

    @property
    def bytes_per_token(self) -> float | None:
        """Bytes of a mean token of the validation text, as the corpus or all imported runs state it; None where they do not."""
        stated = {run.loss_unit.bytes_per_token for run in self.runs}
        return self.context.bytes_per_token or (stated.pop() if len(stated) == 1 else None)

    @property
    def asked_for_by_an_earlier_file(self) -> bool:
        """Whether the sweep's file as it is now asks for none of the runs; they are all shown, and the page says so."""
        of_file = self.context.of_file
        return bool(self.runs) and of_file is not None and of_file.isdisjoint(run.run_id for run in self.runs)

    @property
    def clock_label(self) -> str:
        """`GPU-hours`, or `CPU-hours` where every run was on a machine without a GPU."""
        labels = {scale.clock_label for scale in self.scales}
        return labels.pop() if len(labels) == 1 else "GPU-hours"


def build_study(context: SweepContext, runs: Sequence[FinishedRun]) -> Study:
    """Sort runs into scales (by size, else as the file has them) and arms, refuse what may not be compared, pool the clock.
    Never raises for bad runs: what cannot enter is an `Exclusion` with its reason."""
    by_scale: dict[str, list[FinishedRun]] = defaultdict(list)
    for run in runs:
        by_scale[run.scale].append(run)
    asked = _asked_for(context, runs)
    scales = [_build_scale(context, name, members, asked) for name, members in by_scale.items()]
    place = {name: index for index, name in enumerate(context.scales) if any(one.params is None for one in scales)}
    scales.sort(key=lambda one: (place.get(one.scale, len(place)), one.params is None, one.params or 0.0, one.scale))
    return Study(context, tuple(scales), tuple(runs))


def _build_scale(context: SweepContext, name: str, runs: list[FinishedRun], asked: frozenset[str]) -> ScaleStudy:
    own = [run for run in runs if run.run_id in asked]
    searched = {run.seed for run in own if run.purpose in SEARCH_PURPOSES and run.seed is not None}
    reference = _reference_settings(own)
    exclusions: list[Exclusion] = []
    admitted: list[FinishedRun] = []
    seen: set[object] = set()
    for run in runs:
        unit = (run.method, configuration_of(run), run.total_steps, run.seed)
        # A search repeats as it likes; a second copy of a confirmed seed would make the scatter look smaller.
        repeated = run.purpose not in SEARCH_PURPOSES and run.seed is not None and unit in seen
        if run.run_id in seen:
            reason: str | None = "the same run a second time"
        elif run.run_id not in asked:
            reason = _of_another_identity(run, own)
        else:
            reason = _refusal(run, reference, searched)
            if reason is None and repeated:
                reason = f"seed {run.seed} a second time in the same setting: it is no further seed"
        seen.add(run.run_id)
        if reason is None:
            admitted.append(run)
            if run.purpose not in SEARCH_PURPOSES:
                seen.add(unit)
        else:
            exclusions.append(Exclusion(run, reason))
    pools = pool_step_times(admitted)
    hours = {run.run_id: value for run in admitted if (value := pooled_gpu_hours(run, pools)) is not None}
    # All runs of the scale, not of one arm: an arm without trials beside one with them was not tuned, which is known.
    trials_recorded = any(run.purpose == "tuning" for run in own)
    arms = {method: _build_arm(method, admitted, own, hours, trials_recorded) for method in _in_order(context, runs)}
    baseline = arms.pop(BASELINE, None)
    params = sorted(run.params for run in runs if run.params is not None)
    kinds = {run.device_kind for run in admitted or runs}
    return ScaleStudy(
        scale=name,
        params=params[len(params) // 2] if params else None,
        device=dict(reference).get("device"),
        device_kind=next(iter(kinds)) if len(kinds) == 1 else None,
        baseline=baseline,
        methods=tuple(arms.values()),
        runs=tuple(runs),
        exclusions=tuple(exclusions),
        pools=pools,
        hours=hours,
        clock_label="CPU-hours" if kinds == {"cpu"} else "GPU-hours",
    )


OTHER_IDENTITY = "of another identity than the sweep's file"
"""How the reason begins for runs of an earlier state of the file."""


def _asked_for(context: SweepContext, runs: Sequence[FinishedRun]) -> frozenset[str]:
    """Ids of the runs that the sweep's file as it is now asks for. All where that is not known, and where it asks for none
    of any scale: a page of what there is, with a check that failed, is better than an empty one."""
    every = frozenset(run.run_id for run in runs)
    return every if context.of_file is None else context.of_file & every or every


def _of_another_identity(run: FinishedRun, own: list[FinishedRun]) -> str:
    """Why a run of an earlier state of the file is left out, with what differs where a setting of runs does."""
    if not own:
        return f"{OTHER_IDENTITY}, which has no run at this scale yet"
    differing = [
        f"other {label}: {_shown(getattr(run, name))}, the file's runs have {_shown(getattr(own[0], name))}"
        for name, label in SETTINGS
        if getattr(run, name) not in {getattr(one, name) for one in own}
    ]
    return f"{OTHER_IDENTITY}: {'; '.join(differing) or 'the file says other settings now'}"


def _in_order(context: SweepContext, runs: Sequence[FinishedRun]) -> list[str]:
    """Methods as the search-space file names them, then others by their first runs: the first one is the one that a
    headline is about, so that the order must not depend on how they did, nor on what they are called."""
    methods = dict.fromkeys(run.method for run in runs)
    named = [method for method in context.axes if method in methods]
    return named + [method for method in methods if method not in named]


SETTINGS: tuple[tuple[str, str], ...] = (
    ("device", "device"),
    ("validation", "validation set"),
    ("tokenizer", "tokenizer"),
    ("context", "context length"),
    ("precision", "precision"),
    ("tokens_per_step", "tokens per step"),
    ("recipe", "training recipe"),
)
"""Attributes of a run that must be equal for a comparison, and their names for people."""

Settings = tuple[tuple[str, object], ...]


def settings_of(run: FinishedRun) -> Settings:
    """What a run must share with the others to be compared with them."""
    return tuple((name, getattr(run, name)) for name, _ in SETTINGS)


def _reference_settings(runs: list[FinishedRun]) -> tuple[tuple[str, str | None], ...]:
    """The settings that most claims can be made in: most arms first, then most confirmation runs, then most runs."""
    methods: dict[Settings, set[str]] = defaultdict(set)
    confirmed: Counter[Settings] = Counter()
    counts: Counter[Settings] = Counter()
    for run in runs:
        if run.outcome != "finished":
            continue
        key = settings_of(run)
        counts[key] += 1
        if run.purpose == "confirmation" and run.decayed:
            methods[key].add(run.method)
            confirmed[key] += 1
    if not counts:
        return ()
    # Ties by the settings' own text, so that the order of the runs decides nothing.
    best = max(counts, key=lambda key: (len(methods[key]), confirmed[key], counts[key], str(key)))
    return tuple((name, value) for name, value in best)  # type: ignore[misc]


def _refusal(run: FinishedRun, reference: Settings, searched: set[int]) -> str | None:
    """Why a run may not enter, in words; None if it may."""
    if run.outcome != "finished":
        return f"{run.outcome}: {run.reason}" if run.reason else run.outcome
    if not run.decayed:
        return "learning rate not decayed: reading it would favour the method"
    for (name, expected), (_, label) in zip(reference, SETTINGS, strict=False):
        found = getattr(run, name)
        if found != expected:
            return f"other {label}: {_shown(found)}, the comparison has {_shown(expected)}"
    if run.purpose == "confirmation" and run.seed is not None and run.seed in searched:
        return f"seed {run.seed} was used by the search: only fresh seeds confirm"
    return None


def _shown(value: object) -> str:
    return "not stated" if value is None else str(value)


def _build_arm(
    method: str,
    admitted: list[FinishedRun],
    everything: list[FinishedRun],
    hours: Mapping[str, float],
    trials_recorded: bool,
) -> StudyArm:
    own = [run for run in admitted if run.method == method]
    search = tuple(run for run in everything if run.method == method and run.purpose == "tuning")
    confirmed: dict[Configuration, dict[int, list[FinishedRun]]] = defaultdict(lambda: defaultdict(list))
    for run in own:
        if run.purpose == "confirmation":
            confirmed[configuration_of(run)][run.total_steps].append(run)
    cells = {
        configuration: tuple(_cell(steps, members, hours) for steps, members in sorted(ladder.items()))
        for configuration, ladder in confirmed.items()
    }
    chosen, chosen_by = _choose(cells, search)
    return StudyArm(
        method=method,
        configuration=chosen,
        cells=cells[chosen] if chosen is not None else (),
        search=search,
        noise_floor=tuple(run for run in own if run.purpose == "noise_floor"),
        other_cells=tuple(cell for key, ladder in cells.items() if key != chosen for cell in ladder),
        chosen_by=chosen_by,
        num_trials=len(search) if trials_recorded else None,
        probes=tuple(run for run in everything if run.method == method and run.purpose == "probe"),
    )


def configuration_of(run: FinishedRun) -> Configuration:
    """What the run was trained with."""
    return Configuration(run.parameters, run.learning_rate)


def _cell(total_steps: int, runs: list[FinishedRun], hours: Mapping[str, float]) -> Cell:
    ordered = tuple(sorted(runs, key=lambda run: (run.seed is None, run.seed or 0, run.run_id)))
    return Cell(
        total_steps=total_steps,
        runs=ordered,
        losses=np.array([run.final_loss for run in ordered], dtype=np.float64),
        gpu_hours=_mean([hours.get(run.run_id) for run in ordered]),
        flops=_mean([run.flops for run in ordered]),
        tokens=_mean([run.tokens for run in ordered]),
    )


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None and value > 0]
    # All or none: a mean over those runs that happen to know their cost would favour one arm.
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _choose(
    cells: Mapping[Configuration, tuple[Cell, ...]], search: tuple[FinishedRun, ...]
) -> tuple[Configuration | None, Literal["only", "coverage", "search", "confirmation", "none"]]:
    """Pick the configuration that represents an arm, by anything rather than by the losses that will be reported."""
    if not cells:
        return None, "none"
    if len(cells) == 1:
        return next(iter(cells)), "only"

    def coverage(key: Configuration) -> tuple[int, int]:
        return (len(cells[key]), sum(cell.num_seeds for cell in cells[key]))

    # By effort, not by loss: whoever confirmed a setting on more budgets and seeds had chosen it before.
    most = max(coverage(key) for key in cells)
    tied = [key for key in cells if coverage(key) == most]
    if len(tied) == 1:
        return tied[0], "coverage"
    tuned: dict[Configuration, list[float]] = defaultdict(list)
    for run in search:
        if run.final_loss is not None:
            tuned[configuration_of(run)].append(run.final_loss)
    known = [key for key in tied if key in tuned]
    if known:
        return min(known, key=lambda key: (float(np.mean(tuned[key])), str(key))), "search"
    # Nothing else tells them apart. The choice is lucky, and a check fails for it.
    return min(tied, key=lambda key: (cells[key][-1].mean_loss, str(key))), "confirmation"
