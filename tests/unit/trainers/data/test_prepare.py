"""Preparing a corpus: what is on disk, when it is made again, and what is never used."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from tests.support.corpora import compressed, tokenizer_json
from trainers.data import stdlib
from trainers.data.documents import hash_document, split_documents
from trainers.data.manifest import BrokenCorpus, read_manifest
from trainers.data.prepare import find_prepared, prepare
from trainers.data.request import CorpusRequest
from trainers.data.shards import PreparedCorpus, open_corpus
from trainers.data.sources import SOURCES

WHOLE_DOCUMENTS = 1 << 40
"""Tokens to a piece: no document is cut."""
PACKAGES = ("json", "email", "html")
PREPARE_IN_CHILD = """
import sys
from pathlib import Path
from trainers.data.prepare import prepare
from trainers.data.request import CorpusRequest
print(prepare(CorpusRequest("files", (sys.argv[1],), 0.1), Path(sys.argv[2])).fingerprint)
"""


def _copy_texts(target: Path) -> Path:
    for package in PACKAGES:
        for path in sorted((stdlib.library_root() / package).glob("*.py")):
            if path.stat().st_size:
                (target / package).mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target / package / path.name)
    return target


def _request(texts: Path, vocab_size: int = 512) -> CorpusRequest:
    return CorpusRequest("files", (str(texts),), 0.1, vocab_size)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[CorpusRequest, Path]:
    """A request and the cache that holds its corpus; tests that alter something copy it first."""
    root = tmp_path_factory.mktemp("prepared")
    request = _request(_copy_texts(root / "texts"))
    prepare(request, root / "cache")
    return request, root / "cache"


@pytest.fixture
def corpus(prepared: tuple[CorpusRequest, Path]) -> PreparedCorpus:
    return prepare(*prepared)


@pytest.fixture
def own(prepared: tuple[CorpusRequest, Path], tmp_path: Path) -> tuple[CorpusRequest, Path, Path]:
    """Request, cache and corpus directory of a copy that a test may damage."""
    request, cache = prepared
    shutil.copytree(cache, tmp_path / "cache")
    return request, tmp_path / "cache", tmp_path / "cache" / prepare(request, cache).directory.name


def _held_out(corpus: PreparedCorpus) -> np.ndarray:
    """The validation split as it lies on disk: whole documents, one after the other."""
    return np.fromfile(corpus.directory / "validation.tokens", dtype=corpus.token_dtype).astype(np.int64)


def _documents(tokens: np.ndarray, separator: int) -> list[list[int]]:
    ends = np.flatnonzero(tokens == separator)
    return [part[part != separator].tolist() for part in np.split(tokens, ends + 1)][:-1]


def _child(code: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def _output(child: subprocess.Popen[str]) -> str:
    out, errors = child.communicate(timeout=120)
    assert (child.returncode, errors) == (0, "")
    return out.strip()


def test_the_tokens_are_the_text(prepared: tuple[CorpusRequest, Path], corpus: PreparedCorpus) -> None:
    listed = SOURCES["files"].documents(prepared[0].paths)
    split = split_documents(tuple(hash_document(document) for document in listed), 0.1, {})
    tokenizer = Tokenizer.from_file(str(corpus.directory / "tokenizer.json"))
    epoch = corpus.stream(0, piece_tokens=WHOLE_DOCUMENTS).read(0, corpus.train_tokens)
    train_texts = [tokenizer.decode(tokens) for tokens in _documents(epoch, corpus.separator)]
    assert sorted(train_texts) == sorted(entry.text() for entry in split.train)
    held_out = _held_out(corpus)
    assert [tokenizer.decode(tokens) for tokens in _documents(held_out, corpus.separator)] == [
        entry.text() for entry in split.validation
    ]
    assert np.array_equal(np.sort(corpus.validation(corpus.validation_tokens)), np.sort(held_out))


def test_the_counts_hold_every_token_and_a_separator_a_document(corpus: PreparedCorpus) -> None:
    manifest = read_manifest(corpus.directory)
    epoch = corpus.stream(5, piece_tokens=WHOLE_DOCUMENTS).read(0, corpus.train_tokens)
    tokens_alone = sum(map(len, _documents(epoch, corpus.separator)))
    assert corpus.train_tokens == tokens_alone + manifest.train_documents
    assert int((epoch == corpus.separator).sum()) == manifest.train_documents
    held_out = corpus.validation(corpus.validation_tokens)
    assert int((held_out == corpus.separator).sum()) == manifest.validation_documents
    tokenizer = Tokenizer.from_file(str(corpus.directory / "tokenizer.json"))
    text = "".join(tokenizer.decode(tokens) for tokens in _documents(_held_out(corpus), corpus.separator))
    assert corpus.bytes_per_token == pytest.approx(len(text.encode()) / corpus.validation_tokens, abs=1e-6)
    assert corpus.num_documents == manifest.train_documents + manifest.validation_documents
    assert 0 <= epoch.min() < epoch.max() < corpus.vocab_size == 512
    (source,) = manifest.sources
    assert (source.documents, source.tokens) == (corpus.num_documents, corpus.train_tokens)


def test_both_ways_of_reading_agree_on_real_text(corpus: PreparedCorpus) -> None:
    whole, gathered = corpus.stream(7), corpus.stream(7, materialise_bytes=0)
    for position in (0, 1, 999, corpus.train_tokens - 700, 3 * corpus.train_tokens - 1):
        assert np.array_equal(whole.read(position, 2_000), gathered.read(position, 2_000))


def test_seeds_read_the_same_text_in_another_order(corpus: PreparedCorpus) -> None:
    first, second = (corpus.stream(seed).read(0, corpus.train_tokens) for seed in (0, 1))
    assert not np.array_equal(first, second)
    assert np.array_equal(np.bincount(first), np.bincount(second))


def test_validation_tokens_are_a_prefix_and_their_number_is_said(corpus: PreparedCorpus) -> None:
    everything = corpus.validation(corpus.validation_tokens)
    assert everything.dtype == np.int64
    assert np.array_equal(corpus.validation(1_000), everything[:1_000])
    with pytest.raises(ValueError, match=rf"asked for, the validation split has {corpus.validation_tokens}; ask for"):
        corpus.validation(corpus.validation_tokens + 1)


def test_a_corpus_can_be_sent_to_another_process(corpus: PreparedCorpus) -> None:
    sent = pickle.loads(pickle.dumps(corpus))
    assert sent == corpus == open_corpus(corpus.directory)
    assert np.array_equal(sent.stream(1).read(10, 50), corpus.stream(1).read(10, 50))


def test_unchanged_text_is_no_work(prepared: tuple[CorpusRequest, Path], corpus: PreparedCorpus) -> None:
    request, cache = prepared
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*")}
    said: list[str] = []
    assert prepare(request, cache, said.append) == corpus
    assert find_prepared(request, cache) == read_manifest(corpus.directory)
    assert said == []
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*")} == before


def test_nothing_is_found_or_written_before_preparing(prepared: tuple[CorpusRequest, Path], tmp_path: Path) -> None:
    request, cache = prepared
    assert find_prepared(request, tmp_path / "cache") is None
    assert find_prepared(replace(request, vocab_size=600), cache) is None
    assert find_prepared(replace(request, validation_fraction=0.2), cache) is None
    assert not (tmp_path / "cache").exists()


def test_the_fingerprint_does_not_know_the_place(corpus: PreparedCorpus, tmp_path: Path) -> None:
    moved = _copy_texts(tmp_path / "far" / "away")
    again = prepare(CorpusRequest("files", (f"{moved}/**/*.py",), 0.1, 512), tmp_path / "cache")
    assert again.fingerprint == corpus.fingerprint
    assert again.tokenizer_fingerprint == corpus.tokenizer_fingerprint
    assert read_manifest(again.directory).files == read_manifest(corpus.directory).files


def test_an_edited_or_renamed_file_is_another_corpus(corpus: PreparedCorpus, tmp_path: Path) -> None:
    texts = _copy_texts(tmp_path / "texts")
    cache = tmp_path / "cache"
    os.utime(texts / "json/decoder.py", ns=(1, 1))
    fingerprints = [prepare(_request(texts), cache).fingerprint]
    assert fingerprints == [corpus.fingerprint]
    with (texts / "json/decoder.py").open("a") as file:
        file.write("# one more line\n")
    assert find_prepared(_request(texts), cache) is None
    fingerprints.append(prepare(_request(texts), cache).fingerprint)
    (texts / "json/decoder.py").rename(texts / "json/reader.py")
    fingerprints.append(prepare(_request(texts), cache).fingerprint)
    assert len(set(fingerprints)) == 3


def test_the_tokenizer_never_sees_held_out_text(corpus: PreparedCorpus, tmp_path: Path) -> None:
    texts = _copy_texts(tmp_path / "texts")
    listed = SOURCES["files"].documents((str(texts),))
    split = split_documents(tuple(hash_document(document) for document in listed), 0.1, {})
    (texts / split.validation[0].name).write_text("zyxwv zyxwv zyxwv\n" * 5_000)
    again = prepare(_request(texts), tmp_path / "cache")
    assert again.tokenizer_fingerprint == corpus.tokenizer_fingerprint
    assert again.fingerprint != corpus.fingerprint
    (texts / split.train[0].name).write_text("zyxwv zyxwv zyxwv\n" * 5_000)
    assert prepare(_request(texts), tmp_path / "cache").tokenizer_fingerprint != corpus.tokenizer_fingerprint


def test_threads_and_hash_seeds_change_nothing(
    prepared: tuple[CorpusRequest, Path], corpus: PreparedCorpus, tmp_path: Path
) -> None:
    for index, (threads, hash_seed) in enumerate((("1", "1"), ("3", "2"))):
        cache = tmp_path / str(index)
        child = _child(
            PREPARE_IN_CHILD, prepared[0].paths[0], str(cache), RAYON_NUM_THREADS=threads, PYTHONHASHSEED=hash_seed
        )
        assert _output(child) == corpus.fingerprint
        assert read_manifest(cache / corpus.directory.name).files == read_manifest(corpus.directory).files


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [_truncate, _flip, Path.unlink])
@pytest.mark.parametrize(
    "name", ["train.tokens", "train.offsets", "validation.tokens", "validation.offsets", "tokenizer.json"]
)
def test_a_damaged_file_is_noticed_on_opening(own: tuple[CorpusRequest, Path, Path], name: str, damage: object) -> None:
    request, cache, directory = own
    damage(directory / name)  # type: ignore[operator]
    with pytest.raises(BrokenCorpus, match=name.replace(".", r"\.")) as caught:
        open_corpus(directory)
    assert "\n" not in str(caught.value)
    assert find_prepared(request, cache) is None


def test_a_truncated_shard_is_prepared_again(own: tuple[CorpusRequest, Path, Path], corpus: PreparedCorpus) -> None:
    request, cache, directory = own
    _truncate(directory / "train.tokens")
    said: list[str] = []
    again = prepare(request, cache, said.append)
    assert "train.tokens" in said[0]
    assert again.directory == directory
    assert read_manifest(directory) == read_manifest(corpus.directory)
    assert os.listdir(cache) == [directory.name]


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "3", "{}", json.dumps({"format": 1, "files": []})],
)
def test_a_directory_without_a_good_manifest_is_no_corpus(own: tuple[CorpusRequest, Path, Path], content: str) -> None:
    request, cache, directory = own
    (directory / "manifest.json").write_text(content)
    assert find_prepared(request, cache) is None
    with pytest.raises(BrokenCorpus, match=r"not a corpus manifest|format 1, this version reads"):
        open_corpus(directory)
    (directory / "manifest.json").unlink()
    with pytest.raises(BrokenCorpus, match="no prepared corpus"):
        open_corpus(directory)


def test_a_manifest_of_another_format_is_not_read(own: tuple[CorpusRequest, Path, Path]) -> None:
    path = own[2] / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 0}))
    with pytest.raises(BrokenCorpus, match="format 0, this version reads 2"):
        open_corpus(own[2])


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_a_preparer_killed_anywhere_leaves_nothing_that_is_used(
    prepared: tuple[CorpusRequest, Path], corpus: PreparedCorpus, tmp_path: Path
) -> None:
    code = PREPARE_IN_CHILD.replace(
        "Path(sys.argv[2]))",
        "Path(sys.argv[2]), lambda m: os.kill(os.getpid(), 9) if m.startswith(sys.argv[3]) else None)",
    ).replace("import sys", "import os, sys")
    request, cache = prepared[0], tmp_path / "cache"
    for message in ("Preparing", "Encoding", "Prepared"):
        child = _child(code, request.paths[0], str(cache), message)
        child.communicate(timeout=120)
        assert child.returncode == -signal.SIGKILL
        assert find_prepared(request, cache) is None
        assert [name for name in os.listdir(cache) if not name.startswith(".")] == []
    assert prepare(request, cache).fingerprint == corpus.fingerprint


def test_preparers_at_the_same_time_agree(
    prepared: tuple[CorpusRequest, Path], corpus: PreparedCorpus, tmp_path: Path
) -> None:
    children = [_child(PREPARE_IN_CHILD, prepared[0].paths[0], str(tmp_path / "cache")) for _ in range(3)]
    assert [_output(child) for child in children] == [corpus.fingerprint] * 3
    assert os.listdir(tmp_path / "cache") == [corpus.directory.name]


def test_looking_for_a_corpus_imports_no_tokenizer_and_no_torch(prepared: tuple[CorpusRequest, Path]) -> None:
    code = """
