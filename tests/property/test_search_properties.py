"""What must hold for every sampler, space and history: inside, exactly N, never twice, the same after a rebuild."""

from __future__ import annotations

from collections import Counter
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from sweeper.search import Axis, Domain, Proposal, Strategy, make_strategy

SAMPLERS = ("random", "grid", "surface", "auto")
SLOW_SAMPLERS = ("tpe", "gp")

domains = st.builds(
    lambda bags, rates, ratios, weightings, rungs, fan_out: Domain(
        axes=(
            Axis("bag_size", tuple(sorted(bags)), "log"),
            Axis("learning_rate", tuple(sorted(rates)), "log"),
            Axis("bag_weighting", weightings, "category"),
            Axis("step_ratio", tuple(tenth / 10 for tenth in range(1, ratios + 1))),
        ),
        rungs=tuple(sorted(rungs)),
        constants=(("flavour", "plain"),),
        seeds=(0, 1),
        fan_axis="step_ratio" if fan_out else None,
    ),
    bags=st.sets(st.integers(2, 12), min_size=1, max_size=4),
    rates=st.sets(st.sampled_from((0.001, 0.002, 0.004)), min_size=1, max_size=2),
    ratios=st.integers(1, 5),
    weightings=st.sampled_from((("uniform",), ("uniform", "power_law"))),
    rungs=st.sets(st.sampled_from((100, 300, 900)), min_size=1, max_size=2),
    fan_out=st.booleans(),
)


def loss_of(proposal: Proposal) -> float | None:
    """Smooth, noisy by seed, and sometimes diverged; a function of the trial alone."""
    luck = Random(repr(proposal)).gauss(0, 0.002)
    if luck > 0.0045:
        return None
    bag, ratio = float(proposal.value("bag_size")), float(proposal.value("step_ratio"))
    return 3 - proposal.total_steps / 1000 + 0.01 * (bag - 5) ** 2 + 0.1 * (ratio - 0.3) ** 2 + luck


def play(strategy: Strategy, random: Random, max_waiting: int = 3) -> list[tuple[Proposal, ...]]:
    """Ask and tell in an order that `random` decides, until nothing is left; returns the fans."""
    fans: list[tuple[Proposal, ...]] = []
    waiting: list[Proposal] = []
    while strategy.remaining or waiting:
        fan = strategy.ask(random.randint(1, 4)) if len(waiting) <= max_waiting else ()
        fans += [fan] if fan else []
        waiting += fan
        assert fan or waiting, "a strategy with trials left and none pending must ask"
        random.shuffle(waiting)
        for proposal in [waiting.pop() for _ in range(random.randint(0 if fan else 1, len(waiting)))]:
            strategy.tell(proposal, loss_of(proposal))
    return fans


def check_course(domain: Domain, strategy: Strategy, trials: int, fan: int, order: int) -> list[tuple[Proposal, ...]]:
    fans = play(strategy, Random(order))
    asked = [proposal for one in fans for proposal in one]
    assert len(asked) == trials == len(set(asked))
    for proposal in asked:
        domain.refuse_outside(proposal)
        assert 0 <= proposal.seed <= 99
    for one in fans:
        assert len(one) <= fan
        kept = {tuple(pair for pair in p.parameters if pair[0] != domain.fan_axis) for p in one}
        assert len(kept) == 1
        assert len({(p.seed, p.total_steps) for p in one}) == 1
        assert domain.fan_axis is not None or len(one) == 1
    assert (strategy.pending, strategy.remaining, strategy.ask()) == (0, 0, ())
    return fans


def relaxed(max_examples: int) -> settings:
    """Models are fitted in every example, on shared cores: no limit on its time."""
    return settings(max_examples=max_examples)


@relaxed(40)
@given(domains, st.sampled_from(SAMPLERS), st.integers(1, 14), st.integers(1, 4), st.integers(0, 3))
def test_exactly_n_inside_and_never_twice(domain: Domain, sampler: str, trials: int, fan: int, order: int) -> None:
    check_course(domain, make_strategy(sampler, domain, trials=trials, fan=fan, seed=order), trials, fan, order)


