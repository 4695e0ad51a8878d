"""What the search recommends and asks for, on histories that are small enough to reason about."""

from __future__ import annotations

from itertools import pairwise
from math import log2

import numpy as np
import pytest

from sweeper.search import STRATEGIES, Axis, Domain, Proposal, make_strategy
from sweeper.search.rungs import rung_sizes
from sweeper.search.sharing import alone_cost, shared_cost
from sweeper.search.surface import Observation, fit_surface
from sweeper.search.warm_start import best_points, nearest_point, published_valley, starting_points

TENTHS = tuple(tenth / 10 for tenth in range(1, 11))
RATES = Domain(axes=(Axis("learning_rate", (0.002, 0.0028, 0.004), "log"),), rungs=(2500,), seeds=(0, 1))
PLANE = Domain(
    axes=(Axis("bag_size", tuple(range(2, 13)), "log"), Axis("step_ratio", TENTHS[:9])),
    rungs=(20_000,),
    constants=(("bag_weighting", "uniform"), ("learning_rate", 0.002)),
    fan_axis="step_ratio",
)


def bowl(proposal: Proposal) -> float:
    """A valley at s = 6, r = 0.3, without noise."""
    octaves = log2(float(proposal.value("bag_size")) / 6)
    return 3.0 + 0.01 * octaves**2 + 0.05 * (float(proposal.value("step_ratio")) - 0.3) ** 2


def test_pure_noise_is_recommended_near_its_mean_not_at_its_minimum() -> None:
    """The winner's curse: the best of 99 equal cells looks 2.5 deviations better than it is, 0.0025 nats here."""
    lucky, predicted = [], []
    for world in range(6):
        noise = np.random.default_rng(world).normal(3.0, 0.001, size=99)
        told = [Observation(cell, 0, float(loss)) for cell, loss in enumerate(noise)]
        predicted.append(fit_surface(PLANE, told).recommend().predicted)
        lucky.append(noise.min())
    assert np.mean(lucky) < 3.0 - 0.002
    assert 3.0 - 0.0008 < np.mean(predicted) < 3.0


def test_two_seeds_of_three_learning_rates_are_compared_by_their_means() -> None:
    strategy = make_strategy("auto", RATES, trials=6)
    losses = {
        (0.002, 0): 2.030,
        (0.002, 1): 2.036,
        (0.0028, 0): 2.020,
        (0.0028, 1): 2.028,
        (0.004, 0): 2.018,
        (0.004, 1): 2.044,
    }
    for (rate, seed), loss in losses.items():
        strategy.tell(Proposal((("learning_rate", rate),), 2500, seed), loss)
    found = strategy.recommend()
    assert found.parameters == (("learning_rate", 0.0028),)
    assert 2.02 < found.predicted < 2.028
    assert 0 < found.standard_error < 0.01
    assert found.on_edge == ()


def test_an_optimum_at_the_end_of_a_range_is_flagged() -> None:
    strategy = make_strategy("grid", RATES, trials=3)
    for rate, loss in ((0.002, 2.3), (0.0028, 2.2), (0.004, 2.1)):
        strategy.tell(Proposal((("learning_rate", rate),), 2500, 0), loss)
    assert strategy.recommend().on_edge == ("learning_rate",)


def test_a_cliff_does_not_bend_the_valley() -> None:
    """Four nats at one end, as for r = 1, leave the optimum of the rest where it is."""
    domain = Domain(axes=(Axis("step_ratio", TENTHS),), rungs=(100,))
    told = [Observation(cell, 0, 3.0 + 0.05 * (0.1 * (cell + 1) - 0.3) ** 2) for cell in range(9)]
    surface = fit_surface(domain, [*told, Observation(9, 0, 7.0)])
    assert dict(surface.recommend().parameters)["step_ratio"] in (0.2, 0.3, 0.4)


def test_failed_trials_are_never_recommended_and_count() -> None:
    strategy = make_strategy("grid", RATES, trials=3)
    asked = [proposal for _ in range(3) for proposal in strategy.ask(1)]
    assert strategy.remaining == 0
    with pytest.raises(ValueError, match="no trial"):
        strategy.recommend()
    for proposal in asked:
        rate = float(proposal.value("learning_rate"))
        strategy.tell(proposal, None if rate == 0.004 else 2.0 + rate)
    assert (strategy.pending, strategy.remaining) == (0, 0)
    assert strategy.recommend().parameters != (("learning_rate", 0.004),)


