"""In-run points as other tools leave them behind become one table of ours."""

from __future__ import annotations

import json

import pytest

from reports.evidence.delimited import RunImportError
from reports.evidence.logs import Log, LogPoint, log_points, logs_as_tables
from reports.evidence.points import points_as_table


def rows(source: str, text: str, columns: dict[str, str] | None = None, devices: float | None = None) -> list[str]:
    return points_as_table(source, text, columns or {}, devices).splitlines()


def test_a_chart_of_wandb_has_a_column_a_run_and_blank_cells() -> None:
    chart = '"Step","a - b - val/loss","a - b - val/loss__MIN","c - val/loss"\n"0","10.8","1",""\n"5","","","3.5"\n'
    assert rows("chart.csv", chart) == ["run,step,loss,gpu_hours", "a - b,0,10.8,", "c,5,3.5,"]


def test_a_chart_may_have_columns_without_a_name_and_none_twice() -> None:
    assert rows("chart.csv", '"Step","a - val/loss",,\n"0","10.8","",""\n')[1:] == ["a,0,10.8,"]
    with pytest.raises(RunImportError, match=r"chart\.csv:1: columns 2 and 3 are both called a - val/loss"):
        rows("chart.csv", '"Step","a - val/loss","a - val/loss"\n"0","10.8","10.9"\n')


def test_a_chart_of_two_metrics_is_refused() -> None:
    chart = '"Step","a - val/loss","a - train/loss"\n"0","10.8","10.9"\n'
    with pytest.raises(RunImportError, match=r"chart\.csv:1: holds 2 metrics, train/loss, val/loss; export a chart"):
        rows("chart.csv", chart)


def test_a_chart_over_something_else_is_refused() -> None:
    with pytest.raises(RunImportError, match=r"chart\.csv:1: is a chart over 'Wall Time'; export it over Step"):
        rows("chart.csv", '"Wall Time","a - val/loss"\n"0","10.8"\n')


def test_a_history_is_of_the_run_in_it_or_of_its_file() -> None:
    lines = [{"_step": 0, "val/loss": 10.8}, {"_step": 1, "loss": 3.0}, {"_step": 2, "val/loss": "Infinity"}]
    text = "\n".join(map(json.dumps, lines))
    assert rows("b1.jsonl", text) == ["run,step,loss,gpu_hours", "b1,0,10.8,", "b1,2,Infinity,"]
    named = "\n".join(json.dumps({**line, "run": "x"}) for line in lines)
    assert rows("b1.jsonl", named, {"loss": "loss"}) == ["run,step,loss,gpu_hours", "x,1,3.0,"]


def test_a_history_may_be_one_json_array_on_one_line_or_on_many() -> None:
    entries = [{"_step": 0, "val/loss": 10.8}, {"_step": 1, "train/loss": 3.0}, {"_step": 2, "val/loss": float("nan")}]
    for indent in (None, 2):
        text = json.dumps(entries, indent=indent)
        assert rows("b1.json", text) == ["run,step,loss,gpu_hours", "b1,0,10.8,", "b1,2,nan,"]
    late = json.dumps([*entries, {"_step": 3, "val/loss": "x"}], indent=2)
    for text, said in (
        (late, "b1.json:14: loss: 'x' is not a positive number"),
        ("[{}, 3]", "b1.json:1: is not a JSON object"),
        ('[{"_step": 0', "b1.json:1: is not JSON: "),
    ):
        with pytest.raises(RunImportError) as caught:
            rows("b1.json", text)
        assert str(caught.value).startswith(said)


