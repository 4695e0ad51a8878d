"""From the ledger to the report: the sweep's description and runs become a study, a verdict, a page and its numbers.

Also two sweeps side by side, and the gate that a pipeline sets. Which sweep is meant and what is printed is the command line's.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sweeper.ledger.about import SweepAbout
from sweeper.ledger.entries import Scores
from sweeper.ledger.imports import ImportLedger
from sweeper.ledger.mlflow_ledger import Ledger
from sweeper.ledger.tables import imported_runs
from sweeper.options import COMPARISONS, REPORT, SUMMARY
from sweeper.space.errors import SearchSpaceError
from sweeper.space.foreign_schema import AnySpace
from sweeper.space.load import parse_search_space
from sweeper.space.schema import AxisRange
from sweeper.space.trials import as_asked_now, domain_of
from trainers.contract.record import RunRecord
from trainers.contract.spec import AnySpec, Scalar, TrialSpec
from trainers.contract.writing import write_atomically
from trainers.methods import LEARNING_RATE

if TYPE_CHECKING:
    from reports.estimate.verdict import Speedup
    from reports.evidence.runs import FinishedRun
    from reports.evidence.study import Study, SweepContext
    from reports.pages.comparison import Comparison
    from reports.summary import Summary


def searched_values(space: AnySpace) -> Mapping[str, Mapping[str, tuple[Scalar, ...]]]:
    """Per method and parameter the values that its search could choose from."""
    return {
        name: {axis.name: axis.values for axis in domain_of(method, space.seeds.tuning).axes}
        for name, method in space.methods.items()
    }


def study_of(ledger: Ledger, command: str) -> Study:
    """The study of a sweep in the ledger. `command` reproduces its page."""
    return study_from(ledger.about(), ledger.records(), command, ledger.run_links(), ledger.scores())


def study_from(
    about: SweepAbout,
    records: Sequence[RunRecord],
    command: str,
    run_links: Mapping[str, str] | None = None,
    scores: Mapping[str, Scores] | None = None,
) -> Study:
    """The study of a sweep's records. By spec id `run_links` lead into the dashboard, and `scores` are of downstream tasks."""
    from reports.evidence.clock import on_one_clock
    from reports.evidence.runs import run_from_record
    from reports.evidence.study import build_study

    space = file_of(about)
    asked = None if space is None else frozenset(r.spec.spec_id for r in records if _asked_by(space, about, r.spec))
    context = replace(_context(about, space, command, run_links or {}), of_file=asked)
    own = _own_units(space)
    runs = on_one_clock([run_from_record(record) for record in records])
    found = scores or {}
    return build_study(
        context,
        [replace(r, own_learning_rate=r.method in own, scores=found.get(r.run_id, ())) for r in runs],
    )


def file_of(about: SweepAbout) -> AnySpace | None:
    """The sweep's file; None for imported runs, which have none, and for one of an earlier version that is refused today.
    Without it the page does not know ranges and identity, which is better than no page."""
    try:
        return parse_search_space(about.search_space_text, Path(about.search_space_file or "search-space.yaml"))
    except SearchSpaceError:
        return None


def _own_units(space: AnySpace | None) -> frozenset[str]:
    """The methods whose learning rate the file says to be in a unit of their own."""
    rates = {name: method.axes[LEARNING_RATE] for name, method in space.methods.items()} if space else {}
    return frozenset(name for name, rate in rates.items() if isinstance(rate, AxisRange) and rate.unit is not None)


def _asked_by(space: AnySpace, about: SweepAbout, spec: AnySpec) -> bool:
    """Whether a trial is one of the sweep's file as it is now: another context another trial of
    the same values.

    Which values, budgets and seeds the file asks for does not count. Nor do the model's shape and the version of the
    numerics, which are the tool's: a later version must not disown what an earlier one trained.
    """
    try:
        made = as_asked_now(
            space,
            spec,
            corpus_fingerprint=about.corpus_fingerprint or getattr(spec, "corpus_fingerprint", ""),
            tokenizer_fingerprint=about.tokenizer_fingerprint or getattr(spec, "tokenizer_fingerprint", ""),
            code=about.code or getattr(spec, "code", ""),
        )
    except ValueError:
        return False
    if isinstance(made, TrialSpec) and isinstance(spec, TrialSpec):
        made = replace(made, shape=spec.shape, numerics=spec.numerics)
    return made == spec


