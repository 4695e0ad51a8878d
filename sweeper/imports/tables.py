"""A table of runs that were trained elsewhere, into the ledger: checked as a whole, stored, and reported on.

How a table is read and how it is kept is the ledger's.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

from reports.evidence.runs import FinishedRun
from sweeper.ledger.about import SweepAbout
from sweeper.ledger.entries import row_of
from sweeper.ledger.imports import ImportedTables, ImportLedger, Watch
from sweeper.ledger.location import DATABASE, check_new_name, writing_ahead
from sweeper.ledger.tables import Imported, table_of
from sweeper.lock import driving
from sweeper.options import REPORT
from sweeper.reporting import refuse_unwritable, study_in, study_of_runs, write_report_files


def import_tables(
    results: Path,
    name: str,
    tables: ImportedTables,
    question: str | None,
    command: str,
    tracking_uri: str | None,
    watch: Watch | None = None,
) -> Imported:
    """Check the tables, store them as sweep `name`, and write its report. `watch`: see `ImportLedger.store`.

    Raises `RunImportError` (or another `ValueError`) for bad tables, `LedgerError` for a name that is taken, before
    anything is stored.
    """
    check_new_name(name)
    read = table_of(tables)
    runs = read.runs
    now = datetime.now(UTC)
    about = _about(name, question or f"Is the method faster, by the runs of {tables.runs.name}?", command, runs, now)
    moment = int(1_000 * time.time())
    rows = [row_of(run, order, tables.key, moment) for order, run in enumerate(runs, start=1)]
    refuse_unwritable(study_of_runs(about, runs, command))
    with ExitStack() as stack:
        stack.enter_context(driving((results / name).resolve()))
        if tracking_uri is None:
            stack.enter_context(writing_ahead(results / DATABASE))
        ledger = stack.enter_context(ImportLedger.open(results, name, tracking_uri, create=True))
        written = ledger.store(about, tables, rows, watch)
        headline = write_report_files(study_in(ledger, f"sweeper report {name}"), results / name).headline
        ledger.finish("finished", headline, results / name / REPORT)
    return Imported(runs, written, headline, (results / name / REPORT).resolve(), read.remarks)


def _about(name: str, question: str, command: str, runs: Sequence[FinishedRun], now: datetime) -> SweepAbout:
    """The description of an imported sweep: what is not known of its training stays empty."""
    from importlib.metadata import version

    return SweepAbout(
        name=name,
        question=question,
        search_space_text="",
        search_space_file="",
        command=command,
        price_per_gpu_hour=None,
        currency="USD",
        corpus_fingerprint="",
        tokenizer_fingerprint="",
        corpus_description="",
        corpus_tokens=0,
        git_commit="unknown",
        git_dirty=False,
        versions=(("tst-sweeper", version("tst-sweeper")),),
        device=", ".join(sorted({run.device for run in runs if run.device})) or "not stated",
        started_at=now.isoformat(timespec="seconds"),
        origin="imported",
    )
