"""A dry run promises no more than it saw, and says why something was not seen."""

from __future__ import annotations

from pathlib import Path

import pytest

from sweeper.foreign.dry import DryResult, DryRun
from sweeper.foreign.trainer import trainer_of
from sweeper.space.foreign_schema import ForeignSpace
from sweeper.space.load import load_search_space
from tests.unit.sweeper.foreign.test_points import event, framed

SPACE = """
name: dry
question: Does the machine work?
trainer:
  command: ["{{python}}", train.py, "{{total_steps}}", "{{seed}}", "{{learning_rate}}"]
  code: [train.py]
  metrics: {metrics}
  decayed: true
  resumes: {resumes}
scales: {{small: {{size: 6}}}}
methods:
  baseline: {{budgets: {{tuning: 500, confirmation: [500]}}, axes: {{learning_rate: &lr {{grid: [1.0e-3, 2.0e-3]}}}}}}
seeds: {{tuning: [0], confirmation: [1000, 1001]}}
search: {{sampler: grid, trials_per_arm: 2, warm_start: false}}
resources: {{gpus: 0}}
"""
BEGIN = """
import json, os, sys, time
total, out = int(sys.argv[1]), os.environ["SWEEPER_OUT"]
def point(step):
    print("step", step, "loss", 3.0, flush=True)
    with open(out + "/points.jsonl", "a") as file:
        file.write(json.dumps({"step": step, "loss": 3.0}) + chr(10))
"""
QUICK = BEGIN + "point(total // 2)\npoint(total)\n"
WAITS_AT_500 = (
    BEGIN
    + """
file = out + "/begun"
again = os.path.exists(file)
open(file, "w").close()
point(400 if again else total // 2)
time.sleep(0 if again or total < 500 else 60)
point(total)
"""
)


def tried(
    folder: Path, code: str, resumes: bool = True, metrics: str = "{points: points.jsonl}"
) -> tuple[DryResult, list[str]]:
    """A dry run of a trainer, and what it said on its way."""
    (folder / "train.py").write_text(code)
    file = folder / "dry.yaml"
    file.write_text(SPACE.format(resumes=str(resumes).lower(), metrics=metrics))
    space = load_search_space(file)
    assert isinstance(space, ForeignSpace)
    said: list[str] = []
    return DryRun(space, trainer_of(space, file, "imaginary", 0), folder / "results", said.append).run(), said


@pytest.mark.parametrize(("resumes", "unseen"), [(True, "resumption"), (False, "an end by SIGTERM")])
def test_what_was_too_quick_to_be_seen_is_said_and_not_promised(tmp_path: Path, resumes: bool, unseen: str) -> None:
    result, said = tried(tmp_path, QUICK, resumes)
    assert [line.rpartition(": ")[2] for line in said][-3:] == [
        "SIGTERM in the middle",
        "SIGTERM in the middle of 250 steps",
        "SIGTERM in the middle of 500 steps",
    ]
    wanted = f"the contract holds as far as it could be tried, over 25 of 500 steps: {unseen} was not seen"
    assert result.holds == wanted
    assert result.checks[-1].found == "500 steps had ended before it could be asked"


def test_a_quick_command_is_asked_to_end_in_the_longest_trial_of_a_search(tmp_path: Path) -> None:
    result, _ = tried(tmp_path, WAITS_AT_500)
    assert result.checks[-1].found == "went on at step 400"
    assert result.holds == "the contract holds, tried over 25 of 500 steps"


EVENTS = framed(event(20, "train/loss", 3.5)) + framed(event(25, "val/Loss", 3.5))
SELDOM = BEGIN + "for step in range(100, total + 1, 100):\n    point(step)\n"


@pytest.mark.parametrize(
    ("code", "metrics", "why"),
    [
        (SELDOM, "{points: points.jsonl}", "points.jsonl is not there (metrics.points)"),
        (
            SELDOM + "open(out + '/points.jsonl', 'w')",
            "{points: points.jsonl}",
            "points.jsonl is empty (metrics.points)",
        ),
        (
            QUICK,
            "{log: 'STEP (?P<step>.+) (?P<loss>.+)'}",
            "none of the 2 lines of its output matches metrics.log; its log ends: 'step 12 loss 3.0' | 'step 25 loss 3.0'",
        ),
        (
            BEGIN + f"open(out + '/x.tfevents', 'wb').write({EVENTS!r})",
            "{tensorboard: {loss: val/loss}}",
            "no 'val/loss' in TensorBoard's event files (metrics.tensorboard); they hold 'train/loss', 'val/Loss'",
        ),
        (
            BEGIN,
            "{tensorboard: {loss: val/loss}}",
            "no event file of TensorBoard's is in its folder (metrics.tensorboard)",
        ),
    ],
)
def test_where_no_loss_was_said_what_there_is_instead_is(tmp_path: Path, code: str, metrics: str, why: str) -> None:
    result, _ = tried(tmp_path, code, metrics=metrics)
    asked = "25 steps were asked for: does it evaluate at the last step, too?"
    assert [check.found for check in result.checks] == [f"exit code 0 and no loss: {why}. {asked}"]
    assert result.holds is None
