"""What a sweep asks of its text. Standard library only: a plan reads this file where nothing is prepared."""

from __future__ import annotations

from dataclasses import dataclass

from trainers.contract.errors import InputError
from trainers.data.sources import SOURCES

HUGGINGFACE, LOCAL, MIXTURE = STREAMED_SOURCES = ("huggingface", "local", "mixture")
"""Where documents are read one after the other: a corpus of any size."""
NUM_BYTES = 256
"""Byte-level vocabularies start with every byte, so that no text is out of vocabulary; one more is the separator."""


@dataclass(frozen=True, slots=True)
class PartRequest:
    """Documents that are read one after the other: of a hub's data set, or of local files.

    `source` is `huggingface` (then `name` is the hub's, or the folder of a copy, and `config`, `split`, `revision` are as
    there) or `local` (then `paths` are files, folders or globs). `field` is where a record has its text; `weight` is the
    part's share of the training tokens, relative to those of the other parts.
    """

    source: str
    name: str | None = None
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    paths: tuple[str, ...] = ()
    field: str = "text"
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class CorpusRequest:
    """Text from `source`, a share of its documents held out, in a vocabulary of `vocab_size` tokens.

    `validation_fraction` is a fraction of the documents, not of their bytes. `tokenizer_path` names a tokenizer.json, or the
    folder of one, to use instead of training one, `tokenizer_name` one of the hub; neither may have more tokens than
    `vocab_size`. `end_of_document` is the name of its token between documents, where that is not to be found by itself.
    A source that is streamed has `parts`, and ends with `tokens` training tokens. Raises `InputError` naming the field.
    """

    source: str = "stdlib"
    paths: tuple[str, ...] = ()
    validation_fraction: float = 0.03
    vocab_size: int = 512
    tokenizer_path: str | None = None
    tokenizer_name: str | None = None
    tokenizer_revision: str | None = None
    end_of_document: str | None = None
    parts: tuple[PartRequest, ...] = ()
    tokens: int | None = None

    @property
    def streamed(self) -> bool:
        """Whether documents are read one after the other, in any number, instead of being listed first."""
        return bool(self.parts)

    @property
    def shares(self) -> tuple[float, ...]:
        """Each part's share of the training tokens, 1 together."""
        total = sum(part.weight for part in self.parts)
        return tuple(part.weight / total for part in self.parts)

    def __post_init__(self) -> None:
        if self.source in STREAMED_SOURCES:
            self._check_parts()
        else:
            self._check_listed()
        if not 0.0 < self.validation_fraction < 0.5:
            raise InputError(f"corpus.validation_fraction: {self.validation_fraction} is not in (0, 0.5)")
        if self.vocab_size <= NUM_BYTES:
            raise InputError(
                f"tokenizer.vocab_size: {self.vocab_size} is less than {NUM_BYTES + 1} (every byte and the separator)"
            )

    def _check_parts(self) -> None:
        if not self.parts:
            raise InputError(f"corpus.parts: empty; the source `{self.source}` is read in parts")
        for part in self.parts:
            if not part.weight > 0:
                raise InputError(f"corpus.parts: a weight of {part.weight} is not above 0")
            if part.source == HUGGINGFACE and not part.name:
                raise InputError(f"corpus.name: missing; the source `{HUGGINGFACE}` needs the name of a data set")
            if part.source == LOCAL and not part.paths:
                raise InputError(f"corpus.paths: empty; the source `{LOCAL}` needs at least one path")

    def _check_listed(self) -> None:
        source = SOURCES.get(self.source)
        if source is None:
            raise InputError(f"corpus.source: {self.source!r} is not one of {', '.join((*SOURCES, *STREAMED_SOURCES))}")
        if source.takes_paths and not self.paths:
            raise InputError(f"corpus.paths: empty; the source `{self.source}` needs at least one path")
        if self.paths and not source.takes_paths:
            raise InputError(f"corpus.paths: {list(self.paths)} given, but the source `{self.source}` takes none")


def refuse_few_held_out(wanted: int, held_out: int) -> None:
    """Raise `InputError` where fewer than `wanted` tokens are held out to be evaluated on, or none are wanted."""
    if not 0 < wanted <= held_out:
        raise InputError(
            f"validation_tokens: {wanted} asked for, the validation split has {held_out}; "
            "ask for fewer, add text or raise corpus.validation_fraction"
        )
