"""What small trials gain from sharing a device, measured: in one stacked step, or as processes of their own.

`sweeper bench` measures and keeps the figures of this device, with its own batch; `python -m trainers.stack_bench` with
any. A sweep with `--stack auto` stacks a scale only where they say that it pays. Variants are timed in turn, so that a
machine that slows down slows all.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from trainers.bench.result import FOLDER, bench_file
from trainers.bench.subject import setting_of
from trainers.checkpoint import TrainState, write_atomically
from trainers.devices import device_name
from trainers.execution import resolve_execution
from trainers.methods import phases_of
from trainers.model import build_model
from trainers.optim import build_optimizer
from trainers.scales import SCALES
from trainers.spec import ModelShape, Optimizer, Scalar, Schedule, TrialSpec
from trainers.stack_stage import can_stack
from trainers.stacked import Slice, StackedStep, synchronise
from trainers.stacked_static import engine_of
from trainers.step import TrainingStep

WIDTHS = (1, 2, 4, 8, 16)
MARGIN = 1.2
"""How many times the positions/s of separate training a stack must reach before a sweep uses it: one trial after the other
is simpler, and the searches learn more from it."""


@dataclass(frozen=True, slots=True)
class Load:
    """What is stepped: a scale's model as a sweep would train it. `precision` is fp32 or bf16."""

    scale: str
    shape: ModelShape
    context: int
    sequences: int
    precision: str
    bag_size: int = 1

    def spec(self, seed: int = 0) -> TrialSpec:
        """A trial of this load on made-up tokens."""
        bags: dict[str, Scalar] = {}
        if self.bag_size > 1:
            bags = {"bag_size": self.bag_size, "bag_weighting": "uniform", "step_ratio": 1.0}
        return TrialSpec(
            scale=self.scale,
            shape=self.shape,
            method="tst" if bags else "baseline",
            parameters=tuple(bags.items()),
            corpus_fingerprint="random",
            tokenizer_fingerprint="random",
            context=self.context,
            tokens_per_step=self.context * self.sequences,
            validation_tokens=self.context,
            schedule=Schedule(1_000_000, 100, 0, 1e-3),
            optimizer=Optimizer(),
            precision=self.precision,
            seed=seed,
        )


@dataclass(frozen=True, slots=True)
class StackFigures:
    """Latent positions a second on one device, in total: one trial in its `alone_form`, and stacks by their width."""

    scale: str
    context: int
    sequences: int
    precision: str
    alone_form: str
    alone: float
    stacked: dict[int, float]

    def best_width(self, margin: float = MARGIN) -> int:
        """The width with the most positions/s, 1 where even that is not `margin` times separate training."""
        width = max(self.stacked, key=lambda width: self.stacked[width])
        return width if self.stacked[width] >= margin * self.alone else 1


@dataclass(frozen=True, slots=True)
class _RandomTokens:
    """A stream of made-up tokens."""

    tokens: np.ndarray

    @staticmethod
    def of(vocab_size: int, count: int = 1 << 20) -> _RandomTokens:
        return _RandomTokens(np.random.default_rng(0).integers(0, vocab_size, count))

    @property
    def tokens_per_epoch(self) -> int:
        return len(self.tokens)

    def read(self, position: int, count: int) -> np.ndarray:
        return np.take(self.tokens, np.arange(position, position + count), mode="wrap")


def _state(spec: TrialSpec, device: torch.device) -> TrainState:
    model = build_model(spec.shape, spec.context, spec.seed, device)
    return TrainState(model, build_optimizer(model, spec.optimizer))


def _alone(load: Load, device: torch.device, execution: str) -> Callable[[], object]:
    """The ordinary step, again and again."""
    spec, stream = load.spec(), _RandomTokens.of(load.shape.vocab_size)
    state, phases = _state(spec, device), phases_of(spec)
    step = TrainingStep(spec, phases, state.model, state.optimizer, stream, device, execution)
    counter = iter(range(spec.schedule.total_steps))
    return lambda: step.run(next(counter), phases[0])


def _stacked(load: Load, device: torch.device, width: int) -> Callable[[], object]:
    stream = _RandomTokens.of(load.shape.vocab_size)
    specs = [load.spec(seed) for seed in range(width)]
    step = StackedStep([Slice.of(spec, phases_of(spec), stream, _state(spec, device)) for spec in specs], device)
    engine = engine_of(step)
    engine.enter()
    counter = iter(range(specs[0].schedule.total_steps))
    return lambda: engine.run(next(counter))


def measure_stack(
    load: Load, device: torch.device, execution: str, widths: Sequence[int] = WIDTHS, samples: int = 20
) -> StackFigures:
    """Median step of separate training in form `execution` and of each stack, `samples` of each after three to warm up.

    On a CPU in processor time, which other work on the machine disturbs less.
    """
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    variants = {0: _alone(load, device, execution), **{width: _stacked(load, device, width) for width in widths}}
    seconds: dict[int, list[float]] = {width: [] for width in variants}
    for round_ in range(samples + 3):
        for width, step in variants.items():
            synchronise(device)
            started = clock()
            step()
            synchronise(device)
            if round_ >= 3:
                seconds[width].append(clock() - started)
    positions = load.context * load.sequences
    rates = {width: max(width, 1) * positions / median(times) for width, times in seconds.items()}
    alone = rates.pop(0)
    return StackFigures(load.scale, load.context, load.sequences, load.precision, execution, alone, rates)


