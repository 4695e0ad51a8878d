"""A sweep that trains nothing and keeps its studies: a ledger in memory that knows what MLflow's would."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from sweeper.ledger.about import SweepAbout
from sweeper.ledger.in_memory import MemoryLedger
from sweeper.space.schema import SearchSpace
from sweeper.studies.keeper import StudyLedger, StudyPlace
from tests.support.ledger_factory import about_of
from tests.support.tiny_sweep import FACTS, Desk, Workers, space_of
from trainers.planning.store import MemoryStore


def study_space(**changes: Any) -> SearchSpace:
    """As `space_of`, and such as a file may say it: eight tuning trials an arm over the same learning rates."""
    plain = space_of().model_dump(exclude_none=True)
    plain["methods"]["tst"]["axes"]["learning_rate"] = {"grid": (0.002, 0.004)}
    plain["seeds"]["tuning"] = (0, 1, 2, 3)
    plain["search"]["trials_per_arm"] = 8
    return space_of(**{**plain, **changes})


def about_space(space: SearchSpace) -> SweepAbout:
    """What the ledger says of a sweep of `space` over the imaginary text."""
    text = yaml.safe_dump(space.model_dump(mode="json", exclude_defaults=True))
    return replace(
        about_of(space.name),
        search_space_text=text,
        corpus_fingerprint=FACTS.fingerprint,
        tokenizer_fingerprint=FACTS.tokenizer_fingerprint,
    )


@dataclass
class NamedLedger(MemoryLedger):
    """Runs are named after their specs. The store is what else is left when a driver is killed."""

    store: MemoryStore = field(default_factory=MemoryStore)
    space: SearchSpace = field(default_factory=study_space)

    def about(self) -> SweepAbout:
        return about_space(self.space)

    def run_ids(self) -> Mapping[str, str]:
        return {spec_id: f"run-{spec_id}" for spec_id in self.asked}


def swept(ledger: NamedLedger, place: StudyPlace, say: Any = lambda line: None, **work: Any) -> bool:
    """Run a sweep over `ledger` with its studies at `place`; see `Workers` for `work`. Returns whether it is over."""
    stages = work.pop("stages", None)
    with StudyLedger(ledger, place, say) as kept:  # type: ignore[arg-type]
        return Workers(**work).run(Desk(ledger.space, ledger, ledger.store).open(ledger=kept), stages)


def file_in(folder: Path) -> StudyPlace:
    """The studies' own file."""
    return StudyPlace(f"sqlite:///{folder / 'optuna.db'}", folder / "optuna.db")
