"""`sweeper prepare`: what it says while it works and when it has ended."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sweeper.cli.app import app
from sweeper.corpora import pace_words
from tests.support.corpora import documents, write_parquet
from tests.support.places import SWEEPER
from trainers.data.streamed.build import Pace

FILE = """
name: small
question: Is it faster?
corpus: {{source: local, paths: ["{texts}"], validation_fraction: 0.05, tokens: 50000}}
tokenizer: {{vocab_size: 512}}
scales: [nano]
context: 64
tokens_per_step: 512
validation_tokens: 1000
schedule: {{warmup_steps: 2}}
methods:
  baseline:
    budgets: {{tuning: 20, confirmation: [30, 40, 60]}}
    axes: {{learning_rate: 1e-3}}
search: {{trials_per_arm: 1}}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_parquet(tmp_path / "texts" / "a.parquet", documents())
    path = tmp_path / "small.yaml"
    path.write_text(FILE.format(texts=tmp_path / "texts"), encoding="utf-8")
    return path


def test_it_says_what_came_out_and_where(file: Path) -> None:
    command = ["prepare", str(file), "--results", str(file.parent / "results"), "--processes", "1"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    folder = Path(done.stdout.splitlines()[-1])
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["description"] in done.stdout
    assert f"{manifest['train_tokens']:,} training and {manifest['validation_tokens']:,} held-out tokens" in done.stdout
    assert "licence: not known" in done.stdout
    again = CliRunner().invoke(app, [*command, "--json"])
    assert json.loads(again.stdout)["seal"] == manifest["seal"]


def test_text_that_is_not_there_is_one_line(file: Path) -> None:
    (file.parent / "texts" / "a.parquet").unlink()
    done = CliRunner().invoke(app, ["prepare", str(file), "--results", str(file.parent / "results")])
    assert done.exit_code == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "corpus.paths" in done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_in_one_line(file: Path, number: signal.Signals, code: int) -> None:
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace("tokens: 50000", "tokens: 500000000"), encoding="utf-8")
    many = [f"{number} {text}" for number in range(30) for text in documents()]
    write_parquet(file.parent / "texts" / "b.parquet", many)
    command = [str(SWEEPER), "prepare", str(file), "--results", str(file.parent / "results"), "--processes", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        assert run.stderr is not None
        first = run.stderr.readline()
        run.send_signal(number)
        _, said = run.communicate()
    assert run.returncode == code, first + said
    assert said.splitlines()[-1] == "interrupted; the same command goes on from here"
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("pace", "said"),
    [
        (
            Pace(1_200_000_000, 110_000_000_000, 310_000_000, 100.0),
            "1.20 B of 110 B tokens, 3.10 M tokens/s, 9.75 h left",
        ),
        (Pace(20_000, None, 20_000, 2.0), "20.0 K tokens, 10.0 K tokens/s"),
        (Pace(20_000, 50_000, 0, 0.0), "20.0 K of 50.0 K tokens, 0 tokens/s"),
    ],
)
def test_the_pace_is_told_with_an_estimate(pace: Pace, said: str) -> None:
    assert pace_words(pace) == said
