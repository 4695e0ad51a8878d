"""What the rules of a search space read, and what they answer with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sweeper.space.messages import label
from sweeper.space.schema import Axis, Budgets, Scalar, SearchSpace
from sweeper.space.yaml_lines import Location


@dataclass(frozen=True, slots=True)
class DraftArm:
    """A method as far as it is sound: `budgets` or None, the sound `axes`, and the names of all that are given."""

    name: str
    budgets: Budgets | None
    axes: Mapping[str, Axis | Scalar]
    axis_names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Draft:
    """A space of which parts may be unusable: reading a top-level key in `broken` is an error of the rule.

    Rules read the methods from `arms`, never from `space`.
    """

    space: SearchSpace
    broken: frozenset[str]
    arms: tuple[DraftArm, ...]


@dataclass(frozen=True, slots=True)
class Finding:
    """An objection, and where it stands. `key` is added to the place's name for something that is not there."""

    location: Location
    message: str
    key: str | None = None

    @property
    def sentence(self) -> str:
        """The objection with its place in front."""
        return f"{label(self.location if self.key is None else (*self.location, self.key))}: {self.message}"
