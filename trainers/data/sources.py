"""The places that text can come from, as an explicit table: a source is one file and one line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from trainers.data import files, installed, stdlib
from trainers.data.documents import Document


@dataclass(frozen=True, slots=True)
class Source:
    """`documents` lists what the paths stand for, sorted by name; `label` is for people; both take the paths."""

    name: str
    takes_paths: bool
    documents: Callable[[tuple[str, ...]], tuple[Document, ...]]
    label: Callable[[tuple[str, ...]], str]


SOURCES: dict[str, Source] = {
    "stdlib": Source("stdlib", False, stdlib.documents, stdlib.label),
    "installed": Source("installed", False, installed.documents, installed.label),
    "files": Source("files", True, files.documents, files.label),
    # Data sets of the Hugging Face hub get their line here, and a file huggingface.py beside the others.
}
