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

import torch

from trainers.bench.clock import pace_of, take_turns
from trainers.bench.result import FOLDER, bench_file
from trainers.bench.subject import Setting, Subject, bench_phases, bench_spec, counted, make_subject, setting_of
from trainers.checkpoint import TrainState
from trainers.devices import device_name, synchronise
from trainers.execution import resolve_execution
from trainers.scales import SCALES
from trainers.spec import ModelShape
from trainers.stack_stage import can_stack
from trainers.stacked import Slice, StackedStep
from trainers.stacked_static import StaticStack, engine_of
from trainers.writing import write_atomically

WIDTHS = (1, 2, 4, 8, 16)
WARM_UP_STEPS = 3
MARGIN = 1.2
"""How many times the positions/s of separate training a stack must reach before a sweep uses it: one trial after the other
is simpler, and the searches learn more from it."""


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


def _stacked(subjects: Sequence[Subject], device: torch.device) -> tuple[Callable[[], object], Any]:
    """The step of all subjects at once, again and again, and the stream that a GPU does its work on."""
    slices = [
        Slice.of(subject.spec, subject.phases, subject.stream, TrainState(subject.model, subject.optimizer))
        for subject in subjects
    ]
    engine = engine_of(StackedStep(slices, device, subjects[0].setting.micro_sequences))
    engine.enter()
    counter = iter(range(subjects[0].phases[-1].end))
    return lambda: engine.run(next(counter)), engine.recorder.stream if isinstance(engine, StaticStack) else None


def measure_stack(
    scale: str,
    shape: ModelShape,
    setting: Setting,
    device: torch.device,
    execution: str,
    widths: Sequence[int] = WIDTHS,
    samples: int = 20,
    bag_size: int = 1,
) -> StackFigures:
    """Separate training in form `execution` and each stack by turns, at least `samples` of each; medians.

    On a CPU in processor time, which other work on the machine disturbs less.
    """
    pace = pace_of(device, samples)
    phases = bench_phases((bag_size,), pace.calls)

    def subject(seed: int) -> Subject:
        return make_subject(scale, shape, setting, phases, device, seed)

    alone = subject(0)
    step = alone.step(execution)
    calls = [counted(step.run, phases[0])]
    streams = [step.replay_stream]
    for width in widths:
        call, stream = _stacked([subject(seed) for seed in range(width)], device)
        calls.append(call)
        streams.append(stream)
    seconds = [median(block.compared for block in turns.blocks) for turns in take_turns(calls, pace, device, streams)]
    positions = alone.spec.tokens_per_step
    rates = {width: width * positions / taken for width, taken in zip(widths, seconds[1:], strict=True)}
    return StackFigures(
        scale, setting.context, setting.sequences, setting.precision, execution, positions / seconds[0], rates
    )


def _run_steps(
    scale: str,
    shape: ModelShape,
    setting: Setting,
    device: str,
    execution: str,
    steps: int,
    barrier: Barrier,
    results: Any,
) -> None:
    """One of several processes on a device: warm up, wait for the others, take the steps."""
    torch.set_num_threads(1)
    where, phases = torch.device(device), bench_phases((1,), WARM_UP_STEPS + steps)
    step = counted(make_subject(scale, shape, setting, phases, where, 0).step(execution).run, phases[0])
    for _ in range(WARM_UP_STEPS):
        step()
    synchronise(where)
    barrier.wait()
    started = time.perf_counter()
    for _ in range(steps):
        step()
    synchronise(where)
    results.put(steps / (time.perf_counter() - started))


def measure_shared(
    scale: str,
    shape: ModelShape,
    setting: Setting,
    device: str,
    execution: str,
    shares: Sequence[int] = (1, 2, 4),
    steps: int = 500,
) -> dict[int, float]:
    """Positions/s in total of 1, 2, 4 trials at once, each a process of its own: what `resources.gpus: 0.25` would bring.

    Every process takes `steps` steps from a common start; the first to end leaves the others a little more room.
    """
    context = multiprocessing.get_context("spawn")
    totals = {}
    for share in shares:
        barrier, results = context.Barrier(share), context.SimpleQueue()
        arguments = (scale, shape, setting, device, execution, steps, barrier, results)
        workers = [context.Process(target=_run_steps, args=arguments) for _ in range(share)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        if any(worker.exitcode for worker in workers):
            raise RuntimeError(f"{share} trials at once on {device}: a process ended with an error")
        totals[share] = sum(results.get() for _ in workers) * setting.context * setting.sequences
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
        if can_stack(bench_spec(scale, shape, setting, 1)):
            say(f"measuring: stacks of {scale}")
            found.append(measure_stack(scale, shape, setting, device, execution, WIDTHS[:4], samples))
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
        shape, setting = SCALES[scale].shape, Setting(given.context, given.sequences, given.sequences, given.precision)
        figures = measure_stack(scale, shape, setting, device, execution, given.widths, given.samples)
        found.append(figures)
        print(f"{scale}: alone ({execution}) {figures.alone:,.0f} positions/s")
        for width, rate in figures.stacked.items():
            print(f"  stack of {width:>2}: {rate:>12,.0f} positions/s in total, {rate / figures.alone:.2f}x")
        print(f"  --stack auto: {figures.best_width()}")
        for count, rate in measure_shared(scale, shape, setting, device.type, execution, given.share or ()).items():
            print(f"  {count} processes: {rate:>12,.0f} positions/s in total")
    print(keep_figures(given.out, device_name(device.type), found))


if __name__ == "__main__":
    main()