def _run_for(load: Load, device: str, execution: str, seconds: float, barrier: Barrier, results: Any) -> None:
    """One of several processes on a device: warm up, wait for the others, count steps."""
    torch.set_num_threads(1)
    step, where = _alone(load, torch.device(device), execution), torch.device(device)
    for _ in range(3):
        step()
    synchronise(where)
    barrier.wait()
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        step()
        synchronise(where)
        count += 1
    results.put(count / (time.perf_counter() - started))


def measure_shared(
    load: Load, device: str, execution: str, shares: Sequence[int] = (1, 2, 4), seconds: float = 5.0
) -> dict[int, float]:
    """Positions/s in total of 1, 2, 4 trials at once, each a process of its own: what `resources.gpus: 0.25` would bring."""
    context = multiprocessing.get_context("spawn")
    totals = {}
    for share in shares:
        barrier, results = context.Barrier(share), context.SimpleQueue()
        arguments = (load, device, execution, seconds, barrier, results)
        workers = [context.Process(target=_run_for, args=arguments) for _ in range(share)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        if any(worker.exitcode for worker in workers):
            raise RuntimeError(f"{share} trials at once on {device}: a process ended with an error")
        totals[share] = sum(results.get() for _ in workers) * load.context * load.sequences
    return totals


def figures_file(folder: Path, device: str) -> Path:
    """Where the figures of `device`, by the name that people compare, are kept."""
    return bench_file(folder, f"stack {device}")


def read_figures(folder: Path, device: str) -> tuple[StackFigures, ...]:
    """What was measured on `device`; empty where nothing readable is kept."""
    try:
        plain = json.loads(figures_file(folder, device).read_text(encoding="utf-8"))
        return tuple(
            StackFigures(**{**entry, "stacked": {int(width): rate for width, rate in entry["stacked"].items()}})
            for entry in plain["figures"]
        )
    except (OSError, ValueError, KeyError, TypeError):
        return ()


def keep_figures(folder: Path, device: str, figures: Sequence[StackFigures]) -> Path:
    """Add to what is kept of `device`; new figures replace old ones of the same load."""

    def load_of(entry: StackFigures) -> tuple[str, int, int, str]:
        return entry.scale, entry.context, entry.sequences, entry.precision

    known = {load_of(entry): entry for entry in (*read_figures(folder, device), *figures)}
    path = figures_file(folder, device)
    folder.mkdir(parents=True, exist_ok=True)
    plain = {"device": device, "torch": torch.__version__, "figures": [asdict(entry) for entry in known.values()]}
    write_atomically(path, json.dumps(plain, indent=1) + "\n")
    return path


def measure_small(
    scales: Sequence[str], device: torch.device, say: Callable[[str], None], samples: int = 20
) -> tuple[StackFigures, ...]:
    """What stacks gain at those of `scales` that can be stacked, with the batch that the bench steps them with."""
    execution = resolve_execution("auto", device)
    found = []
    for scale in scales:
        shape, setting = SCALES[scale].shape, setting_of(scale, device, None)
        load = Load(scale, shape, setting.context, setting.sequences, setting.precision)
        if can_stack(load.spec()):
            say(f"measuring: stacks of {scale}")
            found.append(measure_stack(load, device, execution, WIDTHS[:4], samples))
    return tuple(found)


def words_of(figures: StackFigures) -> str:
    """One line: what widths gain, and what `--stack auto` will do with it."""
    gains = ", ".join(f"{width}: {rate / figures.alone:.2f}x" for width, rate in figures.stacked.items())
    best = figures.best_width()
    does = f"stacks {best}" if best > 1 else "does not stack"
    return f"{figures.scale} stacked, positions/s over one by one ({figures.alone_form}): {gains}; --stack auto {does}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table, keep the figures."""
    parser = argparse.ArgumentParser(prog="python -m trainers.stack_bench", description=main.__doc__)
    parser.add_argument("--scale", action="append", choices=list(SCALES), help="default: pico and nano")
    parser.add_argument("--context", type=int, default=64)
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--widths", type=int, nargs="+", default=list(WIDTHS))
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--share", type=int, nargs="+", help="also this many trials at once as processes of their own")
    parser.add_argument("--out", type=Path, default=Path("results") / FOLDER)
    given = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(1)
    execution = resolve_execution("auto", device)
    found = []
    for scale in given.scale or ("pico", "nano"):
        load = Load(scale, SCALES[scale].shape, given.context, given.sequences, given.precision)
        figures = measure_stack(load, device, execution, given.widths, given.samples)
        found.append(figures)
        print(f"{scale}: alone ({execution}) {figures.alone:,.0f} positions/s")
        for width, rate in figures.stacked.items():
            print(f"  stack of {width:>2}: {rate:>12,.0f} positions/s in total, {rate / figures.alone:.2f}x")
        print(f"  --stack auto: {figures.best_width()}")
        for count, rate in measure_shared(load, device.type, execution, given.share or ()).items():
            print(f"  {count} processes: {rate:>12,.0f} positions/s in total")
    print(keep_figures(given.out, device_name(device.type), found))


if __name__ == "__main__":
    main()
