"""Data sets and tokenizers of the Hugging Face hub, by name or as a folder in the hub's layout.

The only file that asks the hub. Whatever goes wrong there (no package, no network, no such name, no access) is one line that
says what may be named instead. A name stands for what its revision is when the text is prepared: the commit is written down.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from trainers.contract.errors import InputError, UserError
from trainers.data.request import PartRequest
from trainers.data.streamed.readers import Origin, column_texts

ROWS_AT_ONCE = 1_024
TIMEOUT_SECONDS = 20
INSTEAD_OF_DATA = "or read local files: {source: local, paths: [data/**/*.parquet]}"
INSTEAD_OF_TOKENIZER = "or name a local one: {kind: file, path: FOLDER or tokenizer.json}"
CARD = "README.md"


class HubReader:
    """A data set that is streamed, a unit for each of its files. `revision` is the commit to read; without one it is asked
    for. Raises `UserError` in one line where the hub does not give it."""

    def __init__(self, part: PartRequest, revision: str | None = None) -> None:
        self._field, self._name = part.field, str(part.name)
        with _told(f"corpus.source: {self._name}", INSTEAD_OF_DATA):
            import datasets

            datasets.disable_progress_bars()
            licence = None
            if local := _folder(part):
                licence = _licence_of(local)
            else:
                info = _api().dataset_info(self._name, revision=revision or part.revision, timeout=TIMEOUT_SECONDS)
                revision, licence = info.sha, _first(getattr(info.card_data, "license", None))
            self._data = datasets.load_dataset(
                str(local or self._name), part.config, split=part.split, revision=revision, streaming=True
            )
        config = f" ({part.config})" if part.config else ""
        name = local.resolve().name if local else self._name
        self.origin = Origin(f"{name}{config}, {part.split}", revision, licence)

    @property
    def units(self) -> int:
        """Number of files."""
        return int(self._data.num_shards)

    def texts(self, unit: int, skip: int) -> Iterator[str]:
        """As `Reader` has it."""
        rows = self._data.shard(num_shards=self.units, index=unit).skip(skip).with_format("arrow")
        try:
            with _told(f"corpus.source: {self._name}", INSTEAD_OF_DATA):
                for table in rows.iter(batch_size=ROWS_AT_ONCE):
                    yield from self._column(table)
        finally:
            # What was begun and not read to its end reads ahead in threads, which abort a process that ends meanwhile
            # (apache/arrow #45214, huggingface/datasets #7566).
            gc.collect()

    def _column(self, table: Any) -> Iterator[str]:
        if self._field not in table.column_names:
            columns = ", ".join(table.column_names)
            raise InputError(f"corpus.field: {self._field!r} is not a column of {self._name}; it has {columns}")
        for chunk in table.column(self._field).chunks:
            yield from column_texts(chunk, self._field, self._name)


def tokenizer_folder(name: str, revision: str | None) -> Path:
    """A folder with the files of the hub's tokenizer `name`, downloaded where they are not in the hub's cache.

    Raises `UserError` in one line where the hub does not give them.
    """
    with _told(f"tokenizer.name: {name}", INSTEAD_OF_TOKENIZER):
        from huggingface_hub import snapshot_download

        patterns = ["tokenizer.json", "tokenizer_config.json"]
        try:
            commit = _api().model_info(name, revision=revision, timeout=TIMEOUT_SECONDS).sha
        except Exception:
            with suppress(Exception):  # what was downloaded once needs no network
                return Path(snapshot_download(name, revision=revision, allow_patterns=patterns, local_files_only=True))
            raise
        return Path(snapshot_download(name, revision=commit, allow_patterns=patterns))


def _folder(part: PartRequest) -> Path | None:
    """The folder that a part's `name` means; None for a name of the hub."""
    path = Path(str(part.name)).expanduser()
    return path if path.is_dir() else None


def _api() -> Any:
    from huggingface_hub import HfApi

    return HfApi()


def _first(licence: Any) -> str | None:
    """A card may name several."""
    return ", ".join(map(str, licence)) if isinstance(licence, list) else licence


def _licence_of(folder: Path) -> str | None:
    from huggingface_hub import DatasetCard

    card = folder / CARD
    return _first(DatasetCard.load(card).data.license) if card.is_file() else None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it came of."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


@contextmanager
def _told(what: str, instead: str) -> Iterator[None]:
    """Whatever the hub's libraries raise becomes one line: they raise errors of their own, of their transport and of Python."""
    try:
        yield
    except UserError:
        raise
    except ModuleNotFoundError as error:
        raise UserError(f"{what}: needs the package {error.name}: pip install 'tst-sweeper[hub]'; {instead}") from None
    except Exception as error:
        said = " ".join(str(error).split())[:200] or type(error).__name__
        if any("Gated" in kind.__name__ for each in _chain(error) for kind in type(each).__mro__):
            said = "it is gated: accept its terms on the hub and log in (HF_TOKEN)"
        raise UserError(f"{what} cannot be read ({said}); {instead}") from None
