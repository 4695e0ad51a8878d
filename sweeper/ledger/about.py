"""What a sweep says about itself: the question, what was asked for and where, as one value.

Stored beside the sweep's run by `mlflow_ledger`, read by the report.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from trainers.contract.errors import InputError
from trainers.contract.reading import pairs_of, value_of

Origin = Literal["sweep", "imported"]
ABOUT_SCHEMA = 1


@dataclass(frozen=True, slots=True)
class SweepAbout:
    """One sweep. `search_space_text` is the file as it was run, `command` the line that reproduces it.

    `price_per_gpu_hour` is in `currency`, None where the file gives none; `corpus_tokens` counts the training split;
    `started_at` is ISO 8601 with its time zone. `origin` tells our own trials from runs that were trained elsewhere.
    `seen_share` is the part of the validation text that training holds, too, `bytes_per_token` the bytes of its mean token
    (None: not measured). `code` is the fingerprint of another trainer's files, empty for our own. `study_storage` is where its
    Optuna studies are, as `sweeper.studies.keeper.remembered` says it; empty for the file beside its results.
    """

    name: str
    question: str
    search_space_text: str
    search_space_file: str
    command: str
    price_per_gpu_hour: float | None
    currency: str
    corpus_fingerprint: str
    tokenizer_fingerprint: str
    corpus_description: str
    corpus_tokens: int
    git_commit: str
    git_dirty: bool
    versions: tuple[tuple[str, str], ...]
    device: str
    started_at: str
    origin: Origin = "sweep"
    seen_share: float | None = None
    bytes_per_token: float | None = None
    code: str = ""
    study_storage: str = ""


def about_to_dict(about: SweepAbout) -> dict[str, Any]:
    """Plain JSON values; inverse of `about_from_dict`."""
    return {**asdict(about), "versions": dict(about.versions), "schema": ABOUT_SCHEMA}


def about_from_dict(plain: Any) -> SweepAbout:
    """Raises `InputError` when the value is of another schema, or a key is missing, unknown or of another type."""
    what = "the description of a sweep"
    if not isinstance(plain, Mapping) or "versions" not in plain:
        raise InputError(f"not {what}")
    if plain.get("schema") != ABOUT_SCHEMA:
        raise InputError(f"sweep schema {plain.get('schema')!r} is not {ABOUT_SCHEMA}")
    values = {key: value for key, value in plain.items() if key != "schema"}
    return value_of(SweepAbout, {**values, "versions": pairs_of(values["versions"], f"{what}: versions")}, what)
