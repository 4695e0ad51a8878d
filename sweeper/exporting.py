"""Trained models of a sweep for other libraries: which run is meant, where its weights lie, and whose tokenizer goes with them.

The files are `trainers.export`'s; which weights a sweep keeps is the engine's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sweeper.ledger.imports import ImportLedger
from sweeper.options import CORPORA, STAGES
from trainers.contract.errors import InputError, given
from trainers.contract.reading import json_value
from trainers.contract.record import RunRecord
from trainers.contract.spec import own
from trainers.contract.stage import STATE
from trainers.planning.lineage import path_of


@dataclass(frozen=True, slots=True)
class ExportedModel:
    """A folder that was written, and the run that it is of."""

    folder: Path
    record: RunRecord


def export_models(
    results: Path, name: str, run: str | None, out: Path, tracking_uri: str | None = None
) -> Iterator[ExportedModel]:
    """Write the model of `run` (a spec id, or its beginning) of sweep `name` into `out`, and say so once it is there. Without
    `run`: of every arm's winner its longest confirmation, on the first of its seeds, into a folder `SCALE-METHOD` each.

    Raises `UserError` in one line where there is no such sweep or run, its weights were not kept, or no other library knows
    its architecture: of all of them before the first is written.
    """
    with ImportLedger.open(results, name, tracking_uri, create=False) as ledger:
        if ledger.about().origin != "sweep":
            raise InputError(f"{name}: its runs were trained elsewhere; there are no weights of them here")
        if run is not None:
            chosen = {out: record_of(ledger.records(), run, name)}
        else:
            from sweeper.reporting import study_of

            arms = [arm for scale in study_of(ledger, "").scales for arm in scale.arms if arm.cells]
            firsts = [arm.cells[-1].runs[0].record for arm in arms]
            chosen = {out / f"{r.spec.scale}-{r.spec.method}": r for r in firsts if r is not None}
    if not chosen:
        raise InputError(f"{name}: no winner is confirmed yet; name a run to export another")
    # Torch takes seconds, and a wrong name is told without it.
    from trainers.export import configuration, export_state
    from trainers.training.checkpoint import CheckpointError

    for record in chosen.values():
        spec = own(record.spec)
        configuration(spec.shape, spec.context, 0)
    places = {folder: (_state_of(results, name, r), _corpus_of(results, r)) for folder, r in chosen.items()}
    for folder, (state, corpus) in places.items():
        try:
            with given(folder):
                export_state(state, corpus, folder)
        except CheckpointError as error:
            raise InputError(
                f"{chosen[folder].spec.spec_id}: its weights in {state.parent} cannot be used: {error}"
            ) from None
        yield ExportedModel(folder, chosen[folder])


def record_of(records: Sequence[RunRecord], run: str, name: str) -> RunRecord:
    """The record whose spec id is `run`, or the only one whose id begins so. Raises `InputError` for none and for several."""
    found = [record for record in records if record.spec.spec_id.startswith(run)]
    if not run or not found:
        raise InputError(
            f"{run!r}: no run of {name} has that id; the page of `sweeper report {name}` lists all of them"
        )
    if len(found) > 1:
        raise InputError(f"{run}: {len(found)} runs of {name} have an id that begins so; give more of it")
    return found[0]


def _state_of(results: Path, name: str, record: RunRecord) -> Path:
    spec = record.spec
    node = path_of(spec, record.provenance.execution).node(spec.schedule.total_steps)
    folder = (results / name / STAGES / node / STATE).resolve()
    if not folder.is_dir():
        raise InputError(
            f"{spec.spec_id}: its final weights are not in {folder}; kept are those of confirmed winners, as far as "
            "resources.disk_gb goes"
        )
    return folder


def _corpus_of(results: Path, record: RunRecord) -> Path:
    from trainers.data.manifest import MANIFEST_FILE

    wanted = own(record.spec).corpus_fingerprint
    for file in sorted((results / CORPORA).glob(f"*/{MANIFEST_FILE}")):
        try:
            if json_value(file.read_bytes())["fingerprint"] == wanted:
                return file.parent
        except (OSError, InputError, KeyError, TypeError):
            continue
    raise InputError(
        f"{record.spec.spec_id}: its text {wanted}, with the tokenizer, is not in {results / CORPORA}; `sweeper prepare` of "
        "the sweep's file makes it again"
    )
