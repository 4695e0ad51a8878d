"""`sweeper replay`: search strategies raced on published tables, or a whole sweep run against them. Parsing and wiring.

Registered by `app`. Nothing is trained, and every output says so.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sweeper.cli.options import Json, guarded, print_json
from trainers.contract.errors import InputError, UserError, given
from trainers.contract.faults import without_login

if TYPE_CHECKING:
    from sweeper.replay.loss_table import LossTable
    from sweeper.search import Domain

PUBLISHED = Path("reports") / "published" / "final_loss_by_r_and_s.csv"
MADE_UP = "a made-up family"
WIDEST = 6
"""Tables that one Markdown table has columns for."""
FEW_RACES = 100
"""Up to here one process is done before others would have started."""
Table = Annotated[
    Path | None, typer.Option("--table", help="CSV of final losses; default: the published one.", show_default=False)
]


@guarded
def replay(
    file: Annotated[
        Path | None,
        typer.Argument(help="Search-space file whose axes are searched; default: the benchmark's.", show_default=False),
    ] = None,
    table: Table = None,
    valleys: Annotated[
        str | None, typer.Option(help="Instead of a table: half of the made-up family, fitted or held-back.")
    ] = None,
    params: Annotated[str | None, typer.Option(help="Only the table's rows of this model size, e.g. 270M.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Races of each strategy.")] = 20,
    sampler: Annotated[
        list[str] | None, typer.Option(help="Only this strategy; may be repeated. gp, which is slow, only so.")
    ] = None,
    trials: Annotated[int, typer.Option(min=1, help="Most trials of a race.")] = 40,
    fan: Annotated[int, typer.Option(min=1, help="Trials asked for at once that share a trunk.")] = 3,
    deviation: Annotated[float, typer.Option(min=0, help="Seed noise in nats.")] = 0.001,
    sweep: Annotated[bool, typer.Option("--sweep", help="Run FILE's whole sweep against the table instead.")] = False,
    per_doubling: Annotated[
        float | None,
        typer.Option(min=0, help="With --sweep: nats that doubling a budget is worth, where the table ends."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the page and its numbers.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the medians as a Markdown table.")] = False,
    as_json: Json = False,
) -> None:
    """Race search strategies on a table of finished runs. Nothing is trained.

    Says what each strategy spends, in full-budget equivalents, until it would
    recommend a good cell. With --sweep the whole sweep of FILE (searches, trunks,
    confirmation) runs against the table in seconds and ends in a report that is
    labelled as a replay; the table knows no learning rates, step times are assumed.
    """
    if sweep:
        if file is None:
            raise UserError("--sweep: needs a search-space file, e.g. search_spaces/paper-grid.yaml")
        _replay_sweep(file, _tables(table, params), table, deviation, per_doubling, out, as_json)
        return
    if per_doubling is not None:
        raise UserError("--per-doubling: is for --sweep; a race is run at the table's own budget")
    numbers = (trials, fan, deviation)
    made = _made_up(valleys, table)
    tables, source = (made, MADE_UP) if made else (_tables(table, params), (table or PUBLISHED).name)
    _race(file, tables, source, seeds, sampler, numbers, out, markdown, as_json)


def _tables(path: Path | None, params: str | None) -> Sequence[LossTable]:
    """The tables of a file, or of the published one; those of one model size where `params` names it."""
    from sweeper.replay.loss_table import read_tables

    found = read_tables(path or _published())
    if params is None:
        return found
    chosen = [one for one in found if one.params.casefold() == params.casefold()]
    if not chosen:
        known = ", ".join(dict.fromkeys(one.params for one in found))
        raise UserError(f"--params: {params!r} is not in the table, which has {known}")
    return chosen


def _made_up(half: str | None, table: Path | None) -> Sequence[LossTable]:
    """The made-up tables of one half; none where no half is asked for."""
    from sweeper.replay.valleys import HALVES, valleys

    if half is None:
        return ()
    if half not in HALVES:
        raise UserError(f"--valleys: {half!r} is not one of {', '.join(HALVES)}")
    if table is not None:
        raise UserError(f"--valleys: {half} stands instead of --table {table}; give one of them")
    return valleys(half)


def _published() -> Path:
    from importlib import resources

    return Path(str(resources.files("reports"))).parent / PUBLISHED


def _command() -> str:
    return without_login(shlex.join(["sweeper", *sys.argv[1:]]))


def _race(
    file: Path | None,
    tables: Sequence[LossTable],
    source: str,
    seeds: int,
    samplers: list[str] | None,
    numbers: tuple[int, int, float],
    out: Path | None,
    markdown: bool,
    as_json: bool,
) -> None:
    from sweeper.cli.screen import replay_progress, show_replay
    from sweeper.replay.loss_table import benchmark_domain
    from sweeper.replay.race import COLD, CONTESTANTS, PLAIN, SLOW, Rules, compare_strategies, num_races
    from sweeper.replay.report import against_best_table, markdown_table, write_replay_files
    from sweeper.replay.sweep import race_domain
    from sweeper.space.load import load_own_space

    everyone = COLD if source == MADE_UP else (*CONTESTANTS, *PLAIN)
    contestants = [one for one in everyone if (one.sampler in samplers if samplers else one.sampler != SLOW)]
    unknown = set(samplers or ()) - {one.sampler for one in contestants}
    if unknown:
        known = ", ".join(dict.fromkeys(one.sampler for one in CONTESTANTS))
        raise UserError(f"--sampler: {min(unknown)!r} is not one of {known}")
    space = None if file is None else load_own_space(file)
    tables, domains = _askable(tables, lambda one: benchmark_domain(one) if space is None else race_domain(space, one))
    trials, fan, deviation = numbers
    rules = Rules(trials=trials, fan=fan, seed_deviation=deviation)
    races = num_races(contestants, len(tables), seeds)
    with replay_progress(races) as watch:
        result = compare_strategies(
            tables,
            contestants,
            seeds=seeds,
            rules=rules,
            domains=domains,
            workers=len(os.sched_getaffinity(0)) if races > FEW_RACES else 1,
            watch=watch,
        )
    page = None
    if out is not None:
        with given(out):
            page = write_replay_files(result, out, command=_command(), source=source)
    if as_json:
        print_json(result.to_json())
    elif markdown:
        if len(tables) <= WIDEST:
            print(markdown_table(result), end="\n\n")
        print(against_best_table(result))
    else:
        show_replay(result)
    if page is not None and not as_json:
        print(page.resolve())


def _askable(
    tables: Sequence[LossTable], domain_of: Callable[[LossTable], Domain]
) -> tuple[list[LossTable], list[Domain]]:
    """The tables with a cell to ask for, and those cells. Of the others one line each; where all are, that is the error."""
    found: list[tuple[LossTable, Domain]] = []
    refused: list[InputError] = []
    for table in tables:
        try:
            found.append((table, domain_of(table)))
        except InputError as error:
            refused.append(error)
    if not found:
        raise refused[0]
    for reason in refused:
        print(f"left out: {reason}", file=sys.stderr)
    return [table for table, _ in found], [domain for _, domain in found]


def _replay_sweep(
    file: Path,
    tables: Sequence[LossTable],
    source: Path | None,
    deviation: float,
    per_doubling: float | None,
    out: Path | None,
    as_json: bool,
) -> None:
    from reports.summary import summary_to_json
    from sweeper.options import REPORT
    from sweeper.replay.sweep import SUFFIX, replay_sweep
    from sweeper.reporting import write_report_files
    from sweeper.space.load import load_own_space

    space = load_own_space(file)
    done = replay_sweep(
        space,
        file.read_text(encoding="utf-8"),
        tables,
        command=_command(),
        source=(source or PUBLISHED).name,
        deviation=deviation,
        per_doubling=per_doubling,
    )
    folder = out or Path("results") / (space.name + SUFFIX)
    with given(folder):
        summary = write_report_files(done.study, folder)
    if as_json:
        print_json(summary_to_json(summary))
    else:
        print(summary.headline)
        print((folder / REPORT).resolve())
    if done.failed:
        words = f"replay: {done.failed} of {done.trials} trials have no loss in the table: {done.reasons[0]}"
        print(words, file=sys.stderr)
