"""`sweeper bench`: is the training step right on this device, and how fast is it? Parsing and wiring.

Registered by `app`. What is checked and measured is `trainers.bench`'s; the figures are kept for `sweeper plan`.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sweeper.cli.options import RESULTS, Json, Results, guarded, print_json

if TYPE_CHECKING:
    from trainers.bench.run import BenchOptions


@guarded
def bench(
    scale: Annotated[list[str] | None, typer.Option(help="Only this scale; may be repeated.")] = None,
    execution: Annotated[list[str] | None, typer.Option(help="Only this form of the step; may be repeated.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Timed steps of each variant.")] = 24,
    device: Annotated[str, typer.Option(help="PyTorch device; default: a GPU where there is one.")] = "",
    micro_sequences: Annotated[int | None, typer.Option(min=1, help="Sequences in memory at once.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads; a trial has one.")] = 1,
    results: Results = RESULTS,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder to keep the figures in; default: `bench` in --results.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check the training step of this device, then time it against what it could be.

    Every form of the step, superposition against ordinary steps, the paper's own
    formulation and a plain PyTorch step by turns in one process. Exit code 1 when
    a check fails. `sweeper plan` reckons with the figures that are kept.
    """
    from trainers.bench import prepare_environment

    prepare_environment()

    import secrets

    from trainers.bench.result import FOLDER
    from trainers.bench.run import BenchOptions

    options = BenchOptions(
        scales=tuple(scale or ()),
        forms=tuple(execution or ()),
        device=device,
        steps=steps,
        micro_sequences=micro_sequences,
        threads=threads,
        seed=secrets.randbelow(2**31),
    )
    if not _bench(options, out or results / FOLDER, as_json):
        print("a check failed; no plan reckons with these figures", file=sys.stderr)
        raise typer.Exit(1)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _bench(options: BenchOptions, folder: Path, as_json: bool) -> bool:
    """Measure, keep after every scale, and show; returns whether all checks passed."""
    from sweeper.cli.console import PlainConsole
    from sweeper.cli.screen import show_bench
    from trainers.bench.result import keep_result, result_to_json
    from trainers.bench.run import run_bench

    keep = partial(keep_result, folder)
    result = run_bench(options, _say, partial(keep, whole=False))
    if as_json:
        print_json(result_to_json(result))
    else:
        show_bench(PlainConsole(), result)
    _say(str(keep(result)))
    return result.passed
