"""`sweeper report` and `sweeper import`: what a sweep found, and runs from elsewhere as a sweep. Parsing and wiring.

Registered by `app`. Nothing is trained, and every mistake is one line (a bad table: one line for each bad row).
"""

from __future__ import annotations

import math
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sweeper.cli.options import RESULTS, Json, Results, Uri, guarded, print_json, writable
from sweeper.options import REPORT, check_study_storage
from trainers.contract.errors import UserError, given
from trainers.contract.faults import without_login

if TYPE_CHECKING:
    from reports.evidence.study import Study
    from reports.pages.comparison import Comparison
    from sweeper.ledger.imports import ImportedTables
    from sweeper.ledger.tables import Imported

Table = Annotated[
    Path | None,
    typer.Argument(
        metavar="[RUNS]",
        help="Table of finished runs, folder of logs, records.jsonl, or results of lm-eval.",
        show_default=False,
    ),
]
Points = Annotated[
    Path | None,
    typer.Option("--points", help="In-run points: a CSV (run, step, loss), a chart or a history of W&B, logs."),
]
Mapped = Annotated[
    list[str] | None,
    typer.Option("--map", metavar="COLUMN=KEY", help="What the table or the experiment calls a column. Repeat."),
]
Fixed = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="COLUMN=VALUE", help="A column that is the same for all runs. Repeat."),
]
Unit = Annotated[str | None, typer.Option("--unit", help="Losses are in nats, bits_per_byte or perplexity.")]
BytesPerToken = Annotated[
    str | None, typer.Option("--bytes-per-token", help="With bits per byte: of the validation text.")
]
Filter = Annotated[str, typer.Option("--filter", help="With --mlflow: only these runs, in MLflow's search syntax.")]
SpaceFile = Annotated[
    Path | None, typer.Option("--space", help="With records: the search-space file that asked for them.")
]
Scored = Annotated[
    str | None,
    typer.Option("--run", help="With scores: the run's id; default: the folder that was evaluated says it."),
]
Source = Annotated[
    str | None, typer.Option("--source-uri", help="With --mlflow: where it is; default: --tracking-uri.")
]
Target = Annotated[
    float | None, typer.Option("--target", help="Also say what each arm needs to end at this loss, nats per token.")
]
TargetUnit = Annotated[
    str | None, typer.Option("--unit", help="With --target: it is in nats, bits_per_byte or perplexity.")
]
Against = Annotated[
    str | None,
    typer.Option("--against", metavar="METHOD", help="Hold the methods against this one, not the baseline."),
]
StudyStorage = Annotated[
    str | None,
    typer.Option("--study-storage", help="Where its Optuna studies are; default: where its last run had them."),
]
PUBLISHED = "published"
RECORDS, SCORES = ".jsonl", ".json"
MISSED_GATE = 4


@guarded
def report(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME] [OTHER]", help="A sweep, or two to compare.", show_default=False),
    ] = None,
    results: Results = RESULTS,
    published: Annotated[
        bool,
        typer.Option("--published", help="Report the paper's own runs, or ours of that name in reports/published."),
    ] = False,
    as_json: Json = False,
    csv: Annotated[
        Path | None, typer.Option("--csv", help="Also write all runs to this file; `sweeper import` reads it.")
    ] = None,
    records: Annotated[
        Path | None, typer.Option("--records", help="Also write the sweep's records to this file, to publish them.")
    ] = None,
    target: Target = None,
    unit: TargetUnit = None,
    against: Against = None,
    fail_under: Annotated[
        float | None,
        typer.Option(
            min=0, help="Exit with 4 unless every method at every scale is this much faster with 95 % confidence."
        ),
    ] = None,
    tracking_uri: Uri = None,
    study_storage: StudyStorage = None,
) -> None:
    """Write the report of a sweep from its ledger alone, or of two side by side.

    With --fail-under the lower end of each interval counts, or the lower bound
    where the baseline never reached the method's loss. What has no bound, is
    projected or not confirmed does not hold.
    """
    sweeps = list(names or ())
    if len(sweeps) not in ((0, 1) if published else (1, 2)):
        raise UserError("give the name of a sweep, two names to compare, or --published with at most one name")
    if len(sweeps) == 2 and any(
        option is not None for option in (csv, records, fail_under, target, against, study_storage)
    ):
        raise UserError(
            "--csv, --records, --fail-under, --target, --against and --study-storage are for one sweep, not for a comparison"
        )
    _check_target(target, unit)
    if published and (records, study_storage) != (None, None):
        raise UserError("--records and --study-storage: are for a sweep in the ledger")
    check_study_storage(study_storage)
    if len(sweeps) == 2:
        _compare(sweeps, results, tracking_uri, as_json)
        return
    read = partial(_published, sweeps)
    if not published:
        read = partial(_swept, sweeps[0], results, tracking_uri, study_storage, records)
    folder = Path(*([PUBLISHED] if published else []), *sweeps, *([f"against-{_word(against)}"] if against else []))
    misses = _report(partial(_asked, read, target, unit, against), results / folder, as_json, csv, fail_under)
    for line in misses:
        print(line, file=sys.stderr)
    if misses:
        raise typer.Exit(MISSED_GATE)


