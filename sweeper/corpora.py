"""The text of a sweep: what its file asks for, its preparation with a pace, and whether it is enough, before a run.

How text is prepared is `trainers.data`'s; how much a file's runs read is `space.text`'s.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from sweeper.options import CORPORA, RunOptions
from sweeper.space.schema import CorpusPart, SearchSpace
from sweeper.space.text import text_needed, text_wanted
from trainers.contract.errors import UserError
from trainers.data.request import STREAMED_SOURCES, CorpusRequest, PartRequest, refuse_few_held_out

if TYPE_CHECKING:
    from trainers.data.manifest import Manifest
    from trainers.data.shards import PreparedCorpus
    from trainers.data.streamed.build import Pace

Say = Callable[[str], None]
Watch = Callable[["Pace"], None]
QUIET_SECONDS = 30
"""Between two lines about the pace where there is no bar."""


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


def prepared_text(
    space: SearchSpace, options: RunOptions, say: Say, watch: Watch | None = None, processes: int = 0
) -> PreparedCorpus:
    """The open corpus of a file, prepared where that is still to do, and found to be enough for its sweep. Without `watch`
    the pace is said now and then; `processes` 0 means one a core.

    Raises `UserError` for text that cannot be used or is too little: before it is prepared, where that can be known.
    """
    from trainers.data.prepare import prepare

    request = corpus_request(space)
    if request.tokens is not None:
        refuse_little_asked(space, request.tokens)
    corpus = prepare(request, options.results / CORPORA, say, watch or now_and_then(say), processes)
    refuse_little_text(space, corpus)
    if said := reread_text(space, corpus.train_tokens):
        say(said)
    return corpus


def refuse_little_asked(space: SearchSpace, train_tokens: int) -> None:
    """Raise `UserError` where the text that a file asks for would be too little, before it is prepared."""
    _refuse_small_share(train_tokens, space)
    _refuse_many_epochs(train_tokens, space)


def refuse_little_text(space: SearchSpace, corpus: PreparedCorpus | Manifest) -> None:
    """Raise `UserError` where a prepared text is too little for the runs of a file, be it to train on or to be held out."""
    refuse_few_held_out(space.validation_tokens, corpus.validation_tokens)
    _refuse_many_epochs(corpus.train_tokens, space)


def now_and_then(say: Say) -> Watch:
    """Says the pace in a line, at first after a while."""
    spoken = time.monotonic()

    def watch(pace: Pace) -> None:
        nonlocal spoken
        if time.monotonic() - spoken > QUIET_SECONDS:
            spoken = time.monotonic()
            say(pace_words(pace))

    return watch


def pace_words(pace: Pace) -> str:
    """`1.2 B of 110 B tokens, 3.1 M tokens/s, 9.75 h left`."""
    from reports.html import theme

    wanted = f" of {theme.count(pace.wanted)}" if pace.wanted else ""
    left = f", {theme.hours(pace.seconds_left / 3600)} left" if pace.seconds_left is not None else ""
    return f"{theme.count(pace.tokens)}{wanted} tokens, {theme.count(pace.tokens_per_second)} tokens/s{left}"


def _refuse_many_epochs(train_tokens: int, space: SearchSpace) -> None:
    most = space.corpus.max_epochs
    if most is not None and text_needed(space).tokens > most * train_tokens:
        raise UserError(
            f"corpus.max_epochs: {most:g} allowed, but {_epochs(space, train_tokens)}; add text or raise it"
        )


def _refuse_small_share(train_tokens: int, space: SearchSpace) -> None:
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
    return _epochs(space, train_tokens) if text_needed(space).tokens > train_tokens else None


def _epochs(space: SearchSpace, train_tokens: int) -> str:
    from reports.html.theme import count

    need = text_needed(space)
    epochs = need.tokens / train_tokens
    said = f"{epochs:.2g}" if epochs < 100 else count(epochs)
    return f"{need.run} needs {count(need.tokens)} tokens, the corpus has {count(train_tokens)}: {said} epochs"
