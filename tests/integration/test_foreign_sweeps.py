"""A sweep of a command comes to what the same mathematics comes to in our own trainer, and the shipped example is one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from reports.summary import summarize
from sweeper import RunOptions, UserError, report, run
from sweeper.ledger.mlflow_ledger import Ledger
from sweeper.options import CORPORA
from sweeper.reporting import read_study
from tests.integration.test_command_line import sweeper
from tests.support.places import ROOT, SHIPPED
from trainers.contract.record import RunRecord
from trainers.data.manifest import MANIFEST_FILE

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

TINY = Path(__file__).with_name("tiny.yaml")
AS_COMMAND = """
name: as-command
question: Does a command come to the same?
trainer:
  command: ["{{python}}", our_trainer_as_command.py, --space, "{tiny}", --corpus, "{corpus}", --out, "{{out}}",
            --method, "{{method}}", --steps, "{{total_steps}}", --seed, "{{seed}}", --lr, "{{learning_rate}}",
            --bag-size, "{{bag_size}}", --step-ratio, "{{step_ratio}}"]
  directory: "{directory}"
  environment: {{PYTHONPATH: "{root}"}}
  code: [our_trainer_as_command.py]
  decayed: true
scales: {{nano: {{}}}}
methods:
  baseline:
    budgets: {{tuning: 30, confirmation: [40, 60, 80]}}
    axes: {{learning_rate: &learning_rate {{grid: [0.002, 0.004]}}}}
  tst:
    budgets: {{tuning: 30, confirmation: [40]}}
    axes: {{learning_rate: *learning_rate, bag_size: 3, step_ratio: 0.3}}
