"""Records of local files, one after the other: Parquet, JSON Lines and text, compressed or not.

A reader counts what it reads in units (files) and rows, so that a place in it can be written down and gone on from. What
becomes of a text is `build`'s.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePath
from typing import Any, BinaryIO, Protocol

from trainers.contract.errors import InputError
from trainers.contract.reading import json_value
from trainers.data import files
from trainers.data.request import PartRequest
from trainers.data.tokenizer import SEPARATOR

COMPRESSED = (".gz", ".zst")
PARQUET, JSON_LINES, TEXT = (".parquet",), (".jsonl", ".ndjson", ".json"), (".txt", ".text")
ROWS_AT_ONCE = 1_024
TEXT_AT_ONCE = 1 << 20
MOST_TEXT_BYTES = 32 << 20
"""Of a document in a text file: a file without separators is one, and its tokens take a hundred times its size to find."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a part's text is from: `name` without anything of this machine, the hub's commit, what its card says of
    the licence; None where there is none to be known."""

    name: str
    revision: str | None = None
    licence: str | None = None


class Reader(Protocol):
    """A part's records. Two readers of one origin give the same records in the same order."""

    @property
    def origin(self) -> Origin:
        """Where the text is from."""
        ...

    @property
    def units(self) -> int:
        """Number of pieces that can be read from their beginnings."""
        ...

    def texts(self, unit: int, skip: int) -> Iterator[str]:
        """The text of every record of a unit but the first `skip`; an empty one where the record has none."""
        ...


class LocalReader:
    """The files of `part.paths`, a unit each, in the order of their names.

    Raises `InputError` where they are not there, or of a kind that nobody reads.
    """

    def __init__(self, part: PartRequest) -> None:
        self._field = part.field
        self._files = tuple(files.listing(part.paths).items())
        for _, path in self._files:
            _kind(path)
        self.origin = Origin(files.label(part.paths, "local files"))

    @property
    def units(self) -> int:
        """Number of files."""
        return len(self._files)

    def texts(self, unit: int, skip: int) -> Iterator[str]:
        """As `Reader` has it; a separator written out in a text file parts it. Raises `InputError` naming the file, and the
        line where it has lines."""
        path = self._files[unit][1]
        match _kind(path):
            case ".parquet":
                yield from parquet_texts(path, self._field, skip)
            case ".jsonl":
                yield from _json_texts(path, self._field, skip)
            case _:
                yield from _separated_texts(path, skip)


def stamps(paths: tuple[str, ...]) -> list[list[Any]]:
    """What tells one state of local files from another without reading them: name, size in bytes, time of change."""
    found = []
    for name, path in files.listing(paths).items():
        state = path.stat()
        found.append([name, state.st_size, state.st_mtime_ns])
    return found


def _kind(path: Path) -> str:
    """The first name of the kind that a file is of."""
    name = PurePath(path.name.lower())
    suffix = PurePath(name.stem).suffix if name.suffix in COMPRESSED else name.suffix
    for kind in (PARQUET, JSON_LINES, TEXT):
        if suffix in kind:
            return kind[0]
    known = ", ".join((*PARQUET, *JSON_LINES, *TEXT))
    raise InputError(
        f"corpus.paths: {path} is none of {known} (these also with {' or '.join(COMPRESSED)}); "
        "name the files by a glob such as data/**/*.parquet"
    )


def parquet_texts(path: Path, field: str, skip: int) -> Iterator[str]:
    """A column of a Parquet file from row `skip` on."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if field not in names:
                raise InputError(f"corpus.field: {field!r} is not a column of {path}; it has {', '.join(names)}")
            # What was read of earlier groups of rows is not read again.
            first = 0
            while first < file.num_row_groups and skip >= (rows := file.metadata.row_group(first).num_rows):
                skip, first = skip - rows, first + 1
            groups = list(range(first, file.num_row_groups))
            for batch in file.iter_batches(ROWS_AT_ONCE, row_groups=groups, columns=[field]):
                yield from column_texts(batch.column(0).slice(skip), field, str(path))
                skip = max(0, skip - len(batch))
    except (pa.ArrowException, OSError) as error:  # the latter also for pages that cannot be decompressed
        raise InputError(f"corpus.paths: {path} cannot be read as Parquet ({' '.join(str(error).split())})") from None


def column_texts(column: Any, field: str, where: str) -> Iterator[str]:
    """The texts of an Arrow column. Raises `InputError` where it holds something else."""
    from pyarrow import types

    if not (types.is_string(column.type) or types.is_large_string(column.type) or types.is_null(column.type)):
        raise InputError(f"corpus.field: {field!r} of {where} holds {column.type} instead of text")
    try:
        texts = column.to_pylist()
    except UnicodeDecodeError as error:  # a damaged page: its lengths or its bytes are not what was written
        raise InputError(f"{where} is damaged: {error.reason} in the column {field!r}") from None
    for text in texts:
        yield text or ""


def _json_texts(path: Path, field: str, skip: int) -> Iterator[str]:
    with files.opened(path) as file:
        for number, line in enumerate(file, 1):
            if number <= skip:
                continue
            if not line.strip():
                yield ""
                continue
            try:
                record = json_value(line, "a JSON object")
            except InputError as error:
                raise InputError(f"{path}:{number}: {error}") from None
            yield text_of(record, field, f"{path}:{number}")


def text_of(record: Any, field: str, where: str) -> str:
    """The text of one record; none counts as empty. Raises `InputError`, naming what there is instead."""
    if not isinstance(record, dict):
        raise InputError(f"{where}: not a JSON object; every line of JSON Lines is one")
    if field not in record:
        raise InputError(f"{where}: no field {field!r}; corpus.field may be {', '.join(map(str, record)) or 'none'}")
    text = record[field]
    if text is None:
        return ""
    if not isinstance(text, str):
        raise InputError(f"{where}: the field {field!r} is no text")
    return text


def _separated_texts(path: Path, skip: int) -> Iterator[str]:
    """The documents of a text file but the first `skip`, of which a few are in memory however large it is."""
    with files.opened(path) as file:
        for offset, content in islice(_separated(file, path), skip, None):
            try:
                yield content.decode("utf-8")
            except UnicodeDecodeError as error:
                raise InputError(f"corpus.paths: {path} is not UTF-8 text (byte {offset + error.start})") from None


def _separated(file: BinaryIO, path: Path) -> Iterator[tuple[int, bytes]]:
    """What stands between separators, and where in the file that begins."""
    offset, rest = 0, b""
    while block := file.read(TEXT_AT_ONCE):
        *whole, rest = (rest + block).split(SEPARATOR.encode())
        for content in whole:
            yield offset, content
            offset += len(content) + len(SEPARATOR)
        if len(rest) > MOST_TEXT_BYTES:
            raise InputError(
                f"corpus.paths: {path} has a document of more than {MOST_TEXT_BYTES >> 20} MB; write {SEPARATOR} between its "
                "documents, or give them as JSON Lines"
            )
    yield offset, rest
