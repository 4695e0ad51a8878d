"""What a ledger and a report say of a trial beside its values, whoever trains it: the one place that asks which kind it is.

What another trainer does not tell is None, never a guess.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from trainers.contract.flops import count_parameters
from trainers.contract.spec import ForeignSpec, Scalar, Spec, TrialSpec, fingerprint

PARAMETERS = "parameters"
"""Key of a foreign scale that says how many parameters its model has."""


TRAINERS_OWN = "the trainer's own"
"""What a text is called that only its trainer knows."""


@dataclass(frozen=True, slots=True)
class SpecFacts:
    """`params` of the model that is evaluated; `validation` and `tokenizer` name what the loss is measured on; `recipe` names
    all that both arms must have in common and that has no field of its own; `text` is the corpus's fingerprint. `columns` are
    further ones of a table of trials, `undecayed` what a file would say for a schedule that ends decayed.
    """

    params: float | None
    decayed: bool
    precision: str | None
    context: int | None
    tokens_per_step: int | None
    validation: str | None
    tokenizer: str | None
    recipe: str
    text: str | None
    columns: Mapping[str, Scalar]
    undecayed: str


def facts_of(spec: Spec) -> SpecFacts:
    """The facts of any trial. A schedule without a decay never counts as decayed."""
    match spec:
        case TrialSpec():
            return _own(spec)
        case ForeignSpec():
            return _foreign(spec)
        case _:
            raise TypeError(f"{type(spec).__name__} is no spec of a trial")


def _own(spec: TrialSpec) -> SpecFacts:
    schedule = spec.schedule
    return SpecFacts(
        params=float(count_parameters(spec.shape).total),
        decayed=schedule.decay_steps > 0,
        precision=spec.precision,
        context=spec.context,
        tokens_per_step=spec.tokens_per_step,
        validation=f"{spec.corpus_fingerprint}/{spec.validation_tokens}",
        tokenizer=spec.tokenizer_fingerprint,
        recipe=fingerprint(
            {
                "shape": asdict(spec.shape),
                "optimizer": asdict(spec.optimizer),
                "warmup_steps": schedule.warmup_steps,
                "decay_fraction": round(schedule.decay_steps / schedule.total_steps, 2),
                "numerics": spec.numerics,
            }
        ),
        text=spec.corpus_fingerprint,
        columns={
            "warmup_steps": schedule.warmup_steps,
            "decay_steps": schedule.decay_steps,
            "weight_decay": spec.optimizer.weight_decay,
            "tokens_per_step": spec.tokens_per_step,
            "context": spec.context,
            "precision": spec.precision,
            "corpus": spec.corpus_fingerprint,
            "tokenizer": spec.tokenizer_fingerprint,
        },
        undecayed="a `decay_fraction` above 0",
    )


def _foreign(spec: ForeignSpec) -> SpecFacts:
    scale = dict(spec.scale_values)
    params = scale.get(PARAMETERS)
    # Not the command: a method may have one of its own. What its code was is the same for all.
    shared = [spec.scale, scale, dict(spec.environment), spec.code, spec.loss_from, spec.decayed]
    return SpecFacts(
        params=None if params is None or isinstance(params, str) else float(params),
        decayed=spec.decayed,
        precision=None,
        context=None,
        tokens_per_step=None,
        validation=None,
        tokenizer=None,
        recipe=fingerprint(shared),
        text=None,
        columns={"code": spec.code, **{f"scale.{name}": value for name, value in spec.scale_values}},
        undecayed="`decayed: true` below `trainer:`",
    )
