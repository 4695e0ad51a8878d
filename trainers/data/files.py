"""The reader's own files, named by path, directory or glob, and what is in them where that is UTF-8 text: a document each.

A file is called by its path below the directory (or below the fixed part of the glob) that was given, so that the
same files give the same corpus wherever they lie. Relative paths start at the working directory. What ends in `.gz` or
`.zst` is read decompressed.
"""

from __future__ import annotations

import glob
import gzip
import io
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO, cast

from trainers.contract.errors import InputError
from trainers.contract.faults import LONGEST_SHOWN
from trainers.data.documents import Document, MissingTextError

_ROOT = Path("/")
_RECURSIVE = "**"


EVERYTHING = "is everything on this machine; name a folder"


def is_everything(given: str) -> bool:
    """Whether one entry of `paths` means the whole machine, which nobody wants walked."""
    path = Path(given).expanduser()
    return path.resolve() == _ROOT or (_RECURSIVE in path.parts and _fixed_part(path).resolve() == _ROOT)


def documents(paths: tuple[str, ...]) -> tuple[Document, ...]:
    """The files that `paths` name, in the order of document names. Raises `InputError` like `listing`."""
    return tuple(Document(name, partial(content_of, path)) for name, path in listing(paths).items())


def listing(paths: tuple[str, ...]) -> Mapping[str, Path]:
    """The files that `paths` name, by their names and in the order of these; a file that is named twice counts once.

    Raises `MissingTextError` in one line for a path that matches nothing, `InputError` for two files of one name.
    """
    found: dict[str, Path] = {}
    seen: set[Path] = set()
    for given in paths:
        for name, path in _matches(given):
            resolved = path.resolve()
            if resolved in seen:
                continue
            if name in found:
                raise InputError(
                    f"corpus.paths: {found[name]} and {path} are both called {name}; "
                    "give the directory that holds both instead"
                )
            seen.add(resolved)
            found[name] = path
    return {name: found[name] for name in sorted(found)}


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The file, to read from its beginning, decompressed where its name says so.

    Raises `InputError` naming a file that is damaged, or that cannot be read.
    """
    with path.open("rb") as file:
        try:
            match path.suffix:
                case ".gz":
                    yield cast(BinaryIO, gzip.GzipFile(fileobj=file))
                case ".zst":
                    from pyarrow import CompressedInputStream, PythonFile

                    yield cast(BinaryIO, io.BufferedReader(CompressedInputStream(PythonFile(file), "zstd")))
                case _:
                    yield file
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise InputError(f"corpus.paths: {path} is damaged ({error})") from None
        except OSError as error:
            if error.errno is None:  # pyarrow's word for a frame that it cannot decompress
                raise InputError(f"corpus.paths: {path} is damaged ({' '.join(str(error).split())})") from None
            raise InputError(f"corpus.paths: {path} cannot be read ({error.strerror})") from None


def content_of(path: Path) -> bytes:
    """All of a file, decompressed."""
    with opened(path) as file:
        return file.read()


def label(paths: tuple[str, ...], what: str = "text files") -> str:
    """What a report calls this corpus."""
    names = [_called(path) for path in paths]
    return f"{what} {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"


def _called(given: str) -> str:
    """The last name of a path; of a glob the folder that it looks in and what it looks for there."""
    path = Path(given)
    if not glob.has_magic(given):
        return path.name or given
    fixed = _fixed_part(path)
    return str(Path(fixed.name) / path.relative_to(fixed))


def _matches(given: str) -> list[tuple[str, Path]]:
    """Pairs of document name and path that one entry of `paths` stands for."""
    path = Path(given).expanduser()
    try:
        if path.is_file():
            return [(path.name, path)]
    except OSError as error:  # a name that no file system takes, a folder that is not ours to enter
        raise InputError(f"corpus.paths: {given[:LONGEST_SHOWN]} cannot be read ({error.strerror})") from None
    if is_everything(given):
        raise InputError(f"corpus.paths: {given} {EVERYTHING}")
    if path.is_dir():
        root, files = path, _files_below(path)
    elif glob.has_magic(given):
        root = _fixed_part(path)
        files = [Path(match) for match in glob.glob(str(path), recursive=True)]
        files = [match for match in files if match.is_file()]
    else:
        raise MissingTextError(f"corpus.paths: {given} does not exist (looked for from {Path.cwd()})")
    if not files:
        raise MissingTextError(f"corpus.paths: {given} holds no file; name text files, a directory of them or a glob")
    return [(file.relative_to(root).as_posix(), file) for file in sorted(files)]


def _files_below(root: Path) -> list[Path]:
    """All regular files that are not hidden, directories reached by links left out."""
    found: list[Path] = []
    for directory, subdirectories, names in os.walk(root):
        subdirectories[:] = [name for name in subdirectories if not name.startswith(".")]
        found += [Path(directory, name) for name in names if not name.startswith(".")]
    return [path for path in found if path.is_file()]


def _fixed_part(pattern: Path) -> Path:
    """The directory above the first part with a wildcard."""
    parts = pattern.parts
    first = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    return Path(*parts[:first])
