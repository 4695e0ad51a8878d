"""Data sets and tokenizers by the hub's names and in its layout, read by the real libraries, without a network."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.corpora import documents, local_request, write_repository, write_tokenizer
from tests.support.hub_server import COMMIT, hub
from trainers.contract.errors import UserError
from trainers.data.hub import HubReader
from trainers.data.manifest import read_manifest
from trainers.data.prepare import find_prepared, prepare
from trainers.data.request import CorpusRequest, PartRequest

pytestmark = pytest.mark.real
pytest.importorskip("datasets", reason="the extra `hub` is not installed")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_repository(tmp_path_factory.mktemp("hub") / "fineweb-edu", documents())


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub-cache"))


def part(name: Path | str, **more: object) -> PartRequest:
    return PartRequest("huggingface", name=str(name), **more)  # type: ignore[arg-type]


def request_of(name: Path | str, **more: object) -> CorpusRequest:
    return CorpusRequest("huggingface", parts=(part(name, **more),), validation_fraction=0.1, vocab_size=512)


def test_a_reader_gives_every_record_and_goes_on_from_any(repository: Path) -> None:
    reader = HubReader(part(repository))
    assert reader.units == 3
    for unit in range(3):
        whole = list(documents()[unit::3])
        for skip in (0, 1, 64, 100, len(whole)):
            assert list(reader.texts(unit, skip)) == whole[skip:]
    assert (reader.origin.name, reader.origin.revision, reader.origin.licence) == ("fineweb-edu, train", None, "odc-by")


LEFT_EARLY = """
import sys
from trainers.data.hub import HubReader
from trainers.data.request import PartRequest
for _ in range(16):
    next(HubReader(PartRequest("huggingface", name=sys.argv[1])).texts(0, 0))
sys.exit(2)
"""


def test_a_process_that_leaves_a_data_set_early_ends_as_it_wants_to(tmp_path: Path) -> None:
    """And is not aborted by threads that read ahead, as half of all such processes are where nobody ends them."""
    repository = write_repository(tmp_path / "large", [str(number) * 9_999 for number in range(2_000)])
    command = [sys.executable, "-c", LEFT_EARLY, str(repository)]
    ends = [subprocess.run(command, capture_output=True, check=False).returncode for _ in range(5)]
    assert ends == [2] * 5


def test_a_configuration_is_chosen_by_name(repository: Path) -> None:
    reader = HubReader(part(repository, config="sample-10BT"))
    assert list(reader.texts(0, 0)) == list(documents()[:40])
    assert reader.origin.name == "fineweb-edu (sample-10BT), train"


def test_a_folder_in_the_hub_s_layout_is_prepared_and_named(repository: Path, tmp_path: Path) -> None:
    request = replace(request_of(repository), tokens=30_000)
    made = prepare(request, tmp_path)
    (source,) = read_manifest(made.directory).sources
    assert (source.name, source.licence) == ("fineweb-edu, train", "odc-by")
    assert source.tokens == made.train_tokens >= 30_000
    found = find_prepared(request, tmp_path)
    assert found is not None
    # The same rows as local files: the text is equal, where it is said to be from is not.
    local = prepare(local_request(Path(f"{repository}/data/*.parquet"), tokens=30_000), tmp_path)
    assert read_manifest(local.directory).files == read_manifest(made.directory).files
    assert local.fingerprint != made.fingerprint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"config": "sample-9BT"},
            r"cannot be read \(BuilderConfig 'sample-9BT' not found\. Available: \['default', 'sa",
        ),
        ({"split": "test"}, r"cannot be read \(Bad split: test\. Available splits: \['train'\]\); or read local files"),
        ({"field": "content"}, r"^corpus\.field: 'content' is not a column of .*fineweb-edu; it has id, text$"),
    ],
)
def test_what_the_data_set_has_not_is_one_line(
    repository: Path, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        prepare(request_of(repository, **change), tmp_path)
    assert "\n" not in str(caught.value)


def test_without_a_network_a_name_is_one_line_with_what_to_name_instead(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        prepare(request_of("HuggingFaceFW/fineweb-edu"), tmp_path)
    assert re.fullmatch(
        r"corpus\.source: HuggingFaceFW/fineweb-edu cannot be read \(.*\); or read local files: "
        r"\{source: local, paths: \[data/\*\*/\*\.parquet\]\}",
        str(caught.value),
    )
    with pytest.raises(UserError) as caught:
        prepare(replace(local_request(tmp_path), tokenizer_name="meta-llama/Meta-Llama-3-8B"), tmp_path / "cache")
    assert "\n" not in str(caught.value)


def test_a_tokenizer_of_the_hub_that_is_not_there_names_the_local_alternatives(
    repository: Path, tmp_path: Path
) -> None:
    request = replace(request_of(repository), tokenizer_name="meta-llama/Meta-Llama-3-8B")
    with pytest.raises(UserError) as caught:
        prepare(request, tmp_path)
    assert re.fullmatch(
        r"tokenizer\.name: meta-llama/Meta-Llama-3-8B cannot be read \(.*\); or name a local one: "
        r"\{kind: file, path: FOLDER or tokenizer\.json\}",
        str(caught.value),
    )


def test_a_tokenizer_that_the_hub_s_cache_holds_needs_no_network(repository: Path, tmp_path: Path) -> None:
    home = tmp_path / "hub-cache" / "models--ours--tokenizer"
    commit = "0123456789abcdef0123456789abcdef01234567"
    write_tokenizer(home / "snapshots" / commit)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(commit)
    request = replace(request_of(repository), tokenizer_name="ours/tokenizer")
    made = prepare(request, tmp_path / "cache")
    local = replace(request, tokenizer_name=None, tokenizer_path=str(home / "snapshots" / commit))
    assert prepare(local, tmp_path / "cache").fingerprint == made.fingerprint
    assert "ours/tokenizer of 512 tokens" in made.description


def test_without_the_package_the_extra_is_named(tmp_path: Path) -> None:
    code = f"""
