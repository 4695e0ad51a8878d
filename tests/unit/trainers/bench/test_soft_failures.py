"""The bench loses what fails and keeps the rest: a rival, a form, a check, the parts of a step, the loss alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.tiny_training import CPU
from trainers.bench.checks import Bench, check_all
from trainers.bench.clock import Pace
from trainers.bench.measure import BAG_SIZES, measure_scale
from trainers.bench.result import Check
from trainers.bench.rivals import RIVALS, bytes_of
from trainers.bench.run import BenchOptions, run_bench
from trainers.bench.subject import GPU_SETTINGS, Setting, bench_spec
from trainers.contract.scales import SCALES
from trainers.model.decoder import Decoder
from trainers.planning.footprint import footprint

SHORTEST = Pace(rounds=1, block=1, warm_up=0, settle=0, most_rounds=1, seconds=0.0)


def out_of_memory(model: Decoder, inputs: Tensor, targets: Tensor) -> Tensor:
    model.embedding(inputs).sum().backward()  # what it has taken by then must be given back
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 15.66 GiB")


def test_a_rival_without_memory_loses_its_own_row_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """And an eager one that cannot fit is known by arithmetic: the paper's form at 270m keeps 101 GB of logits."""
    monkeypatch.setattr("trainers.bench.measure.RIVALS", (RIVALS[1], replace(RIVALS[0], loss_of=out_of_memory)))
    found = measure_scale("pico", Setting(16, 2, 1, "fp32"), ("eager",), "eager", SHORTEST, CPU, 1e9, 0)
    assert {step.variant for step in found.steps} == {"baseline", "superposition", "plain"}
    assert found.note == "paper s=6, eager: OutOfMemoryError: CUDA out of memory. Tried to allocate 15.66 GiB"
    assert found.positions_per_second
    assert found.parts
    spec = bench_spec("270m", SCALES["270m"].shape, GPU_SETTINGS["270m"], 1)
    logits = 24 * 16 * 2_048 * 128_256
    assert logits == pytest.approx(101e9, rel=0.01)
    assert bytes_of(RIVALS[0], spec, 16) == footprint(spec, 16).total + logits


@pytest.mark.slow
def test_a_form_that_fails_leaves_the_scale_its_other_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler that refuses, in the middle of a scale."""
    from torch._inductor import config

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    # By the configuration's own means: an attribute that is set and put back from outside is gone from it afterwards.
    with config.patch({"cpp.cxx": ("no-such-compiler",)}):
        found = measure_scale("pico", Setting(16, 2, 1, "fp32"), ("eager", "compiled"), "eager", SHORTEST, CPU, 1e9, 0)
    assert config.cpp.cxx != ("no-such-compiler",)
    assert found.positions_per_second
    assert {step.form for step in found.steps} == {"eager"}
    assert len(found.note.split("; ")) == len(BAG_SIZES) + 3
    assert "baseline s=1, compiled: " in found.note


def test_a_check_that_raises_has_failed_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainers.bench.checks.check_resume", lambda bench, form: 1 / 0)
    found = {check.name: check for check in check_all(Bench(CPU, 3), ("eager",), lambda line: None)}
    assert found["resume = no stop, eager"].status == "FAIL"
    assert found["resume = no stop, eager"].note == "ZeroDivisionError: division by zero"
    assert {check.status for name, check in found.items() if not name.startswith("resume")} == {"ok"}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_on_a_gpu_the_kernels_that_training_takes_are_checked_too(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the ordinary mode: the others run with kernels that repeat themselves, of which some are not those of training."""
    asked: list[tuple[str, str, bool]] = []

    def check(name: str) -> Callable[..., Any]:
        def note(bench: Bench, *arguments: Any) -> Any:
            asked.append((name, str(arguments[-1]) if arguments else "", torch.are_deterministic_algorithms_enabled()))
            found = Check(name, "ok", 0.0, 0.0, "")
            return [found] if name in ("check_forms", "check_gradients") else found

        return note

    every = (
        "check_forms",
        "check_gradients",
        "check_attention",
        "check_bag_of_one",
        "check_resume",
        "check_usual_kernels",
    )
    for name in every:
        monkeypatch.setattr(f"trainers.bench.checks.{name}", check(name))
    found = check_all(Bench(torch.device(device), 3), ("eager", "captured"), lambda line: None)
    usual = ("check_usual_kernels", "captured", False)
    assert (usual in asked) is (device == "cuda")
    assert {deterministic for name, _, deterministic in asked if name != usual[0]} == {device == "cuda"}
    assert {one.name for one in found} == {name for name in every if device == "cuda" or name != usual[0]}


def without_memory(*arguments: object) -> Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 15.66 GiB")


def test_parts_of_a_step_that_fail_cost_the_steps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """They come after the steps, by the bench's own reading of a batch."""
    monkeypatch.setattr("trainers.bench.measure.read_batch", without_memory)
    found = measure_scale("pico", Setting(16, 2, 1, "fp32"), ("eager",), "eager", SHORTEST, CPU, 1e9, 0)
    assert found.note == "parts of a step: OutOfMemoryError: CUDA out of memory. Tried to allocate 15.66 GiB"
    assert found.positions_per_second
    assert len(found.steps) == 1 + len(BAG_SIZES) + len(RIVALS)
    assert found.parts == {}


@pytest.mark.slow
def test_a_loss_that_cannot_be_timed_costs_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """One-hot cross-entropy keeps whole logits and may not fit where all steps have; it comes last."""
    monkeypatch.setattr("trainers.bench.measure.one_hot_loss", without_memory)
    said: list[str] = []
    result = run_bench(BenchOptions(("pico",), ("eager",), "cpu", steps=1), said.append)
    assert [line for line in said if line.startswith("not measured")] == [
        f"not measured: the loss of {name}: OutOfMemoryError: CUDA out of memory. Tried to allocate 15.66 GiB"
        for name in ("pico", "wide")
    ]
    assert result.losses == ()
    assert result.passed
    assert [scale.positions_per_second is not None for scale in result.scales] == [True]
