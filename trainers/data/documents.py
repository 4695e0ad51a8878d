"""What a document is, and whether it is trained on or held out.

The split is decided by the document's name alone, so that neither the order of listing, nor the machine, nor a new
file beside it moves a document from one side to the other. Where names come from is each source's business.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from trainers.contract.errors import InputError

SPLIT_RULE = "sha256 of the name below the fraction, at least one document a side"


@dataclass(frozen=True, slots=True)
class Document:
    """One text. `name` is its path inside the corpus, `/` between parts, without anything of this machine.

    `load` reads the text as UTF-8 bytes; it is called more than once, and not before it is needed.
    """

    name: str
    load: Callable[[], bytes]


@dataclass(frozen=True, slots=True)
class HashedDocument:
    """A document whose content has been read once: `sha256` in hexadecimal, `size` in bytes."""

    document: Document
    sha256: str
    size: int

    @property
    def name(self) -> str:
        """The document's name."""
        return self.document.name

    def text(self) -> str:
        """The content that was hashed. Raises `InputError` when it is not UTF-8, or has changed since."""
        content = self.document.load()
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise InputError(f"corpus: {self.name} changed while it was being read; run the command again")
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(
                f"corpus: {self.name} is not UTF-8 text (byte {error.start}); leave it out of corpus.paths, "
                "for instance with a glob such as texts/**/*.txt"
            ) from None


@dataclass(frozen=True, slots=True)
class Split:
    """`train` in the order of names; `validation` in the order of split keys, so that its beginning is a mixture."""

    train: tuple[HashedDocument, ...]
    validation: tuple[HashedDocument, ...]


def hash_document(document: Document) -> HashedDocument:
    """Read a document once."""
    content = document.load()
    return HashedDocument(document, hashlib.sha256(content).hexdigest(), len(content))


def split_key(name: str) -> int:
    """A number in [0, 2**64) that depends on the name only, evenly spread."""
    return int.from_bytes(hashlib.sha256(b"split:" + name.encode("utf-8", "surrogateescape")).digest()[:8], "big")


def split_documents(documents: tuple[HashedDocument, ...], validation_fraction: float) -> Split:
    """Hold out the documents whose key is below `validation_fraction` of the range, whatever their order.

    Neither side is left empty: the document with the lowest key is always held out, that with the highest never.
    Raises `InputError` for fewer than two documents.
    """
    if len(documents) < 2:
        raise InputError(
            f"corpus: {len(documents)} document with text found, at least 2 are needed: "
            "whole files are held out for validation; cut the text into several files"
        )
    by_key = sorted(documents, key=lambda entry: (split_key(entry.name), entry.name))
    limit = int(validation_fraction * 2**64)
    num_below = sum(split_key(entry.name) < limit for entry in by_key)
    num_held_out = min(max(num_below, 1), len(by_key) - 1)
    train = sorted(by_key[num_held_out:], key=lambda entry: entry.name)
    return Split(tuple(train), tuple(by_key[:num_held_out]))
