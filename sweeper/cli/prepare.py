"""`sweeper prepare`: the text of a file, made ready before a run. Parsing, a progress bar, and the figures of what came out.

Registered by `app`. What is done is `trainers.data`'s; whether it is enough for the sweep is `sweeper.corpora`'s.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sweeper.cli.options import RESULTS, Json, Results, guarded, print_json

if TYPE_CHECKING:
    from rich.console import Console

    from trainers.data.streamed.build import Pace


@guarded
def prepare(
    file: Annotated[Path, typer.Argument(help="Search-space file.", show_default=False)],
    results: Results = RESULTS,
    processes: Annotated[int, typer.Option(min=0, help="Processes that encode; 0: one a core.")] = 0,
    as_json: Json = False,
) -> None:
    """Prepare the text of a sweep, as `run` does by itself. Killed and repeated, it goes on."""
    from dataclasses import asdict

    from sweeper.cli.console import PlainConsole
    from sweeper.corpora import prepared_text
    from sweeper.options import RunOptions
    from sweeper.space.load import load_own_space
    from trainers.data.manifest import read_manifest

    with _told_to_end(), _progress(PlainConsole(stderr=True)) as (say, watch):
        options = RunOptions(file, results)
        corpus = prepared_text(load_own_space(file), options, say, watch=watch, processes=processes)
    manifest = read_manifest(corpus.directory)
    if as_json:
        print_json(asdict(manifest))
        return
    print(manifest.description)
    for source in manifest.sources:
        licence = source.licence or "not known"
        print(
            f"{source.name}: {source.documents:,} documents, {source.tokens:,} training tokens, "
            f"{source.text_bytes / 1e6:,.1f} MB; licence: {licence}"
        )
    print(f"{manifest.train_tokens:,} training and {manifest.validation_tokens:,} held-out tokens", end="")
    print("" if manifest.seen_share is None else f", of which {manifest.seen_share:.2%} occur in training")
    print(corpus.directory.resolve())


@contextmanager
def _told_to_end() -> Iterator[None]:
    """SIGTERM ends like Ctrl-C, in a line that says so."""
    from trainers.contract.faults import Terminated

    def end(number: int, frame: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _progress(console: Console) -> Iterator[tuple[Callable[[str], None], Callable[[Pace], None]]]:
    """A pair to say a line with and to show the pace with: a bar on a terminal, a line now and then elsewhere."""
    from sweeper.corpora import now_and_then, pace_words

    if not console.is_terminal:

        def say(line: str) -> None:
            print(line, file=sys.stderr, flush=True)

        yield say, now_and_then(say)
        return
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (BarColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)

        def show(pace: Pace) -> None:
            bar.update(task, total=pace.wanted, completed=pace.tokens, description=pace_words(pace))

        yield bar.console.print, show
