"""Records that a bare machine wrote become trials of a sweep, as if it had trained them here.

The whole file is read, and the report rehearsed, before the ledger is touched. Each record is written as the sweep itself
writes it, so that a report, a plan or a run of that name goes on from it; what the ledger holds already stays, and a trial
that has a final loss is not replaced by one that failed. Published records are read here too, into a study without a ledger.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from sweeper.ledger.about import SweepAbout
from sweeper.ledger.location import check_new_name
from sweeper.ledger.tables import Imported
from trainers.contract.errors import InputError, given
from trainers.contract.reading import json_value
from trainers.contract.record import RunRecord
from trainers.contract.record_lines import RECORDS_FILE, read_records, records_to_text
from trainers.methods import TRAINERS_OWN, facts_of


def import_records(
    results: Path,
    name: str,
    path: Path,
    space_file: Path | None,
    question: str | None,
    command: str,
    tracking_uri: str | None,
) -> Imported:
    """Take the records of `path` into sweep `name` and write its report. `space_file` is what asked for them.

    Raises `BadLinesError` with every bad line (or another `InputError`), `LedgerError` for the name of imported tables,
    before anything is stored.
    """
    from reports.evidence.runs import run_from_record
    from sweeper.engine.status import FILE as STATUS
    from sweeper.ledger.imports import ImportLedger
    from sweeper.lock import driving
    from sweeper.options import CORPORA, REPORT
    from sweeper.reporting import refuse_unwritable, study_from, study_in, write_report_files

    check_new_name(name)
    records = read_records(path)
    if not records:
        raise InputError(f"{path.name}: holds no record")
    about = describe(name, records, space_file, question, command, corpus_words(records, results / CORPORA))
    with driving((results / name).resolve()), ExitStack() as stack:
        earlier, known = _held(results, name, tracking_uri, about)
        if earlier.origin == about.origin and space_file is None:
            about = replace(earlier, question=question or earlier.question)
        new = [record for record in records if _adds(record, known.get(record.spec.spec_id))]
        together = known | {record.spec.spec_id: record for record in new}
        refuse_unwritable(study_from(about, list(together.values()), command))
        ledger = stack.enter_context(ImportLedger.open(results, name, tracking_uri, create=True))
        ledger.store_records(about, new, path.name)
        headline = write_report_files(study_in(ledger, f"sweeper report {name}"), results / name).headline
        ledger.finish("finished", headline, results / name / REPORT)
        (results / name / STATUS).unlink(missing_ok=True)  # what the last driver knew: the ledger knows more now
    runs = tuple(run_from_record(record) for record in records)
    return Imported(runs, len(new), headline, (results / name / REPORT).resolve())


def _held(
    results: Path, name: str, tracking_uri: str | None, new: SweepAbout
) -> tuple[SweepAbout, dict[str, RunRecord]]:
    """What the ledger says of the sweep, and its records by spec id; of a sweep that it does not hold, `new` and nothing."""
    from sweeper.ledger.location import LedgerError, NoSweepError
    from sweeper.ledger.mlflow_ledger import Ledger

    try:
        with Ledger.open(results, name, tracking_uri, create=False) as ledger:
            known = {record.spec.spec_id: record for record in ledger.records()}
            try:
                return ledger.about(), known
            except LedgerError:  # damaged, and written anew
                return new, known
    except NoSweepError:
        return new, {}


def _adds(record: RunRecord, known: RunRecord | None) -> bool:
    if known is None:
        return True
    return record != known and (record.final_loss is not None or known.final_loss is None)


def describe(
    name: str,
    records: Sequence[RunRecord],
    space_file: Path | None,
    question: str | None,
    command: str,
    corpus_description: str,
) -> SweepAbout:
    """What the records say of the sweep that they are of, and the file that asked for them, where it is given.

    Raises `SearchSpaceError` for a file with mistakes.
    """
    from sweeper.space.load import load_search_space

    space = load_search_space(space_file) if space_file is not None else None
    first = records[0]
    where, spec, facts = first.provenance, first.spec, facts_of(first.spec)
    price = space.price if space is not None else None
    return SweepAbout(
        name=name,
        question=question or (space.question if space is not None else f"Is the method faster at {spec.scale}?"),
        search_space_text=space_file.read_text(encoding="utf-8") if space_file is not None else "",
        search_space_file=space_file.name if space_file is not None else "",
        command=command,
        price_per_gpu_hour=price.per_gpu_hour if price is not None else None,
        currency=price.currency if price is not None else "USD",
        corpus_fingerprint=facts.text or "",
        tokenizer_fingerprint=facts.tokenizer or "",
        corpus_description=corpus_description,
        corpus_tokens=first.corpus_tokens,
        git_commit=where.git_commit,
        git_dirty=any(record.provenance.git_dirty for record in records),
        versions=where.versions,
        device=", ".join(sorted({record.provenance.device for record in records})),
        started_at=min(record.provenance.started_at for record in records),
    )


def corpus_words(records: Sequence[RunRecord], folder: Path) -> str:
    """What the text is called, where `folder` has its manifest in it or one level below, else its fingerprint."""
    from trainers.data.manifest import MANIFEST_FILE

    fingerprint = facts_of(records[0].spec).text
    if fingerprint is None:
        return TRAINERS_OWN
    for file in sorted((*folder.glob(MANIFEST_FILE), *folder.glob(f"*/{MANIFEST_FILE}"))):
        try:
            plain = json_value(file.read_bytes())
            if plain["fingerprint"] == fingerprint:
                return str(plain["description"])
        except (OSError, InputError, KeyError, TypeError):
            continue
    return f"corpus {fingerprint}"


def write_records(results: Path, name: str, tracking_uri: str | None, path: Path) -> None:
    """The records of a sweep in the ledger as a file that can be imported or published. Raises `LedgerError`."""
    from sweeper.ledger.mlflow_ledger import Ledger
    from trainers.contract.writing import write_atomically

    with Ledger.open(results, name, tracking_uri, create=False) as ledger:
        records = ledger.records()
    if not records:
        raise InputError(f"{name}: holds no record of its own")
    with given(path):
        write_atomically(path, records_to_text(records))


def published_sweep(name: str, command: str) -> Any:
    """The study of a sweep whose records lie in `reports/published/NAME/`: `records.jsonl`, beside it perhaps the
    search-space file that asked for them and the manifest of their corpus.

    Raises `InputError` in one line where there is no such folder, and what `read_records` raises.
    """
    from reports.published import published_folders
    from sweeper.reporting import study_from

    folders = published_folders()
    if name not in folders:
        raise InputError(f"{name}: no published sweep; there are {', '.join(folders) or 'none yet'}")
    folder = folders[name]
    records = read_records(folder / RECORDS_FILE)
    if not records:
        raise InputError(f"{folder / RECORDS_FILE}: holds no record")
    space = next(iter(sorted(folder.glob("*.yaml"))), None)
    return study_from(describe(name, records, space, None, command, corpus_words(records, folder)), records, command)