def test_the_surface_needs_few_trials_for_a_smooth_valley() -> None:
    strategy = make_strategy("surface", PLANE, trials=12)
    while proposals := strategy.ask():
        for proposal in proposals:
            strategy.tell(proposal, bowl(proposal))
    found = dict(strategy.recommend().parameters)
    assert found["bag_size"] in (5, 6, 7)
    assert found["step_ratio"] in (0.2, 0.3, 0.4)


@pytest.mark.parametrize("sampler", ["random", "grid", "surface", "tpe", "gp"])
def test_concurrent_fans_do_not_pile_up(sampler: str) -> None:
    strategy = make_strategy(sampler, PLANE, trials=24, seed=1)
    for proposal in strategy.ask():
        strategy.tell(proposal, bowl(proposal))
    waiting = [proposal for _ in range(4) for proposal in strategy.ask()]
    assert len({proposal.parameters for proposal in waiting}) == len(waiting)


@pytest.mark.parametrize("sampler", ["tpe", "gp", "random"])
def test_samplers_are_deterministic_and_seeded(sampler: str) -> None:
    def course(seed: int) -> list[Proposal]:
        strategy = make_strategy(sampler, PLANE, trials=14, seed=seed)
        asked: list[Proposal] = []
        while proposals := strategy.ask():
            asked += proposals
            for proposal in proposals:
                strategy.tell(proposal, bowl(proposal))
        return asked

    assert course(0) == course(0)
    assert course(0) != course(1)


def test_the_grid_gives_every_point_every_seed() -> None:
    strategy = make_strategy("auto", RATES, trials=6)
    asked: list[Proposal] = []
    while proposals := strategy.ask():
        asked += proposals
    assert {(p.value("learning_rate"), p.seed) for p in asked} == {
        (r, s) for r in (0.002, 0.0028, 0.004) for s in (0, 1)
    }
    assert [proposal.seed for proposal in asked] == [0, 0, 0, 1, 1, 1]


def test_auto_is_the_grid_only_where_trials_cover_it_evenly() -> None:
    assert make_strategy("auto", RATES, trials=6).sampler == "grid"
    assert make_strategy("auto", RATES, trials=5).sampler == "surface"
    assert make_strategy("auto", PLANE, trials=99).sampler == "grid"


def test_the_first_trial_is_the_warm_start_or_the_middle() -> None:
    assert make_strategy("surface", PLANE, trials=5).ask()[0].value("step_ratio") == 0.5
    for sampler in ("surface", "random", "tpe"):
        warm = make_strategy(sampler, PLANE, trials=5, warm_start=published_valley(PLANE))
        first = warm.ask()[0]
        assert (first.value("bag_size"), first.value("step_ratio")) == (6, 0.3)


def test_halving_compares_ends_of_one_rung_and_keeps_seeds() -> None:
    domain = Domain(axes=PLANE.axes, rungs=(2_000, 6_000, 18_000), constants=PLANE.constants, fan_axis="step_ratio")
    strategy = make_strategy("random", domain, trials=13, seed=2)
    rounds: list[tuple[Proposal, ...]] = []
    while strategy.remaining:
        while proposals := strategy.ask():
            rounds.append(proposals)
        for proposal in [p for fan in rounds for p in fan if p not in strategy._told]:
            # A longer budget is better by far, so that mixing budgets would be seen.
            strategy.tell(proposal, bowl(proposal) - proposal.total_steps / 10_000)
    asked = [proposal for fan in rounds for proposal in fan]
    by_rung = [[p for p in asked if p.total_steps == steps] for steps in domain.rungs]
    assert tuple(len(rung) for rung in by_rung) == rung_sizes(3, 13) == (9, 3, 1)
    for low, high in pairwise(by_rung):
        assert {(p.parameters, p.seed) for p in high} <= {(p.parameters, p.seed) for p in low}
    worst_kept = max(bowl(p) for p in by_rung[1])
    assert sum(bowl(p) < worst_kept for p in by_rung[0]) <= 4
    found = strategy.recommend()
    assert found.predicted < 2.0, "the top rung's losses alone are predicted"


