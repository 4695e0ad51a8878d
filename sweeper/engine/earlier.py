"""What earlier sweeps in the same ledger found: points for a search to begin at, never values.

Losses compare only between trials of one identity: the same scale, method, model, text, tokenizer, batch, schedule's
warm-up, optimizer and precision. Budget, learning rate, the method's parameters and the seed may differ.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict

from sweeper.engine.arms import proposal_of
from sweeper.search.domain import Parameters
from trainers.contract.record import RunRecord
from trainers.contract.spec import TrialSpec, fingerprint


def identity_of(spec: TrialSpec) -> str:
    """Hash of what two trials must have in common for one to teach the other's search."""
    return fingerprint(
        {
            "scale": spec.scale,
            "method": spec.method,
            "shape": asdict(spec.shape),
            "corpus": spec.corpus_fingerprint,
            "tokenizer": spec.tokenizer_fingerprint,
            "batch": [spec.context, spec.tokens_per_step],
            "validation": spec.validation_tokens,
            "warmup": spec.schedule.warmup_steps,
            "optimizer": asdict(spec.optimizer),
            "precision": spec.precision,
            "numerics": spec.numerics,
        }
    )


def earlier_points(records: Iterable[RunRecord], like: TrialSpec) -> list[tuple[Parameters, float]]:
    """Points and final losses of finished trials with the identity of `like`, at the largest budget that any has."""
    identity = identity_of(like)
    finished = [
        (record.spec, record.final_loss)
        for record in records
        if record.final_loss is not None and identity_of(record.spec) == identity
    ]
    largest = max((spec.schedule.total_steps for spec, _ in finished), default=0)
    return [(proposal_of(spec).parameters, loss) for spec, loss in finished if spec.schedule.total_steps == largest]
