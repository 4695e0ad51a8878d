"""Orchestration: decides where, in which order and once; `session` is one run of a sweep, `reporting` its report.

The public names cost nothing until they are asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainers.contract.lazy import handed_out

if TYPE_CHECKING:
    from sweeper.options import RunOptions
    from sweeper.reporting import report
    from sweeper.search.surface_sampler import SurfaceSampler
    from sweeper.session import plan, run
    from sweeper.space.load import load_search_space
    from trainers.contract.errors import UserError
else:
    __getattr__, __dir__ = handed_out(
        __name__,
        {
            "RunOptions": "sweeper.options",
            "SurfaceSampler": "sweeper.search.surface_sampler",
            "UserError": "trainers.contract.errors",
            "load_search_space": "sweeper.space.load",
            "plan": "sweeper.session",
            "report": "sweeper.reporting",
            "run": "sweeper.session",
        },
    )

__all__ = ["RunOptions", "SurfaceSampler", "UserError", "load_search_space", "plan", "report", "run"]