def test_a_rung_waits_for_the_one_below() -> None:
    domain = Domain(axes=RATES.axes, rungs=(100, 300))
    strategy = make_strategy("random", domain, trials=4)
    lower = [strategy.ask()[0] for _ in range(3)]
    assert {p.total_steps for p in lower} == {100}
    assert strategy.ask() == ()
    assert strategy.remaining == 1
    for loss, proposal in enumerate(lower):
        strategy.tell(proposal, 2.0 + loss / 10)
    assert strategy.ask() == (Proposal(lower[0].parameters, 300, lower[0].seed),)


@pytest.mark.parametrize(("rungs", "trials"), [(1, 7), (2, 1), (3, 2), (3, 40), (4, 13)])
def test_rung_sizes_add_up_and_the_top_is_never_empty(rungs: int, trials: int) -> None:
    sizes = rung_sizes(rungs, trials)
    assert sum(sizes) == trials
    assert sizes[-1] >= 1
    assert min(sizes) >= 0


def test_costs_of_a_fan() -> None:
    """One trunk to the largest ratio, then three recoveries: 0.6 + 0.8 + 0.6 + 0.4 runs instead of three."""

    def trial(ratio: float, seed: int = 0, steps: int = 20_000) -> Proposal:
        point: dict[str, int | float | str] = {
            "bag_size": 6,
            "step_ratio": ratio,
            "bag_weighting": "uniform",
            "learning_rate": 0.002,
        }
        return Proposal(tuple(sorted(point.items())), steps, seed)

    fan = [trial(0.2), trial(0.4), trial(0.6)]
    assert shared_cost(PLANE, fan) == pytest.approx(2.4)
    assert shared_cost(PLANE, reversed(fan)) == pytest.approx(2.4)
    assert alone_cost(PLANE, fan) == pytest.approx(3.0)
    assert shared_cost(PLANE, [trial(0.2), trial(0.2, seed=1)]) == pytest.approx(2.0)
    two_rungs = Domain(PLANE.axes, (10_000, 20_000), PLANE.constants, fan_axis="step_ratio")
    promoted = [trial(0.5, steps=10_000), trial(0.5)]
    assert shared_cost(two_rungs, promoted) == pytest.approx(0.5 + 0.25 + 0.5)


def test_warm_start_carries_points() -> None:
    wanted = (("bag_size", 40), ("step_ratio", 0.26), ("method", "tst"))
    assert nearest_point(PLANE, wanted) == (
        ("bag_size", 12),
        ("bag_weighting", "uniform"),
        ("learning_rate", 0.002),
        ("step_ratio", 0.3),
    )
    finished = [((("bag_size", s), ("step_ratio", 0.3)), loss) for s, loss in ((4, 3.1), (6, 3.0), (8, 3.2), (6, 3.05))]
    best = [dict(point)["bag_size"] for point in best_points(PLANE, finished, limit=2)]
    assert best == [6, 4]
    assert starting_points(PLANE) == published_valley(PLANE)
    assert dict(starting_points(PLANE, smaller_scale=(("bag_size", 3), ("step_ratio", 0.5)))[0])["bag_size"] == 3
    assert published_valley(RATES) == ()


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="'asha' is not one of"):
        make_strategy("asha", RATES, trials=3)
    with pytest.raises(ValueError, match="above the last search seed"):
        make_strategy("grid", RATES, trials=301)
    with pytest.raises(ValueError, match="at least 1"):
        make_strategy("grid", RATES, trials=0)
    strategy = make_strategy("grid", RATES, trials=3)
    inside = Proposal((("learning_rate", 0.002),), 2500, 0)
    with pytest.raises(ValueError, match=r"learning_rate: 0\.003 is not one of"):
        strategy.tell(Proposal((("learning_rate", 0.003),), 2500, 0), 2.0)
    with pytest.raises(ValueError, match="not a finite number"):
        strategy.tell(inside, float("nan"))
    strategy.tell(inside, 2.0)
    strategy.tell(inside, 2.0)
    with pytest.raises(ValueError, match="was told as"):
        strategy.tell(inside, 2.1)
    assert "auto" in STRATEGIES
