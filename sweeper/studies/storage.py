"""Studies written into an Optuna storage: brought up where they are older, made anew where they do not fit.

What is found there is never believed. A study that holds what it should is completed; one that holds anything else is
deleted and made again, and a file of ours that cannot be read is replaced as a whole. A study of somebody else's is left alone.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from sweeper.ledger.location import one_at_a_time, sqlite_file, sqlite_uri
from sweeper.studies.trials import SPEC_ATTRIBUTE, StudyCopy

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial

MARK = "sweeper"
"""The attribute by which a study of ours is known, with the version of its form."""
_FORM = 1
_LOCKED_SECONDS = 30
"""How long a reader of the file (a dashboard) is waited for."""


class ForeignStudyError(RuntimeError):
    """The name is taken by a study that no sweep wrote."""


def write_studies(url: str, studies: Sequence[StudyCopy]) -> None:
    """Bring the studies at `url` up to `studies`; others there are not touched. Raises what Optuna and the database raise."""
    with one_at_a_time(url):
        _write(url, studies)


def replace_studies(file: Path, studies: Sequence[StudyCopy]) -> None:
    """Put a new SQLite file with `studies` in the place of `file`, whatever that holds."""
    made = file.with_suffix(".new")
    with one_at_a_time(sqlite_uri(file)):
        _remove(made)
        _write(sqlite_uri(made), studies)
        # The old one's journal would be played into the new file by its first reader.
        _remove(file)
        os.replace(made, file)


def _remove(database: Path) -> None:
    for ending in ("", "-journal", "-wal", "-shm"):
        with suppress(FileNotFoundError):
            Path(f"{database}{ending}").unlink()


def _write(url: str, studies: Sequence[StudyCopy]) -> None:
    from optuna.storages import RDBStorage

    logging.getLogger("optuna.storages").setLevel(logging.WARNING)  # else a line for each study
    waiting = {"connect_args": {"timeout": _LOCKED_SECONDS}} if sqlite_file(url) is not None else None
    storage = RDBStorage(url, engine_kwargs=waiting)
    try:
        for study in studies:
            _bring_up(storage, study)
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _bring_up(storage: RDBStorage, wanted: StudyCopy) -> None:
    study = _opened(storage, wanted)
    there = study.get_trials(deepcopy=False)
    for old, new in zip(there, wanted.trials, strict=False):
        if not old.state.is_finished() and old.state != new.state:
            _advance(storage, wanted.name, old, new)
    for new in wanted.trials[len(there) :]:
        study.add_trial(new)


def _opened(storage: RDBStorage, wanted: StudyCopy) -> Study:
    """The study of that name, holding nothing but what it should."""
    import optuna

    try:
        study = optuna.load_study(study_name=wanted.name, storage=storage)
    except KeyError:
        return _created(storage, wanted)
    there, attributes = study.get_trials(deepcopy=False), study.user_attrs
    if MARK not in attributes and there:
        raise ForeignStudyError(f"{wanted.name} is a study that no sweep wrote; choose another storage or name")
    fits = len(there) <= len(wanted.trials) and all(map(_fits, there, wanted.trials))
    if fits and attributes == {**wanted.attributes, MARK: _FORM}:
        return study
    optuna.delete_study(study_name=wanted.name, storage=storage)
    return _created(storage, wanted)


def _created(storage: RDBStorage, wanted: StudyCopy) -> Study:
    import optuna

    study = optuna.create_study(study_name=wanted.name, storage=storage, direction="minimize")
    for key, value in {**wanted.attributes, MARK: _FORM}.items():
        study.set_user_attr(key, value)
    return study


def _fits(old: FrozenTrial, new: FrozenTrial) -> bool:
    """Whether what is there is the trial that should be, or an earlier state of it."""
    if (old.params, old.distributions) != (new.params, new.distributions):
        return False
    if not old.state.is_finished():
        return bool(old.user_attrs.get(SPEC_ATTRIBUTE) == new.user_attrs[SPEC_ATTRIBUTE])
    return bool((old.state, old.values, old.user_attrs) == (new.state, new.values, new.user_attrs))


def _advance(storage: RDBStorage, study: str, old: FrozenTrial, new: FrozenTrial) -> None:
    """Bring an unfinished trial to its new state, with what is known by then."""
    from optuna.trial import TrialState

    identity = storage.get_trial_id_from_study_id_trial_number(storage.get_study_id_from_name(study), old.number)
    if old.state == TrialState.WAITING and new.state.is_finished():
        storage.set_trial_state_values(identity, TrialState.RUNNING)  # which notes when it began
    for key, value in new.user_attrs.items():
        if old.user_attrs.get(key) != value:
            storage.set_trial_user_attr(identity, key, value)
    for step, loss in new.intermediate_values.items():
        storage.set_trial_intermediate_value(identity, step, loss)
    storage.set_trial_state_values(identity, new.state, new.values)
