"""Trials small enough to train hundreds of times in a test: real text, a tiny decoder, a few steps."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from trainers.contract.spec import ModelShape, Optimizer, Scalar, Schedule, TrialSpec
from trainers.contract.stage import StageJob
from trainers.data import stdlib
from trainers.data.prepare import prepare
from trainers.data.request import CorpusRequest
from trainers.data.shards import PreparedCorpus

SHAPE = ModelShape(
    num_layers=1, width=16, num_heads=2, num_kv_heads=1, head_width=8, mlp_width=24, vocab_size=300, qk_norm=True
)


@cache
def corpus() -> PreparedCorpus:
    """A package of the standard library, tokenized once a test process."""
    request = CorpusRequest(
        "files", (str(stdlib.library_root() / "email/**/*.py"),), validation_fraction=0.2, vocab_size=SHAPE.vocab_size
    )
    return prepare(request, Path(mkdtemp(prefix="corpus-")))


def spec(
    method: str = "baseline",
    *,
    total_steps: int = 20,
    decay_steps: int = 4,
    warmup_steps: int = 2,
    learning_rate: float = 0.01,
    seed: int = 0,
    sequences: int = 2,
    **parameters: Scalar,
) -> TrialSpec:
    """A trial. For `tst` give bag_size, step_ratio and perhaps bag_weighting."""
    if method == "tst":
        parameters.setdefault("bag_weighting", "uniform")
    text = corpus()
    return TrialSpec(
        scale="test",
        shape=SHAPE,
        method=method,
        parameters=tuple(parameters.items()),
        corpus_fingerprint=text.fingerprint,
        tokenizer_fingerprint=text.tokenizer_fingerprint,
        context=8,
        tokens_per_step=8 * sequences,
        validation_tokens=257,
        schedule=Schedule(total_steps, warmup_steps, decay_steps, learning_rate),
        optimizer=Optimizer(),
        precision="fp32",
        seed=seed,
    )


def job(trial: TrialSpec, store: Path, *, evaluate_every: int = 5, node: str | None = None) -> StageJob:
    """The whole trial as one stage from the seed."""
    return StageJob(
        node=node or trial.spec_id,
        parent=None,
        start=0,
        end=trial.schedule.total_steps,
        spec=trial,
        booked_by=trial.spec_id,
        store=str(store),
        corpus=str(corpus().directory),
        stop_file=str(store / "stop"),
        device="cpu",
        execution="eager",
        evaluate_every=evaluate_every,
        checkpoint_seconds=0.0,
    )
