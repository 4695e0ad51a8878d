"""Runs from elsewhere: read whole or not at all, every bad row with its line."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from reports.estimate.verdict import Reached
from reports.evidence.delimited import RunImportError
from reports.evidence.exporting import runs_to_csv
from reports.evidence.importing import read_runs, runs_from_texts, size_from_name
from reports.evidence.runs import DECAY_NOT_STATED
from reports.evidence.study import SweepContext, build_study
from reports.published import published_study
from reports.summary import summarize, summary_to_json
from tests.support.finished_runs import sweep, true_loss
from trainers.contract.errors import InputError

HEADER = "scale,method,seed,total_steps,bag_size,step_ratio,gpu_hours,tokens,final_loss"


def write(folder: Path, *rows: str, header: str = HEADER, name: str = "runs.csv") -> Path:
    path = folder / name
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def problems(path: Path, points: Path | None = None) -> list[str]:
    with pytest.raises(RunImportError) as caught:
        read_runs(path, points)
    return str(caught.value).split("\n")


def test_a_sweep_trained_elsewhere_is_read_and_judged(tmp_path: Path) -> None:
    rows = [
        f"270M,baseline,{seed},{steps},1,0,{steps / 1000},{steps * 512},{true_loss(steps) + 0.002 * seed}"
        for steps in (4_000, 6_000, 8_000)
        for seed in range(3)
    ]
    rows += [
        f"270M,tst,{seed},4000,4,0.25,4.0,{4_000 * 512 * 1.75},{true_loss(5_600) + 0.002 * seed}" for seed in range(3)
    ]
    runs = read_runs(write(tmp_path, *rows))
    assert len(runs) == 12
    assert runs[0].params == 270e6
    assert runs[0].notes == (DECAY_NOT_STATED,)
    assert runs[-1].boundary_step == 1_000
    (verdict,) = summarize(build_study(SweepContext("theirs", "faster?", kind="imported"), runs)).verdicts
    assert isinstance(verdict.speedup, Reached)
    assert verdict.speedup.speedup == pytest.approx(1.4, rel=1e-4)
    assert verdict.speedup.interval is not None
    assert verdict.data_multiplier == pytest.approx(1.75 / 1.4, rel=1e-4)
    assert (verdict.trials_baseline, verdict.trials_method) == (None, None)
    clocks = dict(verdict.by_clock)
    assert isinstance(clocks["flops"], Reached)
    assert clocks["flops"].speedup == pytest.approx(1.4, rel=1e-4)


def test_all_bad_rows_are_listed_and_nothing_is_read(tmp_path: Path) -> None:
    found = problems(
        write(
            tmp_path,
            "3B,baseline,0,100,1,0,3,4,2.5",
            "3B,tst,0,100,4,1.4,3,4,2.5",
            "3B,tst,0,0,4,0.3,3,4,2.5",
            "3B,tst,zero,100,4,0.3,3,4,2.5",
            "",
            "3B,tst,0,100,4,0.3,3,4,",
            "3B,baseline,0,200,4,0,3,4,2.5",
            "3B,baseline,0,100,1,0,3,4,2.4",
            "3B,tst,0,100",
            "3B,tst,1,100,4,0.3,-3,4,2.5",
            ",tst,1,100,4,0.3,3,4,2.5",
        )
    )
    assert found == [
        "runs.csv:3: step_ratio: 1.4 is not in [0, 1]",
        "runs.csv:4: total_steps: 0 is not a positive whole number",
        "runs.csv:5: seed: 'zero' is not a whole number from 0 up",
        "runs.csv:7: final_loss: empty; a run that did not finish says so with outcome or nan",
        "runs.csv:8: bag_size: 4 for the baseline, which has 1",
        "runs.csv:9: the same scale, method, parameters, learning rate, steps and seed as line 2",
        "runs.csv:10: 4 cells, the header has 9",
        "runs.csv:11: gpu_hours: -3 is not a positive number",
        "runs.csv:12: scale: empty; it is needed",
    ]


def test_missing_columns_and_empty_files_are_said(tmp_path: Path) -> None:
    (found,) = problems(write(tmp_path, "3B,1", header="scale,seed"))
    assert found.startswith("runs.csv:1: missing columns method, total_steps")
    assert problems(write(tmp_path)) == ["runs.csv:1: no runs below the header"]


def test_a_loss_that_is_no_number_is_a_divergence(tmp_path: Path) -> None:
    (run,) = read_runs(write(tmp_path, "3B,tst,0,100,4,0.3,,,nan"))
    assert (run.outcome, run.final_loss, run.decayed) == ("diverged", None, False)
    assert (run.gpu_hours, run.tokens) == (None, None)


def test_optional_columns(tmp_path: Path) -> None:
    header = f"{HEADER},learning_rate,device,params,stage,decayed,outcome"
    first, second = read_runs(
        write(
            tmp_path,
            "mine,tst,0,100,4,0.3,3,4,2.5,2e-4,H100,7e9,tuning,no,finished",
            "mine,tst,1,100,4,0.3,3,4,,2e-4,H100,7e9,,yes,failed",
            header=header,
        )
    )
    assert (first.learning_rate, first.device, first.params, first.purpose) == (2e-4, "H100", 7e9, "tuning")
    assert not first.decayed
    assert first.notes == ()
    assert (second.outcome, second.purpose) == ("failed", "confirmation")
    assert problems(write(tmp_path, "3B,tst,0,100,4,0.3,3,4,2.5,,,,final,,", header=header)) == [
        "runs.csv:2: stage: 'final' is not one of tuning, probe, confirmation, noise_floor"
    ]


def test_other_names_for_the_columns(tmp_path: Path) -> None:
    path = write(tmp_path, "3B,tst,0,100,4,0.3,3,4,2.5", header=HEADER.replace("final_loss", "val/ce"))
    (run,) = read_runs(path, columns={"final_loss": "val/ce"})
    assert run.final_loss == 2.5


def test_in_run_points_join_by_the_name_of_the_run(tmp_path: Path) -> None:
    runs = write(tmp_path, "one,3B,tst,0,100,4,0.3,3,4,2.5", header=f"run,{HEADER}")
    points = write(tmp_path, "one,50,3.0,1.5", "one,100,2.5,3.0", header="run,step,loss,gpu_hours", name="points.csv")
    (run,) = read_runs(runs, points)
    assert run.curve.steps.tolist() == [50, 100]
    assert run.curve.losses.tolist() == [3.0, 2.5]
    assert run.curve.gpu_hours is not None
    assert run.curve.gpu_hours.tolist() == [1.5, 3.0]
    assert run.curve.tokens is None
    bad = write(tmp_path, "two,50,3.0", "one,x,3.0", header="run,step,loss", name="points.csv")
    assert problems(runs, bad) == [
        "points.csv:2: run: 'two' is not in runs.csv",
        "points.csv:3: step: 'x' is not a number from 0 up",
    ]


def test_sizes_in_names() -> None:
    assert [size_from_name(name) for name in ("270M", "3b", "1.7B", "10B-A1B", "nano", "3bears")] == [
        270e6,
        3e9,
        1.7e9,
        10e9,
        None,
        None,
    ]


def test_what_is_exported_comes_back(tmp_path: Path) -> None:
    for number, study in enumerate((published_study(), sweep(1.4))):
        path = tmp_path / f"{number}.csv"
        path.write_text(runs_to_csv(study), encoding="utf-8")
        runs = read_runs(path)
        assert len(runs) == len(study.runs)
        again = summary_to_json(summarize(build_study(study.context, runs)))["scales"]
        before = summary_to_json(summarize(study))["scales"]
        for ours, theirs in zip(before, again, strict=True):
            assert theirs["matched_pair"] == ours["matched_pair"]
            assert (theirs["speedup"] is None) == (ours["speedup"] is None)
            assert theirs["speedup"] is None or theirs["speedup"] == pytest.approx(ours["speedup"], rel=1e-9)
            assert theirs["trials"] == ours["trials"]


def test_exported_text_cannot_start_a_formula(tmp_path: Path) -> None:
    study = sweep(1.4)
    odd = build_study(study.context, [replace(study.runs[0], device="=cmd()")])
    assert "'=cmd()" in runs_to_csv(odd)


def test_further_parameters_of_a_method_come_back_and_tell_its_settings_apart(tmp_path: Path) -> None:
    study = sweep(1.4)
    given = (("heads", 2), ("note", "a"), ("step_ratio", 0.5))
    runs = [replace(run, method="other", parameters=given) if run.method == "tst" else run for run in study.runs]
    path = tmp_path / "runs.csv"
    path.write_text(runs_to_csv(build_study(study.context, runs)), encoding="utf-8")
    again = {run.run_id: run for run in read_runs(path)}
    assert {run.run_id: run.parameters for run in runs} == {name: run.parameters for name, run in again.items()}
    assert {run.run_id: run.flops for run in runs} == {name: run.flops for name, run in again.items()}
    (unstated,) = read_runs(write(tmp_path, "3b,other,0,10,,0.5,1,1,2.5,heads=2", header=HEADER + ",parameters"))
    assert unstated.flops is None, "a parameter may change the FLOPs of a step"


@pytest.mark.parametrize("cell", ["heads", "=2", "heads=", "heads=2 heads=3", "bag_size=2", "2x=1"])
def test_a_bad_parameter_is_named_with_its_line(cell: str, tmp_path: Path) -> None:
    path = write(tmp_path, f"3b,other,0,10,,,1,1,2.5,{cell}", header=HEADER + ",parameters")
    (line,) = problems(path)
    assert line.startswith("runs.csv:2: parameters: ")
    (line,) = problems(write(tmp_path, "3b,baseline,0,10,1,0,1,1,2.5,heads=2", header=HEADER + ",parameters"))
    assert "for the baseline" in line


def remarks_of(text: str, points: str | None = None, **fixed: str) -> tuple[str, ...]:
    given = None if points is None else ("points.csv", points)
    return runs_from_texts(("runs.csv", text), given, {}, fixed).remarks


@pytest.mark.parametrize(
    "text", ["inf", "Infinity", "-inf", "+Infinity", "NaN", "1e999", repr(sys.float_info.max), "1.797e308"]
)
@pytest.mark.parametrize("unit", ["nats", "bits_per_byte", "perplexity"])
def test_a_loss_that_is_no_number_is_a_divergence_in_every_unit(tmp_path: Path, text: str, unit: str) -> None:
    path = write(tmp_path, f"3B,tst,0,100,4,0.3,,,{text}")
    (run,) = read_runs(path, fixed={"loss_unit": unit, "bytes_per_token": "4"})
    assert (run.outcome, run.final_loss) == ("diverged", None)


@pytest.mark.parametrize("cell", ["gpu_hours", "tokens", "learning_rate", "flops", "params"])
@pytest.mark.parametrize("text", ["inf", "nan", repr(sys.float_info.max)])
def test_an_infinity_in_another_column_is_named_with_its_line(tmp_path: Path, cell: str, text: str) -> None:
    columns = "scale,method,total_steps,final_loss"
    (line,) = problems(write(tmp_path, f"3B,tst,100,2.5,{text}", header=f"{columns},{cell}"))
    assert line.startswith(f"runs.csv:2: {cell}: {text} is not a positive number")


def test_a_column_with_a_name_twice_is_one_line_with_both_places(tmp_path: Path) -> None:
    path = write(tmp_path, "3B,tst,0,100,4,0.3,3,4,2.5,2.6", header=f"{HEADER},final_loss")
    assert problems(path) == ["runs.csv:1: columns 9 and 10 are both called final_loss; one of them has to go"]
    (run,) = read_runs(write(tmp_path, "3B,tst,0,100,4,0.3,3,4,2.5,a,b", header=f"{HEADER},note,note"))
    assert run.final_loss == 2.5, "a column that is not read may stand there as often as it likes"


def test_step_zero_is_a_point_and_points_without_a_number_are_counted() -> None:
    table = "run,scale,method,total_steps,final_loss\none,3B,tst,100,2.5\n"
    points = (
        "run,step,loss,gpu_hours\none,0,10.8,0\none,50,NaN,1\none,60,inf,1\none,70,,1\none,nan,3,1\none,100,2.5,2\n"
    )
    read = runs_from_texts(("runs.csv", table), ("points.csv", points))
    (run,) = read.runs
    assert run.curve.steps.tolist() == [0, 100]
    assert run.curve.gpu_hours is not None
    assert run.curve.gpu_hours.tolist() == [0, 2]
    assert read.remarks[-1] == "points.csv: 4 points without a finite step and loss left out"


def test_points_without_hours_stand_where_equal_steps_would_put_them() -> None:
    table = "run,scale,method,total_steps,final_loss,gpu_hours\none,3B,tst,100,2.5,8\n"
    (run,) = runs_from_texts(("runs.csv", table), ("points.csv", "run,step,loss\none,25,3\none,100,2.5\n")).runs
    assert run.curve.gpu_hours is not None
    assert run.curve.gpu_hours.tolist() == [2, 8]
    assert run.curve.flops is None


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("top", ["", "sep={}\n", "sep={}\r", '"sep={}"\r\n'])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_separators_and_encodings_of_spreadsheets(tmp_path: Path, separator: str, top: str, encoding: str) -> None:
    lines = (HEADER, "3B,tst,0,100,4,0.3,3,4,2.5", "3B,tst,1,100,4,2,3,4,2.5")
    path = tmp_path / "runs.csv"
    end = "\r" if top.endswith("\r") else "\n"
    text = top.format(separator) + end.join(lines[:2]).replace(",", separator)
    path.write_bytes(text.encode(encoding))
    (run,) = read_runs(path)
    assert (run.final_loss, run.scale) == (2.5, "3B")
    path.write_bytes((text + end + lines[2].replace(",", separator)).encode(encoding))
    assert problems(path) == [f"runs.csv:{3 + bool(top)}: step_ratio: 2 is not in [0, 1]"]


def test_what_is_no_table_of_ours_is_said_to_look_like_what_it_is(tmp_path: Path) -> None:
    (line,) = problems(write(tmp_path, "3B|tst", header="scale|method|total_steps|final_loss"))
    assert line.endswith("columns seem to be separated by |, read are commas, semicolons and tabs")
    (line,) = problems(write(tmp_path, header='{"scale": "3B"}'))
    assert line.endswith("the file looks like JSON, not like a table")
    (line,) = problems(write(tmp_path, '3B,tst,0,"1,000",4,0.3,3,4,2.5'))
    assert line == (
        "runs.csv:2: total_steps: '1,000' is not a positive whole number; "
        "a comma may be of thousands or of decimals: write 1000 or 1.000"
    )
    (line,) = problems(write(tmp_path, '3B,tst,0,1000,4,0.3,3,4,"3,7038645"'))
    assert line.endswith(
        "'3,7038645' is not a positive number; a comma may be of thousands or of decimals: write 3.7038645"
    )
    (line,) = problems(write(tmp_path, "3B tst", header="scale method\t\x1b[2Jtotal_steps final_loss"))
    assert line.endswith(r"the first line is 'scale method\t\x1b[2Jtotal_steps final_loss'")
    unmarked = tmp_path / "unmarked.csv"
    unmarked.write_bytes(HEADER.encode("utf-16-le"))
    with pytest.raises(InputError, match=r"unmarked\.csv: holds zero bytes, as UTF-16 without its mark does"):
        read_runs(unmarked)
    book = tmp_path / "runs.xlsx"
    book.write_bytes(b"PK\x03\x04 and more")
    with pytest.raises(InputError, match="looks like a spreadsheet or another archive; save it as CSV"):
        read_runs(book)


def test_twenty_problems_are_shown_and_the_rest_is_counted(tmp_path: Path) -> None:
    found = problems(write(tmp_path, *["3B,tst,0,none,4,0.3,3,4,2.5"] * 7_640))
    assert len(found) == 21
    assert found[0].startswith("runs.csv:2: total_steps")
    assert found[-1] == "and 7,620 more like these"


def test_columns_of_one_value_stand_in_for_columns(tmp_path: Path) -> None:
    path = write(tmp_path, "tst,100,2.5", header="method,total_steps,final_loss")
    (run,) = read_runs(path, fixed={"scale": "3B", "gpu_hours": "4"})
    assert (run.scale, run.params, run.gpu_hours) == ("3B", 3e9, 4.0)
    with pytest.raises(InputError, match=r"--set method=tst: runs\.csv has a column method"):
        read_runs(path, fixed={"scale": "3B", "method": "tst"})
    (line,) = problems(path)
    assert line.startswith("runs.csv:1: missing column scale;")


def test_a_column_that_is_missing_is_named_beside_what_was_not_read() -> None:
    table = f"{HEADER.replace('gpu_hours', 'gpu_hour')}\n3B,tst,0,100,4,0.3,3,4,2.5\n"
    assert remarks_of(table) == ("runs.csv: no column gpu_hours, which stays unknown; not read: gpu_hour",)
    assert remarks_of(f"{HEADER}\n3B,tst,0,100,4,0.3,3,4,2.5\n") == ()


@pytest.mark.parametrize(
    ("unit", "given"),
    [("nats", 3.5), ("bits_per_byte", 3.5 / math.log(2) / 4.2), ("perplexity", math.exp(3.5))],
)
def test_losses_of_other_units_are_nats_when_read(unit: str, given: float) -> None:
    table = f"run,scale,method,total_steps,final_loss\none,3B,tst,100,{given}\n"
    points = f"run,step,loss\none,50,{given}\n"
    fixed = {"loss_unit": unit, "bytes_per_token": "4.2"}
    (run,) = runs_from_texts(("runs.csv", table), ("points.csv", points), {}, fixed).runs
    assert run.final_loss == pytest.approx(3.5, rel=1e-12)
    assert run.curve.losses.tolist() == pytest.approx([3.5], rel=1e-12)


def test_a_loss_above_that_of_knowing_nothing_is_said_on_import() -> None:
    table = "scale,method,total_steps,final_loss\n3B,tst,100,{}\n"
    (said, _) = remarks_of(table.format("33.1"))[::-1]
    assert said == (
        "runs.csv: read as nats per token, a final loss is 33.1 nats, above ln V = 13.82 of a model that knows nothing; "
        "--unit says what losses are in"
    )
    (said, _) = remarks_of(table.format("10.9"), vocab_size="50304")[::-1]
    assert "is 10.9 nats, above ln V = 10.83" in said
    assert len(remarks_of(table.format("33.1"), loss_unit="perplexity")) == 1
    assert len(remarks_of(table.format("10.8"), vocab_size="50304")) == 1


def test_flops_are_counted_only_where_no_row_states_any(tmp_path: Path) -> None:
    header = f"{HEADER},flops"
    rows = ("3B,tst,0,100,4,0.3,3,190,2.5,", "3B,baseline,0,100,1,0,3,100,2.5,")
    method, baseline = read_runs(write(tmp_path, *rows, header=header))
    assert (method.flops, baseline.flops) == (6 * 3e9 * 100, 6 * 3e9 * 100)
    method, baseline = read_runs(write(tmp_path, rows[0], f"{rows[1]}2e12", header=header))
    assert (method.flops, baseline.flops) == (None, 2e12)


def test_units_that_cannot_be_converted_are_said(tmp_path: Path) -> None:
    path = write(tmp_path, "3B,tst,0,100,4,0.3,3,4,0.9")
    with pytest.raises(InputError) as missing:
        read_runs(path, fixed={"loss_unit": "bits_per_byte"})
    assert str(missing.value).splitlines() == [
        "loss_unit=bits_per_byte: only with the bytes of a mean token do they become nats per token; give --bytes-per-token"
    ]
    for fixed, said in (
        ({"loss_unit": "perplexity"}, "runs.csv:2: final_loss: 0.9 is not of perplexity"),
        # What is wrong for all rows is said once.
        ({"loss_unit": "bits"}, "--set loss_unit=bits: 'bits' is not one of nats, bits_per_byte, perplexity"),
        ({"bytes_per_token": "nan"}, "--set bytes_per_token=nan: nan is not a positive number"),
    ):
        with pytest.raises(InputError) as caught:
            read_runs(path, fixed=fixed)
        assert str(caught.value) == said


def test_columns_that_only_some_tables_have_come_back(tmp_path: Path) -> None:
    header = f"run,{HEADER},flops,execution,validation_set,learning_rate_unit,scores"
    row = "one,3B,tst,0,100,4,0.3,3,4,2.5,1e21,compiled,fineweb 10M,own,hellaswag=0.31 arc=0.25"
    (run,) = read_runs(write(tmp_path, row, header=header))
    assert (run.flops, run.execution, run.validation, run.own_learning_rate) == (1e21, "compiled", "fineweb 10M", True)
    assert run.scores == (("hellaswag", 0.31), ("arc", 0.25))
    study = build_study(SweepContext("theirs", "?", kind="imported"), [run])
    (again,) = read_runs(
        write(tmp_path, *runs_to_csv(study).splitlines()[1:], header=runs_to_csv(study).splitlines()[0])
    )
    assert replace(again, notes=(), curve=run.curve) == replace(run, notes=(), curve=run.curve)
    for scores in ("hellaswag", "=0.3", "a=x", "a=1 a=2", "a=inf"):
        (line,) = problems(write(tmp_path, row.replace("hellaswag=0.31 arc=0.25", scores), header=header))
        assert line.startswith("runs.csv:2: scores: ")


def test_the_method_of_the_first_row_has_the_headline(tmp_path: Path) -> None:
    ladder = [
        f"3B,baseline,{seed},{steps},,,{steps},,{true_loss(steps) + 0.002 * seed}"
        for steps in (4_000, 6_000, 8_000)
        for seed in range(3)
    ]
    arms = [
        f"3B,{method},{seed},4000,,,4000,,{true_loss(4_000 * factor) + 0.002 * seed}"
        for method, factor in (("zeta", 1.41), ("alpha", 0.96))
        for seed in range(3)
    ]
    study = build_study(SweepContext("theirs", "?", kind="imported"), read_runs(write(tmp_path, *ladder, *arms)))
    assert summarize(study).headline.startswith("zeta is 1.41x faster")


def test_only_runs_on_one_validation_set_are_compared(tmp_path: Path) -> None:
    rows = [
        f"3B,{method},{seed},{steps},,,{steps},,{true_loss(steps)},{text}"
        for method, steps, text in (
            ("baseline", 4_000, "fineweb"),
            ("baseline", 6_000, "fineweb"),
            ("tst", 4_000, "fineweb"),
        )
        for seed in range(2)
    ]
    rows.append(f"3B,tst,9,4000,,,4000,,{true_loss(4_000)},wikitext")
    runs = read_runs(write(tmp_path, *rows, header=f"{HEADER},validation_set"))
    study = build_study(SweepContext("theirs", "?", kind="imported"), runs)
    assert [exclusion.reason for exclusion in study.exclusions] == [
        "other validation set: wikitext, the comparison has fineweb"
    ]
    (found,) = (check for check in summarize(study).checks if check.name == "Same validation set")
    assert (found.status, found.number) == ("warn", "2 values")


POINTS_OF_A_FILE = ("b1.csv", "run,step,loss,gpu_hours\nb1,0,10.8,\nb1,5,3.5,\n")


def test_points_that_name_no_run_are_of_the_only_row_or_of_the_row_that_their_file_is_named_after() -> None:
    header, first, second = "run,scale,method,total_steps,final_loss", "{},1M,baseline,10,3.2", "{},1M,baseline,20,3.1"
    for text in (
        "\n".join([header, first.format("any")]),
        "\n".join([header.removeprefix("run,"), first.removeprefix("{},")]),
        "\n".join([header, first.format("b1"), second.format("b2")]),
    ):
        made = runs_from_texts(("runs.csv", text), POINTS_OF_A_FILE)
        assert [len(run.curve) for run in made.runs] == [2, 0][: len(made.runs)]
    text = "\n".join([header, first.format("x"), second.format("y")])
    with pytest.raises(RunImportError) as caught:
        runs_from_texts(("runs.csv", text), POINTS_OF_A_FILE)
    assert str(caught.value) == "b1.csv:2: run: 'b1', which its file is named after, is not in runs.csv"


def test_points_of_runs_without_names_are_one_line() -> None:
    text = "scale,method,total_steps,final_loss\n1M,baseline,10,3.2\n1M,baseline,20,3.1\n"
    points = ("points.csv", "run,step,loss\na,0,10.8\nb,0,10.8\n")
    with pytest.raises(RunImportError) as caught:
        runs_from_texts(("runs.csv", text), points)
    assert str(caught.value).splitlines() == [
        "runs.csv:1: no column run, by which the points of 2 runs in points.csv are told apart; name it with "
        "--map run=COLUMN, or give --set run=NAME to a table of one run"
    ]
