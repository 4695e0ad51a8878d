"""When stages are stacked: what the sweep hands out together, what was measured to pay, and what a share of a GPU costs."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sweeper.executors import InlineExecutor
from sweeper.session import RunOptions, plan_file
from sweeper.site import Site
from sweeper.space import load_search_space
from sweeper.stacking import stacks_of
from sweeper.sweep import Idle, Sweep
from tests.tiny_sweep import Desk, result_of, space_of
from tests.tiny_training import SHAPE
from trainers.bench.subject import Setting
from trainers.devices import cpu_name
from trainers.stack_bench import (
    StackFigures,
    figures_file,
    keep_figures,
    main,
    measure_shared,
    measure_small,
    measure_stack,
    read_figures,
    words_of,
)
from trainers.stack_stage import STACKED, stack_key
from trainers.stage import StageJob, StageResult

SITE = Site(store="memory", stop_file="never", execution="eager")
SETTING = Setting(context=8, sequences=2, micro_sequences=2, precision="fp32")
FIGURES = StackFigures("nano", 16, 2, "fp32", "eager", alone=100.0, stacked={1: 101.0, 2: 150.0, 4: 170.0, 8: 160.0})


def stacked(desk: Desk, width: int, workers: int = 1) -> Sweep:
    return desk.open(site=replace(SITE, stacks={"nano": width}, workers=workers))


def jobs_of(sweep: Sweep) -> list[StageJob]:
    jobs = sweep.next_jobs()
    assert not isinstance(jobs, Idle)
    return jobs


@pytest.mark.parametrize("width", [2, 3, 8])
def test_what_is_handed_out_together_can_be_stacked(width: int) -> None:
    """Through a whole sweep: one key a stack, no more than asked for, nothing twice, and some stacks are full."""
    desk, sizes, trained = Desk(), [], Counter[str]()
    sweep = stacked(desk, width)
    while not isinstance(jobs := sweep.next_jobs(), Idle):
        assert len({stack_key(job) for job in jobs}) == 1
        assert {job.execution for job in jobs} == {STACKED}
        sizes.append(len(jobs))
        for job in jobs:
            trained[job.node] += 1
            sweep.finish(result_of(job))
    assert jobs is Idle.OVER
    assert set(trained.values()) == {1}
    assert max(sizes) <= width
    assert max(sizes) >= min(width, 3)
    one_by_one = Desk()
    InlineExecutor().run(one_by_one.open(), lambda job, on_point: result_of(job), lambda: None)
    assert desk.summary == one_by_one.summary


def test_one_stage_at_a_time_where_a_scale_is_not_stacked() -> None:
    assert len(jobs_of(Desk().open())) == 1
    elsewhere = Desk().open(site=replace(SITE, stacks={"micro": 8}))
    (job,) = jobs_of(elsewhere)
    assert job.execution == "eager"


def test_stages_are_spread_over_the_workers() -> None:
    alone, many = jobs_of(stacked(Desk(), 8)), jobs_of(stacked(Desk(), 8, workers=4))
    assert len(alone) > len(many)


def test_a_stacked_stage_has_a_name_of_its_own() -> None:
    """Another form of the step may round differently, so its states are not gone on with in the ordinary form."""
    assert jobs_of(stacked(Desk(), 2))[0].node != jobs_of(Desk().open())[0].node


def test_a_stack_falls_apart_into_its_stages() -> None:
    """What had ended counts, the rest is trained one by one, and what fails again alone fails for good."""
    desk, alone = Desk(), []

    def break_after_one(jobs: list[StageJob], on_point: object, on_end: object) -> list[StageResult]:
        on_end(result_of(jobs[0]))  # type: ignore[operator]
        raise MemoryError

    def train(job: StageJob, on_point: object) -> StageResult:
        alone.append(job.node)
        return result_of(job)

    InlineExecutor(train_stack=break_after_one).run(stacked(desk, 4), train, lambda: None)
    one_by_one = Desk()
    InlineExecutor().run(one_by_one.open(), lambda job, on_point: result_of(job), lambda: None)
    assert desk.summary == one_by_one.summary
    assert len(alone) == len(set(alone))


def test_auto_stacks_what_was_measured_to_pay(tmp_path: Path) -> None:
    space = space_of(scales=("nano", "micro"))  # 2 sequences of 16 positions, fp32
    assert stacks_of(space, "auto", tmp_path, "cpu x") == {}
    keep_figures(tmp_path / "bench", "cpu x", [FIGURES])
    assert stacks_of(space, "auto", tmp_path, "cpu x") == {"nano": 4}
    assert stacks_of(space, "auto", tmp_path, "cpu y") == {}
    assert stacks_of(space_of(tokens_per_step=64), "auto", tmp_path, "cpu x") == {}, "another batch was not measured"
    keep_figures(tmp_path / "bench", "cpu x", [replace(FIGURES, stacked={1: 101.0, 4: 119.0})])
    assert stacks_of(space, "auto", tmp_path, "cpu x") == {}, "below the margin"


def test_a_number_stacks_every_scale(tmp_path: Path) -> None:
    space = space_of(scales=("nano", "micro"))
    assert stacks_of(space, "4", tmp_path, "any") == {"nano": 4, "micro": 4}
    assert stacks_of(space, "1", tmp_path, "any") == {}
    for wrong in ("0", "-2", "many", "1.5"):
        with pytest.raises(ValueError, match=f"--stack: '{wrong}' is neither auto nor a positive number"):
            stacks_of(space, wrong, tmp_path, "any")


def test_figures_are_kept_by_device_and_load(tmp_path: Path) -> None:
    other = replace(FIGURES, scale="pico")
    keep_figures(tmp_path, "A CPU (8 cores)", [FIGURES, other])
    newer = replace(FIGURES, alone=200.0)
    path = keep_figures(tmp_path, "A CPU (8 cores)", [newer])
    assert path.name == "stack-a-cpu-8-cores.json"
    assert set(map(repr, read_figures(tmp_path, "A CPU (8 cores)"))) == {repr(newer), repr(other)}
    for broken in ("", "[]", '{"figures": [{"scale": "nano"}]}'):
        figures_file(tmp_path, "A CPU (8 cores)").write_text(broken)
        assert read_figures(tmp_path, "A CPU (8 cores)") == ()


@pytest.mark.parametrize("bag_size", [1, 3])
def test_a_stack_is_measured(bag_size: int) -> None:
    figures = measure_stack(
        "nano", SHAPE, SETTING, torch.device("cpu"), "eager", widths=(1, 3), samples=3, bag_size=bag_size
    )
    assert (figures.scale, figures.context, figures.sequences, figures.alone_form) == ("nano", 8, 2, "eager")
    assert set(figures.stacked) == {1, 3}
    assert min(figures.alone, *figures.stacked.values()) > 0


def test_the_measuring_command_keeps_what_it_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--context", "8", "--sequences", "2", "--samples", "1", "--widths", "1", "2", "--out", str(tmp_path)]
    main(["--scale", "pico", *small])
    (figures,) = read_figures(tmp_path, cpu_name())
    printed = capsys.readouterr().out
    assert f"{figures.alone:,.0f} positions/s" in printed
    assert f"--stack auto: {figures.best_width()}" in printed


@pytest.mark.slow
def test_trials_that_share_a_device_are_measured() -> None:
    totals = measure_shared("nano", SHAPE, SETTING, "cpu", "eager", shares=(1, 2), steps=100)
    assert set(totals) == {1, 2}
    assert min(totals.values()) > 0


def test_a_share_of_a_gpu_is_billed_as_that_share() -> None:
    """Four trials that share a GPU cost a quarter of it each; the clock has run while the others did, and says so."""
    whole, quarter = Desk(), Desk()
    for desk, devices in ((whole, 1), (quarter, 0.25)):
        sweep = desk.open(site=replace(SITE, on_gpu=True, devices_per_trial=devices))
        InlineExecutor().run(sweep, lambda job, on_point: result_of(job), lambda: None)
        assert sweep.spent_hours == pytest.approx(sum(r.timing.incurred_gpu_hours for r in desk.ledger.records()))
    for spec_id, record in quarter.ledger.written.items():
        assert record.timing.devices == 0.25
        other = whole.ledger.written[spec_id].timing
        assert record.timing.gpu_hours == pytest.approx(other.gpu_hours / 4)
        assert record.timing.billed_gpu_hours == pytest.approx(other.billed_gpu_hours / 4)


def test_a_file_may_ask_for_a_share_of_a_gpu(tmp_path: Path) -> None:
    """Planned at no more than the device's rate between the trials that share it: a share costs what a whole one does."""
    text = Path("search_spaces/quickstart.yaml").read_text(encoding="utf-8")
    assert "gpus: 0" in text
    hours = []
    for gpus in ("1", "0.25"):
        file = tmp_path / f"share-{gpus}.yaml"
        file.write_text(text.replace("gpus: 0", f"gpus: {gpus}"), encoding="utf-8")
        hours.append(plan_file(RunOptions(file, tmp_path / "results")).hours_shared)
    assert hours[0] == pytest.approx(hours[1])


def test_the_bench_measures_what_can_be_stacked_and_a_sweep_with_its_batch_goes_by_it(tmp_path: Path) -> None:
    said: list[str] = []
    (figures,) = measure_small(("pico", "50m", "nano-moe"), torch.device("cpu"), said.append, samples=1)
    assert said == ["measuring: stacks of pico"]
    assert min(figures.stacked.values()) > 0
    assert f"--stack auto {'does not stack' if figures.best_width() == 1 else 'stacks'}" in words_of(figures)
    doubled = replace(figures, stacked={1: figures.alone, 4: 2 * figures.alone})
    keep_figures(tmp_path / "bench", "this device", [doubled])
    space = load_search_space(Path(__file__).resolve().parents[2] / "search_spaces" / "quickstart.yaml")
    assert stacks_of(space, "auto", tmp_path, "this device") == {"pico": 4}
    assert stacks_of(space, "auto", tmp_path, "another") == {}
