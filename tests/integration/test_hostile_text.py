"""Text that others wrote: a terminal, a page and MLflow show it and obey none of it; no path and no name leads outside."""

from __future__ import annotations

import ast
import csv
import io
import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sweeper.cli.console import PlainConsole
from sweeper.ledger.location import check_name, check_new_name, is_name
from sweeper.ledger.mlflow_ledger import Ledger, list_sweeps
from tests.integration.test_command_line import FILE, SWEEPER
from tests.support.places import ROOT
from trainers.contract.errors import InputError
from trainers.contract.writing import Shown, printable

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning")
ESCAPES = "\x1b[2J\x1b]0;title\x07\x9b31m\r\x08"
MARKUP = "[/x][bold]b[/bold]:smile:"
HTML = "<script>alert(1)</script><img src=x onerror=alert(1)>"
HOSTILE = f"{ESCAPES} {MARKUP} {HTML} \u202egnp"
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]")


def test_every_control_is_shown_and_nothing_else_changes() -> None:
    assert printable("\x1b[31m\x07\r") == "␛[31m␇␍"
    assert not CONTROLS.search(printable(HOSTILE))
    plain = "é ü 𝔘 ━ · ≥ 家\tx\n👩\u200d💻"
    assert printable(plain) == plain


def test_a_stream_shows_what_is_printed_and_lets_a_console_draw() -> None:
    raw = io.StringIO()
    stream = Shown(raw)
    print(HOSTILE, file=stream)
    assert not CONTROLS.search(raw.getvalue())
    Console(file=stream, force_terminal=True, color_system="standard").print(Text("red", style="red"))  # type: ignore[arg-type]
    assert "\x1b[31mred" in raw.getvalue()


def test_a_console_takes_nothing_for_markup_or_a_control(capsys: pytest.CaptureFixture[str]) -> None:
    console = PlainConsole()
    table = Table(title=HOSTILE)
    table.add_column(HOSTILE)
    table.add_row(HOSTILE)
    for what in (HOSTILE, Text(HOSTILE), table):
        console.print(what, soft_wrap=True)
    said = capsys.readouterr().out
    assert not CONTROLS.search(said)
    assert said.count("[/x]") == 5
    assert ":smile:" in said


@pytest.fixture
def hostile_sweep(tmp_path: Path) -> Path:
    """Results of an import whose every name is an attack, made by the installed command."""
    table = tmp_path / "runs.csv"
    names = ["run", "scale", "method", "seed", "total_steps", "gpu_hours", "final_loss", "outcome", "params"]
    with table.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(names)
        for seed in range(2):
            for steps, loss in ((1000, 3.3), (2000, 3.1), (4000, 3.0)):
                rows.writerow(
                    [f"{HOSTILE} {seed} {steps}", HTML, "baseline", seed, steps, steps / 100, loss, "finished", ""]
                )
            rows.writerow([f"m {HOSTILE} {seed}", HTML, f"evil {MARKUP} {HTML}", seed, 2000, 21, 3.05, "finished", ""])
        rows.writerow([f"bad {HOSTILE}", HTML, "baseline", 7, 1000, "", "", "failed", ""])
    results = tmp_path / "results"
    results.mkdir()
    done = command(results, "import", table, "--name", "evil", "--question", HOSTILE)
    assert done.returncode == 0, done.stderr
    return results


def command(results: Path, *words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(SWEEPER), *map(str, words), "--results", str(results)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=300,
    )


@pytest.mark.slow
def test_hostile_names_reach_no_terminal_page_or_description(hostile_sweep: Path) -> None:
    for words in (("status", "evil"), ("report", "evil"), ("report", "evil", "--json")):
        done = command(hostile_sweep, *words, FORCE_COLOR="1")
        assert done.returncode == 0, done.stderr
        assert not CONTROLS.search(re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr)), words
        assert "\x1b[2J" not in done.stdout
    page = (hostile_sweep / "evil" / "report.html").read_text(encoding="utf-8")
    assert HTML not in page
    assert "<img src=x" not in page
    assert "&lt;script&gt;alert(1)" in page
    with Ledger.open(hostile_sweep, "evil", create=False) as ledger:
        run = ledger._client.get_run(ledger._require_parent())
    words = re.sub(r"`[^`]*`", "", run.data.tags["mlflow.note.content"])  # in code, tags are text
    assert "&lt;script>" in words
    assert "<" not in words
    assert not re.search(r"(?<!\\)\[", words), "a link, or a picture that is fetched"


