"""What a sweep asks of its text. Standard library only: a plan reads this file where nothing is prepared."""

from __future__ import annotations

from dataclasses import dataclass

from trainers.contract.errors import InputError
from trainers.data.sources import SOURCES

NUM_BYTES = 256
"""Byte-level vocabularies start with every byte, so that no text is out of vocabulary; one more is the separator."""


@dataclass(frozen=True, slots=True)
class CorpusRequest:
    """Text from `source`, a share of its documents held out, in a vocabulary of `vocab_size` tokens.

    `validation_fraction` is a fraction of the documents, not of their bytes. `tokenizer_path` names a tokenizer.json to use
    instead of training one; its vocabulary must be `vocab_size`. Raises `InputError` naming the field.
    """

    source: str = "stdlib"
    paths: tuple[str, ...] = ()
    validation_fraction: float = 0.03
    vocab_size: int = 512
    tokenizer_path: str | None = None

    def __post_init__(self) -> None:
        source = SOURCES.get(self.source)
        if source is None:
            raise InputError(f"corpus.source: {self.source!r} is not one of {', '.join(SOURCES)}")
        if source.takes_paths and not self.paths:
            raise InputError(f"corpus.paths: empty; the source `{self.source}` needs at least one path")
        if self.paths and not source.takes_paths:
            raise InputError(f"corpus.paths: {list(self.paths)} given, but the source `{self.source}` takes none")
        if not 0.0 < self.validation_fraction < 0.5:
            raise InputError(f"corpus.validation_fraction: {self.validation_fraction} is not in (0, 0.5)")
        if self.vocab_size <= NUM_BYTES:
            raise InputError(
                f"tokenizer.vocab_size: {self.vocab_size} is less than {NUM_BYTES + 1} (every byte and the separator)"
            )
