"""What records local files hold, where a reader goes on, and what it says of files that cannot be read."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from tests.support.corpora import compressed, write_json_lines, write_parquet
from trainers.contract.errors import InputError
from trainers.data.request import PartRequest
from trainers.data.streamed import readers
from trainers.data.streamed.readers import LocalReader
from trainers.data.tokenizer import SEPARATOR

TEXTS = [f"text number {index}" for index in range(200)]


def reader(*paths: Path, field: str = "text") -> LocalReader:
    return LocalReader(PartRequest("local", paths=tuple(map(str, paths)), field=field))


def everything(made: LocalReader) -> list[str]:
    return [text for unit in range(made.units) for text in made.texts(unit, 0)]


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.jsonl.gz", "a.ndjson.zst", "a.json"])
def test_a_reader_gives_every_record_and_goes_on_from_any(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write = write_parquet if name.endswith("parquet") else write_json_lines
    write(path, [*TEXTS, None, ""], field="content")
    made = reader(path, field="content")
    assert made.units == 1
    for skip in (0, 1, 63, 64, 65, 128, 201, 202):
        assert list(made.texts(0, skip)) == [*TEXTS, "", ""][skip:]


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.text.zst"])
def test_a_text_file_is_a_document_or_several(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(compressed("one\nzwei\n<|endoftext|>thr\u00e9e".encode(), path.suffix))
    assert list(reader(path).texts(0, 0)) == ["one\nzwei\n", "thr\u00e9e"]
    assert list(reader(path).texts(0, 1)) == ["thr\u00e9e"]


@pytest.mark.parametrize("at_once", [1, 5, 16, 17, 4_096])
@pytest.mark.parametrize(
    "text", ["", "a", "<|endoftext|>", "a<|endoftext|>", "a<|endof<|endoftext|><|endoftext|>\u00e9\u00e9"]
)
def test_a_text_file_is_the_same_however_little_of_it_is_read_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, at_once: int
) -> None:
    monkeypatch.setattr(readers, "TEXT_AT_ONCE", at_once)
    path = tmp_path / "a.txt"
    path.write_text(text, encoding="utf-8")
    assert list(reader(path).texts(0, 0)) == text.split(SEPARATOR)


def test_a_text_file_is_never_in_memory_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    documents, size = 400, 1 << 17
    path.write_text(SEPARATOR.join(["x" * size] * documents))
    tracemalloc.start()
    try:
        assert sum(map(len, reader(path).texts(0, 0))) == documents * size
        assert tracemalloc.get_traced_memory()[1] < documents * size / 4
    finally:
        tracemalloc.stop()


def test_a_text_file_without_separators_is_refused_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "MOST_TEXT_BYTES", 3 << 20)
    path = tmp_path / "a.txt"
    path.write_text(f"short{SEPARATOR}{'x' * (5 << 20)}")
    texts = reader(path).texts(0, 0)
    assert next(texts) == "short"
    with pytest.raises(InputError, match=r"a\.txt has a document of more than 3 MB; write <\|endoftext\|> between"):
        next(texts)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("dclm/**/*.parquet", "local files dclm/**/*.parquet"),
        ("{}/fineweb-edu/data/*/a.parquet", "local files data/*/a.parquet"),
        ("*.parquet", "local files *.parquet"),
        ("dclm", "local files dclm"),
    ],
)
def test_parts_of_a_mixture_are_told_apart_by_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, name: str
) -> None:
    """And by nothing that another machine would not have."""
    monkeypatch.chdir(tmp_path)
    for path in ("dclm/global/a.parquet", "fineweb-edu/data/b/a.parquet", "a.parquet"):
        write_parquet(tmp_path / path, TEXTS)
    assert reader(Path(given.format(tmp_path))).origin.name == name


def test_files_come_in_the_order_of_their_names_however_they_are_given(tmp_path: Path) -> None:
    for index, name in enumerate(("b/1.parquet", "a/2.parquet", "a/1.parquet")):
        write_parquet(tmp_path / name, [f"{index}"])
    assert everything(reader(tmp_path)) == everything(reader(Path(f"{tmp_path}/**/*.parquet"))) == ["2", "1", "0"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": 3}\n', r"a\.jsonl:2: the field 'text' is no text$"),
        ("a.jsonl", b'{"body": "x"}\n', r"a\.jsonl:1: no field 'text'; corpus\.field may be body$"),
        ("a.jsonl", b'{"text": "x"}\n\n{"te', r"a\.jsonl:3: not a JSON object: "),
        ("a.json", b'["x"]', r"a\.json:1: not a JSON object; every line"),
        ("a.jsonl.gz", b"no gzip", r"a\.jsonl\.gz is damaged \("),
        ("a.jsonl.gz", compressed(b'{"text": "xyzw"}\n' * 99, ".gz")[:-9], r"a\.jsonl\.gz is damaged \("),
        ("a.jsonl.zst", b"no zstd at all", r"a\.jsonl\.zst is damaged \("),
        ("a.parquet", b"no parquet", r"a\.parquet cannot be read as Parquet \("),
        ("a.txt", b"\xff\xfe", r"a\.txt is not UTF-8 text \(byte 0\)$"),
        ("a.txt", b"one<|endoftext|>\xff", r"a\.txt is not UTF-8 text \(byte 16\)$"),
        (
            "a.csv",
            b"a,b",
            r"a\.csv is none of \.parquet, \.jsonl, .*name the files by a glob such as data/\*\*/\*\.parquet$",
        ),
    ],
    ids=range(11),  # compressed bytes hold the time, and ids must be the same in every process
)
def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        everything(reader(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_a_page_that_cannot_be_decompressed_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_parquet(path, TEXTS * 500)
    whole = path.read_bytes()
    path.write_bytes(whole[:20] + bytes(len(whole) // 2) + whole[20 + len(whole) // 2 :])
    with pytest.raises(InputError, match=r"a\.parquet cannot be read as Parquet \(") as caught:
        everything(reader(path))
    assert "\n" not in str(caught.value)


def test_a_column_that_is_not_there_or_no_text_is_named(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", TEXTS)
    with pytest.raises(InputError, match=r"^corpus\.field: 'body' is not a column of .*a\.parquet; it has id, text$"):
        everything(reader(tmp_path / "a.parquet", field="body"))
    with pytest.raises(InputError, match=r"^corpus\.field: 'id' of .*a\.parquet holds int64 instead of text$"):
        everything(reader(tmp_path / "a.parquet", field="id"))


def test_a_column_whose_bytes_were_changed_is_damage_that_names_its_file(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(
        pa.table({"text": ["plain words alone"]}),
        path,
        compression="none",
        use_dictionary=False,
        write_statistics=False,
    )
    whole = path.read_bytes()
    at = whole.index(b"words alone")
    path.write_bytes(whole[:at] + b"\xff" + whole[at + 1 :])
    with pytest.raises(InputError, match=r"a\.parquet is damaged: invalid start byte in the column 'text'$"):
        everything(reader(path))


def test_a_place_without_files_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^corpus\.paths: .*nowhere does not exist"):
        reader(tmp_path / "nowhere")
