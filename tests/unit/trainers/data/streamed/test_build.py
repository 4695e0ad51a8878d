"""Streamed corpora: the tokens are the text, and nothing but request and text moves a byte."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from tests.support.corpora import documents, local_request, write_json_lines, write_parquet, write_tokenizer
from trainers.contract.errors import UserError
from trainers.data.manifest import BrokenCorpus, read_manifest
from trainers.data.prepare import find_prepared, prepare
from trainers.data.request import CorpusRequest, PartRequest
from trainers.data.shards import PreparedCorpus, open_corpus
from trainers.data.streamed import build
from trainers.data.streamed.encoder import is_held_out
from trainers.data.streamed.finish import SEEN_TOKENS

PREPARE = """
import os, sys
from pathlib import Path
from tests.support.corpora import local_request
from trainers.data import prepare as prepared
from trainers.data.streamed import build
prepared.SHARD_TOKENS, build.BLOCK_BYTES, build.COMMIT_SECONDS = 20_000, int(sys.argv[4]), 0.0
looks = 0
def watch(pace):
    global looks
    looks += 1
    if looks == int(sys.argv[3]):
        os.kill(os.getpid(), 9)
def say(line):
    if line.startswith(sys.argv[5]):
        os.kill(os.getpid(), 9)
request = local_request(Path(sys.argv[1]), tokens=100_000)
print(prepared.prepare(request, Path(sys.argv[2]), say, watch).fingerprint)
"""
"""Folder, cache, the look at which it is killed, bytes to a block, the beginning of the line at which it is killed."""


def in_child(texts: Path, cache: Path, kill_at: int = 0, block: int = 5_000, kill_on: str = "?") -> str | None:
    """The fingerprint that another process prints; None where it was killed."""
    arguments = [str(texts), str(cache), str(kill_at), str(block), kill_on]
    done = subprocess.run([sys.executable, "-c", PREPARE, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.stdout.strip() if done.returncode == 0 else None


def write_texts(folder: Path) -> Path:
    """The documents in three kinds of files, an empty one and one of white space among them."""
    texts = documents()
    write_parquet(folder / "a.parquet", [*texts[0::3], None, ""])
    write_json_lines(folder / "b" / "b.jsonl.gz", [" \n", *texts[1::3]])
    write_json_lines(folder / "c.jsonl.zst", texts[2::3])
    return folder


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def corpus(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> PreparedCorpus:
    return prepare(local_request(texts), tmp_path_factory.mktemp("cache"))


def decoded(corpus: PreparedCorpus, split: str) -> list[str]:
    """The documents of a split as they lie on the disk."""
    tokenizer = Tokenizer.from_file(str(corpus.directory / "tokenizer.json"))
    shards = [shard for shard in corpus.shards if shard.split == split]
    tokens = np.concatenate([np.fromfile(corpus.directory / shard.name, dtype=corpus.token_dtype) for shard in shards])
    ends = np.flatnonzero(tokens == corpus.separator)
    assert ends[-1] == len(tokens) - 1
    return [tokenizer.decode(part[:-1].tolist()) for part in np.split(tokens, ends + 1)[:-1]]


def test_the_tokens_are_the_text_and_its_hash_decides_the_side(texts: Path, corpus: PreparedCorpus) -> None:
    held_out = [text for text in documents() if is_held_out(text, 0.1)]
    assert sorted(decoded(corpus, "validation")) == sorted(held_out)
    assert sorted(decoded(corpus, "train")) == sorted(set(documents()) - set(held_out))
    manifest = read_manifest(corpus.directory)
    assert (manifest.train_documents, manifest.validation_documents) == (
        len(documents()) - len(held_out),
        len(held_out),
    )
    (source,) = manifest.sources
    assert (source.documents, source.tokens) == (len(documents()), manifest.train_tokens)
    assert source.text_bytes == sum(len(text.encode()) for text in documents())
    assert manifest.token_dtype == "<u2"
    held_out_bytes = sum(len(text.encode()) for text in held_out)
    assert manifest.bytes_per_token == pytest.approx(held_out_bytes / manifest.validation_tokens, abs=1e-6)
    assert sorted(corpus.stream(5, piece_tokens=99).read(0, corpus.train_tokens)) == sorted(
        np.concatenate([np.fromfile(corpus.directory / s.name, "<u2") for s in corpus.shards if s.split == "train"])
    )
    assert len(corpus.validation(corpus.validation_tokens)) == corpus.validation_tokens


def test_white_space_case_and_composition_move_no_document() -> None:
    sides = [is_held_out(text, 0.5) for text in ("Caf\u00e9  au\nlait ", "caf\u00e9 au lait", "cafe\u0301 AU lait")]
    assert len(set(sides)) == 1
    shares = [sum(is_held_out(f"text {index}", share) for index in range(4_000)) / 4_000 for share in (0.01, 0.3)]
    assert abs(shares[0] - 0.01) < 0.008
    assert abs(shares[1] - 0.3) < 0.03


def test_duplicates_are_on_one_side_wherever_they_stand(tmp_path: Path) -> None:
    texts = [*documents(), *(text.upper() for text in documents()[:50])]
    random.Random(0).shuffle(texts)
    write_parquet(tmp_path / "a.parquet", texts)
    made = prepare(local_request(tmp_path), tmp_path / "cache")
    sides = [{text.lower() for text in decoded(made, split)} for split in ("train", "validation")]
    assert not sides[0] & sides[1]


def test_order_and_kind_of_files_move_no_document_to_the_other_side(corpus: PreparedCorpus, tmp_path: Path) -> None:
    write_json_lines(tmp_path / "all.jsonl", documents()[::-1])
    again = prepare(local_request(tmp_path), tmp_path / "cache")
    assert sorted(decoded(again, "validation")) == sorted(decoded(corpus, "validation"))


def test_processes_blocks_and_place_move_no_byte(
    texts: Path, corpus: PreparedCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "BLOCK_BYTES", 777)
    moved = write_texts(tmp_path / "elsewhere")
    again = prepare(local_request(moved), tmp_path / "cache", processes=3)
    assert again.fingerprint == corpus.fingerprint
    assert read_manifest(again.directory).files == read_manifest(corpus.directory).files


def test_what_is_prepared_is_found_without_reading_a_text(texts: Path, tmp_path: Path) -> None:
    request = local_request(texts, tokens=20_000)
    assert find_prepared(request, tmp_path) is None
    made = prepare(request, tmp_path)
    said: list[str] = []
    assert prepare(request, tmp_path, said.append) == made
    assert said == []
    found = find_prepared(request, tmp_path)
    assert found is not None
    assert found.fingerprint == made.fingerprint
    assert find_prepared(replace(request, tokens=30_000), tmp_path) is None
    assert find_prepared(replace(request, validation_fraction=0.2), tmp_path) is None
    os.utime(texts / "a.parquet", ns=(5, 5))
    assert find_prepared(request, tmp_path) is None
    assert prepare(request, tmp_path).fingerprint == made.fingerprint


def test_it_ends_with_the_document_that_reaches_the_tokens(texts: Path, corpus: PreparedCorpus, tmp_path: Path) -> None:
    made = prepare(local_request(texts, tokens=20_000), tmp_path)
    whole = decoded(corpus, "train")
    assert made.train_tokens >= 20_000
    assert len(decoded(made, "train")) < len(whole)
    lengths = np.diff(np.flatnonzero(np.fromfile(made.directory / made.shards[0].name, "<u2") == made.separator))
    assert made.train_tokens - lengths[-1] < 20_000


@pytest.mark.slow
def test_a_preparation_that_is_killed_anywhere_ends_in_the_same_bytes(texts: Path, tmp_path: Path) -> None:
    fingerprint = in_child(texts, tmp_path / "whole")
    (whole,) = [path for path in (tmp_path / "whole").iterdir() if not path.name.startswith(".")]
    names = [shard.name for shard in open_corpus(whole).shards]
    assert len(names) > 4, "several shards"
    cache = tmp_path / "killed"
    for kill_at, kill_on in ((1, "?"), (4, "?"), (7, "?"), (0, "Going"), (9, "?"), (0, "Comparing"), (0, "Prepared")):
        assert in_child(texts, cache, kill_at, block=3_000 + 500 * kill_at, kill_on=kill_on) is None
        assert [path.name for path in cache.iterdir() if not path.name.startswith(".")] == []
    said: list[str] = []
    prepare(local_request(texts, tokens=100_000), cache, said.append)
    assert said == [], "what was finished only has to be put in its place"
    assert in_child(texts, cache) == fingerprint
    assert [path.read_bytes() for path in sorted((cache / whole.name).iterdir())] == [
        path.read_bytes() for path in sorted(whole.iterdir())
    ]


def test_files_of_a_killed_preparation_that_were_cut_are_made_anew(texts: Path, tmp_path: Path) -> None:
    assert in_child(texts, tmp_path, kill_at=6) is None
    (building,) = tmp_path.glob(".*.building")
    (building / "part0-train-00000.tokens").write_bytes(b"short")
    said: list[str] = []
    made = prepare(local_request(texts, tokens=100_000), tmp_path, said.append)
    assert not any(line.startswith("Going on") for line in said)
    assert made.train_tokens >= 100_000


def test_two_preparations_at_a_time_agree(texts: Path, tmp_path: Path) -> None:
    arguments = [str(texts), str(tmp_path), "0", "5000", "?"]
    children = [
        subprocess.Popen([sys.executable, "-c", PREPARE, *arguments], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    found = {child.communicate(timeout=120)[0].strip() for child in children}
    assert len(found) == 1
    assert all(child.returncode == 0 for child in children)


def mixture(folder: Path, tokens: int | None, *weights: float) -> CorpusRequest:
    parts = (("a.parquet", weights[0]), ("b/b.jsonl.gz", weights[1]))
    return CorpusRequest(
        source="mixture",
        parts=tuple(PartRequest("local", paths=(str(folder / name),), weight=weight) for name, weight in parts),
        tokens=tokens,
        validation_fraction=0.1,
        vocab_size=512,
    )


def test_a_mixture_has_its_weights(texts: Path, tmp_path: Path) -> None:
    made = read_manifest(prepare(mixture(texts, 40_000, 3, 1), tmp_path).directory)
    assert [source.tokens for source in made.sources] == pytest.approx([30_000, 10_000], rel=0.05)
    assert sum(source.tokens for source in made.sources) == made.train_tokens
    assert [source.weight for source in made.sources] == [3, 1]


@pytest.mark.parametrize("tokens", [None, 10**9])
def test_a_part_that_is_too_short_shortens_the_others(texts: Path, tmp_path: Path, tokens: int | None) -> None:
    said: list[str] = []
    made = prepare(mixture(texts, tokens, 1, 3), tmp_path, said.append)
    manifest = read_manifest(made.directory)
    few, many = manifest.sources
    assert few.tokens / many.tokens == pytest.approx(1 / 3, rel=0.05)
    assert any("has" in line and "0.75 of the mixture: all parts are cut" in line for line in said)
    assert manifest.train_documents == len(decoded(made, "train"))
    assert manifest.validation_documents == len(decoded(made, "validation"))
    size = sum(len(text.encode()) for split in ("train", "validation") for text in decoded(made, split))
    assert few.text_bytes + many.text_bytes == pytest.approx(size, rel=0.02)
    held_out = [shard.tokens for shard in made.shards if shard.split == "validation"]
    assert held_out[0] < 0.7 * held_out[1], "about a third; uncut they are alike"


def test_what_looks_like_a_special_token_is_text(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "tokenizer")
    written = [f"{text} <|endoftext|> more" for text in documents()]
    write_parquet(tmp_path / "texts" / "a.parquet", written)
    made = prepare(local_request(tmp_path / "texts", tokenizer_path=str(tmp_path / "tokenizer")), tmp_path / "cache")
    assert sorted(decoded(made, "train") + decoded(made, "validation")) == sorted(written)


def test_a_vocabulary_beyond_two_bytes_takes_four(tmp_path: Path) -> None:
    tokenizer = json.loads((write_tokenizer(tmp_path / "tokenizer") / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] |= {f"<unused {index}>": index for index in range(512, 70_000)}
    (tmp_path / "tokenizer" / "tokenizer.json").write_text(json.dumps(tokenizer))
    write_parquet(tmp_path / "texts" / "a.parquet", documents())
    request = replace(local_request(tmp_path / "texts"), vocab_size=70_000, tokenizer_path=str(tmp_path / "tokenizer"))
    made = prepare(request, tmp_path / "cache")
    assert made.token_dtype == "<u4"
    assert sorted(decoded(made, "train") + decoded(made, "validation")) == sorted(documents())


def test_the_share_of_seen_text_is_that_of_the_held_out_side(corpus: PreparedCorpus, tmp_path: Path) -> None:
    held_out = [text for text in documents() if is_held_out(text, 0.1) and len(text) > 500]
    # The same text with a line in front: another hash, and on the other side for half of them.
    copies = [f"# {index}\n{text}" for index, text in enumerate(held_out)]
    write_parquet(tmp_path / "a.parquet", [*documents(), *(text for text in copies if not is_held_out(text, 0.1))])
    made = prepare(local_request(tmp_path), tmp_path / "cache")
    assert made.seen_share is not None
    assert corpus.seen_share is not None
    assert corpus.seen_share + 0.3 < made.seen_share
    assert made.validation_tokens < SEEN_TOKENS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"validation_fraction": 1e-9},
            r"^corpus\.validation_fraction: with 1e-09 of [\d,]+ documents held out one of the",
        ),
        (
            {"vocab_size": 100_000},
            r"^tokenizer\.vocab_size: 100000 tokens asked for, but the training text only gives \d+",
        ),
        ({"tokenizer_path": "nowhere.json"}, r"^tokenizer\.path: nowhere\.json cannot be read"),
    ],
)
def test_text_that_cannot_be_used_is_one_line(
    texts: Path, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        prepare(replace(local_request(texts), **change), tmp_path)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def damaged(corpus: PreparedCorpus, folder: Path) -> Path:
    """A copy of a corpus that a test may damage."""
    copy = folder / "copy"
    copy.mkdir()
    for path in corpus.directory.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    return copy


def test_a_changed_cut_or_missing_file_and_another_tokenizer_are_refused(
    corpus: PreparedCorpus, tmp_path: Path
) -> None:
    copy = damaged(corpus, tmp_path)
    shard = copy / corpus.shards[0].name
    content = shard.read_bytes()
    changes: list[tuple[Path, bytes | None, str]] = [
        (shard, content[:-2], r"tokens: \d+ bytes, \d+ were written$"),
        (shard, content[:-1] + bytes([content[-1] ^ 1]), r"tokens: the content is not what was written$"),
        (shard, None, r"tokens is missing$"),
        (copy / "tokenizer.json", b"{}", r"tokenizer\.json: 2 bytes, \d+ were written$"),
    ]
    for path, wrong, message in changes:
        whole = path.read_bytes()
        path.unlink()
        if wrong is not None:
            path.write_bytes(wrong)
        with pytest.raises(BrokenCorpus, match=message) as caught:
            open_corpus(copy)
        assert "\n" not in str(caught.value)
        assert str(caught.value).count(path.name) == 1
        path.write_bytes(whole)
    assert open_corpus(copy).fingerprint == corpus.fingerprint


def test_a_large_file_is_hashed_once_for_each_state(
    corpus: PreparedCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = damaged(corpus, tmp_path)
    monkeypatch.setattr("trainers.data.manifest.HASHED_ONCE_BYTES", 1)
    open_corpus(copy)
    monkeypatch.setattr("trainers.data.manifest.file_entry", lambda path: pytest.fail(f"{path} is read again"))
    open_corpus(copy)
    monkeypatch.undo()
    monkeypatch.setattr("trainers.data.manifest.HASHED_ONCE_BYTES", 1)
    shard = copy / corpus.shards[0].name
    shard.write_bytes(b"\0" + shard.read_bytes()[1:])
    with pytest.raises(BrokenCorpus, match="the content is not what was written"):
        open_corpus(copy)


def test_an_encoder_that_dies_is_a_fault_that_can_be_gone_on_from(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "BLOCK_BYTES", 2_000)
    monkeypatch.setattr(build, "COMMIT_SECONDS", 0.0)

    class DyingPool(build.EncoderPool):
        def _start(self) -> subprocess.Popen[bytes]:
            process = super()._start()
            process.kill()
            return process

    monkeypatch.setattr(build, "EncoderPool", DyingPool)
    with pytest.raises(RuntimeError, match=r"^an encoding process ended with code -9$"):
        prepare(local_request(texts), tmp_path, processes=1)
    monkeypatch.undo()
    prepare(local_request(texts), tmp_path)
