"""Where stages leave their results and states: a folder shared by all workers, or memory for simulated sweeps.

Decides what is deleted; which stages there are is `lineage`'s, what is in a folder is `trainers.training.stage`'s.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from trainers.contract.stage import RESULT, STATE, StageResult, read_result


class StageStore(Protocol):
    """Results by the node at their end, and the states that training can go on from."""

    def result(self, node: str) -> StageResult | None:
        """The result of a stage that ended."""
        ...

    def add(self, result: StageResult) -> None:
        """Make a result known that a worker has reported."""
        ...

    def has_state(self, node: str) -> bool:
        """Whether training can go on from `node`."""
        ...

    def states(self) -> dict[str, int]:
        """Nodes with a state, and the state's size in bytes."""
        ...

    def drop_state(self, node: str) -> None:
        """Delete the state of `node`; its result stays."""
        ...

    def forget(self, node: str) -> None:
        """Delete state and result: `node` has to be trained again."""
        ...

    def device_seconds(self, besides: Container[str]) -> float:
        """What the stages that ended have cost, without those that are booked on a trial of `besides` (spec ids)."""
        ...


def _bytes_in(folder: Path) -> int:
    """Size of a state; a worker may be replacing its files at this moment."""
    total = 0
    with contextlib.suppress(FileNotFoundError):
        for file in folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                total += file.stat().st_size
    return total


class DiskStore:
    """Stages under one folder, `<root>/<node>/`. Results are read once, and so is the list of states: what comes later is
    added."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._results: dict[str, StageResult] = {}
        self._states: dict[str, int] | None = None

    def result(self, node: str) -> StageResult | None:
        """See `StageStore`."""
        if node not in self._results:
            found = read_result(self.root, node)
            if found is None:
                return None
            self._results[node] = found
        return self._results[node]

    def add(self, result: StageResult) -> None:
        """See `StageStore`; the worker has written the file."""
        self._results[result.node] = result
        if (self.root / result.node / STATE).is_dir():
            self.states()[result.node] = _bytes_in(self.root / result.node / STATE)

    def has_state(self, node: str) -> bool:
        """See `StageStore`."""
        return (self.root / node / STATE).is_dir() and (self.root / node / RESULT).is_file()

    def states(self) -> dict[str, int]:
        """See `StageStore`."""
        if self._states is None:
            self._states = {folder.parent.name: _bytes_in(folder) for folder in self.root.glob(f"*/{STATE}")}
        return self._states

    def drop_state(self, node: str) -> None:
        """See `StageStore`."""
        shutil.rmtree(self.root / node / STATE, ignore_errors=True)
        self.states().pop(node, None)

    def forget(self, node: str) -> None:
        """See `StageStore`."""
        self._results.pop(node, None)
        (self.root / node / RESULT).unlink(missing_ok=True)
        self.drop_state(node)

    def device_seconds(self, besides: Container[str]) -> float:
        """See `StageStore`; reads every result and keeps none."""
        found = (read_result(self.root, file.parent.name) for file in self.root.glob(f"*/{RESULT}"))
        return _device_seconds((result for result in found if result is not None), besides)


@dataclass
class MemoryStore:
    """For sweeps that train nothing: every stage that was added keeps a state of no size until it is dropped."""

    results: dict[str, StageResult] = field(default_factory=dict)
    kept: set[str] = field(default_factory=set)

    def result(self, node: str) -> StageResult | None:
        """See `StageStore`."""
        return self.results.get(node)

    def add(self, result: StageResult) -> None:
        """See `StageStore`."""
        self.results[result.node] = result
        self.kept.add(result.node)

    def has_state(self, node: str) -> bool:
        """See `StageStore`."""
        return node in self.kept

    def states(self) -> dict[str, int]:
        """See `StageStore`."""
        return dict.fromkeys(self.kept, 0)

    def drop_state(self, node: str) -> None:
        """See `StageStore`."""
        self.kept.discard(node)

    def forget(self, node: str) -> None:
        """See `StageStore`."""
        self.results.pop(node, None)
        self.kept.discard(node)

    def device_seconds(self, besides: Container[str]) -> float:
        """See `StageStore`."""
        return _device_seconds(self.results.values(), besides)


def _device_seconds(results: Iterable[StageResult], besides: Container[str]) -> float:
    return sum(result.devices * result.billed_seconds for result in results if result.booked_by not in besides)
