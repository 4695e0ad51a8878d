"""What every command shares: options of one spelling, and how it ends when something is wrong."""

from __future__ import annotations

import errno
import functools
import inspect
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

Results = Annotated[Path, typer.Option("--results", help="Folder of ledgers, checkpoints and reports.")]
Uri = Annotated[str | None, typer.Option("--tracking-uri", help="MLflow server; default: SQLite in --results.")]
Json = Annotated[bool, typer.Option("--json", help="Print the machine-readable form instead.")]
RESULTS = Path("results")
_DEBUG = inspect.Parameter(
    "debug",
    inspect.Parameter.KEYWORD_ONLY,
    default=False,
    annotation=Annotated[bool, typer.Option("--debug", help="Show tracebacks.")],
)


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """The command with a `--debug` option, and with an end in one line whatever happens in it.

    A `UserError` ends it with exit code 2, any other exception is a fault: exit code 1 and a log that holds the
    traceback. Ctrl-C is 130, SIGTERM in a sweep 143. What Typer itself raises to end a command passes.
    """
    # Typer reads options from the signature. Written into it here, `--debug` is spelled once for all commands.
    signature = inspect.signature(command, eval_str=True)

    @functools.wraps(command)
    def run(*, debug: bool, **given: Any) -> None:
        try:
            command(**given)
        except KeyboardInterrupt as end:
            from trainers.contract.faults import INTERRUPTED, TERMINATED, Terminated

            print("interrupted; the same command goes on from here", file=sys.stderr)
            raise typer.Exit(TERMINATED if isinstance(end, Terminated) else INTERRUPTED) from None
        except (typer.Exit, typer.Abort, BrokenPipeError):  # the last: whoever read our output has seen enough
            raise
        except Exception as error:
            from trainers.contract.faults import end_of

            words = f"sweeper {command.__name__.replace('_runs', '').replace('_', '-')}"
            raise typer.Exit(end_of(error, words, given.get("results"), debug=debug)) from None

    run.__signature__ = signature.replace(parameters=[*signature.parameters.values(), _DEBUG])  # type: ignore[attr-defined]
    run.__annotations__ = {name: each.annotation for name, each in signature.parameters.items()} | {
        "debug": _DEBUG.annotation
    }
    return run


def writable(folder: Path) -> Path:
    """`folder`, or one in the working directory, said in a line, where it is somebody else's or may only be read."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            return folder  # whoever writes there will say what is wrong
        here = Path(f"report-{folder.name}").absolute()
        print(f"{folder}: {error.strerror}; writing into {here} instead", file=sys.stderr)
        return here


def print_json(value: Any) -> None:
    """The machine-readable form of a command's result on standard output. Raises `ValueError` for a NaN."""
    import json

    print(json.dumps(value, indent=1, allow_nan=False))