seeds: {{tuning: [0], confirmation: [1000, 1001]}}
search: {{sampler: auto, trials_per_arm: 2}}
resources: {{gpus: 0}}
"""


def records_of(results: Path, name: str) -> list[RunRecord]:
    with Ledger.open(results, name, create=False) as ledger:
        return ledger.records()


def essence(records: list[RunRecord]) -> dict[tuple[Any, ...], object]:
    return {
        (r.purpose, r.spec.method, r.spec.schedule.total_steps, r.spec.schedule.learning_rate, r.spec.seed): (
            r.final_loss,
            tuple((p.step, p.loss, p.tokens, p.flops) for p in r.curve.points),
        )
        for r in records
    }


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, corpora: Path) -> Path:
    """Results that hold the tiny sweep by our trainer and by a command."""
    results = tmp_path_factory.mktemp("both")
    (results / CORPORA).symlink_to(corpora)
    sweep_both(results)
    return results


def sweep_both(results: Path) -> None:
    """The tiny sweep by our trainer, then by a command."""
    run(RunOptions(TINY, results, executor="inline"))
    fingerprint = records_of(results, "tiny")[0].spec.corpus_fingerprint  # type: ignore[union-attr]
    (corpus,) = (
        manifest.parent
        for manifest in (results / CORPORA).glob(f"*/{MANIFEST_FILE}")
        if json.loads(manifest.read_text())["fingerprint"] == fingerprint
    )
    text = AS_COMMAND.format(tiny=TINY, corpus=corpus, directory=ROOT / "tests" / "support", root=ROOT)
    file = results / "as-command.yaml"
    file.write_text(text, encoding="utf-8")
    run(RunOptions(file, results, executor="inline"))


def test_a_command_comes_to_the_same_losses_and_the_same_verdict(both: Path) -> None:
    own, foreign = (essence(records_of(both, name)) for name in ("tiny", "as-command"))
    assert len(own) == 2 + 2 + 3 * 2 + 2
    assert foreign == own
    verdicts = [summarize(read_study(both, name, None)).verdicts[0] for name in ("tiny", "as-command")]
    counted = [{clock: value for clock, value in verdict.by_clock if clock != "gpu_hours"} for verdict in verdicts]
    # Neither the loss gap nor the words: they are read at equal hours, which are measured.
    assert counted[0] == counted[1]
    first, second = ((v.target_loss, v.equal_tuning, v.seeds_method, v.flags) for v in verdicts)
    assert first == second


def test_ledger_report_and_import_ask_for_no_kind(both: Path, tmp_path: Path) -> None:
    records, results = tmp_path / "records.jsonl", tmp_path / "results"
    summary = report("as-command", both)
    done = sweeper("report", "as-command", "--results", both, "--records", records, "--csv", tmp_path / "runs.csv")
    assert done.returncode == 0, done.stderr
    page = (both / "as-command" / "report.html").read_text(encoding="utf-8")
    assert "own time" in page, "the page says which clock it was"
    done = sweeper("import", records, "--name", "again", "--space", both / "as-command.yaml", "--results", results)
    assert done.returncode == 0, done.stderr
    assert essence(records_of(results, "again")) == essence(records_of(both, "as-command"))
    assert report("again", results).headline == summary.headline
    for command in (("status", "as-command"), ("report", "tiny", "as-command"), ("recipe", "as-command")):
        done = sweeper(*command, "--results", both)
        assert done.returncode == 0, done.stderr
    done = sweeper("recipe", "as-command", "--total-steps", "50", "--results", both)
    assert "--steps 50 --seed" in done.stdout
    assert "--bag-size 3 --step-ratio 0.3" in done.stdout
    assert "boundary step: 15" in done.stdout


def shortened(folder: Path, name: str = "your-trainer") -> Path:
    """A shipped file with budgets of a second."""
    text = (SHIPPED / f"{name}.yaml").read_text(encoding="utf-8")
    budgets = {"your-trainer": ("1000", "1000, 1500, 2250", "1500"), "transformers": ("500", "400, 800, 1600", "800")}
    tuning, ladder, confirmed = budgets[name]
    for old, new in (
        ("../trainers/examples", str(ROOT / "trainers" / "examples")),
        (f"tuning: {tuning}", "tuning: 40"),
        (f"[{ladder}]", "[40, 60, 80]"),
        (f"[{confirmed}]", "[40]"),
        ('"{boundary_step}"', '"{boundary_step}", --evaluate-every, "10"'),
        ("width: 64", "width: 16"),
        ("trials_per_arm: 4", "trials_per_arm: 2"),
        ("[1000, 1001, 1002]", "[1000, 1001]"),
    ):
        assert old in text
        text = text.replace(old, new)
    file = folder / f"{name}.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def test_the_shipped_example_is_planned_tried_run_and_taken_home(tmp_path: Path) -> None:
    file, results = shortened(tmp_path), tmp_path / "results"
    planned = sweeper("plan", file, "--results", results)
    assert planned.returncode == 0, planned.stderr
    assert "plain_gpt.py --layers 2 --width 16 --steps 40 --lr 0.004 --seed 0 --bag-size 6" in planned.stdout
    assert "assumed 1 s a step" in planned.stdout
    assert not results.exists()
    tried = sweeper("run", file, "--dry", "--results", results)
    assert tried.returncode == 0, tried.stdout + tried.stderr
    assert "trainer's own" in tried.stdout
    assert "the contract holds" in tried.stdout
    assert "measured by a dry run" in sweeper("plan", file, "--results", results).stdout
    done = sweeper("run", file, "--results", results)
    assert done.returncode == 0, done.stderr
    assert (results / "your-trainer" / "report.html").exists()
    taken = sweeper("recipe", "your-trainer", "--total-steps", "1000", "--results", results)
    assert "--steps 1000" in taken.stdout
    refused = sweeper("run", TINY, "--dry", "--results", results)
    assert refused.returncode == 2
    assert "--dry is for a file with a trainer: of its own" in refused.stderr


@pytest.mark.real
def test_the_sweep_of_transformers_is_tried_and_run(tmp_path: Path) -> None:
    for package in ("transformers", "accelerate"):
        pytest.importorskip(package, reason="the extra `examples` is not installed")
    file, results = shortened(tmp_path, "transformers"), tmp_path / "results"
    tried = sweeper("run", file, "--dry", "--results", results)
    assert tried.returncode == 0, tried.stdout + tried.stderr
    assert tried.stdout.count("went on at step") == 2
    done = sweeper("run", file, "--results", results)
    assert done.returncode == 0, done.stderr
    assert (results / "transformers" / "report.html").exists()
    assert {record.spec.method for record in records_of(results, "transformers")} == {"baseline", "tst"}


def test_a_dry_run_says_what_does_not_hold(tmp_path: Path) -> None:
    file = shortened(tmp_path)
    text = file.read_text(encoding="utf-8")
    text = text.replace("val_loss (?P", "loss_val (?P").replace("decayed: true", "decayed: false")
    file.write_text(text, encoding="utf-8")
    tried = sweeper("run", file, "--dry", "--results", tmp_path / "results")
    assert tried.returncode == 1
    # A table wraps.
    said = " ".join(tried.stdout.split())
    assert "exit code 0 and no loss: none of the" in said
    assert "lines of its output matches metrics.log" in said
    assert "not said to end decayed" in tried.stdout


def test_mistakes_about_files_are_one_line_with_their_number(tmp_path: Path) -> None:
    file = shortened(tmp_path)
    text = file.read_text(encoding="utf-8")
    for old, new, said in (
        ("code: [plain_gpt.py]", "code: [plain_gtp.py]", r"'plain_gtp.py' matches no file in"),
        (str(ROOT / "trainers" / "examples"), "nowhere", r"'nowhere' is no folder beside this file"),
    ):
        file.write_text(text.replace(old, new), encoding="utf-8")
        line = next(number for number, line in enumerate(text.splitlines(), 1) if old in line)
        with pytest.raises(UserError, match=rf"your-trainer.yaml:{line}: trainer.*{said}"):
            run(RunOptions(file, tmp_path / "results"))


HELPED = """
from sweeper_points import finish, folder, point, trial
told = trial()
for step in (1, 2):
    point(step, 3.0 / step, seconds=step)
