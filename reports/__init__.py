"""Records in, verdict out: one HTML page and one JSON object.

Never imports torch, ray or mlflow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainers.contract.lazy import handed_out

if TYPE_CHECKING:
    from reports.evidence.importing import read_runs
    from reports.evidence.runs import run_from_record
    from reports.evidence.study import SweepContext, build_study
    from reports.pages.report import write_report
    from reports.summary import summarize
else:
    __getattr__, __dir__ = handed_out(
        __name__,
        {
            "SweepContext": "reports.evidence.study",
            "build_study": "reports.evidence.study",
            "read_runs": "reports.evidence.importing",
            "run_from_record": "reports.evidence.runs",
            "summarize": "reports.summary",
            "write_report": "reports.pages.report",
        },
    )

__all__ = ["SweepContext", "build_study", "read_runs", "run_from_record", "summarize", "write_report"]