@relaxed(6)
@given(domains, st.sampled_from(SLOW_SAMPLERS), st.integers(1, 14), st.integers(0, 3))
def test_optuna_is_held_to_the_same(domain: Domain, sampler: str, trials: int, order: int) -> None:
    check_course(domain, make_strategy(sampler, domain, trials=trials, fan=2, seed=order), trials, 2, order)


@relaxed(25)
@given(domains, st.sampled_from(SAMPLERS), st.integers(2, 12), st.integers(0, 100), st.data())
def test_a_rebuilt_strategy_goes_on_where_the_first_one_stopped(
    domain: Domain, sampler: str, trials: int, order: int, data: st.DataObject
) -> None:
    first = make_strategy(sampler, domain, trials=trials, fan=2, seed=order)
    random = Random(order)
    asked: list[Proposal] = []
    for _ in range(data.draw(st.integers(1, 5))):
        asked += first.ask()
    finished = [proposal for proposal in asked if random.random() < 0.6]
    for proposal in finished:
        first.tell(proposal, loss_of(proposal))
    again = make_strategy(sampler, domain, trials=trials, fan=2, seed=order)
    random.shuffle(asked)
    for proposal in asked:
        if proposal in finished:
            again.tell(proposal, loss_of(proposal))
        else:
            again.adopt(proposal)
    assert (again.pending, again.remaining) == (first.pending, first.remaining)
    following = again.ask()
    assert following == first.ask()
    assert not set(following) & set(asked)


@relaxed(25)
@given(domains, st.integers(1, 12), st.integers(0, 100))
def test_the_recommendation_does_not_depend_on_the_order_of_telling(domain: Domain, trials: int, order: int) -> None:
    first = make_strategy("random", domain, trials=trials, fan=3, seed=order)
    told = [p for fan in play(first, Random(order)) for p in fan]
    if all(loss_of(proposal) is None for proposal in told):
        return
    again = make_strategy("random", domain, trials=trials, fan=3, seed=order)
    for proposal in reversed(told):
        again.tell(proposal, loss_of(proposal))
    assert again.recommend() == first.recommend()
    assert first.recommend().parameters in domain.points


@relaxed(30)
@given(domains, st.sampled_from(SAMPLERS), st.integers(1, 20), st.integers(0, 3))
def test_repeats_take_the_tuning_seeds_in_order(domain: Domain, sampler: str, trials: int, order: int) -> None:
    """Common random numbers: the n-th trial of any point, in either arm, has the n-th tuning seed."""
    lowest = Domain(domain.axes, domain.rungs[-1:], domain.constants, seeds=(7, 3, 40), fan_axis=domain.fan_axis)
    strategy = make_strategy(sampler, lowest, trials=trials, fan=2, seed=order)
    asked = [proposal for fan in play(strategy, Random(order)) for proposal in fan]
    counts: Counter[object] = Counter()
    for proposal in asked:
        assert proposal.seed == lowest.seed_of_repeat(counts[proposal.parameters])
        counts[proposal.parameters] += 1


@relaxed(20)
@given(domains, st.integers(1, 3), st.integers(0, 3))
def test_an_even_grid_gives_every_point_the_same_seeds(domain: Domain, repeats: int, order: int) -> None:
    single = Domain(domain.axes, domain.rungs[-1:], domain.constants, seeds=(0, 1), fan_axis=domain.fan_axis)
    strategy = make_strategy("auto", single, trials=repeats * len(single.points), fan=3, seed=order)
    assert strategy.sampler == "grid"
    asked = [proposal for fan in play(strategy, Random(order)) for proposal in fan]
    expected = {(point, single.seed_of_repeat(repeat)) for point in single.points for repeat in range(repeats)}
    assert {(proposal.parameters, proposal.seed) for proposal in asked} == expected
