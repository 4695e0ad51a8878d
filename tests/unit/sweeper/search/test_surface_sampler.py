"""The surface in plain Optuna studies: any distributions, both directions, several workers, and fans."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial, TrialState

from sweeper import SurfaceSampler
from sweeper.search import surface_sampler
from sweeper.search.choosers import Situation, by_surface
from sweeper.search.surface_sampler import FAN, axis_of

optuna.logging.set_verbosity(optuna.logging.ERROR)


def study_of(
    objective: Callable[[Trial], float], trials: int, direction: str = "minimize", **settings: Any
) -> optuna.Study:
    study = optuna.create_study(sampler=SurfaceSampler(cells=120, **settings), direction=direction)
    study.optimize(objective, n_trials=trials)
    return study


def mixed(trial: Trial) -> float:
    """Best at a rate of 0.003, four layers and no dropout; its unit is far from nats."""
    rate = trial.suggest_float("rate", 1e-4, 1e-1, log=True)
    layers = trial.suggest_int("layers", 1, 9, step=1)
    kind = trial.suggest_categorical("kind", ["relu", None, True])
    return 500 + 300 * ((math.log10(rate) + 2.5) ** 2 + 0.05 * (layers - 4) ** 2 + (0.0 if kind is None else 0.4))


def line(trial: Trial) -> float:
    return (trial.suggest_float("x", -2, 6) - 1) ** 2


@pytest.mark.parametrize(
    ("distribution", "most", "values"),
    [
        (IntDistribution(2, 12), 20, tuple(range(2, 13))),
        (IntDistribution(1, 1000, log=True), 4, (1, 10, 100, 1000)),
        (IntDistribution(0, 100, step=10), 3, (0, 50, 100)),
        (FloatDistribution(0, 1, step=0.25), 9, (0.0, 0.25, 0.5, 0.75, 1.0)),
        (FloatDistribution(0, 1), 3, (0.0, 0.5, 1.0)),
        (FloatDistribution(0.1, 0.1), 3, (0.1,)),
        (CategoricalDistribution(["a", None, 2]), 2, (0, 1, 2)),
    ],
)
def test_a_distribution_becomes_a_grid_of_its_own_values(
    distribution: Any, most: int, values: tuple[float, ...]
) -> None:
    axis = axis_of("x", distribution, most)
    assert axis.values == pytest.approx(values)
    assert {type(value) for value in axis.values} == {type(value) for value in values}
    if not isinstance(distribution, CategoricalDistribution):
        assert all(distribution._contains(float(value)) for value in axis.values)


def test_a_study_of_every_kind_of_parameter_comes_near_the_best() -> None:
    study = study_of(mixed, 20)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 20
    best = study.sampler.recommend(study)  # type: ignore[attr-defined]
    assert best["kind"] is None
    assert best["layers"] in (3, 4, 5)
    assert 0.001 < best["rate"] < 0.01
    assert study.best_value < 500 + 300 * 0.1


def test_the_same_trials_are_asked_for_again_and_upside_down_too() -> None:
    first, again = study_of(mixed, 12), study_of(mixed, 12)
    turned = study_of(lambda trial: -mixed(trial), 12, "maximize")
    asked = [trial.params for trial in first.trials]
    assert asked == [trial.params for trial in again.trials] == [trial.params for trial in turned.trials]


def test_a_single_axis_and_a_single_value() -> None:
    assert abs(study_of(line, 8).best_params["x"] - 1) < 0.5
    fixed = study_of(lambda trial: line(trial) + trial.suggest_int("only", 3, 3), 8)
    assert {trial.params["only"] for trial in fixed.trials} == {3}
    assert abs(fixed.best_params["x"] - 1) < 0.5
    nothing = study_of(lambda trial: float(trial.suggest_int("only", 3, 3)), 3)
    assert nothing.sampler.recommend(nothing) == {"only": 3}  # type: ignore[attr-defined]


def test_what_only_some_trials_have_is_drawn_and_the_rest_is_still_searched() -> None:
    def conditional(trial: Trial) -> float:
        loss = line(trial)
        return loss + trial.suggest_float("extra", 0, 1) if trial.number % 2 else loss

    study = study_of(conditional, 10)
    assert len({trial.params.get("extra") for trial in study.trials}) == 6
    assert min(abs(trial.params["x"] - 1) for trial in study.trials) < 0.5


def test_trials_that_fail_are_pruned_or_run_are_no_obstacle() -> None:
    study = optuna.create_study(sampler=SurfaceSampler(cells=120))

    def objective(trial: Trial) -> float:
        value = line(trial)
        if trial.number == 2:
            raise optuna.TrialPruned
        return math.nan if trial.number == 3 else value

    study.optimize(objective, n_trials=5)
    space = {"x": FloatDistribution(-2, 6)}
    running = [study.ask(space).params["x"] for _ in range(4)]
    assert len(set(running)) == 4, "what runs already is not asked for a second time"


def test_it_begins_at_the_centre_it_is_given() -> None:
    assert study_of(line, 1, centre={"x": 4.0}).trials[0].params == {"x": 4.0}
    assert study_of(line, 1, centre={"x": 40.0}).trials[0].params == {"x": 2.0}


def test_trials_of_a_fan_leave_one_trunk() -> None:
    def bags(trial: Trial) -> float:
        ratio, bag = trial.suggest_float("r", 0.1, 0.9, step=0.1), trial.suggest_int("s", 2, 12, log=True)
        return 3 + 0.05 * (ratio - 0.3) ** 2 + 0.01 * math.log2(bag / 6) ** 2

    study = study_of(bags, 16, fan_axis="r", fan=3, unit=1.0)
    leaders = [trial for trial in study.trials if trial.system_attrs.get(FAN)]
    assert leaders
    for leader in leaders:
        for mate in study.trials[leader.number + 1 : leader.number + 1 + len(leader.system_attrs[FAN])]:
            assert mate.params["s"] == leader.params["s"]
            assert mate.params["r"] != leader.params["r"]
    found = study.sampler.recommend(study)  # type: ignore[attr-defined]
    assert found["s"] in (5, 6, 7)
    assert 0.15 < found["r"] < 0.45


def test_a_study_can_be_shared_by_storage_and_goes_on_after_a_stop(tmp_path: Any) -> None:
    def opened() -> optuna.Study:
        return optuna.create_study(
            study_name="s", storage=f"sqlite:///{tmp_path}/s.db", sampler=SurfaceSampler(cells=120), load_if_exists=True
        )

    opened().optimize(mixed, n_trials=3)
    opened().optimize(mixed, n_trials=4)
    assert [trial.params for trial in opened().trials] == [trial.params for trial in study_of(mixed, 7).trials]


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="fan = 0"):
        SurfaceSampler(fan=0)
    study = optuna.create_study(sampler=SurfaceSampler())
    with pytest.raises(ValueError, match="no trial has finished"):
        study.sampler.recommend(study)  # type: ignore[attr-defined]
    many = optuna.create_study(sampler=SurfaceSampler())
    many.optimize(lambda trial: sum(trial.suggest_float(f"x{i}", 0, 1) for i in range(9)), n_trials=1)
    with pytest.raises(ValueError, match=r"x0, x1, .* make 19683 cells at 3 values each, more than cells = 1000"):
        many.ask().suggest_float("x0", 0, 1)
    two = optuna.create_study(directions=["minimize", "minimize"], sampler=SurfaceSampler())
    with pytest.raises(ValueError, match="2 objectives"):
        two.ask().suggest_float("x", 0, 1)


def test_a_centre_that_fails_is_left() -> None:
    def middle_fails(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", 0.0, 1.0)
        return math.nan if 0.4 < x < 0.6 else x

    study = optuna.create_study(sampler=SurfaceSampler())
    study.optimize(middle_fails, n_trials=10)
    tried = {trial.params["x"] for trial in study.trials}
    assert len(tried) > 5
    assert study.trials[0].params["x"] == 0.5
    assert study.best_value < 0.1


def test_trials_at_once_are_not_the_same_trial() -> None:
    study = optuna.create_study(sampler=SurfaceSampler())
    ranges = {"x": FloatDistribution(0.0, 1.0), "n": IntDistribution(1, 5)}
    first = [study.ask(ranges) for _ in range(4)]
    assert len({tuple(trial.params.items()) for trial in first}) == 4
    for trial in first:
        study.tell(trial, (trial.params["x"] - 0.3) ** 2)
    half = study.ask()
    x = half.suggest_float("x", 0.0, 1.0)
    other = study.ask(ranges)
    assert (x, half.suggest_int("n", 1, 5)) != tuple(other.params[name] for name in ("x", "n"))
    for trial in (half, other):
        trial.set_user_attr("seed", "no number")
        study.tell(trial, 1.0)
    barrier = threading.Barrier(4)

    def together(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", 0.0, 1.0) + 0 * trial.suggest_int("n", 1, 5)
        barrier.wait(60)
        return (x - 0.3) ** 2

    study.optimize(together, n_trials=4, n_jobs=4)
    assert len({tuple(trial.params.items()) for trial in study.trials[-4:]}) == 4


def test_a_value_that_is_not_finite_is_no_loss() -> None:
    study = optuna.create_study(sampler=SurfaceSampler())
    study.optimize(
        lambda trial: math.inf if (x := trial.suggest_float("x", 0, 1)) < 0.1 else (x - 0.5) ** 2, n_trials=8
    )
    study.enqueue_trial({"x": 0.0})
    study.optimize(lambda trial: math.inf if trial.suggest_float("x", 0, 1) < 0.1 else 1.0, n_trials=1)
    assert abs(SurfaceSampler().recommend(study)["x"] - 0.5) < 0.2


def test_without_a_finite_value_there_is_no_answer() -> None:
    study = optuna.create_study(study_name="s", sampler=SurfaceSampler())
    study.optimize(lambda trial: math.inf + 0 * trial.suggest_float("x", 0, 1), n_trials=3)
    with pytest.raises(ValueError, match="study s: no value is finite, so that nothing can be recommended"):
        SurfaceSampler().recommend(study)


def asked_at_once(storages: list[str], ranges: dict[str, Any]) -> list[dict[str, Any]]:
    """Parameters of trials that are asked at the same moment, each of a study and sampler of its own, as processes have."""
    barrier, found = threading.Barrier(len(storages)), []

    def ask(storage: str) -> None:
        study = optuna.load_study(study_name="s", storage=storage, sampler=SurfaceSampler(cells=120))
        barrier.wait(60)
        found.append(study.ask(ranges).params)

    threads = [threading.Thread(target=ask, args=(storage,)) for storage in storages]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_processes_that_share_a_storage_never_ask_for_the_same_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slowly(situation: Situation) -> tuple[int, ...]:
        time.sleep(0.3)  # so that whoever reads before the others have written chooses what they do
        return by_surface(situation)

    monkeypatch.setattr(surface_sampler, "by_surface", slowly)
    storage = f"sqlite:///{tmp_path}/s.db"
    ranges = {"x": FloatDistribution(0.0, 1.0), "n": IntDistribution(1, 5)}
    optuna.create_study(study_name="s", storage=storage, sampler=SurfaceSampler(cells=120)).optimize(
        lambda trial: trial.suggest_float("x", 0.0, 1.0) + trial.suggest_int("n", 1, 5), n_trials=2
    )
    found = asked_at_once([storage] * 3, ranges)
    assert len({(params["x"], params["n"]) for params in found}) == 3


def test_a_process_that_died_while_it_chose_is_not_waited_for_longer_than_its_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    study = optuna.create_study(sampler=SurfaceSampler(cells=120))
    study.optimize(line, n_trials=1)
    lost = study.ask()
    study._storage.set_trial_system_attr(
        lost._trial_id, surface_sampler.CAME, time.time() - surface_sampler.PATIENCE - 1
    )
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("waits for a trial that nobody chooses"))
    assert "x" in study.ask({"x": FloatDistribution(-2, 6)}).params
