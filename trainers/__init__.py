"""One trial: turn a `TrialSpec` into a `RunRecord`; `run` trains a list of them where there is no orchestrator.

Needs torch, numpy, safetensors and msgspec only, and torch only where something is trained.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainers.contract.lazy import handed_out

if TYPE_CHECKING:
    from trainers.contract.record import RunRecord
    from trainers.contract.scales import SCALES
    from trainers.contract.spec import TrialSpec
    from trainers.methods import METHODS
else:
    __getattr__, __dir__ = handed_out(
        __name__,
        {
            "METHODS": "trainers.methods",
            "SCALES": "trainers.contract.scales",
            "RunRecord": "trainers.contract.record",
            "TrialSpec": "trainers.contract.spec",
        },
    )

__all__ = ["METHODS", "SCALES", "RunRecord", "TrialSpec"]
