"""Which stages a set of trials still needs, which can start now, and which states may be deleted.

Holds the tree of the unfinished trials against what the store has and what runs. Trials come and go; a stage that has
run is never run again, unless its state is needed once more and is gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from trainers.contract.record import Diverged
from trainers.contract.stage import StageResult
from trainers.planning.lineage import ROOT, Segment, Tree, TrialPath, build_tree
from trainers.planning.store import StageStore


@dataclass
class StageBook:
    """The stages of one sweep. As long as the disk budget allows, `protected` nodes keep their state, since trials may go on
    from them, and `finals` their weights, since those are a result."""

    store: StageStore
    paths: dict[str, TrialPath] = field(default_factory=dict)
    running: dict[str, Segment] = field(default_factory=dict)
    protected: set[str] = field(default_factory=set)
    finals: set[str] = field(default_factory=set)
    _tree: Tree | None = None
    _steps: dict[str, int] = field(default_factory=dict)

    def add(self, paths: Iterable[TrialPath]) -> None:
        """Trials to be trained."""
        for path in paths:
            self.paths[path.spec.spec_id] = path
        self._tree = None

    def remove(self, spec_id: str) -> None:
        """A trial that has its record."""
        self.paths.pop(spec_id, None)
        self._tree = None

    @property
    def tree(self) -> Tree:
        """The stages of the trials that have no record yet."""
        if self._tree is None:
            known = {node: step for node, step in self._steps.items() if self._usable(node)}
            self._tree = build_tree(self.paths.values(), known)
        return self._tree

    def adopt(self, nodes: Iterable[str]) -> None:
        """States that an earlier run of the sweep left in the store: trials are cut there, too."""
        for node in nodes:
            result = self.store.result(node)
            if result is not None:
                self._steps[node] = result.end
        self._tree = None

    def _usable(self, node: str) -> bool:
        return node in self.running or self.store.has_state(node)

    def _has_children(self, node: str) -> bool:
        return any(segment.parent == node for segment in self.tree.segments.values())

    def _satisfied(self, segment: Segment, needed: bool) -> bool:
        """Whether nothing has to be trained for this stage: its result is there, and its state where one is needed.

        A result whose way back is broken (an earlier result was damaged) serves no trial: it is forgotten, and trained again.
        """
        if self.store.result(segment.node) is None:
            return False
        if self._back(segment.node) is None:
            self.store.forget(segment.node)
            return False
        return not needed or self.store.has_state(segment.node)

    def needed(self) -> list[Segment]:
        """Stages that have to be trained and do not run yet, those with the longest way to go first."""
        wanted: dict[str, Segment] = {}
        for way in self.tree.ways.values():
            state_needed = False
            # From the trial's end backwards: what lies before the last thing that is there needs no training, whatever
            # it is.
            for node in reversed(way):
                segment = self.tree.segments[node]
                if node in self.running:
                    break
                if self._satisfied(segment, state_needed):
                    break
                wanted[node] = segment
                state_needed = True
        return sorted(wanted.values(), key=lambda segment: (-segment.remaining, segment.start, segment.node))

    def ready(self) -> list[Segment]:
        """Needed stages whose parent's state is there."""
        return [
            segment
            for segment in self.needed()
            if segment.parent not in self.running and (segment.parent == ROOT or self.store.has_state(segment.parent))
        ]

    def keeps_state(self, segment: Segment) -> bool:
        """Whether a known trial goes on from the end of this stage, or might soon."""
        return self._has_children(segment.node) or segment.node in self.protected

    def start(self, segment: Segment) -> None:
        """A worker has taken the stage."""
        self.running[segment.node] = segment
        self._steps[segment.node] = segment.end

    def finish(self, result: StageResult) -> None:
        """The stage has a result."""
        self.running.pop(result.node, None)
        self.store.add(result)

    def abandon(self, node: str) -> None:
        """The stage ended without a result; it is needed again."""
        self.running.pop(node, None)

    def lose(self, node: str) -> None:
        """The state of `node` turned out damaged: it is trained again."""
        self.store.forget(node)
        self._steps.pop(node, None)
        self._tree = None

    def chain(self, spec_id: str) -> tuple[list[StageResult], bool]:
        """What a trial has gone through, first stage first, and whether that is its whole way.

        The way that was trained counts, not the present tree's: a later fork does not change the past. A way that
        ended in a divergence is whole.
        """
        way = self.tree.ways[spec_id]
        for index in range(len(way) - 1, -1, -1):
            chain = self._back(way[index])
            if chain is not None:
                diverged = isinstance(chain[-1].outcome, Diverged)
                return chain, diverged or index == len(way) - 1
        return [], False

    def _back(self, node: str | None) -> list[StageResult] | None:
        chain: list[StageResult] = []
        while node is not None:
            result = self.store.result(node)
            if result is None:
                return None
            chain.append(result)
            node = result.parent
        return chain[::-1]

    def sweep_out(self, disk_bytes: float, states: Mapping[str, int] | None = None) -> None:
        """Delete the states that nothing goes on from; when the disk budget is exceeded protected and final ones, too.

        `states` (sizes by node) are those that may go, for a store that holds other states as well: all of it where not given.
        """
        states = self.store.states() if states is None else states
        parents = {segment.parent for segment in self.needed()} | {segment.parent for segment in self.running.values()}
        spare = [node for node in states if node not in parents and node not in self.running]
        total = sum(states.values())
        # The protected ones cost a search its next fan, the final ones a model that was paid for, the others nothing.
        worth = {node: 2 if node in self.finals else int(node in self.protected) for node in spare}
        for node in sorted(spare, key=worth.__getitem__):
            if worth[node] and total <= disk_bytes:
                continue
            self.store.drop_state(node)
            total -= states[node]
