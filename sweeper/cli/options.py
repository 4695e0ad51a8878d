"""What every command shares: options of one spelling, and how the user's mistakes become one line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from trainers.contract.errors import UserError

Results = Annotated[Path, typer.Option("--results", help="Folder of ledgers, checkpoints and reports.")]
Uri = Annotated[str | None, typer.Option("--tracking-uri", help="MLflow server; default: SQLite in --results.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
Json = Annotated[bool, typer.Option("--json", help="Print the machine-readable form instead.")]
RESULTS = Path("results")


def refuse(error: BaseException) -> NoReturn:
    """Say what is wrong in one line and leave with exit code 2."""
    print(str(error) or type(error).__name__, file=sys.stderr)
    raise typer.Exit(2)


def guarded(debug: bool, action: Callable[[], Any]) -> Any:
    """Run a command's body: the user's mistakes become one line and exit code 2, an interruption 130."""
    try:
        return action()
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        raise typer.Exit(130) from None
    except (UserError, ValueError, OSError) as error:
        if debug:
            raise
        refuse(error)


def print_json(value: Any) -> None:
    """The machine-readable form of a command's result on standard output. Raises `ValueError` for a NaN."""
    import json

    print(json.dumps(value, indent=1, allow_nan=False))
