"""What a run is given besides its search-space file: options, the folders under the results, the text that was prepared.

Nothing here changes what comes out of a trial, but for the text, which the file asks for.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeper.ledger.location import refuse_no_database
from trainers.contract.errors import UserError

CORPORA = "corpora"
"""Folder of prepared texts, for all sweeps under the same results."""
STAGES = "stages"
"""Folder of a sweep's stages."""
COMPARISONS = "comparisons"
"""Folder of pages about two sweeps. A sweep of that name would share it, which harms neither."""
EXECUTORS = ("ray", "inline")
REPORT = "report.html"
SUMMARY = "summary.json"


def check_study_storage(url: str | None) -> None:
    """Raise `UserError` for what is no address of a database, and where its driver is not installed."""
    if url is not None:
        refuse_no_database(url, "study_storage")


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Run arguments: they change where and how fast, never what comes out. `workers` 0 means all there is room for.

    Raises `UserError` for a value that no run can have.
    """

    file: Path
    results: Path = Path("results")
    executor: str = "ray"
    address: str | None = None
    workers: int = 0
    execution: str = "auto"
    micro_sequences: int | None = None
    checkpoint_activations: bool = False
    tracking_uri: str | None = None
    study_storage: str | None = None
    max_gpu_hours: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "file", Path(self.file))
        object.__setattr__(self, "results", Path(self.results))
        if self.executor not in EXECUTORS:
            raise UserError(f"executor: {self.executor!r} is not one of {', '.join(EXECUTORS)}")
        if self.executor == "inline" and self.address is not None:
            raise UserError(f"address: {self.address} is a Ray cluster's; executor: inline trains in this process")
        if self.workers < 0:
            raise UserError(f"workers: {self.workers} is below 0, which means all there is room for")
        if self.micro_sequences is not None and self.micro_sequences < 1:
            raise UserError(f"micro_sequences: {self.micro_sequences} is not a positive number")
        check_study_storage(self.study_storage)
        if self.max_gpu_hours is not None and not self.max_gpu_hours >= 0:
            raise UserError(f"max_gpu_hours: {self.max_gpu_hours} is not a number of hours")


@dataclass(frozen=True, slots=True)
class CorpusFacts:
    """What specs and records say of a prepared corpus; `directory` is where workers open it. Another trainer has a corpus of
    its own, and `code` is the fingerprint of its files."""

    fingerprint: str
    tokenizer_fingerprint: str
    vocab_size: int
    train_tokens: int
    directory: str
    code: str = ""


def corpus_facts(corpus: Any) -> CorpusFacts:
    """From an open corpus or its manifest (which has no directory of its own)."""
    return CorpusFacts(
        corpus.fingerprint,
        corpus.tokenizer_fingerprint,
        corpus.vocab_size,
        corpus.train_tokens,
        str(Path(getattr(corpus, "directory", "")).resolve()),
    )