import sys
from pathlib import Path
from trainers.data.prepare import find_prepared
from trainers.data.request import CorpusRequest
assert find_prepared(CorpusRequest("files", (sys.argv[1],), 0.1), Path(sys.argv[2])) is not None
print(*{"torch", "tokenizers", "ray", "mlflow"} & set(sys.modules))
"""
    assert _output(_child(code, prepared[0].paths[0], str(prepared[1]))) == ""


def test_a_separator_in_a_file_parts_it(tmp_path: Path) -> None:
    texts = _copy_texts(tmp_path / "texts")
    parts = [(texts / name).read_text() for name in ("json/decoder.py", "json/encoder.py")]
    (texts / "json/both.py").write_text("<|endoftext|>".join([*parts, ""]))
    corpus = prepare(_request(texts), tmp_path / "cache")
    files = len(SOURCES["files"].documents((str(texts),)))
    assert corpus.num_documents == files + 1
    tokenizer = Tokenizer.from_file(str(corpus.directory / "tokenizer.json"))
    everything = np.concatenate(
        [corpus.stream(0, piece_tokens=WHOLE_DOCUMENTS).read(0, corpus.train_tokens), _held_out(corpus)]
    )
    read = [tokenizer.decode(tokens) for tokens in _documents(everything, corpus.separator)]
    assert [read.count(part) for part in parts] == [2, 2]


def test_empty_files_are_no_documents(corpus: PreparedCorpus, tmp_path: Path) -> None:
    texts = _copy_texts(tmp_path / "texts")
    (texts / "empty.py").touch()
    assert prepare(_request(texts), tmp_path / "cache").fingerprint == corpus.fingerprint


def test_compressed_files_are_read_and_a_tokenizer_s_own_separator_parts_them(tmp_path: Path) -> None:
    texts = _copy_texts(tmp_path / "texts")
    expected = {path.read_text() for path in texts.glob("*/*.py")}
    for path, suffix in zip(sorted(texts.glob("json/*.py")), (".gz", ".zst") * 9, strict=False):
        path.with_name(path.name + suffix).write_bytes(compressed(path.read_bytes(), suffix))
        path.unlink()
    (texts / "two.txt").write_text("first words</s>second words")
    plain = json.loads(tokenizer_json())
    plain["added_tokens"][0]["content"] = "</s>"
    plain["model"]["vocab"]["</s>"] = plain["model"]["vocab"].pop("<|endoftext|>")
    (tmp_path / "tokenizer.json").write_text(json.dumps(plain))
    request = replace(_request(texts), tokenizer_path=str(tmp_path / "tokenizer.json"))
    corpus = prepare(request, tmp_path / "cache")
    tokenizer = Tokenizer.from_file(str(corpus.directory / "tokenizer.json"))
    epoch = corpus.stream(0, piece_tokens=WHOLE_DOCUMENTS).read(0, corpus.train_tokens)
    everything = np.concatenate([epoch, _held_out(corpus)])
    read = {tokenizer.decode(tokens) for tokens in _documents(everything, corpus.separator)}
    assert read == expected | {"first words", "second words"}


def _one_file(texts: Path) -> None:
    for path in texts.glob("*/*.py"):
        if path.name != "decoder.py":
            path.unlink()


def _binary_file(texts: Path) -> None:
    (texts / "picture.png").write_bytes(b"\x89PNG" * 100)


def _only_separators(texts: Path) -> None:
    for number, path in enumerate(texts.glob("*/*.py"), start=1):
        path.write_text("<|endoftext|>" * number)


@pytest.mark.parametrize(
    ("change", "vocab_size", "message"),
    [
        (_one_file, 512, r"^corpus: 1 document with text found, at least 2 are needed"),
        (_binary_file, 512, r"^corpus: picture\.png is not UTF-8 text \(byte 0\)"),
        (_only_separators, 257, r"^corpus: no text left in one of the splits"),
        (
            _copy_texts,
            100_000,
            r"^tokenizer\.vocab_size: 100000 tokens asked for, but the training text only gives \d+",
        ),
    ],
)
def test_text_that_cannot_be_used_is_one_clear_line(
    tmp_path: Path, change: object, vocab_size: int, message: str
) -> None:
    texts = _copy_texts(tmp_path / "texts")
    change(texts)  # type: ignore[operator]
    with pytest.raises(ValueError, match=message) as caught:
        prepare(_request(texts, vocab_size), tmp_path / "cache")
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path / "cache") == []


@pytest.mark.slow
def test_the_default_corpus_is_large_enough_for_the_smallest_sweep(corpora: Path) -> None:
    corpus = prepare(CorpusRequest(), corpora)
    assert corpus.vocab_size == 512
    assert corpus.train_tokens > 4_000_000
    assert corpus.validation_tokens > 100_000
    assert "standard library" in corpus.description
    gathered = corpus.stream(1000, materialise_bytes=0)
    position = 3 * corpus.train_tokens - 100_000
    assert np.array_equal(corpus.stream(1000).read(position, 200_000), gathered.read(position, 200_000))
