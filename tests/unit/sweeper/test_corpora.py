"""What a file asks of its text, how much its runs need, and what is said before a run where that is too little."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from sweeper.corpora import corpus_request, prepared_text, reread_text
from sweeper.options import RunOptions
from sweeper.session import plan
from sweeper.space.load import load_own_space, load_search_space, parse_search_space
from sweeper.space.schema import SearchSpace
from sweeper.space.text import text_needed, text_wanted
from tests.support.corpora import documents, write_parquet
from tests.support.places import ROOT, SHIPPED
from tests.support.tiny_sweep import space_of
from trainers.contract.errors import UserError
from trainers.data.documents import hash_document, split_documents
from trainers.data.request import CorpusRequest, PartRequest
from trainers.data.sources import SOURCES
from trainers.data.stdlib import library_root


def shipped(name: str) -> SearchSpace:
    return load_search_space(SHIPPED / f"{name}.yaml")


def test_the_published_runs_need_what_was_published() -> None:
    need = text_needed(shipped("tst-270m"))
    assert need.tokens == int(2.5 * 20_000 * 2_097_152) == 104_857_600_000
    assert need.run == "tst of 20,000 steps with s=6 r=0.3"
    assert text_needed(shipped("moe-10b-a1b")).tokens == pytest.approx(1.99e12, rel=0.01)


def test_without_a_number_what_is_needed_is_prepared_in_two_digits() -> None:
    space = shipped("tst-270m")
    automatic = space.model_copy(update={"corpus": space.corpus.model_copy(update={"tokens": None})})
    assert text_wanted(space) == text_wanted(automatic) == 110_000_000_000
    small = space_of(corpus={"source": "local", "paths": ("x",)})
    assert text_needed(small).tokens <= text_wanted(small) < 1.1 * text_needed(small).tokens
    assert len(str(text_wanted(small)).rstrip("0")) <= 2


def test_the_need_grows_with_the_budget_and_not_with_the_search() -> None:
    text = (SHIPPED / "tst-270m.yaml").read_text(encoding="utf-8")
    more = parse_search_space(text.replace("trials_per_arm: 12", "trials_per_arm: 20"), Path("more.yaml"))
    longer = parse_search_space(text.replace("confirmation: [20000]", "confirmation: [40000]"), Path("longer.yaml"))
    assert text_needed(more) == text_needed(shipped("tst-270m"))
    assert text_needed(longer).tokens == 2 * text_needed(more).tokens


def test_a_file_s_keys_become_the_request() -> None:
    assert corpus_request(shipped("quickstart")) == CorpusRequest(
        source="installed" if shipped("quickstart").corpus.source == "installed" else "stdlib",
        validation_fraction=shipped("quickstart").corpus.validation_fraction,
        vocab_size=shipped("quickstart").tokenizer.vocab_size,
    )
    request = corpus_request(shipped("moe-10b-a1b"))
    assert request.parts == (
        PartRequest("huggingface", name="mlfoundations/dclm-baseline-1.0-parquet", weight=0.5),
        PartRequest("huggingface", name="HuggingFaceFW/fineweb-edu", weight=0.5),
    )
    assert request.shares == (0.5, 0.5)
    assert request.tokenizer_name == "Qwen/Qwen3-30B-A3B-Base"


def test_a_corpus_that_is_read_over_again_is_told_with_its_number() -> None:
    space = shipped("tst-270m")
    assert reread_text(space, 104_857_600_000) is None
    said = "tst of 20,000 steps with s=6 r=0.3 needs 105 B tokens, the corpus has 60.0 B: 1.7 epochs"
    assert reread_text(space, 60_000_000_000) == said


def small_space(folder: Path, **corpus: object) -> SearchSpace:
    write_parquet(folder / "texts" / "a.parquet", documents())
    given = {"source": "local", "paths": (str(folder / "texts"),), "validation_fraction": 0.05, **corpus}
    return space_of(corpus=given, context=64, tokens_per_step=8_192, validation_tokens=1_000)


def test_too_many_epochs_are_refused_before_the_run(tmp_path: Path) -> None:
    options = RunOptions(Path("tiny.yaml"), tmp_path / "results")
    need = text_needed(small_space(tmp_path)).tokens
    few = {"tokens": 40_000}
    said: list[str] = []
    corpus = prepared_text(small_space(tmp_path, **few), options, said.append)
    epochs = need / corpus.train_tokens
    assert epochs > 2
    assert any(line.endswith("epochs") for line in said)
    with pytest.raises(UserError, match=r"^corpus\.max_epochs: 1 allowed, but .* epochs; add text or raise it$"):
        prepared_text(small_space(tmp_path, max_epochs=1.0, **few), options, said.append)
    with pytest.raises(
        UserError, match=r"^corpus\.max_epochs: 0\.01 allowed, but .*: 0\.\d+ epochs; add text or raise it$"
    ):
        prepared_text(small_space(tmp_path, max_epochs=0.01, tokens=4 * need), options, said.append)
    again = prepared_text(small_space(tmp_path, max_epochs=epochs + 1, **few), options, said.append)
    assert again.fingerprint == corpus.fingerprint


def test_too_little_held_out_text_is_refused_before_it_is_prepared(tmp_path: Path) -> None:
    space = small_space(tmp_path, tokens=40_000, validation_fraction=0.001)
    with pytest.raises(
        UserError, match=r"^corpus\.validation_fraction: 0\.001 .* asks for 1,000; hold out 0\.02 or more$"
    ):
        prepared_text(space, RunOptions(Path("tiny.yaml"), tmp_path / "results"), lambda line: None)
    assert not (tmp_path / "results").exists()


def test_a_plan_knows_the_epochs_of_a_text_that_is_still_to_be_prepared(tmp_path: Path) -> None:
    text = (ROOT / "tests" / "integration" / "tiny.yaml").read_text(encoding="utf-8")
    write_parquet(tmp_path / "a.parquet", documents())
    corpus = f"{{source: local, paths: ['{tmp_path / 'a.parquet'}'], validation_fraction: 0.2, tokens: 20000%s}}"
    line = next(line for line in text.splitlines() if line.startswith("corpus:"))
    file = tmp_path / "tiny.yaml"
    file.write_text(text.replace(line, f"corpus: {corpus % ''}"), encoding="utf-8")
    made = plan(RunOptions(file, tmp_path / "results"))
    assert made.corpus.startswith("local, unprepared; ")
    assert made.corpus.endswith("the corpus has 20.0 K: 2 epochs")
    assert {arm.epochs is None for arm in made.arms} == {False}
    file.write_text(text.replace(line, f"corpus: {corpus % ', max_epochs: 1'}"), encoding="utf-8")
    with pytest.raises(UserError, match=r"^corpus\.max_epochs: 1 allowed"):
        plan(RunOptions(file, tmp_path / "results"))


@pytest.mark.parametrize("source", ["files", "local"])
def test_a_plan_refuses_a_text_that_no_machine_can_give(source: str, tmp_path: Path) -> None:
    """What is only not here may be where the sweep will run, and is planned for."""
    text = (ROOT / "tests" / "integration" / "tiny.yaml").read_text(encoding="utf-8")
    file = tmp_path / "tiny.yaml"

    def planned(path: str) -> str:
        corpus = f"{{source: {source}, validation_fraction: 0.2, paths: ['{path}']}}"
        file.write_text(text.replace("{source: stdlib}", corpus), encoding="utf-8")
        return plan(RunOptions(file, tmp_path / "results")).corpus

    assert "unprepared (corpus.paths: /nowhere/x.txt does not exist" in planned("/nowhere/x.txt")
    with pytest.raises(UserError, match=r":5: corpus\.paths: '/\*\*' is everything on this machine; name a folder$"):
        planned("/**")
    with pytest.raises(UserError, match=r"^corpus\.paths: .* cannot be read \(File name too long\)$"):
        planned("x" * 300)


def test_a_plan_says_that_a_prepared_text_is_too_little(tmp_path: Path) -> None:
    """Once it is prepared, in the words of the run that would be refused; before, nobody knows."""
    text = (ROOT / "tests" / "integration" / "tiny.yaml").read_text(encoding="utf-8")
    paths = str(library_root() / "json/*.py")
    text = text.replace("{source: stdlib}", f"{{source: files, paths: ['{paths}'], validation_fraction: 0.3}}")
    file, results = tmp_path / "tiny.yaml", tmp_path / "results"
    file.write_text(text.replace("validation_tokens: 4096", "validation_tokens: 64"), encoding="utf-8")
    held_out = prepared_text(load_own_space(file), RunOptions(file, results), lambda line: None).validation_tokens
    assert "prepared" in plan(RunOptions(file, results)).corpus
    for asked in (held_out, held_out + 1):
        file.write_text(text.replace("validation_tokens: 4096", f"validation_tokens: {asked}"), encoding="utf-8")
        refused = pytest.raises(UserError, match=f"^validation_tokens: {asked} asked for, .* split has {held_out}; ")
        with refused if asked > held_out else nullcontext():
            plan(RunOptions(file, results))
        with refused if asked > held_out else nullcontext():
            prepared_text(load_own_space(file), RunOptions(file, results), lambda line: None)


@pytest.mark.slow
def test_the_text_of_the_gpu_s_file_is_enough_with_room_for_other_versions() -> None:
    """By the bytes of torch's sources here: preparing them takes minutes."""
    space = load_own_space(SHIPPED / "gpu-1m.yaml")
    sources = str(Path(torch.__file__).parent / "**" / "*.py")
    documents = tuple(map(hash_document, SOURCES["files"].documents((sources,))))
    split = split_documents(documents, space.corpus.validation_fraction, {})
    bytes_per_token = 3.2
    assert sum(entry.size for entry in split.validation) / bytes_per_token > 1.3 * space.validation_tokens
    expected = space.corpus.validation_fraction * sum(entry.size for entry in documents) / bytes_per_token
    assert expected > 2 * space.validation_tokens
