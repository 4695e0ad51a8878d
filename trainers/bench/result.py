"""What a bench found, as values; the arithmetic that makes figures of times; the file that keeps them for `plan`.

Nothing is measured here. Standard library and the contract's files only: a plan reads a kept result without torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainers.contract.reading import json_value, value_of
from trainers.contract.writing import write_atomically

BENCH_SCHEMA = 1
FOLDER = "bench"
"""Below the results folder: one file a device, the newest run."""
OK, FAIL, SKIPPED = "ok", "FAIL", "skipped"
FAILED, PARTIAL = ".failed", ".partial"

CONVENTIONS: dict[str, str] = {
    "model_flops": "6 * (active parameters without the input embedding) + 12 * layers * attention width * context / 2 "
    "FLOPs a latent position, forward and backward, causal",
    "mfu": "model FLOPs of the positions of a second, over the peak named in ceilings.peak_source",
    "positions": "latent positions: the same number a step in both phases, whatever the bag size",
    "step_seconds": "median of the timed steps after warm-up, batch reading and update included; variants take turns in "
    "one process",
    "time_ratios": "superposition_over_baseline, multi_hot_over_one_hot, paper_over_ours, plain_over_baseline: time over "
    "time, median over rounds of the two neighbours in a round, on a CPU in processor time of this process; above 1 means "
    "that the first takes longer",
    "speed_ratios": "captured_over_eager, captured_over_compiled, compiled_over_eager: speed over speed of the baseline's "
    "step; above 1 means that the first is faster; the smallest over the scales",
    "headline": "top-level time ratios are the largest over bag sizes and scales, in the form named in ratios.form",
    "peak_bytes": "on a GPU the allocator's peak of a process that holds one model; on a CPU weights and moments plus the "
    "peak of what one step allocates, by the profiler's memory events",
    "parts": "shares of an eager step, whose parts are timed one by one; the gradients of head and hidden states are made "
    "in the loss",
}


@dataclass(frozen=True, slots=True)
class Check:
    """One claim about the step. `value` is what was found, `limit` the most that is allowed (0: bit-equal)."""

    name: str
    status: str
    value: float | None
    limit: float | None
    note: str


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What the device can do at most: bytes a second (read plus written), FLOP/s of one large matmul of each type.

    `peak_flops` is what every MFU is divided by, `peak_source` says where it is from.
    """

    copy_bytes_per_second: float
    matmul_flops_per_second: dict[str, float]
    peak_flops: float
    peak_source: str


@dataclass(frozen=True, slots=True)
class Timed:
    """One variant's step. `seconds` is the median; `over_baseline` and `over_ours` are paired ratios of times.

    `over_baseline`: against the baseline's step of the same form. `over_ours`: the paper's formulation against our
    superposition step of the same bag size and form. `spread` is the interquartile range over the median.
    """

    variant: str
    form: str
    bag_size: int
    seconds: float
    spread: float
    samples: int
    positions_per_second: float
    mfu: float
    peak_bytes: int | None
    over_baseline: float | None
    over_ours: float | None


@dataclass(frozen=True, slots=True)
class LossTimed:
    """The loss alone, forward and backward, from the same hidden states `[N, D]` and head `[V, D]`, against one-hot
    cross-entropy. `bag_size` 1 is one-hot cross-entropy itself, with `over_one_hot` 1."""

    shape: str
    form: str
    bag_size: int
    seconds: float
    over_one_hot: float


@dataclass(frozen=True, slots=True)
class ScaleFigures:
    """One scale, as it was stepped. The three headline figures are the baseline's in the form that a run would take.

    `flops_per_second` are model FLOPs; `note` says what is missing and why. Figures are None where nothing ran.
    """

    scale: str
    parameters: int
    context: int
    sequences: int
    micro_sequences: int
    precision: str
    form: str
    positions_per_second: float | None
    mfu: float | None
    peak_bytes: int | None
    flops_per_second: float | None
    steps: tuple[Timed, ...]
    parts: dict[str, dict[str, float]]
    note: str


@dataclass(frozen=True, slots=True)
class Environment:
    """Where and when. `forms` are the step's forms that ran, `unavailable` the others with their reason."""

    device: str
    device_kind: str
    torch_version: str
    threads: int
    date: str
    git_commit: str | None
    seed: int
    attention: str
    forms: tuple[str, ...]
    unavailable: dict[str, str]


@dataclass(frozen=True, slots=True)
class BenchResult:
    """A whole run."""

    environment: Environment
    checks: tuple[Check, ...]
    ceilings: Ceilings
    scales: tuple[ScaleFigures, ...]
    losses: tuple[LossTimed, ...]

    @property
    def passed(self) -> bool:
        """No check failed."""
        return all(check.status != FAIL for check in self.checks)

    @property
    def form(self) -> str:
        """The form that headline ratios are of."""
        return self.scales[0].form if self.scales else ""


