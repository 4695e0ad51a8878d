"""Tells a sweep how a run of your trainer is doing. Copy this file beside your train.py; it needs nothing but Python.

    from sweeper_points import finish, point
    point(step, validation_loss)                     # after `step` steps, nats per token
    point(step, validation_loss, seconds=clock)      # with your own clock: seconds of training so far
    finish(validation_loss)                          # the loss at the very end, where no point of the last step has it

Outside a sweep, and on every rank but the first, all of it does nothing.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def trial() -> dict[str, Any] | None:
    """Everything that the sweep says of this run (parameters, seed, total_steps, ...), None outside a sweep."""
    path = os.environ.get("SWEEPER_TRIAL")
    return json.loads(Path(path).read_text(encoding="utf-8")) if path else None


def folder() -> Path | None:
    """Where this run may write; what lies there already is of an earlier attempt at it. None outside a sweep."""
    path = os.environ.get("SWEEPER_OUT")
    return Path(path) if path else None


def point(step: int, loss: float, **more: float | str) -> None:
    """The validation loss after `step` steps; `more` may be seconds, tokens, flops (totals so far) and phase."""
    _tell({"step": int(step), "loss": float(loss), **more})


def finish(loss: float, **more: float | str) -> None:
    """The final validation loss."""
    _tell({"final_loss": float(loss), **more})


def _tell(said: dict[str, Any]) -> None:
    out = folder()
    rank = next(
        (os.environ[name] for name in ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK") if name in os.environ), "0"
    )
    if out is None or rank != "0":
        return
    # One write for one line, so that two lines cannot mix.
    with (out / "points.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(said) + "\n")
