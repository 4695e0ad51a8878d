"""The command line: parsing, wiring, printing. No logic, and nothing heavy is imported before a command needs it.

Exit codes: 0 done; 1 a trial or the program failed; 2 the user's mistake, in one line; 3 stopped before the end, and
running the same command again goes on; 4 the speedup is below `--fail-under`; 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from sweeper.cli_replay import replay

app = typer.Typer(
    help="Find out whether Token-Superposition Training is faster for your model, and by how much.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

File = Annotated[Path, typer.Argument(help="Search-space file, e.g. search_spaces/quickstart.yaml", show_default=False)]
Name = Annotated[str, typer.Argument(help="Name of the sweep, as in its file.", show_default=False)]
Results = Annotated[Path, typer.Option("--results", help="Folder of ledgers, checkpoints and reports.")]
Uri = Annotated[str | None, typer.Option("--tracking-uri", help="MLflow server; default: SQLite in --results.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
Json = Annotated[bool, typer.Option("--json", help="Print the machine-readable form instead.")]
RESULTS = Path("results")


def _refuse(error: BaseException) -> NoReturn:
    print(str(error) or type(error).__name__, file=sys.stderr)
    raise typer.Exit(2)


def _guarded(debug: bool, action: Callable[[], Any]) -> Any:
    """Run a command's body: the user's mistakes become one line and exit code 2."""
    from sweeper.ledger_location import LedgerError
    from sweeper.lock import LockedError

    try:
        return action()
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        raise typer.Exit(130) from None
    except (ValueError, OSError, LedgerError, LockedError) as error:
        if debug:
            raise
        _refuse(error)


def _options(file: Path, results: Path, **more: Any) -> Any:
    from sweeper.session import RunOptions

    return RunOptions(file=file, results=results, **more)


@app.command()
def plan(
    file: File,
    results: Results = RESULTS,
    workers: Annotated[int, typer.Option(min=0, help="Trials at once; 0: as many as there is room for.")] = 0,
    tree: Annotated[bool, typer.Option("--tree", help="Draw the tree of stages.")] = False,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write a page with the tree of stages to this file.")
    ] = None,
    as_json: Json = False,
    tracking_uri: Uri = None,
    debug: Debug = False,
) -> None:
    """Say what a sweep will train, cost and be able to resolve. Starts nothing."""

    def action() -> None:
        from rich.console import Console

        from sweeper.plan_page import plan_to_json, write_plan_page
        from sweeper.screen import show_plan, stage_tree
        from sweeper.session import plan_file

        console = Console(highlight=False)
        made = plan_file(_options(file, results, workers=workers, tracking_uri=tracking_uri))
        if html is not None:
            write_plan_page(made, html)
        if as_json:
            import json

            print(json.dumps(plan_to_json(made), indent=1, allow_nan=False))
            return
        show_plan(console, made)
        if tree:
            console.print(stage_tree(made))
        if html is not None:
            print(html.resolve())

    _guarded(debug, action)


@app.command()
def run(
    file: File,
    results: Results = RESULTS,
    executor: Annotated[str, typer.Option(help="ray, or inline (one trial at a time in this process).")] = "ray",
    address: Annotated[str | None, typer.Option(help="Join this Ray cluster instead of starting one here.")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Trials at once; 0: as many as there is room for.")] = 0,
    execution: Annotated[str, typer.Option(help="Form of the training step: auto, eager or compiled.")] = "auto",
    micro_sequences: Annotated[int | None, typer.Option(min=1, help="Sequences in memory at once.")] = None,
    max_gpu_hours: Annotated[float | None, typer.Option(min=0, help="Start nothing new once this is spent.")] = None,
    tracking_uri: Uri = None,
    debug: Debug = False,
) -> None:
    """Run a sweep to its report. The same command again goes on where it stopped."""
    if executor not in ("ray", "inline"):
        _refuse(ValueError(f"--executor: {executor!r} is not one of ray, inline"))

    def action() -> Any:
        from rich.console import Console

        from sweeper.screen import progress
        from sweeper.session import run_file

        options = _options(
            file,
            results,
            executor=executor,
            address=address,
            workers=workers,
            execution=execution,
            micro_sequences=micro_sequences,
            max_gpu_hours=max_gpu_hours,
            tracking_uri=tracking_uri,
        )
        with progress(Console(stderr=True, highlight=False)) as (say, show):
            return run_file(options, say, show)

    end = _guarded(debug, action)
    print(end.headline)
    print(end.report)
    if end.reason:
        print(f"stopped early: {end.reason}; the same command goes on from here", file=sys.stderr)
        raise typer.Exit(3)
    if end.failed:
        print(f"{end.failed} trials did not finish; `sweeper status` says why", file=sys.stderr)


@app.command()
def status(name: Name, results: Results = RESULTS, tracking_uri: Uri = None, debug: Debug = False) -> None:
    """Show what a sweep has done, what runs and what went wrong."""

    def action() -> None:
        from rich.console import Console

        from sweeper.screen import show_status
        from sweeper.status import status_of

        show_status(Console(highlight=False), status_of(results, name, tracking_uri))

    _guarded(debug, action)


@app.command()
def stop(name: Name, results: Results = RESULTS) -> None:
    """Ask a running sweep to save its state and end. Run it again to go on."""
    from sweeper.lock import request_stop

    driver = request_stop(results / name)
    if driver is None:
        _refuse(ValueError(f"{name}: no driver runs this sweep in {results}"))
    print(f"{name}: asked process {driver.pid} on {driver.host} to stop")


@app.command()
def report(
    name: Name,
    results: Results = RESULTS,
    as_json: Json = False,
    fail_under: Annotated[
        float | None, typer.Option(help="Exit with 4 unless every speedup's lower bound is at least this.")
    ] = None,
    tracking_uri: Uri = None,
    debug: Debug = False,
) -> None:
    """Write the report of a sweep from its ledger alone."""

    def action() -> tuple[str, dict[str, Any], Path]:
        from sweeper.ledger import Ledger
        from sweeper.reporting import REPORT, study_of, write_report_files

        with Ledger.open(results, name, tracking_uri, create=False) as ledger:
            study = study_of(ledger, f"sweeper report {name}")
            headline, summary = write_report_files(study, results / name)
        return headline, summary, (results / name / REPORT).resolve()

    headline, summary, page = _guarded(debug, action)
    if as_json:
        import json

        print(json.dumps(summary, indent=1, allow_nan=False))
    else:
        print(headline)
        print(page)
    if fail_under is not None and not _holds(summary, fail_under):
        raise typer.Exit(4)


def _holds(summary: dict[str, Any], least: float) -> bool:
    lows = [entry["interval"][0] if entry["interval"] else None for entry in summary["scales"]]
    return bool(lows) and all(low is not None and low >= least for low in lows)


@app.command()
def ui(
    name: Annotated[str | None, typer.Argument(help="Sweep to open; default: the newest.", show_default=False)] = None,
    results: Results = RESULTS,
    port: Annotated[int | None, typer.Option(help="Port on loopback; default: a free one.")] = None,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the browser.")] = False,
    tracking_uri: Uri = None,
    debug: Debug = False,
) -> None:
    """Start the MLflow dashboard on this ledger, opened on a ready view."""

    def action() -> None:
        from sweeper.dashboard import DashboardError, serve

        try:
            serve(results, name, tracking_uri, port, open_browser)
        except DashboardError as error:
            raise ValueError(str(error)) from error

    _guarded(debug, action)


@app.command()
def doctor(
    results: Results = RESULTS,
    no_ray: Annotated[bool, typer.Option("--no-ray", help="Do not try to start Ray.")] = False,
) -> None:
    """Say what this machine has, and whether everything that a sweep needs works."""
    from rich.console import Console

    from sweeper.doctor import examine
    from sweeper.screen import show_findings

    findings = examine(results, start_ray=not no_ray)
    show_findings(Console(highlight=False), findings)
    if any(finding.status == "fail" for finding in findings):
        raise typer.Exit(1)


app.command()(replay)


def main() -> None:
    """Entry point of the `sweeper` command."""
    app()
