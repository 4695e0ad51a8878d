"""What the tests of one session share, on all of its workers: compiled kernels, and the standard library as a corpus."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")  # how long an example takes is the machine's, not the test's


def of_the_session(folders: pytest.TempPathFactory, name: str) -> Path:
    """A folder that is the same for every worker of pytest-xdist."""
    base = folders.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session", autouse=True)
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What one test has compiled the next one loads; the user's own cache neither helps nor grows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(of_the_session(tmp_path_factory, "kernels")))
        yield


@pytest.fixture(scope="session")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache for the whole standard library: the first test that needs it prepares it, in some seconds."""
    return of_the_session(tmp_path_factory, "corpora")
