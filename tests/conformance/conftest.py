"""What the suites of this folder share: the text, the undisturbed sweep, and every executor in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from sweeper.executors.inline import Executor, InlineExecutor
from tests.conformance.sweep_of import RAY_WARNINGS, Bench, essence, inline, on_ray, prepare_text
from trainers.data.shards import PreparedCorpus

Start = Callable[[Path], AbstractContextManager[Executor]]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> PreparedCorpus:
    return prepare_text(tmp_path_factory.mktemp("corpora"))


@pytest.fixture(scope="module")
def alone(corpus: PreparedCorpus, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[object, ...]]:
    """The sweep in this process, undisturbed: what every other way must come to."""
    bench = Bench(corpus, tmp_path_factory.mktemp("alone"))
    bench.run(InlineExecutor())
    return essence(bench.records)


@pytest.fixture(scope="module", params=[inline, pytest.param(on_ray, marks=[pytest.mark.slow, *RAY_WARNINGS])])
def executor(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Executor]:
    start: Start = request.param
    with start(tmp_path_factory.mktemp("scratch")) as ready:
        yield ready