def _check_target(target: float | None, unit: str | None) -> None:
    if target is not None and not 0 < target < math.inf:
        raise UserError(f"--target: {target:g} is not a loss above 0")
    if unit is not None and target is None:
        raise UserError("--unit: is the unit of --target")


def _published(names: Sequence[str]) -> Study:
    """The paper's runs, or ours of a name."""
    from reports.published import published_study
    from sweeper.imports.records import published_sweep

    command = shlex.join(["sweeper", "report", "--published", *names])
    made: Study = published_sweep(names[0], command) if names else published_study()
    return made


def _swept(
    name: str, results: Path, tracking_uri: str | None, study_storage: str | None, records: Path | None
) -> Study:
    """A sweep of the ledger, whose records are written to a file, too. Its studies are brought up to it."""
    from sweeper.imports.records import write_records
    from sweeper.ledger.imports import ImportLedger
    from sweeper.reporting import study_in
    from sweeper.studies.keeper import copy_studies

    if records is not None:
        write_records(results, name, tracking_uri, records)
    # Read once for both: it is most of the time that a large sweep takes.
    with ImportLedger.open(results, name, tracking_uri, create=False) as ledger:
        made: Study = study_in(ledger, shlex.join(["sweeper", "report", name]))
        copy_studies(ledger, results / name, study_storage, lambda line: print(line, file=sys.stderr))
    return made


def _word(name: str) -> str:
    """A method's name as part of a folder's: an imported one may hold anything."""
    return re.sub(r"[^\w.-]", "-", name)


def _asked(read: Callable[[], Study], target: float | None, unit: str | None, against: str | None) -> Study:
    """The study with what else the reader asked of it."""
    from reports.evidence.against import held_against
    from reports.evidence.units import NATS, UNIT_WORDS

    study = read()
    if target is not None:
        command = f"{study.context.command} --target {target:g}{f' --unit {unit}' if unit else ''}"
        loss = _in_nats(target, unit, study)
        words = "" if unit in (None, NATS) else f"{target:g} {UNIT_WORDS[unit]}"
        context = replace(study.context, target_loss=loss, target_given=words, command=command)
        study = replace(study, context=context)
    return study if against is None else held_against(study, against)


def _in_nats(target: float, unit: str | None, study: Study) -> float:
    from reports.evidence.units import BITS, NATS, UNITS, LossUnit

    if unit is not None and unit not in UNITS:
        raise UserError(f"--unit: {unit!r} is not one of {', '.join(UNITS)}")
    if unit == BITS and study.bytes_per_token is None:
        raise UserError(
            f"--unit {BITS}: the bytes of a token of this validation text are not known; give nats per token"
        )
    loss = LossUnit(unit or NATS, study.bytes_per_token).nats(target)
    if loss <= 0:
        raise UserError(f"--target: {target:g} is no {unit} of a loss above 0")
    return loss