@pytest.mark.slow
def test_a_terminal_of_few_characters_is_no_fault(hostile_sweep: Path) -> None:
    for words in (
        ("status", "evil"),
        ("report", "evil"),
        ("import", hostile_sweep.parent / "runs.csv", "--name", "other"),
    ):
        done = command(hostile_sweep, *words, PYTHONIOENCODING="ascii", PYTHONUTF8="0", LC_ALL="C")
        assert done.returncode == 0, done.stderr
        assert done.stdout.isascii()


@pytest.mark.parametrize("name", ["../x", "/etc/x", "..", ".", "", "a/b", "a\nb", "a" * 65, "ä", "-x", "a\x00"])
def test_a_name_that_leaves_the_results_is_refused(name: str, tmp_path: Path) -> None:
    assert not is_name(name)
    with pytest.raises(InputError):
        check_name(name)
    with pytest.raises(InputError):
        Ledger.open(tmp_path, name, create=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["published", "corpora", "bench", "comparisons", "mlflow.db", "mlflow.lock", "mlflow.db-wal"]
)
def test_no_new_sweep_lies_on_something_else(name: str) -> None:
    check_name(name)
    with pytest.raises(InputError, match="something else's"):
        check_new_name(name)


def test_commands_refuse_a_path_as_a_name(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    status = json.dumps({"name": "outside", "question": "", "arms": []})
    (outside / "status.json").write_text(status)
    results = tmp_path / "results"
    results.mkdir()
    for words in (("stop", "../outside"), ("status", "../outside"), ("report", "../outside"), ("ui", "../outside")):
        done = command(results, *words)
        assert done.returncode == 2, (words, done.stderr)
        assert len(done.stderr.splitlines()) == 1
    assert [file.read_text() for file in outside.iterdir()] == [status]


def test_an_experiment_of_somebody_s_with_a_path_for_a_name_is_no_sweep(tmp_path: Path) -> None:
    with Ledger.open(tmp_path, "good", create=True) as ledger:
        ledger._client.create_experiment("sweeper/../../x", tags={"sweeper.sweep": "../../x"})
    assert list_sweeps(tmp_path) == ["good"]


LOADERS = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}


def test_nothing_of_ours_reads_a_format_that_can_run_code() -> None:
    """No pickle by any of its names: what lies in a results folder, or comes as a file, is read as plain values."""
    found = []
    for package in ("sweeper", "trainers", "reports"):
        for file in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                names: list[str] = []
                if isinstance(node, ast.Import):
                    names = [alias.name.split(".")[0] for alias in node.names]
                elif isinstance(node, ast.ImportFrom):
                    names = [(node.module or "").split(".")[0]]
                elif isinstance(node, ast.Call):
                    called, given = ast.unparse(node.func), {key.arg: ast.unparse(key.value) for key in node.keywords}
                    if called in ("eval", "exec", "yaml.load", "yaml.unsafe_load", "pandas.read_pickle"):
                        names = ["pickle"]
                    if called == "torch.load" and given.get("weights_only") != "True":
                        names = ["pickle"]
                    if called.endswith(".load") and "allow_pickle" in given:
                        names = ["pickle"]
                found += [f"{file.name}:{node.lineno}" for name in names if name in LOADERS]  # type: ignore[attr-defined]
    assert found == []


def test_a_password_in_a_database_s_address_is_neither_shown_nor_stored(tmp_path: Path) -> None:
    address = "postgresql://ann:s3cr%40t@127.0.0.1:9/runs"
    done = command(tmp_path / "results", "run", FILE, "--tracking-uri", address, "--executor", "inline")
    assert done.returncode in (1, 2)
    assert "s3cr" not in done.stdout + done.stderr
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or b"s3cr" not in file.read_bytes(), file
