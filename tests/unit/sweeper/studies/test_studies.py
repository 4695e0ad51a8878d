"""Optuna studies of a sweep: as the ledger is, whatever lies in their place, and never in the sweep's way."""

from __future__ import annotations

import random
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from sweeper.search import Axis, Domain
from sweeper.studies import keeper
from sweeper.studies.keeper import StudyLedger, StudyPlace
from sweeper.studies.trials import distributions_of
from tests.support.study_desk import NamedLedger, file_in, study_space, swept
from tests.support.tiny_sweep import Desk, Workers, result_of
from trainers.contract.record import Diverged
from trainers.contract.stage import StageJob, StageResult

pytestmark = pytest.mark.slow
NAMES = ["tiny/nano/baseline/8", "tiny/nano/tst/8"]


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "BATCH_SECONDS", 0.02)


def trials_at(place: StudyPlace, name: str) -> list[FrozenTrial]:
    return optuna.load_study(study_name=name, storage=place.url).trials


def contents(place: StudyPlace) -> dict[str, list[tuple[object, ...]]]:
    """All that a study says, without its clock."""
    return {
        name: [
            (t.number, t.state, t.value, t.params, t.distributions, t.user_attrs, t.intermediate_values)
            for t in trials_at(place, name)
        ]
        for name in optuna.get_all_study_names(place.url)
    }


def test_a_study_an_arm_holds_its_trials_as_they_ended(tmp_path: Path) -> None:
    ledger, place = NamedLedger(), file_in(tmp_path)
    assert swept(ledger, place, count=2)
    assert optuna.get_all_study_names(place.url) == NAMES
    for name in NAMES:
        study = optuna.load_study(study_name=name, storage=place.url)
        asked = [spec for spec, _ in ledger.asked.values() if spec.method == name.split("/")[2]]
        there = [spec for spec in asked if spec.schedule.total_steps == 8]
        assert [trial.user_attrs["spec_id"] for trial in study.trials] == [spec.spec_id for spec in there]
        for spec, trial in zip(there, study.trials, strict=True):
            record = ledger.written[spec.spec_id]
            assert (trial.state, trial.value) == (TrialState.COMPLETE, record.final_loss)
            assert trial.user_attrs["seed"] == spec.seed
            assert trial.user_attrs["purpose"] == record.purpose
            assert trial.user_attrs["mlflow_run_id"] == f"run-{spec.spec_id}"
            assert trial.intermediate_values[8] == record.final_loss
            assert trial.params["learning_rate"] == spec.schedule.learning_rate
        assert {trial.user_attrs["purpose"] for trial in study.trials} == {"tuning", "confirmation"}
        assert study.user_attrs["total_steps"] == 8
    assert trials_at(place, NAMES[1])[0].params.keys() == {"bag_size", "learning_rate", "step_ratio"}


def test_every_budget_of_rungs_has_its_own_study(tmp_path: Path) -> None:
    methods = study_space().model_dump(exclude_none=True)["methods"]
    for method in methods.values():
        method["budgets"]["tuning"] = (4, 8)
    place = file_in(tmp_path)
    ledger = NamedLedger(space=study_space(methods=methods))
    swept(ledger, place)
    assert set(optuna.get_all_study_names(place.url)) == {*NAMES, "tiny/nano/baseline/4", "tiny/nano/tst/4"}


def test_axes_keep_their_type_unit_and_range() -> None:
    axes = (
        Axis("bag_size", (2, 4, 8), "log"),
        Axis("depth", (1, 3), "linear"),
        Axis("learning_rate", (0.001, 0.004), "log"),
        Axis("step_ratio", (0.1, 0.5), "linear"),
        Axis("weighting", ("uniform", "power"), "category"),
        Axis("single", (7,), "linear"),
    )
    assert distributions_of(Domain(axes, (8,))) == {
        "bag_size": IntDistribution(2, 8, log=True),
        "depth": IntDistribution(1, 3),
        "learning_rate": FloatDistribution(0.001, 0.004, log=True),
        "step_ratio": FloatDistribution(0.1, 0.5),
        "weighting": CategoricalDistribution(("uniform", "power")),
    }