def _report(
    read: Callable[[], Study], folder: Path, as_json: bool, csv: Path | None, fail_under: float | None
) -> list[str]:
    """Write into `folder` and print; returns what misses the gate."""
    from reports.estimate.wording import target_sentence
    from reports.evidence.clock import clock_note
    from reports.evidence.exporting import runs_to_csv
    from reports.summary import summary_to_json
    from sweeper.reporting import below, write_report_files
    from trainers.contract.writing import write_atomically

    study, folder = read(), writable(folder)
    summary = write_report_files(study, folder)
    if csv is not None:
        with given(csv):
            write_atomically(csv, runs_to_csv(study))
    if as_json:
        print_json(summary_to_json(summary))
    else:
        print(summary.headline)
        if summary.equal_data:
            print(summary.equal_data)
        if note := clock_note(study.runs):
            print(note)
        for reading in summary.targets:
            print(f"{target_sentence(reading)}.")
        print((folder / REPORT).resolve())
        if csv is not None:
            print(csv.resolve())
    return [] if fail_under is None else below(summary, fail_under)


def _compare(names: Sequence[str], results: Path, tracking_uri: str | None, as_json: bool) -> None:
    from reports.pages.comparison import comparison_to_json
    from sweeper.reporting import read_study, write_comparison_files

    if names[0] == names[1]:
        raise UserError(f"{names[0]}: cannot be compared with itself; give two names")
    first, second = (read_study(results, name, tracking_uri) for name in names)
    command = shlex.join(["sweeper", "report", *names])
    made, page = write_comparison_files(first, second, writable(results), command)
    if as_json:
        print_json(comparison_to_json(made))
        return
    _show_comparison(made)
    print(page.resolve())


def _show_comparison(made: Comparison) -> None:
    """The verdicts in five columns, which is what 80 characters hold; the page has the rest."""
    from reports.pages.comparison import sides_table
    from sweeper.cli.screen import show_table

    print(made.sentence)
    table = sides_table(made)
    names = [column.name for column in table.columns]
    shown = [names.index(name) for name in ("Comparison", "Sweep", "Verdict", "Speedup (95 %)", "Settings")]
    show_table([names[index] for index in shown], [[str(row[index]) for index in shown] for row in table.rows])
    for arm in made.arms:
        if None not in arm.verdicts:
            for reason in arm.reasons:
                print(f"{arm.scale} {arm.method}: {reason}")
    for difference in made.differences:
        print(difference)


@guarded
def import_runs(
    runs: Table = None,
    name: Annotated[str, typer.Option("--name", help="Name of the sweep to make of them.", show_default=False)] = "",
    points: Points = None,
    mlflow: Annotated[str | None, typer.Option("--mlflow", help="Read this MLflow experiment instead.")] = None,
    columns: Mapped = None,
    fixed: Fixed = None,
    unit: Unit = None,
    bytes_per_token: BytesPerToken = None,
    runs_filter: Filter = "",
    source_uri: Source = None,
    space: SpaceFile = None,
    run: Scored = None,
    question: Annotated[str | None, typer.Option(help="What the report answers, for people.")] = None,
    results: Results = RESULTS,
    tracking_uri: Uri = None,
) -> None:
    """Read finished runs that were trained elsewhere; `report`, `status` and `ui` then know them.

    \b
    Columns: scale, method (`baseline` or the method), seed, total_steps,
    bag_size, step_ratio, gpu_hours, tokens, final_loss. Optional: run,
    learning_rate, device, params, stage (tuning, confirmation, noise_floor),
    decayed (yes, no), outcome (finished, stopped, diverged, failed),
    parameters (heads=2 pieces=4), flops, execution, validation_set, scores,
    learning_rate_unit, loss_unit, bytes_per_token, vocab_size, devices.
    An empty cell is not known; a final_loss of nan or inf is a divergence.

    \b
    sweeper import runs.csv --name theirs
    sweeper import --mlflow pretraining --source-uri http://server:5000
      --map final_loss=val/loss --set scale=3B --name theirs
    sweeper import logs/ --set scale=124M --set devices=8 --name theirs
    sweeper import records.jsonl --space search_spaces/gpu-1m.yaml --name gpu-1m
    sweeper import results_2026-11-27.json --name quickstart

    Logs: a folder for each method, one file a run. Records of `python -m
    trainers.run` become the sweep's own trials. One bad row, and nothing is
    imported. The same name again replaces; the same table changes nothing.
    Results of lm-eval (.json) stand beside the loss of an exported run.
    """
    from sweeper.cli.screen import import_progress
    from sweeper.imports.tables import import_tables
    from sweeper.ledger.location import check_new_name

    check_new_name(name)
    fixed = _with_unit(fixed, unit, bytes_per_token)
    strange = bool(points or mlflow or columns or fixed or runs_filter or source_uri)
    if _no_table(name, runs, run, space, question, results, tracking_uri, strange):
        return
    tables, remarks = (
        _tables_of_files(runs, points, columns, fixed, bool(runs_filter or source_uri))
        if mlflow is None
        else _tables_of_experiment(
            mlflow, source_uri or tracking_uri, results, columns, fixed, runs_filter, runs or points
        )
    )
    with import_progress() as watch:
        done = import_tables(results, name, tables, question, _command(), tracking_uri, watch)
    _show_import(name, done, remarks)


