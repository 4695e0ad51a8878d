"""The published recipes' text and tokenizers: small copies in the same layout are prepared, and two steps trained on them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from sweeper.corpora import corpus_request, prepared_text
from sweeper.options import RunOptions
from sweeper.space.load import parse_search_space
from sweeper.space.schema import SearchSpace
from tests.support.corpora import documents, write_parquet, write_repository, write_tokenizer
from tests.support.places import SHIPPED
from trainers.contract.scales import SCALES
from trainers.contract.spec import Optimizer, Schedule, TrialSpec
from trainers.contract.stage import StageJob
from trainers.data.manifest import read_manifest
from trainers.data.shards import open_corpus
from trainers.training.stage import run_stage

FILES = ("tst-270m", "tst-600m", "tst-3b", "moe-10b-a1b")
VOCABULARY = 512
TEXTS = documents("*.py")
"""Some megabytes."""
CONTEXT = 64


def local_text(text: str) -> str:
    """A file with its `# local:` lines instead of those that they stand for."""
    lines: list[str] = []
    waiting: list[str] = []
    for line in text.splitlines():
        if (found := re.match(r"( *)# local: (.*)", line)) is not None:
            waiting.append(found[1] + found[2])
            continue
        if waiting:
            lines[-len(waiting) :] = waiting
            waiting = []
        lines.append(line)
    return "\n".join(lines) + "\n"


def made_small(space: SearchSpace, change: Callable[[str | None], str | None]) -> SearchSpace:
    """With a megabyte and a half of a small vocabulary's tokens, and names changed by `change`."""
    corpus, tokenizer = space.corpus, space.tokenizer
    parts = tuple(part.model_copy(update={"name": change(part.name)}) for part in corpus.parts)
    update = {"tokens": 600_000, "validation_fraction": 0.05, "name": change(corpus.name), "parts": parts}
    end = {"vocab_size": VOCABULARY, "end_of_document": "<|endoftext|>"}
    return space.model_copy(
        update={
            "corpus": corpus.model_copy(update=update),
            "tokenizer": tokenizer.model_copy(update=end),
            "validation_tokens": 4_096,
        }
    )


def two_steps(space: SearchSpace, directory: Path, store: Path) -> float | None:
    """The loss after a step of bags and an ordinary one, of the shape cut to two layers (and eight experts)."""
    manifest = read_manifest(directory)
    shape = SCALES[space.scales[0]].with_vocabulary(VOCABULARY)
    shape = replace(shape, num_layers=2, **({"num_experts": 8} if shape.num_experts else {}))
    spec = TrialSpec(
        scale=space.scales[0],
        shape=shape,
        method="tst",
        parameters=(("bag_size", 4), ("bag_weighting", "uniform"), ("step_ratio", 0.5)),
        corpus_fingerprint=manifest.fingerprint,
        tokenizer_fingerprint=manifest.tokenizer_fingerprint,
        context=CONTEXT,
        tokens_per_step=2 * CONTEXT,
        validation_tokens=2 * CONTEXT,
        schedule=Schedule(2, 1, 1, 1e-4),
        optimizer=Optimizer(),
        precision=space.precision,
        seed=0,
    )
    job = StageJob(
        node=spec.spec_id,
        parent=None,
        start=0,
        end=2,
        spec=spec,
        booked_by=spec.spec_id,
        store=str(store),
        corpus=str(directory),
        stop_file=str(store / "stop"),
        device="cpu",
        execution="eager",
        evaluate_every=0,
        checkpoint_seconds=1e9,
    )
    return run_stage(job, open_corpus(directory)).points[-1].loss


@pytest.mark.parametrize("name", FILES)
def test_every_file_names_the_published_text_and_a_copy_of_it(name: str) -> None:
    text = (SHIPPED / f"{name}.yaml").read_text(encoding="utf-8")
    named, local = (parse_search_space(each, Path(f"{name}.yaml")) for each in (text, local_text(text)))
    hub, copy = corpus_request(named), corpus_request(local)
    assert {part.source for part in hub.parts} == {"huggingface"}
    assert {part.source for part in copy.parts} == {"local"}
    assert (hub.tokens, hub.shares, hub.vocab_size) == (copy.tokens, copy.shares, copy.vocab_size)
    assert hub.tokenizer_name is not None
    assert copy.tokenizer_path is not None
    assert named.model_copy(update={"corpus": local.corpus, "tokenizer": local.tokenizer}) == local


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_a_copy_on_disk_is_prepared_and_trained_on(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    half = len(TEXTS) // 2
    for index in range(2):
        write_parquet(Path(f"data/dclm/global/{index}.parquet"), TEXTS[index : half + index * half : 2])
    write_parquet(Path("data/fineweb-edu/data/CC-MAIN-2024-10/000_00000.parquet"), TEXTS[half:])
    write_tokenizer(Path("data/llama-3"))
    write_tokenizer(Path("data/qwen-3"))
    text = local_text((SHIPPED / f"{name}.yaml").read_text(encoding="utf-8"))
    space = made_small(parse_search_space(text, Path(f"{name}.yaml")), lambda name: name)
    corpus = prepared_text(space, RunOptions(SHIPPED / f"{name}.yaml", tmp_path / "results"), print)
    loss = two_steps(space, corpus.directory, tmp_path)
    assert loss is not None
    assert 4 < loss < 9


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.parametrize("name", FILES)
def test_a_repository_in_the_hub_s_layout_is_prepared(name: str, tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="the extra `hub` is not installed")
    repositories = {
        "mlfoundations/dclm-baseline-1.0-parquet": write_repository(tmp_path / "dclm", TEXTS[::2]),
        "HuggingFaceFW/fineweb-edu": write_repository(tmp_path / "fineweb-edu", TEXTS[1::2]),
    }
    space = parse_search_space((SHIPPED / f"{name}.yaml").read_text(encoding="utf-8"), Path(f"{name}.yaml"))
    space = made_small(space, lambda name: None if name is None else str(repositories[name]))
    tokenizer = {"kind": "file", "name": None, "path": str(write_tokenizer(tmp_path / "tokenizer"))}
    space = space.model_copy(update={"tokenizer": space.tokenizer.model_copy(update=tokenizer)})
    corpus = prepared_text(space, RunOptions(SHIPPED / f"{name}.yaml", tmp_path / "results"), print)
    sources = read_manifest(corpus.directory).sources
    assert {source.licence for source in sources} == {"odc-by"}
    assert corpus.train_tokens == pytest.approx(600_000, rel=0.01)
    shares = [source.tokens / corpus.train_tokens for source in sources]
    assert shares == pytest.approx([1 / len(shares)] * len(shares), rel=0.01)
