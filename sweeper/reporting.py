"""From the ledger to the report: the sweep's description and records become a study, a verdict, a page and its numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sweeper.about import SweepAbout
from sweeper.arm_domain import domain_of
from sweeper.ledger import Ledger
from sweeper.space import SearchSpaceError, parse_search_space
from trainers.checkpoint import write_atomically
from trainers.spec import Scalar

REPORT = "report.html"
SUMMARY = "summary.json"


def searched_values(about: SweepAbout) -> Mapping[str, Mapping[str, tuple[Scalar, ...]]]:
    """Per method and parameter the values that its search could choose from, from the file as it was run."""
    try:
        space = parse_search_space(about.search_space_text, Path(about.search_space_file or "search-space.yaml"))
    except SearchSpaceError:
        return {}
    return {
        name: {axis.name: axis.values for axis in domain_of(method, space.seeds.tuning).axes}
        for name, method in space.methods.items()
    }


def study_of(ledger: Ledger, command: str) -> Any:
    """The study of a sweep in the ledger. `command` reproduces its page."""
    from reports.study import SweepContext, build_study, run_from_record

    about = ledger.about()
    context = SweepContext(
        name=about.name,
        question=about.question,
        command=command,
        created_at=about.started_at,
        git_commit=about.git_commit,
        git_dirty=about.git_dirty,
        corpus_description=about.corpus_description,
        search_space_text=about.search_space_text,
        price_per_gpu_hour=about.price_per_gpu_hour,
        currency=about.currency,
        axes=searched_values(about),
        run_links=ledger.run_links(),
    )
    return build_study(context, [run_from_record(record) for record in ledger.records()])


def write_report_files(study: Any, folder: Path) -> tuple[str, dict[str, Any]]:
    """Write page and summary into `folder`; returns the headline and the summary."""
    from reports.page import write_report
    from reports.summary import summarize, summary_to_json

    summary = summarize(study)
    plain = summary_to_json(summary)
    folder.mkdir(parents=True, exist_ok=True)
    write_report(study, summary, folder / REPORT)
    write_atomically(folder / SUMMARY, json.dumps(plain, indent=1, allow_nan=False))
    return summary.headline, plain
