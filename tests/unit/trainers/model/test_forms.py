"""What the forms of the step share: attention's kernel, compilation's settings and cache, activation checkpointing."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend

from tests.support.live_bytes import peak_of
from tests.support.tiny_training import CPU, SHAPE, job_of, state_digest, tiny_spec, train_tiny
from trainers.model.attention import (
    GPU_ORDER,
    NAMES,
    attention_backend,
    attention_kernels,
    forced_attention,
    kernel_error,
    kernels_that_work,
)
from trainers.model.decoder import build_model
from trainers.step.compiling import CACHE_VARIABLE, cache_folder, compiled


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_attention_kernel_has_a_name(precision: str) -> None:
    assert attention_backend(SHAPE, 8, precision, CPU) in NAMES.values()


def test_on_a_processor_attention_is_torch_s_own() -> None:
    query = torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    with forced_attention(attention_kernels(SHAPE, 8, "fp32", CPU)):
        forced = F.scaled_dot_product_attention(query, query, query, is_causal=True)
    assert torch.equal(forced, F.scaled_dot_product_attention(query, query, query, is_causal=True))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_kernel_that_raises_is_left_out_and_one_that_is_right_stays(precision: str) -> None:
    """A processor has no cuDNN: forcing it raises, as a plan that fails on a GPU does."""
    with pytest.raises(RuntimeError):
        kernel_error(SDPBackend.CUDNN_ATTENTION, SHAPE, 8, precision, CPU)
    working = kernels_that_work(GPU_ORDER, lambda kernel: kernel_error(kernel, SHAPE, 8, precision, CPU))
    assert working == (SDPBackend.FLASH_ATTENTION, SDPBackend.MATH)
    with forced_attention(working):
        train = torch.randn(1, 2, 8, 8, requires_grad=True)
        F.scaled_dot_product_attention(train, train, train, is_causal=True).sum().backward()


def test_a_kernel_whose_gradients_are_no_numbers_or_far_off_is_left_out() -> None:
    cudnn, flash, efficient, math = GPU_ORDER
    errors = {cudnn: float("nan"), flash: 30.0, efficient: 0.1, math: float("nan")}
    assert kernels_that_work(GPU_ORDER, errors.__getitem__) == (efficient, math)

    def without_memory(kernel: SDPBackend) -> float:
        raise torch.OutOfMemoryError("the reference keeps all pairs of positions")

    assert kernels_that_work(GPU_ORDER, without_memory) == GPU_ORDER


@pytest.mark.parametrize("execution", ["eager", "captured"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_computing_activations_again_changes_no_bit(tmp_path: Path, execution: str, precision: str) -> None:
    spec = replace(tiny_spec(precision=precision), shape=replace(SHAPE, num_layers=3))
    train_tiny(job_of(spec, tmp_path, execution=execution))
    train_tiny(job_of(spec, tmp_path, node="again", execution=execution, checkpoint_activations=True))
    assert state_digest(tmp_path, "again") == state_digest(tmp_path, "whole")


def test_computing_activations_again_saves_their_memory() -> None:
    shape = replace(SHAPE, num_layers=6, width=32, num_heads=4, num_kv_heads=2, mlp_width=96)
    tokens = torch.arange(16 * 32).view(16, 32, 1) % SHAPE.vocab_size
    peaks = []
    for again in (False, True):
        model = build_model(shape, 32, 0, CPU)
        model.checkpoint_activations = again
        peaks.append(peak_of(lambda model=model: model(tokens).sum().backward()))  # type: ignore[misc]
    assert peaks[1] < 0.5 * peaks[0]


def test_the_cache_of_kernels_is_the_user_s_unless_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "tst-sweeper" / "inductor"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "tst-sweeper" / "inductor"
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"


def test_compilation_hands_the_cache_to_the_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Set before anything is compiled, and left alone where the user has set it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)
    compiled(torch.sin)
    assert os.environ[CACHE_VARIABLE] == str(tmp_path / "tst-sweeper" / "inductor")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "mine"))
    compiled(torch.sin)
    assert os.environ[CACHE_VARIABLE] == str(tmp_path / "mine")


def test_eager_steps_import_no_compiler() -> None:
    code = "import sys, trainers.training.stage; print('torch._inductor.compile_fx' in sys.modules, 'triton' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