def test_what_diverged_or_failed_has_no_value_but_its_reason(tmp_path: Path) -> None:
    def judge(job: StageJob) -> StageResult | str:
        if job.spec.method == "baseline" and job.spec.schedule.learning_rate == 0.004:
            return result_of(job, Diverged(job.start + 1, "loss is not a number"))
        return "the disk is full" if job.spec.method == "baseline" else result_of(job)

    place = file_in(tmp_path)
    ledger = NamedLedger()
    swept(ledger, place, judge=judge)
    found = {
        (trial.state, trial.value, trial.user_attrs["outcome"], trial.user_attrs["reason"])
        for trial in trials_at(place, NAMES[0])
    }
    assert found == {
        (TrialState.FAIL, None, "diverged", "loss is not a number"),
        (TrialState.FAIL, None, "failed", "the disk is full"),
    }
    swept(ledger, place)  # what failed is tried again and replaces what was there; what diverged is a result
    assert {trial.state for trial in trials_at(place, NAMES[0])} == {TrialState.COMPLETE, TrialState.FAIL}
    assert {t.user_attrs["outcome"] for t in trials_at(place, NAMES[0])} == {"finished", "diverged"}


def test_trials_run_while_workers_have_them_and_wait_afterwards(tmp_path: Path) -> None:
    ledger, place = NamedLedger(), file_in(tmp_path)

    def states() -> dict[str, TrialState]:
        names = optuna.get_all_study_names(place.url)
        return {trial.user_attrs["spec_id"]: trial.state for name in names for trial in trials_at(place, name)}

    with StudyLedger(ledger, place) as kept:  # type: ignore[arg-type]
        job = Desk(ledger=ledger).open(ledger=kept).next_job()
        assert isinstance(job, StageJob)
        until(lambda: (tmp_path / "optuna.db").exists())
        until(lambda: states().get(job.spec.spec_id) == TrialState.RUNNING)
    assert set(states().values()) == {TrialState.WAITING}


def until(true: Callable[[], bool]) -> None:
    for _ in range(1_000):
        if true():
            return
        threading.Event().wait(0.05)
    raise AssertionError("never came")


def test_killed_and_resumed_the_studies_are_those_of_an_undisturbed_sweep(tmp_path: Path) -> None:
    whole, parts = file_in(tmp_path / "whole"), file_in(tmp_path / "parts")
    swept(NamedLedger(), whole)
    ledger, chance = NamedLedger(), random.Random(1)
    kills = 0
    while not swept(ledger, parts, count=2, order=chance, stages=7):
        kills += 1
    assert kills > 2
    known = {trial[5]["spec_id"]: trial[1:4] for study in contents(whole).values() for trial in study}  # type: ignore[index]
    found = {trial[5]["spec_id"]: trial[1:4] for study in contents(parts).values() for trial in study}  # type: ignore[index]
    assert found == known


def damage(file: Path) -> None:
    file.write_bytes(b"SQLite format 3\0" + random.Random(1).randbytes(9_000))


def grow_old(file: Path) -> None:
    with sqlite3.connect(file) as database:
        database.execute("UPDATE version_info SET schema_version = 1")
        database.execute("UPDATE alembic_version SET version_num = 'v0.9.0.a'")
    database.close()


def lose_a_column(file: Path) -> None:
    with sqlite3.connect(file) as database:
        database.execute("DROP TABLE trial_values")
    database.close()


def tell_lies(file: Path) -> None:
    with sqlite3.connect(file) as database:
        database.execute("UPDATE trial_values SET value = 0.5")
    database.close()


def cut_its_last_trials(file: Path) -> None:
    with sqlite3.connect(file) as database:
        database.execute("DELETE FROM trials WHERE number > 2")
    database.close()