def _largest(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def gain(scale: ScaleFigures, fast: str, slow: str) -> float | None:
    """How many times faster the baseline's step is in form `fast` than in form `slow`; None unless both ran."""
    seconds = {timed.form: timed.seconds for timed in scale.steps if timed.variant == "baseline"}
    return seconds[slow] / seconds[fast] if fast in seconds and slow in seconds else None


def _smallest_gain(scales: Iterable[ScaleFigures], fast: str, slow: str) -> float | None:
    return min((value for scale in scales if (value := gain(scale, fast, slow)) is not None), default=None)


def ratios(result: BenchResult) -> dict[str, Any]:
    """The ratios that a target is stated for; None where a form did not run. See `CONVENTIONS`."""
    steps = [timed for scale in result.scales for timed in scale.steps]
    forms = result.environment.forms
    superposition = {
        form: _largest(t.over_baseline for t in steps if (t.variant, t.form) == ("superposition", form))
        for form in forms
    }
    losses = {
        form: _largest(t.over_one_hot for t in result.losses if t.bag_size > 1 and t.form == form) for form in forms
    }
    # A captured step's loss is the compiled step's, which is timed by itself.
    loss_form = result.form if losses.get(result.form) is not None else "compiled"
    return {
        "form": result.form,
        "superposition_over_baseline": superposition.get(result.form),
        "superposition_over_baseline_by_form": superposition,
        "multi_hot_over_one_hot": losses.get(loss_form),
        "multi_hot_over_one_hot_by_form": losses,
        "captured_over_eager": _smallest_gain(result.scales, "captured", "eager"),
        "captured_over_compiled": _smallest_gain(result.scales, "captured", "compiled"),
        "compiled_over_eager": _smallest_gain(result.scales, "compiled", "eager"),
        "paper_over_ours_by_form": {
            form: _largest(t.over_ours for t in steps if (t.variant, t.form) == ("paper", form)) for form in forms
        },
        "plain_over_baseline_by_form": {
            form: _largest(t.over_baseline for t in steps if (t.variant, t.form) == ("plain", form)) for form in forms
        },
    }


@dataclass(frozen=True, slots=True)
class DeviceFigures:
    """What `plan` takes from a kept result: model FLOP/s of each benched scale, with model FLOPs a position there."""

    device: str
    form: str
    date: str
    flops_per_second: dict[str, float]
    flops_per_position: dict[str, float]


def device_figures(result: BenchResult) -> DeviceFigures:
    """The figures of this run for a plan; scales that did not run are left out."""
    ran = [scale for scale in result.scales if scale.flops_per_second and scale.positions_per_second]
    return DeviceFigures(
        device=result.environment.device,
        form=result.form,
        date=result.environment.date,
        flops_per_second={scale.scale: scale.flops_per_second or 0.0 for scale in ran},
        flops_per_position={
            scale.scale: (scale.flops_per_second or 0.0) / (scale.positions_per_second or 1.0) for scale in ran
        },
    )


def result_to_json(result: BenchResult) -> dict[str, Any]:
    """Plain JSON values: scales by name, a scale's capture gains beside its steps, `plan` as a plan uses it."""
    plain = asdict(result)
    scales = {}
    for scale, values in zip(result.scales, plain["scales"], strict=True):
        gains = {
            f"{fast}_over_{slow}": gain(scale, fast, slow)
            for fast, slow in (("captured", "eager"), ("captured", "compiled"), ("compiled", "eager"))
        }
        scales[scale.scale] = {**{k: v for k, v in values.items() if k != "scale"}, "gains": gains}
    return {
        "schema": BENCH_SCHEMA,
        "kind": "bench",
        "environment": plain["environment"],
        "conventions": CONVENTIONS,
        "passed": result.passed,
        "checks": plain["checks"],
        "ceilings": plain["ceilings"],
        "ratios": ratios(result),
        "scales": scales,
        "losses": plain["losses"],
        "plan": asdict(device_figures(result)),
    }


def bench_file(folder: Path, device: str, kind: str = "") -> Path:
    """Where the newest result of `device` is kept; beside it, by their `kind`, the newest one whose checks did not all pass
    (`FAILED`), and what there is of one that has not ended (`PARTIAL`)."""
    name = re.sub(r"[^a-z0-9]+", "-", device.casefold()).strip("-")
    return folder / f"{name}{kind}.json"


def keep_result(folder: Path, result: BenchResult, *, whole: bool = True) -> Path:
    """Write a result, replacing its device's last one; readers see the old file or the new one.

    One with a failed check goes beside it: its figures may say why, and no plan may reckon with them. So does one that is not
    `whole`, until the whole one takes its place: an earlier one has more scales.
    """
    device = result.environment.device
    path = bench_file(folder, device, PARTIAL if not whole else "" if result.passed else FAILED)
    write_atomically(path, json.dumps(result_to_json(result), indent=1, allow_nan=False) + "\n")
    if whole:
        bench_file(folder, device, PARTIAL).unlink(missing_ok=True)
    return path


def read_figures(folder: Path, device: str) -> DeviceFigures | None:
    """What was kept for `device`, None where there is nothing, it is of another schema, or a check had failed."""
    try:
        plain = json_value(bench_file(folder, device).read_bytes())
        if plain["schema"] != BENCH_SCHEMA or not plain["passed"] or not plain["plan"]["flops_per_second"]:
            return None
        return value_of(DeviceFigures, plain["plan"], "the figures of a bench")
    except (OSError, ValueError, KeyError, TypeError):
        return None
