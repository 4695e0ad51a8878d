"""A dry run promises no more than it saw, and says why something was not seen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sweeper.foreign.costs import DryTimes, command_cost
from sweeper.foreign.dry import DryResult, DryRun, measured_by_a_dry_run
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
import json, os, signal, sys, time
total, out = int(sys.argv[1]), os.environ["SWEEPER_OUT"]
def points(*steps):
    print("".join(f"step {step} loss 3.0\\n" for step in steps), end="", flush=True)
    with open(out + "/points.jsonl", "a") as file:
        file.write("".join(json.dumps({"step": step, "loss": 3.0}) + "\\n" for step in steps))
"""
QUICK = BEGIN + "signal.signal(signal.SIGTERM, signal.SIG_IGN)\npoints(total // 2, total)\n"
"""Nobody sees it in its middle, however slow the machine is."""
WAITS_AT_500 = (
    BEGIN
    + """
if total < 500:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    points(total // 2, total)
elif os.path.exists(out + "/begun"):
    points(400, total)
else:
    open(out + "/begun", "w").close()
    points(total // 2)
    time.sleep(60)
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
SELDOM = BEGIN + "if total >= 100:\n    points(*range(100, total + 1, 100))\n"


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


def test_a_plan_has_a_bound_where_the_start_up_is_in_what_was_measured(tmp_path: Path) -> None:
    tried(tmp_path, QUICK)
    space = load_search_space(tmp_path / "dry.yaml")
    assert isinstance(space, ForeignSpace)
    trainer = trainer_of(space, tmp_path / "dry.yaml", "imaginary", 0)
    times = measured_by_a_dry_run(tmp_path / "results", trainer.fingerprint)
    assert not times.seconds
    ((arm, bound),) = times.at_most.items()
    assert arm == ("small", "baseline")
    whole = json.loads((tmp_path / "results/dry/baseline/whole/trial/result.json").read_text())["billed_seconds"] / 25
    assert 0 < bound <= whole
    cost = command_cost(trainer, [], 0, times)
    assert cost.source == f"at most {bound:.2g} s a step by a dry run, start-up included"
    assert cost.measured == {arm: bound}
    better = command_cost(trainer, [], 0, DryTimes({("small", "other"): 2.0}, times.at_most))
    assert (better.measured, better.source) == ({("small", "other"): 2.0}, "measured by a dry run")
    assert measured_by_a_dry_run(tmp_path / "results", "other code") == DryTimes()
