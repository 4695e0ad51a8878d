"""The ledger: one sweep in one MLflow experiment, written and read back.

The sweep is a parent run, every trial that was asked for a child run, found again by its `spec_id` and never made
twice. `record.json` is what is read back; parameters, tags and metrics are for people in the dashboard, and which of
them there are is said in `entries`. A trial is complete once its `outcome` tag is set, which happens after
`record.json` is stored: a driver killed in between is healed by `begin`. One writer a sweep; that there is only one is
for the driver to see to.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote, urlparse

from sweeper.ledger.about import SweepAbout, about_from_dict, about_to_dict
from sweeper.ledger.connection import connect, one_line, pages, release, uncollected
from sweeper.ledger.entries import (
    DESCRIPTION_TAG,
    KIND_TAG,
    LOSS_KEY,
    OUTCOME_TAG,
    REASON_TAG,
    SCORES_TAG,
    SPEC_ID_TAG,
    MetricPoint,
    Scores,
    Trial,
    final_description,
    metric_points,
    parameters,
    result_tags,
    run_name,
    run_status,
    running_description,
    score_points,
    scores_of,
    sweep_tags,
    trial_of,
    trial_tags,
)
from sweeper.ledger.location import (
    ARTIFACTS,
    DATABASE,
    LedgerError,
    NoSweepError,
    check_name,
    default_tracking_uri,
    first_line,
    follow_moved_artifacts,
    is_name,
    is_server,
)
from trainers.contract.errors import InputError, given
from trainers.contract.reading import json_value
from trainers.contract.record import RunRecord, outcome_name, record_from_dict, record_to_dict
from trainers.contract.spec import AnySpec

SWEEP_TAG = "sweeper.sweep"
RECORD_FILE = "record.json"
ABOUT_FILE = "about.json"
SCORES_FILE = "scores.json"

_BATCH = 1_000
"""Entities that MLflow takes in one `log_batch`."""
_logger = logging.getLogger("sweeper.ledger")


def list_sweeps(results: Path, tracking_uri: str | None = None) -> list[str]:
    """Names of the sweeps in a ledger, the newest last; empty where there is no ledger yet.

    Raises `LedgerError` when the ledger cannot be read.
    """
    if tracking_uri is None and not (results / DATABASE).exists():
        return []
    client = connect(tracking_uri or default_tracking_uri(results))
    with one_line(tracking_uri or str(results / DATABASE)):
        experiments = [
            experiment
            for experiment in pages(lambda token: client.search_experiments(page_token=token))
            if is_name(experiment.tags.get(SWEEP_TAG, ""))
        ]
    release(client)
    return [experiment.tags[SWEEP_TAG] for experiment in sorted(experiments, key=lambda e: e.creation_time)]


class Ledger:
    """One sweep. Use `Ledger.open` as a context manager."""

    def __init__(self, client: Any, experiment_id: str, name: str) -> None:
        self.name = name
        self._client = client
        self._experiment_id = experiment_id
        self._records: dict[str, RunRecord] = {}
        self._runs: dict[str, Trial] | None = None
        self._half_made: set[str] = set()
        self._sweep_run: str | None = None
        self._moved = ("", "")

    @classmethod
    def open(cls, results: Path, name: str, tracking_uri: str | None = None, *, create: bool) -> Self:
        """The ledger of sweep `name`: by default SQLite in `results`, otherwise at `tracking_uri`.

        Raises `NoSweepError` when it does not exist and `create` is False, `LedgerError` when it cannot be reached or read.
        """
        check_name(name)
        where = tracking_uri or str(results / DATABASE)
        if tracking_uri is None and not (results / DATABASE).exists():
            if not create:
                raise NoSweepError(
                    f"{name}: no ledger at {where}; run a sweep first, or give --results or --tracking-uri"
                )
            with given(results):
                results.mkdir(parents=True, exist_ok=True)
        uri = tracking_uri or default_tracking_uri(results)
        client = connect(uri)
        with one_line(where):
            experiment = client.get_experiment_by_name(_experiment_name(name))
            if experiment is None and create:
                location = None if is_server(uri) else (results.absolute() / ARTIFACTS / name).as_uri()
                tags = {SWEEP_TAG: name, "mlflow.experimentKind": "custom_model_development"}
                identity = client.create_experiment(_experiment_name(name), artifact_location=location, tags=tags)
                return cls(client, identity, name)
        if experiment is None:
            known = ", ".join(list_sweeps(results, tracking_uri)) or "none"
            raise NoSweepError(f"{name}: no sweep of that name in {where}; it holds: {known}")
        if experiment.lifecycle_stage != "active":
            raise LedgerError(
                f"{name}: was deleted in {where}; choose another name, or bring it back with "
                f"`mlflow experiments restore --experiment-id {experiment.experiment_id}`"
            )
        made = cls(client, experiment.experiment_id, name)
        if tracking_uri is None:
            made._moved = follow_moved_artifacts(results, name, experiment.experiment_id, experiment.artifact_location)
        return made

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        release(self._client)

    # writing

    def begin(self, about: SweepAbout) -> None:
        """Start the sweep's run, or go on with it, and complete trials whose writing was cut short.

        The time of the first start is kept; everything else is as it is now. Raises `LedgerError` when the name is
        taken by runs of another origin.
        """
        parent = self._parent()
        if parent is None:
            tags = {KIND_TAG: "sweep", "mlflow.source.name": "sweeper", "mlflow.source.type": "LOCAL"}
            run = self._client.create_run(self._experiment_id, tags=tags, run_name=f"{about.name} · sweep")
            parent = run.info.run_id
        else:
            about = self._continued(about)
            self._client.update_run(parent, status="RUNNING")
        self._tag(parent, {**sweep_tags(about), DESCRIPTION_TAG: running_description(about)})
        if about.corpus_fingerprint:
            self._log_corpus(parent, about)
        self._store(parent, "search_space.yaml", about.search_space_text)
        self._store(parent, ABOUT_FILE, json.dumps(about_to_dict(about), indent=1, allow_nan=False))
        for trial in self._trials().values():
            if not trial.complete and (record := self._read(trial)[0]) is not None:
                self.write(record)

    def _continued(self, about: SweepAbout) -> SweepAbout:
        try:
            earlier = self.about()
        except LedgerError:
            _logger.warning("%s: %s is damaged and is written anew", self.name, ABOUT_FILE)
            return about
        if earlier.origin != about.origin:
            kinds = {"sweep": "a sweep of its own", "imported": "imported runs"}
            raise LedgerError(f"{self.name}: is the name of {kinds[earlier.origin]} here; choose another name")
        return replace(about, started_at=earlier.started_at)

    def schedule(self, spec: AnySpec, purpose: str) -> None:
        """Note that a trial was asked for, as the last one in order. Asking again changes nothing."""
        trials = self._known()
        if spec.spec_id in trials:
            if spec.spec_id in self._half_made:
                self._complete_run(trials[spec.spec_id])
            return
        order = 1 + (next(reversed(trials.values())).order if trials else 0)
        tags = {**trial_tags(spec, purpose, order), "mlflow.parentRunId": self._require_parent()}
        tags |= {"mlflow.source.name": "sweeper", "mlflow.source.type": "LOCAL"}
        self._half_made.add(spec.spec_id)
        run = self._client.create_run(self._experiment_id, tags=tags, run_name=run_name(spec, purpose))
        made = Trial(run.info.run_id, run.info.artifact_uri, run.info.start_time, order, spec, purpose, complete=False)
        trials[spec.spec_id] = made
        self._complete_run(made)

    def _complete_run(self, trial: Trial) -> None:
        self._batch(trial.run_id, params=parameters(trial.spec))
        self._client.update_run(trial.run_id, status="SCHEDULED")
        self._half_made.discard(trial.spec.spec_id)

    def look_again(self) -> None:
        """Forget what is known of the trials' runs: after a call without an answer nobody knows what it did."""
        self._runs = None

    def chart(self, spec_id: str, points: Iterable[MetricPoint]) -> None:
        """Add points of a trial's curve while it trains. The same ones again change nothing."""
        trial = self._known()[spec_id]
        if not trial.complete:
            self._batch(trial.run_id, metrics=tuple(points))
            self._known()[spec_id] = replace(trial, charted=True)

    def started(self, spec: AnySpec) -> None:
        """Show a trial that was asked for as running."""
        trial = self._known()[spec.spec_id]
        if not trial.complete:
            self._client.update_run(trial.run_id, status="RUNNING")

    def reopen(self, spec: AnySpec) -> None:
        """Ask again for a trial that has ended (one that failed, say): it is pending until its next record."""
        trial = self._known()[spec.spec_id]
        if trial.complete:
            for tag in {OUTCOME_TAG, REASON_TAG} & set(self._client.get_run(trial.run_id).data.tags):
                self._client.delete_tag(trial.run_id, tag)
            self._store(trial.run_id, RECORD_FILE, "")
            self._client.update_run(trial.run_id, status="SCHEDULED")
            self._records.pop(trial.run_id, None)
            self._known()[spec.spec_id] = replace(trial, complete=False)

    def write(self, record: RunRecord) -> None:
        """Store a trial's result and end its run. The same record again changes nothing, another one replaces it."""
        self.schedule(record.spec, record.purpose)
        trial = self._known()[record.spec.spec_id]
        if trial.complete:
            if self._read(trial)[0] == record:
                return
            self.reopen(record.spec)
        points = metric_points(record, trial.started, self.charted(record.spec.spec_id))
        self._batch(trial.run_id, metrics=points, tags=result_tags(record))
        self._store(trial.run_id, RECORD_FILE, json.dumps(record_to_dict(record), allow_nan=False))
        self._client.set_terminated(trial.run_id, run_status(record))
        self._tag(trial.run_id, {OUTCOME_TAG: outcome_name(record.outcome)})
        self._known()[record.spec.spec_id] = replace(trial, purpose=record.purpose, complete=True, charted=True)
        self._records[trial.run_id] = record

    def charted(self, spec_id: str) -> dict[int, float]:
        """Loss by step of the points that the dashboard has of a trial."""
        if not (trial := self._known()[spec_id]).charted:
            return {}
        return {point.step: point.value for point in self._client.get_metric_history(trial.run_id, LOSS_KEY)}

    def add_scores(self, spec: AnySpec, source: str, scores: Scores) -> Scores:
        """Keep what the file `source` says about a trial's model beside what was kept before; returns all of it. They are no
        part of its record, which training alone decides."""
        trial = self._known()[spec.spec_id]
        together = dict(self.scores().get(spec.spec_id, ())) | dict(scores)
        self._store(trial.run_id, SCORES_FILE, json.dumps(together, indent=1, allow_nan=False))
        self._batch(trial.run_id, metrics=score_points(scores, trial.started), tags={SCORES_TAG: source})
        return tuple(sorted(together.items()))

    def finish(self, status: str, headline: str | None, report: Path | None) -> None:
        """End the sweep's run with `status` (finished, failed or killed).

        `headline` becomes the first line of its description. `report` and a `summary.json` beside it are attached.
        """
        parent = self._require_parent()
        about = self.about()
        self._tag(parent, {DESCRIPTION_TAG: final_description(about, headline)})
        if report is not None:
            for file in (report, report.with_name("summary.json")):
                if file.exists():
                    self._client.log_artifact(parent, str(file))
        self._client.set_terminated(parent, status.upper())

    def save_view(self, tags: Mapping[str, str]) -> None:
        """Set tags of the experiment: where MLflow's interface keeps shared views."""
        for key, value in tags.items():
            self._client.set_experiment_tag(self._experiment_id, key, value)

    # reading

    def pending(self) -> list[tuple[AnySpec, str]]:
        """Trials and their purposes that were asked for and have no readable record, in the order asked."""
        lacking = [one for one in self._known().values() if not one.complete or self._read(one)[0] is None]
        return [(trial.spec, trial.purpose) for trial in lacking]

    @uncollected()
    def records(self) -> list[RunRecord]:
        """Every readable record, in the order asked. What `damaged` lists is left out, with one logged line each."""
        found = [self._read(trial) for trial in self._known().values() if trial.complete]
        for _, problem in found:
            if problem:
                _logger.warning("%s", problem)
        return [record for record, _ in found if record is not None]

    def scores(self) -> Mapping[str, Scores]:
        """Downstream scores by spec id, of the trials that have any. What cannot be read is left out, with a logged line."""
        found: dict[str, Scores] = {}
        for run in self._search(f"tags.`{SCORES_TAG}` != ''"):
            try:
                plain = json_value(self._load(run.info.run_id, run.info.artifact_uri, SCORES_FILE))
                found[run.data.tags[SPEC_ID_TAG]] = scores_of(plain)
            except (OSError, UnicodeError, InputError, KeyError) as error:
                _logger.warning("%s: %s of %s is unreadable: %s", self.name, SCORES_FILE, run.info.run_name, error)
        return found

    def damaged(self) -> list[str]:
        """One line for each trial that ended but whose record cannot be read; it is pending again."""
        found = [self._read(trial) for trial in self._known().values() if trial.complete]
        return [problem for _, problem in found if problem]

    def about(self) -> SweepAbout:
        """What the sweep said about itself. Raises `LedgerError` when it never began."""
        parent = self._client.get_run(self._require_parent())
        try:
            return about_from_dict(json_value(self._load(parent.info.run_id, parent.info.artifact_uri, ABOUT_FILE)))
        except (OSError, UnicodeError, InputError) as error:
            said = f"{self.name}: {ABOUT_FILE} of the sweep's run is damaged: {first_line(error)}"
            raise LedgerError(said) from error

    @property
    def experiment_id(self) -> str:
        """The sweep's experiment in MLflow."""
        return self._experiment_id

    def sweep_link(self) -> str:
        """The sweep's own run in MLflow's interface, from its fragment on."""
        return f"#/experiments/{self._experiment_id}/runs/{self._require_parent()}"

    def run_links(self) -> Mapping[str, str]:
        """Each trial's run in MLflow's interface by spec id, from its fragment on."""
        return {spec_id: self.link_of(trial.run_id) for spec_id, trial in self._known().items()}

    def link_of(self, run_id: str) -> str:
        """A run in MLflow's interface, from its fragment on."""
        return f"#/experiments/{self._experiment_id}/runs/{run_id}"

    def run_ids(self) -> Mapping[str, str]:
        """Each trial's run in MLflow by spec id, in the order asked, as this writer left them; empty before it has looked."""
        return {spec_id: trial.run_id for spec_id, trial in list((self._runs or {}).items())}

    # MLflow

    @uncollected()
    def _search(self, filter_string: str) -> list[Any]:
        return list(
            pages(lambda token: self._client.search_runs([self._experiment_id], filter_string, page_token=token))
        )

    def _parent(self) -> str | None:
        if self._sweep_run is None:
            runs = self._search(f"tags.`{KIND_TAG}` = 'sweep'")
            self._sweep_run = min(runs, key=lambda run: run.info.start_time).info.run_id if runs else None
        return self._sweep_run

    def _require_parent(self) -> str:
        parent = self._parent()
        if parent is None:
            raise LedgerError(f"{self.name}: the sweep was never begun")
        return parent

    def _trials(self) -> dict[str, Trial]:
        """Child runs by spec id, in the order asked, as they are now."""
        trials: dict[str, Trial] = {}
        for run in self._search(f"tags.`{KIND_TAG}` = 'trial'"):
            info = run.info
            try:
                trial = trial_of(info.run_id, info.artifact_uri, info.start_time, run.data.tags, run.data.metrics)
            except (KeyError, ValueError) as error:
                _logger.warning("%s: run %s has no readable spec: %s", self.name, info.run_name, first_line(error))
                continue
            trials[trial.spec.spec_id] = trial
        self._runs = dict(sorted(trials.items(), key=lambda item: (item[1].order, item[1].started)))
        return self._runs

    def _known(self) -> dict[str, Trial]:
        """The trials as this writer left them, without asking MLflow again."""
        return self._trials() if self._runs is None else self._runs

    def _read(self, trial: Trial) -> tuple[RunRecord | None, str | None]:
        """The trial's record, or None and why not in one line."""
        if trial.complete and trial.run_id in self._records:
            return self._records[trial.run_id], None
        try:
            record = record_from_dict(json_value(self._load(trial.run_id, trial.artifact_uri, RECORD_FILE)))
            if record.spec.spec_id != trial.spec.spec_id:
                raise InputError(f"it is of trial {record.spec.spec_id}")
        except (OSError, UnicodeError, InputError) as error:
            return None, f"{run_name(trial.spec, trial.purpose)}: {RECORD_FILE} is unreadable: {first_line(error)}"
        self._records[trial.run_id] = record
        return record, None

    def _load(self, run_id: str, artifact_uri: str, file: str) -> str:
        """Text of an artifact. Raises `OSError` when it is not there."""
        old, new = self._moved
        parsed = urlparse(new + artifact_uri[len(old) :] if artifact_uri.startswith(f"{old}/") else artifact_uri)
        if parsed.scheme in ("", "file"):
            return (Path(unquote(parsed.path)) / file).read_text(encoding="utf-8")
        from mlflow.exceptions import MlflowException

        with tempfile.TemporaryDirectory() as folder:
            try:
                return Path(self._client.download_artifacts(run_id, file, folder)).read_text(encoding="utf-8")
            except MlflowException as error:
                raise OSError(first_line(error)) from error

    def _store(self, run_id: str, file: str, text: str) -> None:
        self._client.log_text(run_id, text, file)

    def _tag(self, run_id: str, tags: Mapping[str, str]) -> None:
        self._batch(run_id, tags=tags)

    def _batch(
        self,
        run_id: str,
        metrics: tuple[Any, ...] = (),
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        from mlflow.entities import Metric, Param, RunTag

        points = [Metric(point.key, point.value, point.timestamp, point.step) for point in metrics]
        self._client.log_batch(
            run_id,
            metrics=points[: _BATCH // 2],
            params=[Param(key, value) for key, value in (params or {}).items()],
            tags=[RunTag(key, value) for key, value in (tags or {}).items()],
        )
        for start in range(_BATCH // 2, len(points), _BATCH):
            self._client.log_batch(run_id, metrics=points[start : start + _BATCH])

    def _log_corpus(self, run_id: str, about: SweepAbout) -> None:
        from mlflow.entities import Dataset, DatasetInput

        corpus = Dataset(
            name="corpus",
            digest=about.corpus_fingerprint[:36],
            source_type="text",
            source=json.dumps({"description": about.corpus_description, "tokenizer": about.tokenizer_fingerprint}),
            profile=json.dumps({"training_tokens": about.corpus_tokens}),
        )
        self._client.log_inputs(run_id, [DatasetInput(corpus, [])])


def _experiment_name(name: str) -> str:
    return f"sweeper/{name}"
