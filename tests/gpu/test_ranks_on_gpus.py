"""Two ranks with a GPU each train as one rank does, eagerly and compiled. Nothing here has run on GPUs yet."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.support.rank_training import run_ranks, train_each_on_gpus
from tests.support.tiny_training import job_of, tiny_spec, train_tiny
from trainers.contract.spec import ModelShape

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
    pytest.mark.filterwarnings("default"),  # a GPU build of torch warns of its own affairs
]
SHAPE = ModelShape(num_layers=2, width=128, num_heads=2, num_kv_heads=1, head_width=64, mlp_width=256, vocab_size=512)
TOLERANCES = {"fp32": 1e-4, "bf16": 1e-2}
"""Relative, of losses: sums in another order over some hundred columns, and weights of three digits."""


def test_two_gpus_train_as_one(tmp_path: Path) -> None:
    jobs = []
    for precision in TOLERANCES:
        spec = replace(tiny_spec(sequences=4), shape=SHAPE, precision=precision)
        for execution in ("eager", "compiled"):
            node = f"{precision}-{execution}"
            jobs.append(job_of(spec, tmp_path, node=node, execution=execution, device="cuda:0"))
    found, _ = run_ranks(tmp_path, 2, train_each_on_gpus, jobs, backend="cpu:gloo,cuda:nccl")
    assert not isinstance(found, Exception), found
    for job, result in zip(jobs, found, strict=True):
        alone = train_tiny(replace(job, store=str(tmp_path / "alone"), execution="eager"))
        losses, expected = ([point.loss for point in r.points] for r in (result, alone))
        torch.testing.assert_close(losses, expected, rtol=TOLERANCES[job.spec.precision], atol=0.0)
