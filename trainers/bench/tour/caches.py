"""Compiled kernels of a tour's parts, as one archive that travels: unpacked before them, packed after each.

In a folder of their own, where the user has set none: thousands of small files are no part of the results. A command that was
killed leaves the folder to the next one, which takes it up.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

CACHES = "caches.tar.gz"
FOLDER = ".caches"
MOST_CACHE_BYTES = 15 << 20
"""An archive above this is not kept: it is there to travel, and compiling again costs a minute."""


@contextmanager
def compiled_kernels(out: Path, resume: Path | None) -> Iterator[Callable[[], None]]:
    """Kernels for this command's parts: from `resume`'s archive, and into one in `out` when what is yielded is called, and at
    the end, however it comes."""
    folder = out.resolve() / FOLDER
    folder.mkdir(exist_ok=True)
    if resume is not None and (resume / CACHES).exists():
        with contextlib.suppress(OSError, tarfile.TarError), tarfile.open(resume / CACHES) as archive:
            archive.extractall(folder, filter="data")
    packed: list[frozenset[tuple[str, int]]] = []

    def pack() -> None:
        held = _held(folder)
        if [held] != packed:
            packed[:] = [held]
            with contextlib.suppress(
                OSError
            ):  # a full disk: compiling again costs less than the figures that are there
                _pack(folder, out / CACHES)

    try:
        with _environment(folder):
            yield pack
    finally:
        pack()
        shutil.rmtree(folder, ignore_errors=True)


def _held(folder: Path) -> frozenset[tuple[str, int]]:
    return frozenset((str(file), file.stat().st_size) for file in folder.rglob("*") if file.is_file())


def _pack(folder: Path, path: Path) -> None:
    temporary = path.with_name(f".{path.name}")
    with tarfile.open(temporary, "w:gz") as archive:
        archive.add(folder, arcname=".")
    if temporary.stat().st_size > MOST_CACHE_BYTES:
        temporary.unlink()
    else:
        temporary.replace(path)


@contextmanager
def _environment(folder: Path) -> Iterator[None]:
    names = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}
    ours = {variable: str(folder / name) for variable, name in names.items() if variable not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for variable in ours:
            os.environ.pop(variable, None)
