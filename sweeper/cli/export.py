"""`sweeper export`: trained models of a sweep as folders that other libraries load. Parsing and printing.

Registered by `app`. Which run is meant and where its weights lie is `sweeper.exporting`'s.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sweeper.cli.options import RESULTS, Results, Uri, guarded
from trainers.contract.errors import UserError


@guarded
def export(
    name: Annotated[str, typer.Argument(help="Name of the sweep, as in its file.", show_default=False)],
    places: Annotated[
        list[str],
        typer.Argument(
            metavar="[RUN] DIR", help="A run's id or its beginning, and the folder to write.", show_default=False
        ),
    ],
    results: Results = RESULTS,
    tracking_uri: Uri = None,
) -> None:
    """Write a trained model as files that `transformers` loads (Llama, Qwen3, Qwen3-MoE).

    Without RUN it is the winner of every arm: its longest confirmation, the
    first of its seeds, into DIR/SCALE-METHOD. With RUN that run, into DIR.
    """
    from sweeper.exporting import export_models
    from sweeper.ledger.entries import run_name

    if len(places) > 2:
        raise UserError(f"{places[2]!r}: give a folder, or a run and a folder")
    *run, folder = places
    for made in export_models(results, name, run[0] if run else None, Path(folder), tracking_uri):
        record = made.record
        loss = "no final loss" if record.final_loss is None else f"final loss {record.final_loss:.4f}"
        print(f"{made.folder}: {run_name(record.spec, record.purpose)}, {loss}")
