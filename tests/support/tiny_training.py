"""Training so small that a test can afford many runs: one layer, 48 tokens of vocabulary, a corpus in memory.

The trainer is the real one, from the stage down to the loss; only the text is made up.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainers.contract.spec import ModelShape, Optimizer, Schedule, TrialSpec
from trainers.contract.stage import STATE, StageJob, StagePoint, StageResult
from trainers.data.shards import TokenStream, piece_offsets
from trainers.model.decoder import Decoder
from trainers.planning.lineage import TrialPath
from trainers.training.checkpoint import NOTE
from trainers.training.evaluate import mean_loss, window_losses
from trainers.training.stage import run_stage

torch.set_num_threads(1)

CPU = torch.device("cpu")
VOCABULARY = 48
SHAPE = ModelShape(
    num_layers=1, width=16, num_heads=2, num_kv_heads=1, head_width=8, mlp_width=24, vocab_size=VOCABULARY
)
VALIDATION_TOKENS = 33


@dataclass(frozen=True)
class TinyCorpus:
    """`trainers.data`'s corpus as stages see it, over tokens in memory."""

    train: np.ndarray
    held_out: np.ndarray

    def stream(self, seed: int, piece_tokens: int) -> TokenStream:
        offsets = piece_offsets(np.array([0, len(self.train)]), piece_tokens)
        return TokenStream(self.train, offsets, seed, materialise_bytes=1 << 20)

    def validation(self, num_tokens: int) -> np.ndarray:
        return self.held_out[:num_tokens]


def _walk(length: int, seed: int) -> np.ndarray:
    """Tokens with something to learn: mostly small steps from the one before."""
    steps = np.random.default_rng(seed).integers(0, 4, length)
    return (np.cumsum(steps) % VOCABULARY).astype(np.int64)


CORPUS = TinyCorpus(_walk(1_500, 1), _walk(VALIDATION_TOKENS, 2))


def tiny_spec(
    method: str = "tst",
    *,
    total_steps: int = 12,
    warmup_steps: int = 2,
    decay_steps: int = 4,
    learning_rate: float = 0.01,
    bag_size: int = 3,
    step_ratio: float = 0.4,
    bag_weighting: str = "uniform",
    seed: int = 0,
    sequences: int = 2,
    **changes: Any,
) -> TrialSpec:
    """A trial of milliseconds. The bag's parameters are left out for the baseline."""
    parameters: dict[str, Any] = {}
    if method == "tst":
        parameters = {"bag_size": bag_size, "bag_weighting": bag_weighting, "step_ratio": step_ratio}
    spec = TrialSpec(
        scale="tiny",
        shape=SHAPE,
        method=method,
        parameters=tuple(sorted(parameters.items())),
        corpus_fingerprint="walk",
        tokenizer_fingerprint="none",
        context=8,
        tokens_per_step=8 * sequences,
        validation_tokens=VALIDATION_TOKENS,
        schedule=Schedule(total_steps, warmup_steps, decay_steps, learning_rate),
        optimizer=Optimizer(),
        precision="fp32",
        seed=seed,
    )
    return replace(spec, **changes)


def job_of(spec: TrialSpec, store: Path, **changes: Any) -> StageJob:
    """The whole of `spec` as one stage, from its seed, in `store`."""
    job = StageJob(
        node="whole",
        parent=None,
        start=0,
        end=spec.schedule.total_steps,
        spec=spec,
        booked_by=spec.spec_id,
        store=str(store),
        corpus="in memory",
        stop_file=str(store / "stop"),
        device="cpu",
        execution="eager",
        evaluate_every=4,
        checkpoint_seconds=0.0,
    )
    return replace(job, **changes)


def validation_loss(model: Decoder, tokens: np.ndarray, context: int, device: torch.device) -> float:
    """Nats per token over the whole windows of `tokens`."""
    return mean_loss(window_losses(model, tokens, context, device))


def train_tiny(job: StageJob, on_point: Callable[[StagePoint], None] = lambda point: None) -> StageResult:
    """`sweeper.executors.worker.train_stage` with the corpus in memory."""
    return run_stage(job, CORPUS, on_point)


def state_digest(store: Path, node: str) -> str:
    """SHA-256 of the weights, moments and step counters at the end of a stage: equal digests are equal bits."""
    header = json.loads((store / node / STATE / NOTE).read_text(encoding="utf-8"))["checkpoint"]
    return str(header["sha256"])


def node_at_end(path: TrialPath) -> str:
    """The node that a trial's training ends at."""
    return path.node(path.end)
