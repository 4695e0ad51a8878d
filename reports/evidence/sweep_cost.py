"""What a whole sweep cost: with every run trained by itself, and as it was paid, shared prefixes once.

Both are billed device-hours (start-up, compilation, evaluation included); neither enters a speedup.
"""

from __future__ import annotations

from dataclasses import dataclass

from reports.evidence.study import Study


@dataclass(frozen=True, slots=True)
class SweepCost:
    """Device-hours of all runs of which both costs are known."""

    alone: float
    incurred: float

    @property
    def saved(self) -> float | None:
        """Fraction of the stand-alone cost that sharing saved; None where nothing was spent."""
        return 1 - self.incurred / self.alone if self.alone > 0 else None


def sweep_cost(study: Study) -> SweepCost | None:
    """The sum over all runs; None where no run knows both costs, as in imported tables."""
    known = [
        (run.billed_gpu_hours, run.incurred_gpu_hours)
        for run in study.runs
        if run.billed_gpu_hours is not None and run.incurred_gpu_hours is not None
    ]
    return SweepCost(sum(alone for alone, _ in known), sum(paid for _, paid in known)) if known else None
