"""What a document is, and whether it is trained on or held out.

The split is decided by the document's name alone, so that neither the order of listing, nor the machine, nor a new
file beside it moves a document from one side to the other; documents that share content are decided together, by the first
name among them. Where names come from is each source's business.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from trainers.contract.errors import InputError


class MissingTextError(InputError):
    """What the user named is not on this machine; another, where the sweep will run, may have it."""


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


def split_documents(
    documents: tuple[HashedDocument, ...], validation_fraction: float, groups: Mapping[str, str]
) -> Split:
    """Hold out the documents whose key is below `validation_fraction` of the range, whatever their order.

    `groups` are the names of documents that share content, each with the first name among them, which decides for all.
    Neither side is left empty: the group with the lowest key is always held out, that with the highest never.
    Raises `InputError` for fewer than two documents that share nothing.
    """

    def key(entry: HashedDocument) -> int:
        return split_key(groups.get(entry.name, entry.name))

    keys = sorted({key(entry) for entry in documents})
    if len(keys) < 2:
        like = f", of {len(documents)} that share their content" if len(documents) > 1 else ""
        raise InputError(
            f"corpus: {len(keys)} document with text found{like}, at least 2 are needed: "
            "whole files are held out for validation; cut the text into several files"
        )
    limit = int(validation_fraction * 2**64)
    num_held_out = min(max(sum(one < limit for one in keys), 1), len(keys) - 1)
    held_out = set(keys[:num_held_out])
    train = sorted((entry for entry in documents if key(entry) not in held_out), key=lambda entry: entry.name)
    # In the order of their own keys, so that the beginning of the held-out text is a mixture of unlike documents.
    validation = sorted(
        (entry for entry in documents if key(entry) in held_out), key=lambda entry: (split_key(entry.name), entry.name)
    )
    return Split(tuple(train), tuple(validation))
