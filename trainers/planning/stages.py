"""Which stages a set of trials still needs, which can start now, and which states may be deleted.

Holds the trees of the unfinished trials against what the store has and what runs. Trials come and go; a stage that has
run is never run again, unless its state is needed once more and is gone. Trials of different trunks have no state in common,
so each family of them has a tree of its own, which is made anew only when something happens in it: what an event costs does
not grow with the sweep.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from trainers.contract.record import Diverged
from trainers.contract.stage import StageResult
from trainers.planning.lineage import ROOT, Segment, Tree, TrialPath, build_tree
from trainers.planning.store import StageStore

Trunk = tuple[str, str]
Place = tuple[int, int, str]
"""Where a stage stands in line: those with the longest way to go first."""


def _place(segment: Segment) -> Place:
    return -segment.remaining, segment.start, segment.node


@dataclass
class _Family:
    """Trials of one trunk, the nodes at which a stage of theirs has started (with their steps), and what follows: their tree,
    the nodes in it that something goes on from, and the stages that were in line when it was last looked at."""

    paths: dict[str, TrialPath] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)
    tree: Tree | None = None
    parents: frozenset[str] = frozenset()
    waiting: tuple[Segment, ...] = ()


@dataclass
class StageBook:
    """The stages of one sweep. As long as the disk budget allows, `protected` nodes keep their state, since trials may go on
    from them, and `finals` their weights, since those are a result."""

    store: StageStore
    paths: dict[str, TrialPath] = field(default_factory=dict)
    running: dict[str, Segment] = field(default_factory=dict)
    protected: set[str] = field(default_factory=set)
    finals: set[str] = field(default_factory=set)
    _families: dict[Trunk, _Family] = field(default_factory=dict)
    _home: dict[str, Trunk] = field(default_factory=dict)
    _adopted: dict[str, int] = field(default_factory=dict)
    _changed: set[Trunk] = field(default_factory=set)
    _line: list[Place] = field(default_factory=list)
    _wanted: dict[str, Segment] = field(default_factory=dict)
    _parents: Counter[str] = field(default_factory=Counter)

    def add(self, paths: Iterable[TrialPath]) -> None:
        """Trials to be trained."""
        for path in paths:
            self.paths[path.spec.spec_id] = path
            self._families.setdefault(_trunk(path), _Family()).paths[path.spec.spec_id] = path
            self._grow(_trunk(path))

    def remove(self, spec_id: str) -> None:
        """A trial that has its record."""
        path = self.paths.pop(spec_id, None)
        if path is not None:
            del self._families[_trunk(path)].paths[spec_id]
            self._grow(_trunk(path))

    def adopt(self, nodes: Iterable[str]) -> None:
        """States that an earlier run of the sweep left in the store: trials are cut there, too."""
        for node in nodes:
            result = self.store.result(node)
            if result is not None:
                self._adopted[node] = result.end
        for trunk in self._families:
            self._grow(trunk)

    @property
    def tree(self) -> Tree:
        """The stages of the trials that have no record yet."""
        trees = [self._tree(trunk) for trunk in self._families]
        segments = {node: segment for tree in trees for node, segment in tree.segments.items()}
        ways = {spec_id: way for tree in trees for spec_id, way in tree.ways.items()}
        return Tree(segments, {spec_id: ways[spec_id] for spec_id in self.paths})

    def way(self, spec_id: str) -> tuple[str, ...]:
        """The nodes at the ends of a trial's stages."""
        return self._tree(_trunk(self.paths[spec_id])).ways[spec_id]

    def trials_through(self, node: str) -> list[str]:
        """The trials without a record whose way passes through `node`, in the order in which they were added."""
        ways = self._tree(self._home[node]).ways if node in self._home else {}
        return [spec_id for spec_id, way in ways.items() if node in way]

    def needed(self) -> list[Segment]:
        """Stages that have to be trained and do not run yet, those with the longest way to go first."""
        self._catch_up()
        return [self._wanted[node] for _, _, node in self._line]

    def ready(self) -> list[Segment]:
        """Needed stages whose parent's state is there."""
        return list(self.in_line())

    def in_line(self) -> Iterator[Segment]:
        """The same one after the other, for whoever takes the first that fits: a long line is not gone through for it.

        Where there is none and nothing runs, the store is asked again for everything: something may have vanished from it.
        """
        found = False
        for segment in self._startable():
            found = True
            yield segment
        if not found and not self.running and self.paths:
            for trunk in self._families:
                self._grow(trunk)
            yield from self._startable()

    def _startable(self) -> Iterator[Segment]:
        self._catch_up()
        for _, _, node in list(self._line):
            segment = self._wanted[node]
            if segment.parent not in self.running and (segment.parent == ROOT or self.store.has_state(segment.parent)):
                yield segment

    def keeps_state(self, segment: Segment) -> bool:
        """Whether a known trial goes on from the end of this stage, or might soon."""
        self._tree(self._home[segment.node])
        return segment.node in self._families[self._home[segment.node]].parents or segment.node in self.protected

    def start(self, segment: Segment) -> None:
        """A worker has taken the stage."""
        self.running[segment.node] = segment
        self._families[self._home[segment.node]].steps[segment.node] = segment.end
        self._touch(segment.node)

    def finish(self, result: StageResult) -> None:
        """The stage has a result."""
        self.running.pop(result.node, None)
        self.store.add(result)
        self._touch(result.node)

    def abandon(self, node: str) -> None:
        """The stage ended without a result; it is needed again."""
        self.running.pop(node, None)
        self._touch(node)

    def lose(self, node: str) -> None:
        """The state of `node` turned out damaged: it is trained again."""
        self.store.forget(node)
        self._adopted.pop(node, None)
        if node in self._home:
            self._families[self._home[node]].steps.pop(node, None)
            self._grow(self._home[node])

    def chain(self, spec_id: str) -> tuple[list[StageResult], bool]:
        """What a trial has gone through, first stage first, and whether that is its whole way.

        The way that was trained counts, not the present tree's: a later fork does not change the past. A way that
        ended in a divergence is whole.
        """
        way = self.way(spec_id)
        for index in range(len(way) - 1, -1, -1):
            chain = self._back(way[index])
            if chain is not None:
                diverged = isinstance(chain[-1].outcome, Diverged)
                return chain, diverged or index == len(way) - 1
        return [], False

    def sweep_out(self, disk_bytes: float, states: Mapping[str, int] | None = None) -> None:
        """Delete the states that nothing goes on from; when the disk budget is exceeded protected and final ones, too.

        `states` (sizes by node) are those that may go, for a store that holds other states as well: all of it where not given.
        """
        states = self.store.states() if states is None else states
        self._catch_up()
        parents = {segment.parent for segment in self.running.values()}
        spare = states.keys() - self._parents.keys() - self.running.keys() - parents
        total = sum(states.values())
        for node in spare - self.protected - self.finals:
            total -= self._drop(node, states)
        # The protected ones cost a search its next fan, the final ones a model that was paid for, the others nothing.
        if total > disk_bytes:
            kept = [node for node in states if node in spare and (node in self.protected or node in self.finals)]
            for node in sorted(kept, key=lambda node: node in self.finals):
                if total <= disk_bytes:
                    return
                total -= self._drop(node, states)

    def _drop(self, node: str, states: Mapping[str, int]) -> int:
        size = states[node]
        self.store.drop_state(node)
        self._touch(node)
        return size

    # the families

    def _grow(self, trunk: Trunk) -> None:
        """The trials of a family, or the nodes at which they are cut, are others than before."""
        self._families[trunk].tree = None
        self._changed.add(trunk)

    def _touch(self, node: str) -> None:
        """Something has become of a node, while its family's tree is as it was."""
        if node in self._home:
            self._changed.add(self._home[node])

    def _tree(self, trunk: Trunk) -> Tree:
        family = self._families[trunk]
        if family.tree is None:
            known = {**self._adopted, **family.steps}
            usable = {node: step for node, step in known.items() if node in self.running or self.store.has_state(node)}
            family.tree = build_tree(family.paths.values(), usable)
            family.parents = frozenset(segment.parent for segment in family.tree.segments.values())
            for node in family.tree.segments:
                self._home[node] = trunk
                if node in self._adopted:
                    family.steps[node] = self._adopted.pop(node)
        return family.tree

    def _catch_up(self) -> None:
        """Put the stages of the families in which something has happened in line anew."""
        for trunk in list(self._changed):
            family = self._families[trunk]
            for segment in family.waiting:
                del self._line[bisect_left(self._line, _place(segment))]
                del self._wanted[segment.node]
                self._parents[segment.parent] -= 1
                if not self._parents[segment.parent]:
                    del self._parents[segment.parent]
            family.waiting = tuple(self._needed_by(trunk).values())
            for segment in family.waiting:
                insort(self._line, _place(segment))
                self._wanted[segment.node] = segment
                self._parents[segment.parent] += 1
        self._changed.clear()

    def _needed_by(self, trunk: Trunk) -> dict[str, Segment]:
        tree, wanted = self._tree(trunk), {}
        for way in tree.ways.values():
            state_needed = False
            # From the trial's end backwards: what lies before the last thing that is there needs no training, whatever
            # it is.
            for node in reversed(way):
                segment = tree.segments[node]
                if node in self.running or self._satisfied(segment, state_needed):
                    break
                wanted[node] = segment
                state_needed = True
        return wanted

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

    def _back(self, node: str | None) -> list[StageResult] | None:
        chain: list[StageResult] = []
        while node is not None:
            result = self.store.result(node)
            if result is None:
                return None
            chain.append(result)
            node = result.parent
        return chain[::-1]


def _trunk(path: TrialPath) -> Trunk:
    """What trials have in common that may share a state; compiled and eager steps round differently."""
    return path.trunk, path.execution