finish(1.0)
print(None if told is None else told["seed"], folder())
"""


@pytest.mark.parametrize(("rank", "lines"), [("0", 3), ("1", 0)])
def test_the_file_to_copy_tells_on_the_first_rank_only_and_nothing_outside_a_sweep(
    tmp_path: Path, rank: str, lines: int
) -> None:
    source = ROOT / "trainers" / "examples" / "sweeper_points.py"
    assert len(source.read_text().splitlines()) <= 60
    (tmp_path / "sweeper_points.py").write_text(source.read_text())
    (tmp_path / "train.py").write_text(HELPED)
    (tmp_path / "trial.json").write_text('{"seed": 7}')
    outside = {name: value for name, value in os.environ.items() if not name.startswith("SWEEPER_")}
    inside = {**outside, "SWEEPER_OUT": str(tmp_path), "SWEEPER_TRIAL": str(tmp_path / "trial.json"), "RANK": rank}

    def says(environment: dict[str, str]) -> str:
        done = subprocess.run(
            [sys.executable, "train.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    assert says(outside) == "None None"
    assert not (tmp_path / "points.jsonl").exists()
    assert says(inside) == f"7 {tmp_path}"
    points = tmp_path / "points.jsonl"
    assert len(points.read_text().splitlines() if points.exists() else []) == lines


@pytest.mark.parametrize("name", ["plain_gpt.py", "transformers_llama.py"])
def test_the_examples_are_short(name: str) -> None:
    assert len((ROOT / "trainers" / "examples" / name).read_text().splitlines()) <= 150


FAILING = """
import json, sys
from pathlib import Path
steps, seed, out, method, broken = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4], Path(sys.argv[5])
if method == "tst" and seed >= 1000 and broken.exists():
    sys.exit("no room for this one")
with (out / "points.jsonl").open("w") as file:
    for step in (steps // 2, steps):
        loss = 3 + 100 / step - 0.1 * (method == "tst") + seed % 7 / 1000
        print(json.dumps({"step": step, "loss": loss, "seconds": step / 100}), file=file)
"""
CONFIRMED_BY_TWO = """
name: failing
question: What if no confirmation ends?
trainer:
  command: ["{{python}}", failing.py, "{{total_steps}}", "{{seed}}", "{{out}}", "{{method}}", "{broken}", "{{learning_rate}}"]
  code: [failing.py]
  metrics: {{points: points.jsonl}}
  decayed: true
scales: {{small: {{}}}}
seeds: {{tuning: [0], confirmation: [1000, 1001]}}
methods:
  baseline: {{budgets: {{tuning: 100, confirmation: [200, 300, 400]}}, axes: {{learning_rate: 0.002}}}}
  tst: {{budgets: {{tuning: 100, confirmation: [200]}}, axes: {{learning_rate: 0.002}}}}
search: {{trials_per_arm: 1}}
resources: {{gpus: 0}}
"""


def test_a_sweep_whose_two_confirmations_fail_ends_with_1_until_they_do_not(tmp_path: Path) -> None:
    broken, file, results = tmp_path / "broken", tmp_path / "failing.yaml", tmp_path / "results"
    broken.touch()
    (tmp_path / "failing.py").write_text(FAILING, encoding="utf-8")
    file.write_text(CONFIRMED_BY_TWO.format(broken=broken), encoding="utf-8")
    command = ("run", file, "--executor", "inline", "--results", results)
    for _ in range(2):  # the second time they are tried again
        done = sweeper(*command)
        assert done.returncode == 1, done.stderr
        assert done.stdout.startswith(
            "Nothing is confirmed yet at small: the confirmation of TST failed at 200 steps (seeds"
        )
        assert "no room for this one" in done.stderr
        assert done.stderr.splitlines()[-1] == "2 trials did not finish; `sweeper status` says why"
        assert "Traceback" not in done.stderr
    told = sweeper("report", "failing", "--results", results)
    assert (told.returncode, told.stdout) == (0, done.stdout)
    assert sweeper("report", "failing", "--results", results, "--fail-under", "1").returncode == 4
    assert sweeper("recipe", "failing", "--results", results).returncode == 2
    assert sweeper("status", "failing", "--results", results).stdout.count("no room for this one") == 2
    broken.unlink()
    done = sweeper(*command)
    assert done.returncode == 0, done.stderr
    assert re.match(r"TST is 1\.\d+x faster", done.stdout)