def leave_a_journal(file: Path) -> None:
    damage(file)
    Path(f"{file}-journal").write_bytes(b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" + bytes(600))


@pytest.mark.parametrize(
    "harm", [Path.unlink, damage, grow_old, lose_a_column, tell_lies, cut_its_last_trials, leave_a_journal]
)
def test_what_is_missing_stale_or_damaged_is_made_from_the_ledger(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    ledger, place = NamedLedger(), file_in(tmp_path)
    swept(ledger, place)
    before = contents(place)
    assert place.file is not None
    harm(place.file)
    said: list[str] = []
    assert swept(ledger, place, said.append)
    assert said == []
    assert contents(place) == before
    assert {file.name for file in tmp_path.iterdir()} == {"optuna.db", "optuna.lock"}


def test_a_changed_grid_makes_the_study_anew(tmp_path: Path) -> None:
    ledger, place = NamedLedger(), file_in(tmp_path)
    swept(ledger, place)
    methods = study_space().model_dump(exclude_none=True)["methods"]
    methods["tst"]["axes"]["bag_size"] = {"grid": (2, 3, 4)}
    ledger.space = study_space(
        methods=methods,
        seeds={"tuning": tuple(range(6)), "confirmation": (1000, 1001)},
        search={**study_space().search.model_dump(), "trials_per_arm": 12},
    )
    swept(ledger, place)
    assert {trial.distributions["bag_size"].high for trial in trials_at(place, NAMES[1])} == {4}


def test_other_texts_are_no_part_of_a_study(tmp_path: Path) -> None:
    ledger, place = NamedLedger(), file_in(tmp_path)
    swept(ledger, place)
    about = ledger.about()
    ledger.about = lambda: about.__class__(**{**vars_of(about), "corpus_fingerprint": "another"})  # type: ignore[method-assign]
    other = file_in(tmp_path / "other")
    with StudyLedger(ledger, other) as kept:  # type: ignore[arg-type]
        kept.records()
    assert optuna.get_all_study_names(other.url) == []


def vars_of(value: object) -> dict[str, object]:
    return {name: getattr(value, name) for name in value.__dataclass_fields__}  # type: ignore[attr-defined]


def test_two_writers_at_once_leave_one_study(tmp_path: Path) -> None:
    ledger, place = NamedLedger(), file_in(tmp_path)
    swept(ledger, file_in(tmp_path / "elsewhere"))
    said: list[str] = []

    def open_it() -> None:
        with StudyLedger(ledger, place, said.append) as kept:  # type: ignore[arg-type]
            kept.records()

    writers = [threading.Thread(target=open_it) for _ in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert said == []
    assert contents(place) == contents(file_in(tmp_path / "elsewhere"))


def test_a_storage_that_fails_is_one_line_and_the_sweep_goes_on(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ledger, said = NamedLedger(), list[str]()
    assert swept(ledger, StudyPlace("postgresql+nodriver://me:secret@nowhere/studies"), said.append)
    assert len(said) == 1
    assert "secret" not in said[0]
    assert "\n" not in said[0]
    assert said[0].startswith("postgresql+nodriver://nowhere/studies: no studies are written there (")
    assert len(ledger.written) > 8


def test_a_study_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'ours.db'}"
    theirs = optuna.create_study(study_name=NAMES[0], storage=url)
    theirs.add_trial(optuna.trial.create_trial(value=1.0))
    said: list[str] = []
    swept(NamedLedger(), StudyPlace(url), said.append)
    assert "is a study that no sweep wrote" in said[0]
    assert [trial.value for trial in trials_at(StudyPlace(url), NAMES[0])] == [1.0]


def test_optunas_pictures_and_importances_are_drawn_from_it(tmp_path: Path) -> None:
    import optuna.visualization as pictures
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    place = file_in(tmp_path)
    swept(NamedLedger(), place)
    study = optuna.load_study(study_name=NAMES[1], storage=place.url)
    for draw in (
        pictures.plot_optimization_history,
        pictures.plot_param_importances,
        pictures.plot_contour,
        pictures.plot_slice,
        pictures.plot_intermediate_values,
        pictures.plot_timeline,
    ):
        assert draw(study).data, draw.__name__
    shares = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))
    assert shares["bag_size"] > shares["step_ratio"] > 0  # 0.1 a bag against 0.05 of a quarter
    assert study.best_trial.params["bag_size"] == 2


def test_a_worker_never_waits_for_the_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    monkeypatch.setattr(keeper, "write_studies", lambda url, studies: release.wait(60))
    ledger = NamedLedger()
    with StudyLedger(ledger, file_in(tmp_path)) as kept:  # type: ignore[arg-type]
        assert Workers().run(Desk(ledger=ledger).open(ledger=kept))  # to the end, while the storage hangs
        release.set()
