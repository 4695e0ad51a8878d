"""What a run is given besides its search-space file: options, the folders under the results, the text that was prepared.

Nothing here changes what comes out of a trial, but for the text, which the file asks for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeper.space.schema import CorpusPart, SearchSpace
from sweeper.space.text import text_needed, text_wanted
from trainers.contract.errors import UserError
from trainers.data.request import STREAMED_SOURCES, CorpusRequest, PartRequest

if TYPE_CHECKING:
    from trainers.data.shards import PreparedCorpus

Say = Callable[[str], None]

CORPORA = "corpora"
"""Folder of prepared texts, for all sweeps under the same results."""
STAGES = "stages"
"""Folder of a sweep's stages."""
COMPARISONS = "comparisons"
"""Folder of pages about two sweeps. A sweep of that name would share it, which harms neither."""
EXECUTORS = ("ray", "inline")
REPORT = "report.html"
SUMMARY = "summary.json"


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
        if self.study_storage is not None and "://" not in self.study_storage:
            raise UserError(
                f"study_storage: {self.study_storage!r} is not a database's address, such as sqlite:///studies.db"
            )
        if self.max_gpu_hours is not None and not self.max_gpu_hours >= 0:
            raise UserError(f"max_gpu_hours: {self.max_gpu_hours} is not a number of hours")


@dataclass(frozen=True, slots=True)
class CorpusFacts:
    """What specs and records say of a prepared corpus; `directory` is where workers open it."""

    fingerprint: str
    tokenizer_fingerprint: str
    vocab_size: int
    train_tokens: int
    directory: str


def corpus_request(space: SearchSpace) -> CorpusRequest:
    """What the file asks of its text."""
    corpus, tokenizer = space.corpus, space.tokenizer
    streamed = corpus.source in STREAMED_SOURCES
    parts = (corpus.parts or (corpus,)) if streamed else ()
    return CorpusRequest(
        source=corpus.source,
        paths=() if streamed else corpus.paths,
        validation_fraction=corpus.validation_fraction,
        vocab_size=tokenizer.vocab_size,
        tokenizer_path=tokenizer.path,
        tokenizer_name=tokenizer.name,
        tokenizer_revision=tokenizer.revision,
        end_of_document=tokenizer.end_of_document,
        parts=tuple(
            PartRequest(
                source=part.source,
                name=part.name,
                config=part.config,
                split=part.split,
                revision=part.revision,
                paths=part.paths,
                field=part.field,
                weight=part.weight if isinstance(part, CorpusPart) else 1.0,
            )
            for part in parts
        ),
        tokens=text_wanted(space) if streamed else None,
    )


def prepared_text(space: SearchSpace, options: RunOptions, say: Say, **more: Any) -> PreparedCorpus:
    """The open corpus of a file, prepared where that is still to do, and found to be enough for its sweep. `more` are
    arguments of `trainers.data.prepare.prepare`.

    Raises `UserError` for text that cannot be used or is too little: before it is prepared, where that can be known.
    """
    from trainers.data.prepare import prepare

    request = corpus_request(space)
    if request.tokens is not None:
        _refuse_few_held_out(request.tokens, space)
    corpus = prepare(request, options.results / CORPORA, say, **more)
    corpus.validation(space.validation_tokens + 1)
    if said := reread_text(space, corpus.train_tokens):
        if (
            space.corpus.max_epochs is not None
            and text_needed(space).tokens > space.corpus.max_epochs * corpus.train_tokens
        ):
            raise UserError(f"corpus.max_epochs: {space.corpus.max_epochs:g} allowed, but {said}; add text or raise it")
        say(said)
    return corpus


def _refuse_few_held_out(train_tokens: int, space: SearchSpace) -> None:
    """Before hours go into text of which too little will be held out. Half of what is expected is let through."""
    fraction = space.corpus.validation_fraction
    held_out = train_tokens * fraction / (1 - fraction)
    if held_out < space.validation_tokens / 2:
        needed = space.validation_tokens / (train_tokens + space.validation_tokens)
        raise UserError(
            f"corpus.validation_fraction: {fraction:g} of the text is about {held_out:,.0f} tokens to be held out, and "
            f"validation_tokens asks for {space.validation_tokens:,}; hold out {needed:.1g} or more"
        )


def reread_text(space: SearchSpace, train_tokens: int) -> str | None:
    """Which run needs how much more text than there is, in one line; None where none does."""
    from reports.html.theme import count

    need = text_needed(space)
    if need.tokens <= train_tokens:
        return None
    epochs = need.tokens / train_tokens
    said = f"{epochs:.2g}" if epochs < 100 else count(epochs)
    return f"{need.run} needs {count(need.tokens)} tokens, the corpus has {count(train_tokens)}: {said} epochs"


def corpus_facts(corpus: Any) -> CorpusFacts:
    """From an open corpus or its manifest (which has no directory of its own)."""
    return CorpusFacts(
        corpus.fingerprint,
        corpus.tokenizer_fingerprint,
        corpus.vocab_size,
        corpus.train_tokens,
        str(Path(getattr(corpus, "directory", "")).resolve()),
    )
