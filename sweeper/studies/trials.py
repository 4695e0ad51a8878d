"""Which trials of a ledger make a study, and what Optuna is told of each: a study a scale, arm and tuning budget.

A study holds every trial of its arm and budget that lies on the file's grid and has the identity (text, batch, optimizer)
of the file: losses of others do not compare. States are said as they are: a trial that waits for a worker is WAITING, one
that diverged, failed or was stopped is FAIL with its outcome and reason as attributes. PRUNED is never used, since no trial
is cut short for its loss: those of a lower rung are whole runs of a smaller budget, in that budget's study.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from sweeper.ledger.about import SweepAbout
from sweeper.ledger.entries import milliseconds, thinned
from sweeper.search import Axis, Domain, Proposal
from sweeper.space.foreign_schema import AnySpace
from sweeper.space.trials import as_asked_now, domain_of
from trainers.contract.record import Finished, RunRecord, outcome_name
from trainers.contract.spec import AnySpec, Scalar
from trainers.methods import LEARNING_RATE

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

SPEC_ATTRIBUTE = "spec_id"
MAX_POINTS = 30
"""Points of a curve that go into a study, as intermediate values."""


@dataclass(frozen=True, slots=True)
class LedgerTrial:
    """A trial as the ledger has it: `record` once it has ended, `running` while a worker trains it."""

    spec: AnySpec
    purpose: str
    run_id: str = ""
    record: RunRecord | None = None
    running: bool = False


@dataclass(frozen=True, slots=True)
class StudyCopy:
    """A study as it should be: its attributes and its trials, in the order in which they were asked for."""

    name: str
    attributes: Mapping[str, Any]
    trials: tuple[FrozenTrial, ...]


def study_name(sweep: str, scale: str, method: str, steps: int) -> str:
    """As `optuna.load_study` is given it: `quickstart/pico/tst/4000`."""
    return f"{sweep}/{scale}/{method}/{steps}"


def in_study(space: AnySpace, about: SweepAbout, spec: AnySpec) -> bool:
    """Whether a trial is one of the file's, at a tuning budget and on its grid."""
    if spec.scale not in space.scales or spec.method not in space.methods:
        return False
    values: dict[str, Scalar] = {**dict(spec.parameters), LEARNING_RATE: spec.schedule.learning_rate}
    steps = spec.schedule.total_steps
    try:
        domain_of(space.methods[spec.method], space.seeds.tuning).refuse_outside(
            Proposal(tuple(sorted(values.items())), steps, spec.seed)
        )
        # The ids, not the parts: a trial on another text or batch has the same values and another loss.
        same = as_asked_now(
            space,
            spec,
            corpus_fingerprint=about.corpus_fingerprint,
            tokenizer_fingerprint=about.tokenizer_fingerprint,
            code=about.code,
        )
    except ValueError:
        return False
    return same.spec_id == spec.spec_id


def copy_of(space: AnySpace, trials: tuple[LedgerTrial, ...]) -> StudyCopy:
    """The study of `trials`, which are of one scale, arm and budget, in the order asked."""
    spec = trials[0].spec
    domain = domain_of(space.methods[spec.method], space.seeds.tuning)
    steps = spec.schedule.total_steps
    attributes = {"sweep": space.name, "scale": spec.scale, "method": spec.method, "total_steps": steps}
    return StudyCopy(
        study_name(space.name, spec.scale, spec.method, steps),
        attributes | dict(domain.constants),
        tuple(_frozen(trial, domain) for trial in trials),
    )


def distributions_of(domain: Domain) -> dict[str, BaseDistribution]:
    """Range and spacing of each axis that has a choice, in the axis's own unit."""
    return {axis.name: _distribution(axis) for axis in domain.axes if len(axis.values) > 1}


def _distribution(axis: Axis) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    low, high, log = axis.values[0], axis.values[-1], axis.spacing == "log"
    if axis.spacing == "category" or isinstance(low, str) or isinstance(high, str):
        return CategoricalDistribution(axis.values)
    if all(isinstance(value, int) for value in axis.values):
        return IntDistribution(int(low), int(high), log=log)
    return FloatDistribution(low, high, log=log)


def _frozen(trial: LedgerTrial, domain: Domain) -> FrozenTrial:
    from optuna.trial import TrialState, create_trial

    ranges = distributions_of(domain)
    values = {**dict(trial.spec.parameters), LEARNING_RATE: trial.spec.schedule.learning_rate}
    attributes: dict[str, Any] = {
        "seed": trial.spec.seed,
        "purpose": trial.purpose,
        SPEC_ATTRIBUTE: trial.spec.spec_id,
        "mlflow_run_id": trial.run_id,
    }
    given: dict[str, Any] = {"params": {name: values[name] for name in ranges}, "distributions": ranges}
    record = trial.record
    if record is None:
        state = TrialState.RUNNING if trial.running else TrialState.WAITING
        return create_trial(state=state, user_attrs=attributes, **given)
    attributes["outcome"] = outcome_name(record.outcome)
    if not isinstance(record.outcome, Finished):
        attributes["reason"] = record.outcome.reason
    made = create_trial(
        state=TrialState.COMPLETE if isinstance(record.outcome, Finished) else TrialState.FAIL,
        value=record.final_loss,
        intermediate_values={point.step: point.loss for point in thinned(record.curve.points, MAX_POINTS)},
        user_attrs=attributes,
        **given,
    )
    made.datetime_start, made.datetime_complete = _times(record)
    return made


def _times(record: RunRecord) -> tuple[datetime, datetime]:
    """Begin and end, as Optuna has them: on this machine's clock, without its zone."""
    try:
        begun = datetime.fromtimestamp((milliseconds(record.provenance.started_at) or 0) / 1_000)
        return begun, begun + timedelta(seconds=record.timing.billed_seconds)
    except (ValueError, OverflowError, OSError):
        return datetime.fromtimestamp(0), datetime.fromtimestamp(0)
