"""What is done about workers that say nothing: one that fell silent is ended, and a sweep to which none comes is told so.

A worker that is ended is a crash like any other: the executor tries its stage again, which goes on from its last state. What
silence is too long is `sweeper.engine.live`'s.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from sweeper.engine.live import LiveSweep
from trainers.planning.life import StageLife

PATIENCE_SECONDS = 180.0
"""How long the first worker is waited for."""


class NoWorkerError(RuntimeError):
    """No worker has come to a cluster of our own."""


class Workers:
    """`joined` says that the cluster is somebody's, to which nodes may still come: that is then said again and again."""

    def __init__(
        self, live: LiveSweep, say: Callable[[str], None], joined: bool, patience: float = PATIENCE_SECONDS
    ) -> None:
        self._live, self._say, self._joined, self._patience = live, say, joined, patience
        self._told = 0

    def look(self) -> None:
        """End silent workers. Raises `NoWorkerError` where none came to a cluster of our own."""
        for life, silence in self._live.stalled():
            self._end(life, silence)
        since = self._live.waiting_since
        if since is None or self._live.came:
            return
        waited = time.monotonic() - since
        if waited < self._patience * (self._told + 1):
            return
        from sweeper.executors.cluster import missing_worker_reason

        self._told += 1
        if not self._joined:
            raise NoWorkerError(f"no worker came within {waited / 60:.0f} minutes: {missing_worker_reason()}")
        self._say(f"no worker has come for {waited / 60:.0f} minutes; waiting for nodes with room for a trial")

    def _end(self, life: StageLife, silence: float) -> None:
        from sweeper.executors.cluster import kill_process

        words = f"no sign of life for {silence / 60:.2g} minutes"
        where = f"step {life.step:,} of {life.end:,} on {life.host}, process {life.pid}"
        self._say(f"{life.label}: {words} ({where}); ended, to go on from its last state")
        file = failure_file(self._live.store, life.node)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{words} at {where}", encoding="utf-8")
        kill_process(life.host, life.pid)


def failure_file(store: Path, node: str) -> Path:
    """Where a stage's attempt, or whoever ended it, says why it failed."""
    return store / node / "failure.txt"
