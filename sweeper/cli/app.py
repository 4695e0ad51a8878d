"""The command line: parsing, wiring, printing. No logic, and nothing heavy is imported before a command needs it.

Exit codes: 0 done; 1 a trial or the program failed; 2 the user's mistake, in one line; 3 stopped before the end, and
running the same command again goes on; 4 the speedup is below `--fail-under`; 130 interrupted, 143 by SIGTERM.
"""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sweeper.cli.bench import bench
from sweeper.cli.export import export
from sweeper.cli.options import RESULTS, Json, Results, Uri, guarded, print_json
from sweeper.cli.prepare import prepare
from sweeper.cli.replay import replay
from sweeper.cli.reports import import_runs, report
from sweeper.cli.status import status
from trainers.contract.errors import UserError, given
from trainers.contract.faults import FAULT, STOPPED, without_login

if TYPE_CHECKING:
    from sweeper.options import RunOptions

app = typer.Typer(
    help="Find out whether Token-Superposition Training is faster for your model, and by how much.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

File = Annotated[Path, typer.Argument(help="Search-space file, e.g. search_spaces/quickstart.yaml", show_default=False)]
Name = Annotated[str, typer.Argument(help="Name of the sweep, as in its file.", show_default=False)]


def _say_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print("tst-sweeper", version("tst-sweeper"))
        raise typer.Exit


@app.callback()
def before_commands(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """The options of `sweeper` itself; each ends it."""


def _options(file: Path, results: Path, **more: Any) -> Any:
    from sweeper.options import RunOptions

    return RunOptions(file=file, results=results, **more)


def _list_specs(options: RunOptions, path: Path) -> None:
    """Write the list and print how it is trained and how its records come back."""
    from sweeper.plans.spec_list import write_specs

    made = write_specs(options, path, lambda line: print(line, file=sys.stderr))
    counts = Counter("confirmation of winners" if line.winner else line.purpose for line in made.trials)
    print(
        f"{path}: {', '.join(f'{count} {purpose}' for purpose, count in counts.items()) or 'nothing is left to train'}"
    )
    for note in made.notes:
        print(note)
    if not made.trials:
        return
    records = path.with_name("records.jsonl")
    train = ["python", "-m", "trainers.run", path, "--corpus", made.corpus, "--out", records]
    if made.evaluate_every:
        train += ["--evaluate-every", made.evaluate_every, "--evaluate-tokens", made.evaluate_tokens]
    back = ["sweeper", "import", records, "--space", options.file, "--name", made.name]
    print("There, with this file and the corpus's folder (`--hours` ends it in time, the same command goes on):")
    print(shlex.join(map(str, train)))
    print("Here, with its records:")
    print(shlex.join(map(str, back)))


@app.command()
@guarded
def plan(
    file: File,
    results: Results = RESULTS,
    workers: Annotated[int, typer.Option(min=0, help="Trials at once; 0: as many as there is room for.")] = 0,
    tree: Annotated[bool, typer.Option("--tree", help="Draw the tree of stages.")] = False,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write a page with the tree of stages to this file.")
    ] = None,
    specs: Annotated[
        Path | None,
        typer.Option("--specs", help="Write the trials to this file, for `python -m trainers.run`; prepares the text."),
    ] = None,
    as_json: Json = False,
    tracking_uri: Uri = None,
) -> None:
    """Say what a sweep will train, cost and be able to resolve. Starts nothing."""
    if specs is not None:
        _list_specs(_options(file, results, tracking_uri=tracking_uri), specs)
        return
    from sweeper import session
    from sweeper.cli.console import PlainConsole
    from sweeper.cli.screen import show_plan, stage_tree
    from sweeper.plans.page import plan_to_json, write_plan_page

    console = PlainConsole()
    made = session.plan(_options(file, results, workers=workers, tracking_uri=tracking_uri))
    if html is not None:
        with given(html):
            write_plan_page(made, html)
    if as_json:
        print_json(plan_to_json(made))
        return
    show_plan(console, made)
    if tree:
        console.print(stage_tree(made))
    if html is not None:
        print(html.resolve())


@app.command()
@guarded
def run(
    file: File,
    results: Results = RESULTS,
    executor: Annotated[str, typer.Option(help="ray, or inline (one trial at a time in this process).")] = "ray",
    address: Annotated[str | None, typer.Option(help="Join this Ray cluster instead of starting one here.")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Trials at once; 0: as many as there is room for.")] = 0,
    execution: Annotated[str, typer.Option(help="Form of the step: auto, eager, compiled or captured.")] = "auto",
    micro_sequences: Annotated[int | None, typer.Option(min=1, help="Sequences in memory at once.")] = None,
    checkpoint_activations: Annotated[
        bool, typer.Option("--checkpoint-activations", help="Compute activations again instead of keeping them.")
    ] = False,
    max_gpu_hours: Annotated[
        float | None,
        typer.Option(min=0, help="Instead of the file's `budget`: start nothing new, save and end once this is spent."),
    ] = None,
    dry: Annotated[
        bool, typer.Option("--dry", help="Only try each method's command of your trainer, at a small budget.")
    ] = False,
    tracking_uri: Uri = None,
    study_storage: Annotated[
        str | None,
        typer.Option(
            "--study-storage", help="Database of the Optuna studies; default: optuna.db in the sweep's folder."
        ),
    ] = None,
) -> None:
    """Run a sweep to its report. The same command again goes on where it stopped."""
    from sweeper import session
    from sweeper.cli.console import PlainConsole
    from sweeper.cli.screen import progress

    options = _options(
        file,
        results,
        executor=executor,
        address=address,
        workers=workers,
        execution=execution,
        micro_sequences=micro_sequences,
        checkpoint_activations=checkpoint_activations,
        max_gpu_hours=max_gpu_hours,
        tracking_uri=tracking_uri,
        study_storage=study_storage,
    )
    if dry:
        _dry_run(options)
        return
    with progress(PlainConsole(stderr=True)) as (say, show):
        end = session.run(options, say, show)
    print(end.headline)
    print(end.report)
    if end.reason:
        print(f"stopped early: {end.reason}; the same command goes on from here", file=sys.stderr)
        raise typer.Exit(STOPPED)
    if end.unfinished:
        print(f"{end.unfinished} trials did not finish; `sweeper status` says why", file=sys.stderr)
    if end.failed:
        raise typer.Exit(FAULT)


def _dry_run(options: RunOptions) -> None:
    """Try the contract and print what held, and over how many steps; exit code 1 where something did not."""
    from sweeper.cli.console import PlainConsole
    from sweeper.cli.screen import show_findings
    from sweeper.materials import dry_run

    tried = dry_run(options, lambda line: print(line, file=sys.stderr))
    show_findings(PlainConsole(), tried.checks)
    if tried.holds is None:
        raise typer.Exit(FAULT)
    print(tried.holds)


@app.command()
@guarded
def submit(
    file: File,
    results: Annotated[Path, typer.Option("--results", help="Folder that all nodes share, from / on.")],
    address: Annotated[str, typer.Option(help="The cluster's dashboard.")] = "http://127.0.0.1:8265",
    workers: Annotated[int | None, typer.Option(min=0, help="Trials at once.")] = None,
    max_gpu_hours: Annotated[float | None, typer.Option(min=0, help="Start nothing new once this is spent.")] = None,
    tracking_uri: Uri = None,
) -> None:
    """Run a sweep as a job of a Ray cluster, which goes on when this terminal is closed."""
    from sweeper.executors.jobs import submit as start

    options = {"workers": workers, "max-gpu-hours": max_gpu_hours, "tracking-uri": tracking_uri}
    job = start(file, results, address, options)
    print(job)
    print(f"its output: ray job logs {job} --follow --address {without_login(address)}", file=sys.stderr)


@app.command()
@guarded
def recipe(
    name: Name,
    results: Results = RESULTS,
    total_steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of your run; default: those of the verdict.")
    ] = None,
    tracking_uri: Uri = None,
) -> None:
    """Print the winner for your trainer: its values, and the loss and hours to expect."""
    from sweeper.recipe import recipe as recipe_of

    made = recipe_of(results, name, total_steps, tracking_uri)
    for line in made.lines:
        print(line)
    print()
    print(made.command or made.snippet)


@app.command()
@guarded
def stop(name: Name, results: Results = RESULTS) -> None:
    """Ask a running sweep to save its state and end. Run it again to go on."""
    from sweeper.ledger.location import check_name
    from sweeper.lock import request_stop

    check_name(name)
    driver = request_stop(results / name)
    if driver is None:
        raise UserError(f"{name}: no driver runs this sweep in {results}")
    print(f"{name}: asked process {driver.pid} on {driver.host} to stop")


@app.command()
@guarded
def ui(
    name: Annotated[str | None, typer.Argument(help="Sweep to open; default: the newest.", show_default=False)] = None,
    results: Results = RESULTS,
    port: Annotated[int | None, typer.Option(help="Port on loopback; default: a free one.")] = None,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the browser.")] = False,
    tracking_uri: Uri = None,
) -> None:
    """Start the MLflow dashboard on this ledger, opened on a ready view."""
    from sweeper.ledger.dashboard import serve

    serve(results, name, tracking_uri, port, open_browser)


@app.command()
@guarded
def doctor(
    results: Results = RESULTS,
    no_ray: Annotated[bool, typer.Option("--no-ray", help="Do not try to start Ray.")] = False,
) -> None:
    """Say what this machine has, and whether everything that a sweep needs works."""
    from sweeper.cli.console import PlainConsole
    from sweeper.cli.doctor import examine
    from sweeper.cli.screen import show_findings

    findings = examine(results, start_ray=not no_ray)
    show_findings(PlainConsole(), findings)
    if any(finding.status == "fail" for finding in findings):
        raise typer.Exit(1)


app.command()(status)
app.command()(prepare)
app.command()(report)
app.command("import")(import_runs)
app.command()(export)
app.command()(replay)
app.command()(bench)
