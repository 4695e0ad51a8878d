"""Which trials share a prefix of training, and what has to be trained once for all of them.

A *path* is a trial's training from step 0 to its end. A *node* is a state on a path, named by a hash of everything that
decided it; two trials share training exactly as far as their nodes are equal. A *segment* is the piece of a path
between two nodes: the unit that a worker trains. Where and when is left to whoever runs them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from trainers.contract.schedule import Phase, number_of_heads
from trainers.contract.spec import AnySpec, ForeignSpec, TrialSpec, fingerprint, plain_of
from trainers.methods import phases_of

ROOT = "root"
"""Parent of the segments that start from a seed."""


def trunk_id(spec: TrialSpec, phases: tuple[Phase, ...]) -> str:
    """Hash of what a trial can never share across: everything but method, budget and decay.

    The number of heads is the model's for the whole run: a state with more of them is that of another model.
    """
    return fingerprint(
        {
            "shape": plain_of(spec.shape),
            "heads": number_of_heads(phases),
            "corpus": spec.corpus_fingerprint,
            "tokenizer": spec.tokenizer_fingerprint,
            "context": spec.context,
            "tokens_per_step": spec.tokens_per_step,
            "validation_tokens": spec.validation_tokens,
            "optimizer": plain_of(spec.optimizer),
            "precision": spec.precision,
            "seed": spec.seed,
            "numerics": spec.numerics,
            "learning_rate": spec.schedule.learning_rate,
            "warmup_steps": spec.schedule.warmup_steps,
        }
    )


def _objectives(phases: tuple[Phase, ...], step: int) -> list[dict[str, Any]]:
    """What was trained in `[0, step)`: whatever a phase says of itself, up to there.

    A bag of one token is ordinary training to the last bit, and still a phase of its own: a run is evaluated at its
    boundaries and its clock is kept by phase, so a trial without that boundary would lack a point. What a phase does on
    its first step (`fresh`) is no part of the state before it.
    """
    return [
        {
            **plain_of(phase),
            "end": min(phase.end, step),
            "weighting": phase.weighting if phase.target_size > 1 else "uniform",
        }
        for phase in phases
        if phase.start < step
    ]


@dataclass(frozen=True, slots=True)
class TrialPath:
    """A trial with what its node names need, computed once. `execution` is part of every name: another form of the
    step may round differently."""

    spec: AnySpec
    trunk: str
    phases: tuple[Phase, ...]
    execution: str

    @property
    def end(self) -> int:
        """Total steps."""
        return self.spec.schedule.total_steps

    def forks(self) -> tuple[int, ...]:
        """Steps at which this trial's training becomes its own: phase boundaries, the decay's start, the end."""
        boundaries = {phase.end for phase in self.phases}
        return tuple(sorted((boundaries | {self.spec.schedule.decay_start, self.end}) - {0}))

    def node(self, step: int) -> str:
        """Name of the state after `step` steps."""
        if step == 0:
            return ROOT
        schedule = self.spec.schedule
        decay = [schedule.decay_start, schedule.decay_steps] if step > schedule.decay_start else None
        # The total number of steps is in no name before the decay: the constant part of a run does not know how long
        # the run will be, which is what lets a longer budget go on from a shorter one.
        return fingerprint([self.trunk, self.execution, _objectives(self.phases, step), decay])


def path_of(spec: AnySpec, execution: str) -> TrialPath:
    """Raises `ValueError` when the spec's method or parameters are unknown."""
    phases = phases_of(spec)
    # Nothing is known of what two runs of another trainer have in common: each is a trunk of its own.
    trunk = spec.spec_id if isinstance(spec, ForeignSpec) else trunk_id(spec, phases)
    return TrialPath(spec, trunk, phases, execution)


@dataclass(frozen=True, slots=True)
class Segment:
    """Steps `[start, end)` on the way of `trials` (spec ids; the first one is booked with its cost).

    Any of them may lend its `spec` to the trainer: they are equal up to `end`. `remaining` is the number of steps from
    `start` to the farthest end that depends on this segment; long chains go first.
    """

    node: str
    parent: str
    start: int
    end: int
    spec: AnySpec
    trials: tuple[str, ...]
    remaining: int

    @property
    def steps(self) -> int:
        """Optimizer steps trained here."""
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Tree:
    """The segments of a set of trials by the node at their end, and each trial's way through them."""

    segments: Mapping[str, Segment]
    ways: Mapping[str, tuple[str, ...]]

    @property
    def steps(self) -> int:
        """Steps that are trained with every shared prefix trained once."""
        return sum(segment.steps for segment in self.segments.values())

    def children(self, node: str) -> tuple[Segment, ...]:
        """Segments that start from the state `node`."""
        return tuple(segment for segment in self.segments.values() if segment.parent == node)


def build_tree(paths: Iterable[TrialPath], known: Mapping[str, int] | None = None) -> Tree:
    """Cut trials where their training differs and merge what they share. Order of `paths` decides who is booked.

    A trial passes through another trial's fork exactly when both have the same node at that step. `known` holds more
    nodes (and their steps) to cut at, where a trial passes through them: states that exist from earlier trials.
    """
    # Two trials share a stage when their states have one name at every fork of either. So each is cut at all forks of
    # its family, its own and the others', and stages of one name become one.
    known = known or {}
    paths = tuple({path.spec.spec_id: path for path in paths}.values())
    # Trials of different trunks have no state in common: comparing within a trunk keeps a sweep of thousands of trials
    # linear.
    by_trunk: dict[tuple[str, str], list[TrialPath]] = {}
    for path in paths:
        # Compiled and eager steps round differently: a state of one is none of the other's.
        by_trunk.setdefault((path.trunk, path.execution), []).append(path)
    stops: dict[str, list[tuple[int, str]]] = {}
    for family in by_trunk.values():
        own = {(step, path.node(step)) for path in family for step in path.forks()}
        # A state that is kept is worth a cut even where no trial of today forks: it saves the steps before it.
        own |= {(step, node) for node, step in known.items()}
        steps = sorted({step for step, _ in own})
        for path in family:
            named = [(step, path.node(step)) for step in steps if step <= path.end]
            # Equal step and equal node: the same weights have seen the same text. Another trial's fork at a step
            # where this one has another node is none of its own.
            stops[path.spec.spec_id] = [stop for stop in named if stop in own]
    return _segments(paths, stops)


def _segments(paths: tuple[TrialPath, ...], stops: Mapping[str, list[tuple[int, str]]]) -> Tree:
    users: dict[str, list[TrialPath]] = {}
    spans: dict[str, tuple[str, int, int]] = {}
    ways: dict[str, tuple[str, ...]] = {}
    for path in paths:
        parent, start = ROOT, 0
        for step, node in stops[path.spec.spec_id]:
            spans[node] = (parent, start, step)
            users.setdefault(node, []).append(path)
            parent, start = node, step
        ways[path.spec.spec_id] = tuple(node for _, node in stops[path.spec.spec_id])
    segments = {
        node: Segment(
            node=node,
            parent=parent,
            start=start,
            end=end,
            spec=users[node][0].spec,
            trials=tuple(path.spec.spec_id for path in users[node]),
            remaining=max(path.end for path in users[node]) - start,
        )
        for node, (parent, start, end) in spans.items()
    }
    return Tree(segments, ways)
