"""What corpus and tokenizer may not say, although every single value has its type. The form of the rules is `rules`'s."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from sweeper.space.errors import choose_from, shown
from sweeper.space.schema import Corpus, CorpusPart, Tokenizer
from sweeper.space.yaml_lines import Location
from trainers.data.files import EVERYTHING, is_everything
from trainers.data.request import HUGGINGFACE, LOCAL, MIXTURE, STREAMED_SOURCES
from trainers.data.sources import SOURCES


class Finding(NamedTuple):
    """An objection, and the place that it is about; a place that is missing stands where it would be."""

    location: Location
    message: str


ALL_SOURCES = (*SOURCES, *STREAMED_SOURCES)
PATH_SOURCES = (*(name for name, source in SOURCES.items() if source.takes_paths), LOCAL)
_READERS: dict[str, tuple[str, ...]] = {
    "paths": PATH_SOURCES,
    "name": (HUGGINGFACE,),
    "config": (HUGGINGFACE,),
    "split": (HUGGINGFACE,),
    "revision": (HUGGINGFACE,),
    "field": (HUGGINGFACE, LOCAL),
    "parts": (MIXTURE,),
    "tokens": STREAMED_SOURCES,
}
"""Which sources read a key; the others know all of them."""


def corpus_findings(corpus: Corpus) -> Iterator[Finding]:
    """Keys that the source does not read, and keys that it lacks."""
    if corpus.source not in ALL_SOURCES:
        said = f"{shown(corpus.source)} is not a source; {choose_from(corpus.source, ALL_SOURCES)}"
        yield Finding(("corpus", "source"), said)
        return
    yield from _keys(corpus, ("corpus",))
    if corpus.source == MIXTURE:
        if len(corpus.parts) < 2:
            given = f"{len(corpus.parts)} given" if corpus.parts else "missing"
            yield Finding(
                ("corpus", "parts"),
                f"{given}; source: mixture needs two or more: parts: [{{source: ..., weight: 0.5}}, ...]",
            )
        for index, part in enumerate(corpus.parts):
            yield from _keys(part, ("corpus", "parts", index))


def _keys(given: Corpus | CorpusPart, place: Location) -> Iterator[Finding]:
    source = given.source
    if source in PATH_SOURCES and not given.paths:
        what = "text files" if source != LOCAL else "Parquet, JSON Lines or text files"
        yield Finding((*place, "paths"), f"missing; source: {source} reads {what}, folders or globs: paths: [...]")
    for index, path in enumerate(given.paths):
        if is_everything(path):
            yield Finding((*place, "paths", index), f"{shown(path)} {EVERYTHING}")
    if source == HUGGINGFACE and given.name is None:
        yield Finding(
            (*place, "name"), f"missing; source: {HUGGINGFACE} needs a data set: name: HuggingFaceFW/fineweb-edu"
        )
    for key, readers in _READERS.items():
        if key in given.model_fields_set and source not in readers:
            yield Finding((*place, key), f"{shown(getattr(given, key))} is read with source: {', '.join(readers)} only")


def tokenizer_findings(tokenizer: Tokenizer) -> Iterator[Finding]:
    """Keys that the kind does not read, and keys that it lacks."""
    kinds = {"path": ("file",), "name": ("hub",), "revision": ("hub",), "end_of_document": ("file", "hub")}
    for key, readers in kinds.items():
        if getattr(tokenizer, key) is not None and tokenizer.kind not in readers:
            said = f"{shown(getattr(tokenizer, key))} is read with kind: {' or '.join(readers)} only"
            yield Finding(("tokenizer", key), said)
    needed = {"file": ("path", "the tokenizer.json"), "hub": ("name", "a repository of the hub")}
    if tokenizer.kind in needed:
        for key, what in (needed[tokenizer.kind], ("vocab_size", "the number of its tokens")):
            if key not in tokenizer.model_fields_set or getattr(tokenizer, key) is None:
                yield Finding(("tokenizer", key), f"missing; kind: {tokenizer.kind} needs {what}")
