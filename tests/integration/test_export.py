"""From a sweep to the field's tools and back: winners as folders that other libraries load, scores beside the loss."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from safetensors import safe_open
from typer.testing import CliRunner

from sweeper.cli.app import app
from sweeper.ledger.mlflow_ledger import Ledger
from sweeper.options import CORPORA
from tests.support.ledger_factory import MLFLOW_WARNINGS, empty_results
from tests.support.places import ROOT
from trainers.contract.record import RunRecord
from trainers.planning.lineage import path_of

pytestmark = [MLFLOW_WARNINGS, pytest.mark.slow]
FILE = """
name: small
question: Can its models be taken elsewhere?
corpus: {source: stdlib}
tokenizer: {kind: bpe, vocab_size: 512}
scales: [pico, nano-moe]
context: 32
tokens_per_step: 64
validation_tokens: 512
schedule: {warmup_steps: 2, decay_fraction: 0.25}
seeds: {tuning: [0], confirmation: [1000, 1001]}
methods:
  baseline:
    budgets: {tuning: 8, confirmation: [8, 12]}
    axes: {learning_rate: 0.004}
  tst:
    budgets: {tuning: 8, confirmation: [8]}
    axes: {learning_rate: 0.004, bag_size: 2, step_ratio: 0.5, bag_weighting: uniform}
