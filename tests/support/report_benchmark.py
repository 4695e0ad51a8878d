"""How long a large report takes and how large its page is: `python -m tests.support.report_benchmark`.

Invented runs, real page. Prints the figures of reports/README.md; a test could only assert them on one machine.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from reports.evidence.runs import run_from_record
from reports.evidence.study import build_study
from reports.pages.report import write_report
from reports.summary import summarize
from tests.support.report_factory import Invented, context_of, records_of
from trainers.training.devices import cpu_name

POINTS = 10_000
"""Evaluations a run."""


def main() -> None:
    """Invent the records, then time runs, study, verdict and page together."""
    seeds, budgets = 42, (4_000, 6_000, 9_000, 14_000, 20_000, 28_000, 40_000, 56_000)
    grid = tuple(range(2, 16)), tuple(index / 40 for index in range(1, 13))
    truth = Invented(
        seeds=seeds,
        eval_points=POINTS,
        baseline_budgets=tuple(budget * 10 for budget in budgets),
        method_budgets=tuple(budget * 10 for budget in budgets),
        bag_sizes=grid[0],
        step_ratios=grid[1],
        tuning_steps=25_000,
    )
    records = records_of(truth)
    points = sum(len(record.curve.points) for record in records)
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        started = time.perf_counter()
        study = build_study(context_of("invented-large", (truth,)), [run_from_record(record) for record in records])
        write_report(study, summarize(study), page)
        seconds = time.perf_counter() - started
        megabytes = page.stat().st_size / 1e6
    print(f"{len(records):,} runs, {points:,} points: {seconds:.1f} s, {megabytes:.2f} MB, {cpu_name()}")


if __name__ == "__main__":
    main()