def test_a_table_without_a_run_is_of_its_file_and_has_the_keys_of_a_history() -> None:
    assert rows("b1.csv", "step,loss\n0,10.8\n5,nan\n") == ["run,step,loss,gpu_hours", "b1,0,10.8,", "b1,5,nan,"]
    history = "_step,_runtime,_timestamp,train/loss,val/loss\n0,0.0,17,3.1,10.8\n1,1.0,18,3.1,\n5,2.0,19,3.1,3.5\n"
    assert rows("b1.csv", history)[1:] == ["b1,0,10.8,", "b1,5,3.5,"]
    assert rows("b1.csv", history, {"loss": "train/loss"})[1:] == ["b1,0,3.1,", "b1,1,3.1,", "b1,5,3.1,"]
    costs = "step;loss;tokens\n0;10.8;0\n5;3.5;90\n"
    assert rows("b1.csv", costs) == ["run,step,loss,gpu_hours,tokens", "b1,0,10.8,,0", "b1,5,3.5,,90"]
    with pytest.raises(RunImportError, match=r"b1\.csv:4: loss: 'x' is not a positive number"):
        rows("b1.csv", "step,loss\n0,1\n\n5,x\n")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"_step": 1}\n', "b1.jsonl:1: no key for loss; name it with --map loss=KEY, there are _step"),
        ('{"_step": 1, "val/loss": 3}\n{', "b1.jsonl:2: is not JSON"),
        ('{"_step": 1, "val/loss": 3}\n[1]', "b1.jsonl:2: is not a JSON object"),
        (
            '{"_step": 1, "val/loss": 3}\n{"_step": 2, "val/loss": [3]}',
            "b1.jsonl:2: loss: '[3]' is not a positive number",
        ),
        ('{"_step": 1, "val/loss": "x"}', "b1.jsonl:1: loss: 'x' is not a positive number"),
        ('{"_step": 1}\n\n{"_step": -1, "val/loss": 3}', "b1.jsonl:3: step: -1 is not a number from 0 up"),
        ('{"_step": 1}\n{"_step": 2, "val/loss": -3}', "b1.jsonl:2: loss: -3 is not a positive number"),
        (
            json.dumps({"_step": 1, "val/loss": "9" * 400 + "x"}),
            f"b1.jsonl:1: loss: '{'9' * 60}...' is not a positive number",
        ),
        ('{"a": ' * 100_000, "b1.jsonl:1: is not JSON"),
    ],
)
def test_what_is_no_history_is_named_with_its_line(text: str, said: str) -> None:
    with pytest.raises(RunImportError) as caught:
        rows("b1.jsonl", text)
    assert str(caught.value).startswith(said)


LOG = (
    "code = 'step:{step}/{total} val_loss:{loss}'\n"
    "step:0/10 val_loss:10.8 train_time:0ms\nstep:1/10 train_time:58ms step_avg:58ms\n"
    "[2026-01-01] step:10/10 val_loss:3.2779 train_time:7200s step_avg:58ms\n"
)


def test_a_log_tells_steps_losses_and_wall_time() -> None:
    assert log_points(LOG) == [LogPoint(0, 10, "10.8", 0.0, 2), LogPoint(10, 10, "3.2779", 7.2e6, 4)]
    assert rows("b1.txt", LOG) == ["run,step,loss,gpu_hours", "b1,0,10.8,", "b1,10,3.2779,"]
    assert rows("b1.txt", LOG, devices=8)[1:] == ["b1,0,10.8,0.0", "b1,10,3.2779,16.0"]


def test_logs_are_runs_that_ended_stopped_or_diverged() -> None:
    logs = [
        Log("baseline", "b", LOG),
        Log("muon", "cut", LOG.replace("step:10/10", "step:9/10")),
        Log("muon", "bad", LOG.replace("3.2779", "nan")),
    ]
    runs, _ = logs_as_tables(logs, 8)
    assert runs.splitlines() == [
        "run,method,total_steps,final_loss,outcome,gpu_hours",
        "b,baseline,10,3.2779,finished,16.0",
        "cut,muon,10,,stopped,16.0",
        "bad,muon,10,,diverged,16.0",
    ]
    with pytest.raises(RunImportError, match="empty:1: has no line like step:"):
        logs_as_tables([*logs, Log("muon", "empty", "nothing")], 8)
    with pytest.raises(RunImportError, match=r"^low:4: val_loss: -3\.2779 is not a positive number$"):
        logs_as_tables([*logs, Log("muon", "low", LOG.replace("3.2779", "-3.2779"))], 8)


def test_a_text_that_is_no_table_stays_what_it_is() -> None:
    for text in ("", "\n", '"' + "x" * 200_000, "run,step,loss\na,1,2\n", "\0", '"a\nb'):
        assert points_as_table("points.csv", text, {}) == text
