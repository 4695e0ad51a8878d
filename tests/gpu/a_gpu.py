"""What the tests on a GPU share: their marks, a shape that its kernels know, and trials of it that take seconds."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from trainers.contract.spec import ModelShape, TrialSpec

NEEDS_A_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("default"),  # a GPU build of torch warns of its own affairs
]
CUDA = torch.device("cuda")
SHAPE = ModelShape(num_layers=2, width=128, num_heads=2, num_kv_heads=1, head_width=64, mlp_width=256, vocab_size=512)


def for_a_gpu(spec: TrialSpec, precision: str) -> TrialSpec:
    """The same trial with `SHAPE`, four sequences of 16 positions a step."""
    return replace(spec, shape=SHAPE, context=16, tokens_per_step=64, validation_tokens=33, precision=precision)
