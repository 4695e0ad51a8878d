"""Trials that did not finish, in words for the screen: a reason is told at length once, and counted while it comes again."""

from __future__ import annotations

from dataclasses import dataclass

from trainers.contract.record import LOG_ENDS, Diverged, Failed
from trainers.contract.spec import AnySpec


@dataclass
class BadEnds:
    """The last reason of a failure, and how often it has come in a row."""

    reason: str = ""
    times: int = 0

    def said(self, spec: AnySpec, outcome: Diverged | Failed) -> str:
        """What became of a trial."""
        arm = f"{spec.scale} {spec.method}"
        if isinstance(outcome, Diverged):
            return f"{arm} diverged at step {outcome.step}: {outcome.reason}"
        reason = outcome.reason.partition(LOG_ENDS)[0]
        self.times = self.times + 1 if reason == self.reason else 1
        self.reason = reason
        return f"{arm} failed: {outcome.reason if self.times == 1 else f'the same reason again, {self.times} in a row'}"
