"""What is held out is not in the training text: documents that share content stay together, and the rest is measured."""

from __future__ import annotations

import random
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.data import shared_content
from trainers.data.manifest import read_manifest
from trainers.data.prepare import prepare
from trainers.data.request import CorpusRequest
from trainers.data.shared_content import SPAN, groups_of, seen_share

LIBRARY = Path(sysconfig.get_paths()["stdlib"])
TEXTS = {name: (LIBRARY / name).read_text(encoding="utf-8") for name in ("textwrap.py", "heapq.py", "bisect.py")}


def groups(texts: dict[str, str], order: list[str] | None = None) -> dict[str, str]:
    return dict(groups_of((name, texts[name].encode) for name in order or texts))


def near(text: str, every: int) -> str:
    """The text with one word in so many replaced."""
    words = text.split(" ")
    return " ".join("other" if index % every == 0 else word for index, word in enumerate(words))


def test_equal_and_nearly_equal_documents_are_put_together_whatever_their_order() -> None:
    texts = {
        **TEXTS,
        "a/copy.py": TEXTS["textwrap.py"],
        "spaced.py": TEXTS["textwrap.py"].replace("\n", "\n\n").upper(),
        "edited.py": near(TEXTS["heapq.py"], 30),
    }
    found = groups(texts)
    assert found == {
        **dict.fromkeys(("a/copy.py", "spaced.py", "textwrap.py"), "a/copy.py"),
        **dict.fromkeys(("edited.py", "heapq.py"), "edited.py"),
    }
    shuffled = list(texts)
    random.Random(3).shuffle(shuffled)
    assert groups(texts, shuffled) == found


def test_unlike_documents_share_nothing() -> None:
    assert groups(TEXTS) == {}
    assert groups({"a": "one", "b": "two", "c": "three words here"}) == {}
    assert groups({"a": "", "b": " \n"}) == {"a": "a", "b": "a"}


def brute_force(train: np.ndarray, validation: np.ndarray) -> float:
    known = {tuple(train[start : start + SPAN]) for start in range(len(train) - SPAN + 1)}
    covered = np.zeros(len(validation), dtype=bool)
    for start in range(len(validation) - SPAN + 1):
        if tuple(validation[start : start + SPAN]) in known:
            covered[start : start + SPAN] = True
    return float(covered.mean()) if len(covered) else 0.0


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), vocabulary=st.sampled_from([1, 2, 500]), planted=st.integers(0, 200))
def test_the_seen_share_is_that_of_a_plain_count(seed: int, vocabulary: int, planted: int) -> None:
    generator = np.random.default_rng(seed)
    train = generator.integers(0, vocabulary, 400).astype(np.uint16)
    validation = generator.integers(0, vocabulary, 300).astype(np.uint16)
    validation[50 : 50 + planted] = train[100 : 100 + planted]
    assert seen_share(train, validation) == pytest.approx(brute_force(train, validation))


def test_the_training_text_is_read_in_blocks_without_losing_a_span_between_two(monkeypatch: pytest.MonkeyPatch) -> None:
    train = np.random.default_rng(0).integers(0, 500, 1_000).astype(np.uint16)
    validation = train[250:350].copy()
    monkeypatch.setattr(shared_content, "BLOCK", 100)
    assert seen_share(train, validation) == 1.0
    assert seen_share(train, validation[: SPAN - 1]) == 0.0


def prepared(folder: Path, texts: dict[str, str], name: str) -> float:
    root = folder / name
    for path, text in texts.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text, encoding="utf-8")
    request = CorpusRequest("files", (str(root),), 0.3, 300, None)
    corpus = prepare(request, folder / "cache")
    assert corpus.seen_share is not None
    assert read_manifest(corpus.directory).seen_share == corpus.seen_share
    return corpus.seen_share


def test_copies_of_a_held_out_document_are_held_out_with_it(tmp_path: Path) -> None:
    """Every document has a copy elsewhere: by their names alone about half of the held-out text would be trained on."""
    names = [path.name for path in sorted(LIBRARY.glob("*.py"))[:30]]
    texts = {name: (LIBRARY / name).read_text(encoding="utf-8") for name in names}
    copies = {f"copies/{name}": text for name, text in texts.items()}
    share, alone = prepared(tmp_path, texts | copies, "twice"), prepared(tmp_path, texts, "once")
    assert share == pytest.approx(alone, abs=0.02)
    assert share < 0.05