def _context(about: SweepAbout, space: AnySpace | None, command: str, run_links: Mapping[str, str]) -> SweepContext:
    """The description that the ledger keeps, as the report asks for it: the one place where the two meet."""
    from reports.evidence.study import SweepContext

    return SweepContext(
        name=about.name,
        question=about.question,
        kind=about.origin,
        command=command,
        created_at=about.started_at,
        git_commit=about.git_commit,
        git_dirty=about.git_dirty,
        corpus_description=about.corpus_description,
        seen_share=about.seen_share,
        bytes_per_token=about.bytes_per_token,
        search_space_text=about.search_space_text,
        price_per_gpu_hour=about.price_per_gpu_hour,
        currency=about.currency,
        axes=searched_values(space) if space else {},
        scales=tuple(space.scales) if space else (),
        target_loss=space.target_loss if space else None,
        run_links=run_links,
    )


def study_in(ledger: ImportLedger, command: str) -> Study:
    """The study of any sweep, our own or imported. Raises `LedgerError` where it cannot be read."""
    about = ledger.about()
    if about.origin == "sweep":
        return study_of(ledger, command)
    return study_of_runs(about, imported_runs(ledger), command, ledger.row_links())


def study_of_runs(
    about: SweepAbout, runs: Sequence[FinishedRun], command: str, links: Mapping[str, str] | None = None
) -> Study:
    """The study of runs that were trained elsewhere. `links` lead into the dashboard, by run id."""
    from reports.evidence.study import build_study

    return build_study(_context(about, file_of(about), command, links or {}), runs)


def read_study(results: Path, name: str, tracking_uri: str | None) -> Study:
    """The study of sweep `name`. Raises `LedgerError` where there is none."""
    with ImportLedger.open(results, name, tracking_uri, create=False) as ledger:
        return study_in(ledger, shlex.join(["sweeper", "report", name]))


def report(name: str, results: Path | str = "results", tracking_uri: str | None = None) -> Summary:
    """Read sweep `name` from its ledger, write its page and its numbers below `results`, and return what they say.

    Raises `UserError` where there is no such sweep or its ledger cannot be read.
    """
    folder = Path(results)
    return write_report_files(read_study(folder, name, tracking_uri), folder / name)


def below(summary: Summary, least: float) -> list[str]:
    """The comparisons whose speedup is not at least `least` with 95 % confidence, one line each.

    The lower end of the interval counts, or the lower bound where the baseline never reached the method's loss. What has
    neither (unconfirmed, no second seed) misses the gate. So does a speedup outside the baseline's ladder, which is
    projected and not measured, and a sweep without any comparison.
    """
    lines = [] if summary.verdicts else [f"{summary.name}: no comparison"]
    for verdict in summary.verdicts:
        low, why = _lower_end(verdict.speedup)
        if low is None or not low >= least:
            shown = why or f"lower bound {low:.3f}"
            lines.append(f"{verdict.scale} {verdict.method}: {shown}, asked for at least {least:g}")
    return lines


def _lower_end(speedup: Speedup | None) -> tuple[float | None, str]:
    """The lower bound of a speedup, or why there is none."""
    from reports.estimate.verdict import NotReached, Reached

    match speedup:
        case Reached(extrapolated=True):
            return None, "projected, not measured"
        case Reached(interval=(low, _)):
            return low, ""
        case NotReached(lower_bound=float(low)):
            return low, ""
        case _:
            return None, "no lower bound"


def write_comparison_files(first: Study, second: Study, results: Path, command: str) -> tuple[Comparison, Path]:
    """Compare two studies and write the page; returns the comparison and the page's path."""
    from reports.pages.comparison import compare, comparison_to_json, render_comparison

    made = compare(first, second)
    folder = results / COMPARISONS / f"{made.names[0]}-and-{made.names[1]}"
    page = folder / REPORT
    write_atomically(page, render_comparison(made, command))
    write_atomically(folder / SUMMARY, json.dumps(comparison_to_json(made), indent=1, allow_nan=False))
    return made, page


def refuse_unwritable(study: Study) -> None:
    """Make page and numbers of `study` and keep nothing: whatever that raises is raised before runs are taken in.

    A ledger with a run whose report cannot be written would have no report ever after.
    """
    from reports.pages.report import render_page
    from reports.summary import summarize, summary_to_json

    summary = summarize(study)
    render_page(study, summary)
    json.dumps(summary_to_json(summary), allow_nan=False)


def write_report_files(study: Study, folder: Path) -> Summary:
    """Write page and summary into `folder`; returns the summary."""
    from reports.pages.report import write_report
    from reports.summary import summarize, summary_to_json

    summary = summarize(study)
    write_report(study, summary, folder / REPORT)
    write_atomically(folder / SUMMARY, json.dumps(summary_to_json(summary), indent=1, allow_nan=False))
    return summary