def _with_unit(fixed: list[str] | None, unit: str | None, bytes_per_token: str | None) -> list[str]:
    units = (("loss_unit", unit), ("bytes_per_token", bytes_per_token))
    return [*(fixed or ()), *(f"{column}={value}" for column, value in units if value is not None)]


def _command() -> str:
    return without_login(shlex.join(["sweeper", *sys.argv[1:]]))


def _no_table(
    name: str,
    path: Path | None,
    run: str | None,
    space: Path | None,
    question: str | None,
    results: Path,
    tracking_uri: str | None,
    strange: bool,
) -> bool:
    """Take in a file of records or of scores; whether it was one. `strange`: options are given that only tables take."""
    kind = None if path is None else path.suffix
    if run is not None and kind != SCORES:
        raise UserError(f"--run: is for scores (a file that ends in {SCORES})")
    if space is not None and kind != RECORDS:
        raise UserError(f"--space: is for records (a file that ends in {RECORDS})")
    if path is not None and kind == RECORDS:
        from sweeper.imports.records import import_records

        if strange:
            raise UserError(f"{path}: records take no option for tables or experiments; --space and --question only")
        _show_import(name, import_records(results, name, path, space, question, _command(), tracking_uri))
        return True
    if path is not None and kind == SCORES:
        if strange or question:
            raise UserError(f"{path}: results of lm-eval take no option for tables, experiments or records; --run only")
        _scores(name, path, run, results, tracking_uri)
        return True
    return False


def _scores(name: str, path: Path, run: str | None, results: Path, tracking_uri: str | None) -> None:
    from sweeper.imports.scores import attach_scores

    done = attach_scores(results, name, path, run, tracking_uri)
    for remark in done.remarks:
        print(remark, file=sys.stderr)
    print(f"{name}: run {done.run} has {', '.join(f'{task} {value:g}' for task, value in done.scores)}")
    print(done.report)


def _show_import(name: str, done: Imported, remarks: Sequence[str] = ()) -> None:
    for remark in (*remarks, *done.remarks):
        print(remark, file=sys.stderr)
    again = "" if done.written else ", as imported before"
    print(f"{name}: {len(done.runs)} run{'s' * (len(done.runs) != 1)}{again}")
    print(done.headline)
    print(done.report)


def _tables_of_files(
    runs: Path | None, points: Path | None, columns: list[str] | None, fixed: list[str], strange: bool
) -> tuple[ImportedTables, tuple[str, ...]]:
    from sweeper.ledger.tables import MAPPABLE, pairs_of, tables_of_files

    if runs is None:
        raise UserError("give a CSV file, or --mlflow EXPERIMENT")
    if strange:
        raise UserError("--filter and --source-uri: are for --mlflow")
    return tables_of_files(runs, points, pairs_of("--map", columns or (), MAPPABLE), pairs_of("--set", fixed)), ()


def _tables_of_experiment(
    name: str,
    uri: str | None,
    results: Path,
    columns: list[str] | None,
    fixed: list[str],
    runs_filter: str,
    strange: Path | None,
) -> tuple[ImportedTables, tuple[str, ...]]:
    from sweeper.ledger.location import DATABASE, default_tracking_uri
    from sweeper.ledger.tables import Experiment, pairs_of, tables_of_experiment

    if strange is not None:
        raise UserError(f"{strange}: --mlflow takes no CSV file; give one or the other")
    if uri is None and not (results / DATABASE).exists():
        raise UserError(f"{name}: no MLflow database in {results}; say where it is with --source-uri")
    mapped, same = pairs_of("--map", columns or ()), pairs_of("--set", fixed)
    return tables_of_experiment(Experiment(uri or default_tracking_uri(results), name, mapped, same, runs_filter))
