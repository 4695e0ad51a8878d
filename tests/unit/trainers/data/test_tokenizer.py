"""Given tokenizers: where they are found, which token ends a document, and what is said of one that does not fit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.corpora import VOCABULARY, tokenizer_json, write_tokenizer
from trainers.contract.errors import InputError
from trainers.data.request import CorpusRequest
from trainers.data.tokenizer import SEPARATOR, given_tokenizer, load_tokenizer, pieces


def with_tokens(folder: Path, *names: str) -> Path:
    """A tokenizer's folder with further special tokens."""
    plain = json.loads((write_tokenizer(folder) / "tokenizer.json").read_text())
    like = plain["added_tokens"][0]
    plain["added_tokens"] += [{**like, "id": VOCABULARY + index, "content": name} for index, name in enumerate(names)]
    (folder / "tokenizer.json").write_text(json.dumps(plain))
    return folder


def request_of(path: Path, **more: object) -> CorpusRequest:
    return replace(CorpusRequest(vocab_size=VOCABULARY, tokenizer_path=str(path)), **more)  # type: ignore[arg-type]


def end_of(request: CorpusRequest) -> str:
    given = given_tokenizer(request)
    assert given is not None
    tokenizer, separator = given
    return str(tokenizer.id_to_token(separator))


def test_a_folder_and_its_file_are_the_same_tokenizer(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path)
    made = [given_tokenizer(request_of(path)) for path in (folder, folder / "tokenizer.json")]
    assert all(each is not None for each in made)
    first, second = (each[0].to_str() for each in made if each is not None)
    assert first == second


def test_the_settings_of_a_folder_say_which_token_ends_a_document(tmp_path: Path) -> None:
    folder = with_tokens(tmp_path, "<|end_of_text|>", "<|im_end|>")
    request = request_of(folder, vocab_size=VOCABULARY + 2)
    assert end_of(request) == SEPARATOR
    for said in ("<|im_end|>", {"content": "<|im_end|>", "special": True}):
        (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": said}))
        assert end_of(request) == "<|im_end|>"
    assert end_of(replace(request, end_of_document="<|end_of_text|>")) == "<|end_of_text|>"
    # A file is taken by itself, so that what lies beside it moves no corpus.
    assert end_of(replace(request, tokenizer_path=str(folder / "tokenizer.json"))) == SEPARATOR
    (folder / "tokenizer_config.json").write_text("[")
    assert end_of(request) == SEPARATOR


def test_a_token_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^tokenizer\.end_of_document: '<eos>' is no token of this tokenizer$"):
        end_of(request_of(write_tokenizer(tmp_path), end_of_document="<eos>"))


@pytest.mark.parametrize(("vocab_size", "fits"), [(511, False), (512, True), (517, True), (518, False), (600, False)])
def test_a_vocabulary_may_be_padded_by_a_hundredth(vocab_size: int, fits: bool) -> None:
    if fits:
        assert load_tokenizer(tokenizer_json(), "it", vocab_size).get_vocab_size() == VOCABULARY
    else:
        with pytest.raises(InputError, match=rf"^tokenizer\.vocab_size: {vocab_size} stated, it has 512; state that"):
            load_tokenizer(tokenizer_json(), "it", vocab_size)


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"model": {"type": "BPE"}}'])
def test_what_is_no_tokenizer_is_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(InputError, match=r"^tokenizer\.path: .* is not a tokenizer\.json \(") as caught:
        given_tokenizer(request_of(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_published_length_cuts_and_fills_no_text() -> None:
    from tokenizers import Tokenizer

    published = Tokenizer.from_str(tokenizer_json())
    published.enable_truncation(4)
    published.enable_padding(length=8)
    loaded = load_tokenizer(published.to_str(), "published", VOCABULARY)
    text = "def function(argument): return argument"
    assert loaded.encode(text).ids == Tokenizer.from_str(tokenizer_json()).encode(text).ids
    assert loaded.to_str() == Tokenizer.from_str(tokenizer_json()).to_str()


def test_a_separator_written_out_ends_a_document_whoever_s_it_is() -> None:
    assert pieces("a<|endoftext|>b<|end_of_text|>c") == ["a", "b<|end_of_text|>c"]
    assert pieces("a<|endoftext|>b<|end_of_text|>c", "<|end_of_text|>") == ["a", "b", "c"]
