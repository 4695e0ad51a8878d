"""One bench from options to result: which scales and forms, in which order, with how many steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import torch

from trainers.bench.ceilings import measure_ceilings
from trainers.bench.checks import Bench, check_all
from trainers.bench.clock import pace_of
from trainers.bench.measure import free_memory, measure_scale, time_losses
from trainers.bench.result import BenchResult, Environment, LossTimed
from trainers.bench.subject import FORMS, Setting, available_forms, setting_of, usual_form
from trainers.contract.errors import InputError
from trainers.contract.record import reason_of
from trainers.contract.scales import SCALES
from trainers.contract.spec import ModelShape
from trainers.model.attention import attention_backend
from trainers.training.devices import device_name
from trainers.training.provenance import UNKNOWN, git_state

CPU_SCALES: tuple[str, ...] = ("pico", "nano")
GPU_SCALES: tuple[str, ...] = ("270m", "600m", "3b")
WIDE = ModelShape(1, 256, 4, 4, 64, 688, 4_096)
"""On a CPU the loss is timed at this head too (512 rows): at a toy vocabulary calls cost more than arithmetic does."""
WIDE_ROWS = 512


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """What to measure. Empty `scales` and `forms` are the device's own; `steps` are timed steps a variant."""

    scales: tuple[str, ...] = ()
    forms: tuple[str, ...] = ()
    device: str = ""
    steps: int = 24
    micro_sequences: int | None = None
    threads: int = 1
    seed: int = 0


def check_options(options: BenchOptions, device: torch.device) -> tuple[str, ...]:
    """The scales to measure. Raises `InputError` for what cannot be asked for."""
    scales = options.scales or (GPU_SCALES if device.type == "cuda" else CPU_SCALES)
    for scale in scales:
        if scale not in SCALES:
            raise InputError(f"--scale: {scale!r} is not one of {', '.join(SCALES)}")
        if SCALES[scale].shape.num_experts:
            raise InputError(f"--scale: {scale} is a mixture of experts, which the bench does not step")
        setting_of(scale, device, options.micro_sequences)
    if options.steps < 1:
        raise InputError(f"--steps: {options.steps} is not a positive number")
    return scales


def _losses(
    scales: Iterable[str],
    forms: tuple[str, ...],
    device: torch.device,
    options: BenchOptions,
    say: Callable[[str], None],
) -> tuple[LossTimed, ...]:
    found: tuple[LossTimed, ...] = ()
    pace = pace_of(device, options.steps)
    settings = {scale: setting_of(scale, device, options.micro_sequences) for scale in scales}
    heads = [
        (name, one.context * one.micro_sequences, SCALES[name].shape, one.precision) for name, one in settings.items()
    ]
    if device.type != "cuda":
        heads.append(("wide", WIDE_ROWS, WIDE, "fp32"))
    for name, rows, shape, precision in heads:
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        try:
            found += time_losses(name, rows, shape, dtype, forms, pace, device)
        except Exception as error:  # whole logits of one-hot cross-entropy may not fit; the steps' figures are safe
            say(f"not measured: the loss of {name}: {reason_of(error)}")
        free_memory(device)
    return found


def bench_device(name: str) -> torch.device:
    """The device of that name; of no name a GPU where there is one. Raises `InputError` for one that is not here."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:  # torch's own words fill four lines with every device that it has heard of
        raise InputError(f"--device: {name!r} is not cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"--device: {name!r} is not cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"--device: {device}, and PyTorch finds {torch.cuda.device_count() or 'no'} GPU here")
    return device


def run_bench(
    options: BenchOptions, say: Callable[[str], None], keep: Callable[[BenchResult], object] = lambda result: None
) -> BenchResult:
    """Check, then measure. Sets this process's number of threads. Raises `InputError` for bad options.

    `keep` is given what there is after every scale: whoever ends the bench early has the scales before.
    """
    device = bench_device(options.device)
    torch.set_num_threads(options.threads)
    scales = check_options(options, device)
    forms, unavailable = available_forms(options.forms or FORMS, device)
    usual = usual_form(forms, device)
    first = setting_of(scales[0], device, options.micro_sequences)
    environment = _environment(scales[0], first, forms, unavailable, device, options.seed)
    say("measuring: ceilings")
    ceilings = measure_ceilings(device, environment.device, first.precision)
    result = BenchResult(environment, check_all(Bench(device, options.seed), forms, say), ceilings, (), ())
    pace = pace_of(device, options.steps)
    for scale in scales:
        say(f"measuring: {scale}, {', '.join(forms)}")
        setting = setting_of(scale, device, options.micro_sequences)
        figures = measure_scale(scale, setting, forms, usual, pace, device, ceilings.peak_flops, options.seed)
        result = replace(result, scales=(*result.scales, figures))
        keep(result)
    say("measuring: the loss alone")
    return replace(result, losses=_losses(scales, forms, device, options, say))


def _environment(
    scale: str,
    setting: Setting,
    forms: tuple[str, ...],
    unavailable: dict[str, str],
    device: torch.device,
    seed: int,
) -> Environment:
    commit, _ = git_state(Path(__file__).resolve().parents[2])
    return Environment(
        device=device_name(str(device)),
        device_kind=device.type,
        torch_version=torch.__version__,
        threads=torch.get_num_threads(),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        git_commit=None if commit == UNKNOWN else commit,
        seed=seed,
        attention=attention_backend(SCALES[scale].shape, setting.context, setting.precision, device),
        forms=forms,
        unavailable=unavailable,
    )