import sys
sys.modules["datasets"] = None
from pathlib import Path
from trainers.data.prepare import prepare
from trainers.data.request import CorpusRequest, PartRequest
part = PartRequest("huggingface", name="HuggingFaceFW/fineweb-edu")
prepare(CorpusRequest("huggingface", parts=(part,)), Path({json.dumps(str(tmp_path))}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "needs the package datasets: pip install 'tst-sweeper[hub]'; or read local files" in done.stderr


BY_NAME = """
import sys
from pathlib import Path
from trainers.contract.errors import UserError
from trainers.data.prepare import prepare
from trainers.data.request import CorpusRequest, PartRequest
data, tokenizer, cache = sys.argv[1:]
part = PartRequest("huggingface", name=data, config="default", revision="main")
request = CorpusRequest(
    "huggingface", parts=(part,), validation_fraction=0.1, vocab_size=512, tokenizer_name=tokenizer, tokens=30_000
)
try:
    print(prepare(request, Path(cache)).directory)
except UserError as error:
    print(error)
"""


def by_name(endpoint: str, home: Path, data: str, tokenizer: str) -> str:
    """The folder of a corpus that was prepared from a hub at `endpoint`, or what was said instead."""
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}
    command = [sys.executable, "-c", BY_NAME, data, tokenizer, str(home / "cache")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return done.stdout.strip()


@pytest.mark.slow
def test_names_of_a_hub_are_streamed_and_their_commit_and_licence_written_down(tmp_path: Path) -> None:
    repository = write_tokenizer(write_repository(tmp_path / "repository", documents()))
    with hub(repository) as endpoint:
        folder = Path(by_name(endpoint, tmp_path, "HuggingFaceFW/fineweb-edu", "ours/tokenizer"))
    manifest = read_manifest(folder)
    (source,) = manifest.sources
    assert (source.name, source.revision) == ("HuggingFaceFW/fineweb-edu (default), train", COMMIT)
    assert source.licence == "odc-by"
    local = prepare(
        local_request(Path(f"{repository}/data/*.parquet"), tokens=30_000, tokenizer_path=str(repository)),
        tmp_path / "local",
    )
    assert read_manifest(local.directory).files == manifest.files
    # What is prepared is found by its names without the hub.
    assert by_name("http://127.0.0.1:9", tmp_path, "HuggingFaceFW/fineweb-edu", "ours/tokenizer") == str(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "tokenizer", "said"),
    [
        (
            "gated/data",
            "ours/tokenizer",
            "corpus.source: gated/data cannot be read (it is gated: accept its terms on the hub",
        ),
        ("missing/data", "ours/tokenizer", "corpus.source: missing/data cannot be read (404"),
        (
            "ours/data",
            "gated/tokenizer",
            "tokenizer.name: gated/tokenizer cannot be read (it is gated: accept its terms",
        ),
    ],
)
def test_a_repository_that_is_not_given_is_one_line(tmp_path: Path, data: str, tokenizer: str, said: str) -> None:
    with hub(write_tokenizer(write_repository(tmp_path / "repository", documents()[:100]))) as endpoint:
        printed = by_name(endpoint, tmp_path, data, tokenizer)
    assert printed.startswith(said)
    assert "\n" not in printed
