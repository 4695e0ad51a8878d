"""Small corpora in the layouts in which large ones come: Parquet, JSON Lines, a repository of the hub, a tokenizer."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from trainers.data import stdlib
from trainers.data.request import CorpusRequest, PartRequest
from trainers.data.tokenizer import SEPARATOR, train_tokenizer

VOCABULARY = 512


@cache
def documents(pattern: str = "[ehjl]*/*.py") -> tuple[str, ...]:
    """Some thousands of short texts, each another: pieces of the standard library, of the files that `pattern` names."""
    found: dict[str, None] = {}
    for path in sorted(stdlib.library_root().glob(pattern)):
        if path in _sources():
            found |= dict.fromkeys(part.strip() for part in path.read_text(encoding="utf-8").split("\n\n"))
    return tuple(text for text in found if 0 < len(text) < 2_000)


@cache
def _sources() -> frozenset[Path]:
    return frozenset(stdlib.sources_below(stdlib.library_root()))


def write_parquet(path: Path, texts: Sequence[str | None], field: str = "text", rows: int = 64) -> None:
    """A Parquet file with another column beside the text, in groups of `rows`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table({"id": list(range(len(texts))), field: texts}), path, row_group_size=rows)


def write_json_lines(path: Path, texts: Sequence[str | None], field: str = "text") -> None:
    """JSON Lines, compressed as the name says."""
    content = "".join(json.dumps({"id": index, field: text}) + "\n" for index, text in enumerate(texts)).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(compressed(content, path.suffix))


def compressed(content: bytes, suffix: str) -> bytes:
    """As a file of that suffix holds it; two frames or members, since that is allowed."""
    half = len(content) // 2
    parts = (content[:half], content[half:])
    match suffix:
        case ".gz":
            return b"".join(map(gzip.compress, parts))
        case ".zst":
            codec = pa.Codec("zstd")
            return b"".join(codec.compress(part, asbytes=True) for part in parts)
        case _:
            return content


def write_repository(folder: Path, texts: Sequence[str], files: int = 3, field: str = "text") -> Path:
    """A data set as the hub has it: a card with configurations and a licence, and Parquet files."""
    for index in range(files):
        write_parquet(folder / "data" / f"train-{index:05d}-of-{files:05d}.parquet", texts[index::files], field)
    write_parquet(folder / "sample" / "10BT" / "000_00000.parquet", texts[:40], field)
    (folder / "README.md").write_text(
        "---\nlicense: odc-by\nconfigs:\n"
        "- config_name: default\n  data_files:\n  - split: train\n    path: data/*\n"
        "- config_name: sample-10BT\n  data_files:\n  - split: train\n    path: sample/10BT/*\n"
        "---\n# A data set\n",
        encoding="utf-8",
    )
    return folder


@cache
def tokenizer_json(vocab_size: int = VOCABULARY) -> str:
    """A byte-level BPE of `vocab_size` tokens."""
    return str(train_tokenizer(documents(), vocab_size).to_str())


def write_tokenizer(folder: Path, vocab_size: int = VOCABULARY, **settings: object) -> Path:
    """A tokenizer's folder as the hub has it, with its settings."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer_json(vocab_size), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": SEPARATOR, **settings}), encoding="utf-8")
    return folder


def local_request(*paths: Path, tokens: int | None = None, fraction: float = 0.1, **more: object) -> CorpusRequest:
    """Text of these files in a vocabulary that is trained on it."""
    part = PartRequest("local", paths=tuple(map(str, paths)))
    return CorpusRequest(
        source="local", parts=(part,), tokens=tokens, validation_fraction=fraction, vocab_size=VOCABULARY, **more
    )  # type: ignore[arg-type]
