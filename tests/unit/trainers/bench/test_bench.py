"""The bench's arithmetic, words and files; what it hands to a plan. Nothing here asks how fast anything is."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F

from sweeper import session
from sweeper.cli.screen import show_bench
from sweeper.options import RunOptions
from sweeper.plans.costs import ASSUMED_CPU_FLOPS, StepCost, step_cost
from tests.support.places import ROOT
from tests.support.tiny_training import CPU, tiny_spec
from trainers.bench.ceilings import copy_bandwidth, matmul_speed, stated_peak
from trainers.bench.checks import (
    Bench,
    Course,
    _course,
    _judge,
    _run,
    check_bag_of_one,
    check_gradients,
    check_resume,
    check_usual_kernels,
    gradient_error,
)
from trainers.bench.clock import Block, Pace, Turns, paired_ratio, take_turns
from trainers.bench.measure import BAG_SIZES, peak_bytes, step_parts
from trainers.bench.result import (
    BenchResult,
    Ceilings,
    Check,
    DeviceFigures,
    Environment,
    LossTimed,
    ScaleFigures,
    Timed,
    bench_file,
    device_figures,
    keep_result,
    ratios,
    read_figures,
    result_to_json,
)
from trainers.bench.rivals import paper_loss, plain_loss
from trainers.bench.run import BenchOptions, run_bench
from trainers.bench.subject import (
    Setting,
    available_forms,
    bench_phases,
    make_subject,
    setting_of,
    zipf_tokens,
)
from trainers.bench.words import plain
from trainers.contract.errors import InputError
from trainers.contract.flops import flops_per_position
from trainers.contract.scales import SCALES
from trainers.contract.spec import TrialSpec
from trainers.methods import phases_of
from trainers.superposition import multi_hot_reference
from trainers.training.devices import cpu_name

DEVICE = "Some GPU (80 GB)"


def timed(variant: str, form: str, bag: int, seconds: float, over: float | None = None, **more: float) -> Timed:
    return Timed(
        variant=variant,
        form=form,
        bag_size=bag,
        seconds=seconds,
        spread=0.1,
        samples=24,
        positions_per_second=512 / seconds,
        mfu=0.25,
        peak_bytes=5_000_000,
        over_baseline=over,
        over_ours=more.get("over_ours"),
    )


def result_of(status: str = "ok", form: str = "eager") -> BenchResult:
    steps = (
        timed("baseline", "eager", 1, 0.010),
        timed("superposition", "eager", 2, 0.0101, 1.01),
        timed("superposition", "eager", 16, 0.0104, 1.04),
        timed("paper", "eager", 6, 0.015, 1.5, over_ours=1.45),
        timed("baseline", "compiled", 1, 0.005),
        timed("superposition", "compiled", 16, 0.0051, 1.02),
    )
    scale = ScaleFigures(
        scale="pico",
        parameters=58_000,
        context=64,
        sequences=8,
        micro_sequences=8,
        precision="fp32",
        form=form,
        positions_per_second=51_200.0,
        mfu=0.25,
        peak_bytes=5_000_000,
        flops_per_second=2e10,
        steps=steps,
        parts={"baseline": {"batch": 0.1, "body": 0.9}},
        note="",
    )
    losses = (
        LossTimed("pico", "eager", 1, 0.001, 1.0),
        LossTimed("pico", "eager", 8, 0.0011, 1.1),
        LossTimed("wide", "compiled", 1, 0.11, 1.0),
        LossTimed("wide", "compiled", 8, 0.1, 0.9),
    )
    environment = Environment(
        device=DEVICE,
        device_kind="cpu",
        torch_version="2",
        threads=1,
        date="2026-11-24T12:00:00+00:00",
        git_commit=None,
        seed=3,
        attention="none",
        forms=("eager", "compiled"),
        unavailable={"captured": "needs a GPU"},
    )
    ceilings = Ceilings(1e10, {"fp32": 4e10}, 4e10, "measured")
    check = Check("resume = no stop, eager", status, 0.0 if status == "ok" else 1e-3, 0.0, "bitwise")
    return BenchResult(environment, (check,), ceilings, (scale,), losses)


def test_ratios_are_the_worst_of_the_form_that_a_run_takes() -> None:
    found = ratios(result_of())
    assert found["superposition_over_baseline"] == 1.04
    assert found["superposition_over_baseline_by_form"] == {"eager": 1.04, "compiled": 1.02}
    assert found["multi_hot_over_one_hot"] == 1.1
    assert found["multi_hot_over_one_hot_by_form"] == {"eager": 1.1, "compiled": 0.9}
    assert found["compiled_over_eager"] == 2.0
    assert found["captured_over_eager"] is None
    assert found["paper_over_ours_by_form"] == {"eager": 1.45, "compiled": None}
    assert ratios(result_of(form="compiled"))["superposition_over_baseline"] == 1.02


def test_the_json_has_what_is_promised_and_no_nan() -> None:
    plain_values = json.loads(json.dumps(result_to_json(result_of()), allow_nan=False))
    assert set(plain_values) >= {
        "environment",
        "conventions",
        "checks",
        "ceilings",
        "ratios",
        "scales",
        "losses",
        "plan",
    }
    pico = plain_values["scales"]["pico"]
    assert {pico["positions_per_second"], pico["mfu"], pico["peak_bytes"]} == {51_200.0, 0.25, 5_000_000}
    assert pico["gains"] == {"captured_over_eager": None, "captured_over_compiled": None, "compiled_over_eager": 2.0}
    assert {"device", "torch_version", "threads", "date", "git_commit"} <= set(plain_values["environment"])


def test_a_kept_result_is_read_back_for_its_device_only(tmp_path: Path) -> None:
    result = result_of()
    path = keep_result(tmp_path / "bench", result)
    assert path == bench_file(tmp_path / "bench", DEVICE) == tmp_path / "bench" / "some-gpu-80-gb.json"
    assert read_figures(tmp_path / "bench", DEVICE) == device_figures(result)
    assert read_figures(tmp_path / "bench", "another") is None
    keep_result(tmp_path / "bench", replace(result, scales=()))
    assert read_figures(tmp_path / "bench", DEVICE) is None


def test_a_bench_that_has_not_ended_does_not_replace_one_that_has(tmp_path: Path) -> None:
    result = result_of()
    path = keep_result(tmp_path, result)
    so_far = keep_result(tmp_path, replace(result, losses=()), whole=False)
    assert so_far.name == "some-gpu-80-gb.partial.json"
    assert json.loads(so_far.read_text(encoding="utf-8"))["losses"] == []
    assert json.loads(path.read_text(encoding="utf-8"))["losses"]
    assert read_figures(tmp_path, DEVICE) == device_figures(result)
    keep_result(tmp_path, result)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_figures_of_a_wrong_step_or_another_schema_are_not_used(tmp_path: Path) -> None:
    keep_result(tmp_path, result_of())
    apart = keep_result(tmp_path, result_of("FAIL"))
    assert apart.name == "some-gpu-80-gb.failed.json"
    assert read_figures(tmp_path, DEVICE) == device_figures(result_of())
    apart.rename(bench_file(tmp_path, DEVICE))
    assert read_figures(tmp_path, DEVICE) is None
    other = {**result_to_json(result_of()), "schema": -1}
    bench_file(tmp_path, DEVICE).write_text(json.dumps(other), encoding="utf-8")
    assert read_figures(tmp_path, DEVICE) is None
    bench_file(tmp_path, DEVICE).write_text("{", encoding="utf-8")
    assert read_figures(tmp_path, DEVICE) is None


def test_a_plan_takes_the_bench_of_its_scale_then_of_the_nearest_then_the_guess() -> None:
    pico, mini, large = (
        tiny_spec("baseline", scale=name, shape=SCALES[name].shape) for name in ("pico", "mini", "270m")
    )
    sizes = {name: flops_per_position(SCALES[name].shape, 64) for name in ("pico", "nano", "25m")}
    bench = DeviceFigures(DEVICE, "eager", "2026-11-24T12:00", {"pico": 1e10, "nano": 2e10, "25m": 3e10}, sizes)
    cost = step_cost([], DEVICE, on_gpu=False, bench=bench)

    def seconds(of: StepCost, spec: TrialSpec) -> float:
        return of.seconds(spec, phases_of(spec)[0])

    for spec, speed in ((pico, 1e10), (mini, 2e10), (large, 3e10)):
        assert seconds(cost, spec) == pytest.approx(flops_per_position(spec.shape, 8) * spec.tokens_per_step / speed)
    assert cost.source == "from this device's bench of 2026-11-24 (eager; pico, nano, 25m)"
    guess = step_cost([], DEVICE, on_gpu=False)
    assert "assumed" in guess.source
    assert seconds(guess, pico) < seconds(cost, pico)
    known = replace(cost, measured={("pico", pico.tokens_per_step): 2e10})
    assert seconds(known, pico) == pytest.approx(seconds(cost, pico) / 2)
    assert seconds(known, mini) == seconds(cost, mini)


def test_the_plan_of_a_file_reckons_with_the_bench_beside_its_results(tmp_path: Path) -> None:
    options = RunOptions(file=ROOT / "search_spaces" / "quickstart.yaml", results=tmp_path)
    (before,) = session.plan(options).scales
    plain_values = result_to_json(result_of())
    plain_values["plan"]["flops_per_second"] = {"pico": 1e9}
    kept = bench_file(tmp_path / "bench", cpu_name())
    kept.parent.mkdir()
    kept.write_text(json.dumps(plain_values), encoding="utf-8")
    plan = session.plan(options)
    assert plan.cost_source.startswith("from this device's bench of 2026-11-24")
    assert plan.scales[0].step_seconds == pytest.approx(before.step_seconds * ASSUMED_CPU_FLOPS / 1e9)


@pytest.mark.slow
def test_mfu_is_flops_of_the_positions_over_the_peak() -> None:
    kept: list[BenchResult] = []
    result = run_bench(BenchOptions(("pico",), ("eager",), "cpu", steps=1), lambda line: None, kept.append)
    assert kept == [replace(result, losses=())], "what there is after a scale is kept before the losses are timed"
    (scale,) = result.scales
    per_position = flops_per_position(SCALES["pico"].shape, scale.context)
    assert scale.flops_per_second is not None
    assert scale.positions_per_second is not None
    assert scale.flops_per_second == pytest.approx(per_position * scale.positions_per_second)
    for step in scale.steps:
        assert step.positions_per_second == pytest.approx(512 / step.seconds)
        assert step.mfu == pytest.approx(per_position * step.positions_per_second / result.ceilings.peak_flops)
        assert step.peak_bytes is not None
        assert step.peak_bytes > 12 * scale.parameters
    assert result.ceilings.peak_flops == result.ceilings.matmul_flops_per_second["fp32"]
    assert {(s.variant, s.bag_size) for s in scale.steps} == {
        ("baseline", 1), ("paper", 6), ("plain", 1), *(("superposition", bag) for bag in BAG_SIZES)
    }  # fmt: skip
    for shares in scale.parts.values():
        assert sum(shares.values()) == pytest.approx(1.0)
        assert min(shares.values()) > 0
    assert result.passed
    assert json.dumps(result_to_json(result), allow_nan=False)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA B200", 2.25e15),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("AMD EPYC", None),
    ],
)
def test_stated_peaks(name: str, peak: float | None) -> None:
    assert stated_peak(name) == peak


def test_ceilings_are_positive() -> None:
    assert copy_bandwidth(CPU, 1 << 20) > 0
    assert matmul_speed(CPU, 64, torch.float32) > 0


def test_turns_alternate_in_changing_order_and_ratios_are_formed_within_rounds() -> None:
    calls: list[int] = []
    pace = Pace(rounds=12, block=1, warm_up=1, settle=1, most_rounds=12, seconds=0.0)
    turns = take_turns([partial(calls.append, which) for which in range(3)], pace, CPU)
    assert calls[:3] == [0, 1, 2]
    assert [len(one.blocks) for one in turns] == [12] * 3
    assert calls.count(2) == pace.calls
    rounds = [tuple(calls[start : start + 6]) for start in range(3, len(calls), 6)]
    assert all(one[::2] == one[1::2] and set(one) == {0, 1, 2} for one in rounds)
    assert len(set(rounds)) > 3
    fast = Turns([Block((1.0,), 1.0), Block((10.0,), 10.0), Block((2.0,), 2.0)])
    slow = Turns([Block((2.0,), 2.0), Block((20.0,), 20.0), Block((4.0,), 4.0)])
    assert paired_ratio(slow, fast) == 2.0
    assert fast.seconds == 2.0


def test_short_steps_are_timed_more_often_within_their_bounds() -> None:
    (turns,) = take_turns([lambda: None], Pace(2, 1, 0, 0, most_rounds=7, seconds=60.0), CPU)
    assert len(turns.blocks) == 7


def test_the_peak_counts_what_a_call_holds_at_once() -> None:
    def call() -> None:
        for _ in range(3):
            first = torch.ones(100_000)
            second = first + 1
            del first, second

    peak = peak_bytes(call, CPU, lambda: 1_000)
    assert peak is not None
    assert 800_000 <= peak - 1_000 < 900_000


def test_rivals_compute_the_same_objectives() -> None:
    phases = bench_phases((1, 3), 4)
    subject = make_subject("pico", SCALES["pico"].shape, Setting(16, 2, 1, "fp32"), phases, CPU, 0)
    inputs = torch.randint(512, (2, 16, 3))
    targets = torch.randint(512, (2, 16, 3))

    def reference(tokens: Tensor, wanted: Tensor) -> Tensor:
        logits = subject.model.head(subject.model(tokens)).flatten(0, 1)
        return multi_hot_reference(logits, wanted.flatten(0, 1), torch.full((wanted.shape[-1],), 1 / wanted.shape[-1]))

    torch.testing.assert_close(paper_loss(subject.model, inputs, targets), reference(inputs, targets))
    single, following = inputs[..., :1], targets[..., :1]
    torch.testing.assert_close(plain_loss(subject.model, single, following), reference(single, following))


def test_parts_are_those_of_a_step() -> None:
    phases = bench_phases((1, 3), 4)
    subject = make_subject("pico", SCALES["pico"].shape, Setting(16, 2, 1, "fp32"), phases, CPU, 0)
    shares = step_parts(subject, phases[1], 3)
    assert list(shares) == ["batch", "embedding", "body", "loss", "backward", "update"]
    assert math.isclose(sum(shares.values()), 1.0)


def test_checks_pass_for_the_step_as_it_is() -> None:
    bench = Bench(CPU, seed=11)
    found = [*check_gradients(bench), check_bag_of_one(bench, "eager"), check_resume(bench, "eager")]
    assert [check.status for check in found] == ["ok"] * 4
    assert [check.value for check in found[2:]] == [0.0, 0.0]


def test_a_wrong_gradient_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def first_target_only(hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        return F.cross_entropy(hidden @ head.T, targets[:, 0])

    assert gradient_error(30, 8, 40, 4, "uniform", torch.float32, CPU, 1) < 1e-5
    monkeypatch.setattr("trainers.bench.checks.fused_linear_multi_hot", first_target_only)
    assert gradient_error(30, 8, 40, 4, "uniform", torch.float32, CPU, 1) > 1e-2
    assert {check.status for check in check_gradients(Bench(CPU, seed=1))} == {"FAIL"}


def test_a_course_is_at_no_distance_only_from_its_own_bits() -> None:
    course = Course(torch.tensor([2.0, 1.0]), torch.tensor([3.0, 4.0]))
    assert course.distance(Course(course.losses.clone(), course.weights.clone())) == 0.0
    assert course.distance(Course(torch.tensor([2.0, 1.1]), course.weights)) == pytest.approx(0.1 / 1.1)
    assert course.distance(Course(course.losses, torch.tensor([3.0, 5.0]))) > 0.0
    assert math.isnan(course.distance(Course(torch.tensor([2.0, math.nan]), course.weights)))


def test_forms_that_cannot_run_are_named_with_their_reason() -> None:
    forms, unavailable = available_forms(("eager", "captured"), CPU)
    assert forms == ("eager",)
    assert "captured" in unavailable["captured"]
    with pytest.raises(ValueError, match="captured"):
        available_forms(("captured",), CPU)
    with pytest.raises(ValueError, match="'fast' is not one of eager, compiled, captured"):
        available_forms(("fast",), CPU)


def test_a_micro_batch_must_divide_the_step() -> None:
    assert setting_of("pico", CPU, 4).micro_sequences == 4
    with pytest.raises(ValueError, match="3 does not divide the 8 sequences"):
        setting_of("pico", CPU, 3)


def test_a_course_whose_steps_are_skipped_is_no_evidence() -> None:
    """Two forms with NaN gradients agree on every loss: neither has trained."""
    bench = Bench(CPU, 3)
    phases = bench_phases((2,), 2)
    subject = bench.subject(phases)
    weight = subject.model.blocks[0].attention.output.weight
    weight.register_hook(lambda gradient: torch.full_like(gradient, math.nan))
    course = _course(subject, _run(subject, "eager", range(2)))
    assert math.isnan(course.distance(bench.course("eager", phases)))


@pytest.mark.parametrize("found", [math.nan, math.inf])
def test_figures_are_kept_beside_a_check_that_found_no_number(tmp_path: Path, found: float) -> None:
    check = _judge("gradients of cuDNN attention = math", found, 1.0, "in units of what rounding may make")
    result = replace(result_of(), checks=(check,))
    kept = json.loads(keep_result(tmp_path, result).read_text(encoding="utf-8"))
    assert not kept["passed"]
    assert kept["scales"]["pico"]["positions_per_second"] == 51_200.0
    assert f"gradients of cuDNN attention = math: found {found}; in units" in plain(result)


def test_the_usual_kernels_are_checked_against_those_that_repeat_themselves() -> None:
    check = check_usual_kernels(Bench(CPU, 3), "eager")
    assert (check.status, check.value) == ("ok", 0.0)


def test_random_tokens_come_as_often_as_in_text() -> None:
    counts = np.sort(np.bincount(zipf_tokens(1_000, 200_000, 0), minlength=1_000))[::-1]
    harmonic = sum(1 / rank for rank in range(1, 1_001))
    assert counts[[0, 1, 9]] / 200_000 * harmonic == pytest.approx([1, 1 / 2, 1 / 10], rel=0.1)
    assert counts.sum() == 200_000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (BenchOptions(scales=("huge",)), "'huge' is not one of pico"),
        (BenchOptions(steps=0), "--steps: 0"),
        (BenchOptions(device="cuda"), "finds no GPU"),
        (BenchOptions(device="zz"), "^--device: 'zz' is not cpu, cuda or cuda:N$"),
        (BenchOptions(device="meta"), "^--device: 'meta' is not cpu"),
    ],
)
def test_bad_options_are_refused_before_anything_runs(options: BenchOptions, message: str) -> None:
    if options.device == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU, so asking for one is right")
    with pytest.raises(InputError, match=message):
        run_bench(options, lambda line: pytest.fail(line))


@pytest.mark.parametrize("width", [80, 120])
def test_the_terminal_shows_every_figure_at_usual_widths(width: int) -> None:
    result = result_of("FAIL")
    console = Console(width=width, record=True, highlight=False, force_terminal=True, file=io.StringIO())
    show_bench(console, result)
    shown = console.export_text()
    assert max(map(len, shown.splitlines())) <= width
    assert "…" not in shown
    for piece in ("FAIL", "resume = no stop, eager", "superposition s=16", "1.040", "51,200", "1.100", "2.000"):
        assert piece in shown, piece
    told = plain(result)
    for piece in ("FAIL", "differs by 1.0e-03", "superposition s=16, eager", "1.040", "captured: not measured"):
        assert piece in told, piece