search: {trials_per_arm: 1, fan: 1, warm_start: False}
resources: {gpus: 0}
"""
ARMS = {f"{scale}-{method}" for scale in ("pico", "nano-moe") for method in ("baseline", "tst")}
CONFIRMED = 2 * (2 * 2 + 2)


def sweeper(results: Path, *arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments), "--results", str(results)], catch_exceptions=False)


def done(results: Path, *arguments: object) -> list[str]:
    result = sweeper(results, *arguments)
    assert result.exit_code == 0, result.stderr
    return result.stdout.splitlines()


def refused(results: Path, *arguments: object) -> str:
    result = sweeper(results, *arguments)
    assert (result.exit_code, result.stdout) == (2, ""), result.stderr
    (line,) = result.stderr.splitlines()
    return line


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, corpora: Path) -> Path:
    """With the sweep, run to its end, and once more."""
    results = empty_results(tmp_path_factory)
    (results / CORPORA).symlink_to(corpora)
    file = results / "small.yaml"
    file.write_text(FILE, encoding="utf-8")
    for _ in range(2):
        done(results, "run", file, "--executor", "inline")
    return results


def records_of(results: Path) -> list[RunRecord]:
    with Ledger.open(results, "small", create=False) as ledger:
        return ledger.records()


def of(records: list[RunRecord], scale: str, method: str, purpose: str = "confirmation") -> list[RunRecord]:
    return [r for r in records if (r.spec.scale, r.spec.method, r.purpose) == (scale, method, purpose)]


def spec_of_folder(folder: Path) -> str:
    with safe_open(folder / "model.safetensors", "pt") as weights:
        return str(weights.metadata()["spec_id"])


def test_the_winners_weights_are_kept_and_exported(results: Path, tmp_path: Path) -> None:
    states = list((results / "small" / "stages").glob("*/state"))
    assert len(states) == CONFIRMED
    assert not [state for state in states if (state.parent / "partial").exists()]
    lines = done(results, "export", "small", tmp_path / "models")
    assert {folder.name for folder in (tmp_path / "models").iterdir()} == ARMS
    records = records_of(results)
    for scale, family in (("pico", "LlamaForCausalLM"), ("nano-moe", "Qwen3MoeForCausalLM")):
        folder = tmp_path / "models" / f"{scale}-baseline"
        (first,) = [
            r for r in of(records, scale, "baseline") if (r.spec.schedule.total_steps, r.spec.seed) == (12, 1000)
        ]
        assert spec_of_folder(folder) == first.spec.spec_id
        assert json.loads((folder / "config.json").read_text())["architectures"] == [family]
        (line,) = [line for line in lines if line.startswith(f"{folder}: ")]
        assert "12 steps · seed 1000" in line
        assert line.endswith(f"final loss {first.final_loss:.4f}")


def test_one_run_is_exported_by_its_id_into_the_folder_itself(results: Path, tmp_path: Path) -> None:
    wanted = of(records_of(results), "pico", "tst")[1].spec.spec_id
    for given in (wanted, wanted[:6]):
        done(results, "export", "small", given, tmp_path / given)
        assert spec_of_folder(tmp_path / given) == wanted


def test_what_cannot_be_exported_is_one_line(results: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    tuning = of(records_of(results), "pico", "tst", "tuning")[0].spec.spec_id
    assert f"{tuning}: its final weights are not in" in refused(results, "export", "small", tuning, out)
    assert "no run of small has that id" in refused(results, "export", "small", "zzz", out)
    assert "no run of small has that id" in refused(results, "export", "small", "", out)
    assert "no sweep of that name" in refused(results, "export", "nowhere", out)
    assert "give a folder, or a run and a folder" in refused(results, "export", "small", tuning, out, "more")
    runs = tmp_path / "runs.csv"
    done(results, "report", "small", "--csv", runs)
    done(results, "import", runs, "--name", "theirs")
    assert "were trained elsewhere" in refused(results, "export", "theirs", out)
    assert not out.exists()
    out.write_text("a file")
    assert str(out) in refused(results, "export", "small", out)


def test_damaged_weights_are_one_line(results: Path, tmp_path: Path) -> None:
    wanted = of(records_of(results), "pico", "tst")[0]
    node = path_of(wanted.spec, wanted.provenance.execution).node(wanted.spec.schedule.total_steps)
    (file,) = (results / "small" / "stages" / node / "state").glob("*.safetensors")
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    try:
        line = refused(results, "export", "small", wanted.spec.spec_id, tmp_path / "m")
    finally:
        file.write_bytes(whole)
    assert line.startswith(f"{wanted.spec.spec_id}: its weights in ")
    assert "SHA-256 differs" in line


def test_without_its_text_a_model_has_no_tokenizer(results: Path, tmp_path: Path) -> None:
    (results / CORPORA).rename(results / "elsewhere")
    try:
        assert "`sweeper prepare` of the sweep's file makes it again" in refused(
            results, "export", "small", tmp_path / "m"
        )
    finally:
        (results / "elsewhere").rename(results / CORPORA)


def results_file(path: Path, tasks: dict[str, Any], **more: Any) -> Path:
    path.write_text(json.dumps({"results": tasks, "n-shot": {"words": 0, "sums": 5}, "config": {}, **more}))
    return path


def test_scores_stand_beside_the_loss_and_change_no_number(results: Path, tmp_path: Path) -> None:
    wanted, other = (record.spec.spec_id for record in of(records_of(results), "pico", "tst"))
    done(results, "export", "small", wanted, tmp_path / "model")
    done(results, "report", "small")
    before = json.loads((results / "small" / "summary.json").read_text())
    words = {"alias": "words", "acc,none": 0.25, "acc_stderr,none": 0.01, "perplexity,none": float("nan")}
    sums = {"alias": "sums", "exact_match,strict-match": 0.5}
    file = results_file(
        tmp_path / "results_1.json",
        {"words": words, "sums": sums},
        config={"model_args": f"pretrained={tmp_path / 'model'},dtype=float32", "limit": 10.0},
    )
    said = sweeper(results, "import", file, "--name", "small")
    assert said.exit_code == 0
    assert (
        said.stdout.splitlines()[0]
        == f"small: run {wanted} has sums-5shot/exact_match/strict-match 0.5, words/acc 0.25"
    )
    assert said.stderr == "results_1.json: scored on a part of the samples only (limit 10)\n"
    again = results_file(tmp_path / "results_2.json", {"words": {"acc,none": 0.75}})
    done(results, "import", again, "--name", "small", "--run", wanted[:8])
    done(results, "import", again, "--name", "small", "--run", other)

    page = (results / "small" / "report.html").read_text(encoding="utf-8")
    (table,) = re.findall(r"<table[^>]*>(?:(?!</table>).)*sums-5shot.*?</table>", page, flags=re.DOTALL)
    cells = [re.sub(r"<[^>]+>", "", cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", table, flags=re.DOTALL)]
    losses = [f"{record.final_loss:.4f}" for record in of(records_of(results), "pico", "tst")]
    assert cells[:4] == ["Run", "Final loss", "sums-5shot/exact_match/strict-match", "words/acc"]
    assert cells[5:8] == [losses[0], "0.5", "0.75"]
    assert cells[9:12] == [losses[1], "–", "0.75"]
    assert json.loads((results / "small" / "summary.json").read_text()) == before

    runs = tmp_path / "runs.csv"
    done(results, "report", "small", "--csv", runs)
    with runs.open(encoding="utf-8", newline="") as stream:
        scores = {row["run"]: row["scores"] for row in csv.DictReader(stream)}
    assert {run: said for run, said in scores.items() if said} == {
        wanted: "sums-5shot/exact_match/strict-match=0.5 words/acc=0.75",
        other: "words/acc=0.75",
    }
    done(results, "import", runs, "--name", "again")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is no results file of lm-eval"),
        (b"\xff\x00", "is no results file of lm-eval"),
        (b"[" * 100_000, "is no results file of lm-eval"),
        (b"[]", "it has no `results`"),
        (b'{"results": 3}', "it has no `results`"),
        (
            b'{"results": {"words": 3, "sums": {"acc,none": "N/A", "acc": 1, "a,none": 1e999, "b,none": true}}}',
            "holds no score",
        ),
        (b'{"results": {"words": {"acc,none": 1%s}}}' % (b"0" * 400), "holds no score"),
        (b'{"results": {"%s": {"acc,none": 1}}}' % (b"w" * 400), "a score's name has 404 characters"),
        (b'{"results": {"words": {"acc,none": 1}}}', "name the run with --run"),
        (
            b'{"results": {"words": {"acc,none": 1}}, "config": {"model_args": {"pretrained": "gpt2"}}}',
            "cannot be read here",
        ),
    ],
)
def test_what_is_no_results_file_is_one_line(content: bytes, said: str, results: Path, tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    file.write_bytes(content)
    line = refused(results, "import", file, "--name", "small")
    assert line.startswith(f"{file}: ")
    assert said in line


def test_strange_names_of_tasks_become_names_that_the_ledger_takes(results: Path, tmp_path: Path) -> None:
    tasks = {name: {"acc,none": 0.5} for name in ("", "..", "a/../b", "with space=1", "größe")}
    file = results_file(tmp_path / "results.json", tasks)
    run = of(records_of(results), "nano-moe", "tst")[0].spec.spec_id
    (said, _) = done(results, "import", file, "--name", "small", "--run", run)
    assert said == f"small: run {run} has _/acc 0.5, a_.._b/acc 0.5, größe/acc 0.5, with_space_1/acc 0.5"
    with Ledger.open(results, "small", create=False) as ledger:
        assert [name for name, _ in ledger.scores()[run]] == ["_/acc", "a_.._b/acc", "größe/acc", "with_space_1/acc"]


def test_scores_need_a_run_of_the_sweep(results: Path, tmp_path: Path) -> None:
    file = results_file(tmp_path / "results.json", {"words": {"acc,none": 0.5}})
    assert "no run of small has that id" in refused(results, "import", file, "--name", "small", "--run", "zzz")
    assert "take no option" in refused(results, "import", file, "--name", "small", "--unit", "nats")
    assert "--run: is for scores" in refused(results, "import", tmp_path / "runs.csv", "--name", "small", "--run", "a")


def task_folder(folder: Path) -> Path:
    """The task that the page about commands shows, and its samples, beside each other."""
    text = (ROOT / "sweeper" / "README.md").read_text(encoding="utf-8")
    (task,) = re.findall(r"^```yaml\n(task: .*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    (samples,) = re.findall(r"^```json\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    (folder / "tasks").mkdir()
    (folder / "tasks" / "words.yaml").write_text(task, encoding="utf-8")
    (folder / "tasks" / "words.jsonl").write_text(samples, encoding="utf-8")
    return folder


@pytest.mark.real
def test_the_harness_s_own_command_scores_an_exported_folder(results: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="the extra `eval` is not installed")
    task_folder(tmp_path)
    done(results, "export", "small", tmp_path / "models")
    command = Path(sys.executable).with_name("lm_eval")
    for arm in ("pico-tst", "nano-moe-tst"):
        given = f"pretrained=models/{arm},dtype=float32"
        scored = subprocess.run(
            [command, "--model", "hf", "--model_args", given, "--tasks", "words", "--include_path", "tasks",
             "--output_path", f"scores/{arm}", "--device", "cpu"],
            cwd=tmp_path,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")},
            capture_output=True,
            text=True,
            check=False,
        )  # fmt: skip
        assert scored.returncode == 0, scored.stderr
        (file,) = (tmp_path / "scores" / arm).rglob("results_*.json")
        run = spec_of_folder(tmp_path / "models" / arm)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(tmp_path)
            (said, _) = done(results, "import", file, "--name", "small")
        assert re.fullmatch(rf"small: run {run} has .*words/acc [01]\S*.*", said)
