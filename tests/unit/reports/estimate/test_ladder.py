"""The ladder's fit: exact on exact ladders, and its gradients are the true ones."""

from __future__ import annotations

import numpy as np
import pytest

from reports.estimate.inversion import invert_ladder, mean_matrix
from reports.estimate.ladder import fit_power_law, two_budget_range
from reports.estimate.noise import estimate_noise, noise_design

COST = np.array([1.0, 1.7, 2.6, 4.1])


def power_law(cost: np.ndarray, asymptote: float, amplitude: float, exponent: float) -> np.ndarray:
    return asymptote + amplitude * cost**-exponent


@pytest.mark.parametrize("exponent", [0.05, 0.2, 0.7, 1.5])
@pytest.mark.parametrize("budgets", [3, 4])
def test_an_exact_power_law_is_recovered(exponent: float, budgets: int) -> None:
    cost = COST[:budgets]
    fit = fit_power_law(cost, power_law(cost, 2.1, 0.8, exponent)[None, :], np.ones(budgets))
    assert fit.exponent[0] == pytest.approx(exponent, rel=1e-4)
    assert fit.asymptote[0] == pytest.approx(2.1, abs=1e-3)
    assert fit.amplitude[0] == pytest.approx(0.8, abs=1e-3)
    target = power_law(np.array([2.2]), 2.1, 0.8, exponent)
    assert fit.cost_at(target)[0] == pytest.approx(2.2, rel=1e-6)


def test_three_budgets_are_interpolated_exactly_even_when_they_bend_the_wrong_way() -> None:
    losses = np.array([[3.0, 2.95, 2.905]])
    fit = fit_power_law(COST[:3], losses, np.ones(3))
    assert fit.loss_at(COST[:3])[0] == pytest.approx(3.0, abs=1e-6)
    assert fit.exponent[0] < 0


def test_an_exponent_outside_its_bounds_is_marked() -> None:
    fit = fit_power_law(COST[:3], power_law(COST[:3], 2.0, 1.0, 6.0)[None, :], np.ones(3))
    assert fit.at_bound[0]
    assert fit.exponent[0] == 2.0


def test_a_target_below_the_asymptote_is_never_reached() -> None:
    fit = fit_power_law(COST, power_law(COST, 2.5, 0.5, 0.4)[None, :], np.ones(4))
    assert np.isnan(fit.cost_at(np.array([2.4]))[0])


def test_two_budgets_have_no_exponent() -> None:
    with pytest.raises(ValueError, match="three are needed"):
        fit_power_law(COST[:2], np.array([[3.0, 2.9]]), np.ones(2))


def test_weights_are_the_derivative_of_the_fitted_loss() -> None:
    losses = power_law(COST, 2.0, 0.9, 0.3)[None, :]
    at = np.array([2.0])
    weights = fit_power_law(COST, losses, np.array([3.0, 1.0, 2.0, 3.0])).weights_at(at)
    assert weights.sum() == pytest.approx(1.0)
    for budget in range(4):
        step = np.zeros((1, 4))
        step[0, budget] = 1e-4
        up, down = (
            fit_power_law(COST, losses + sign * step, np.array([3.0, 1.0, 2.0, 3.0])).loss_at(at)[0] for sign in (1, -1)
        )
        assert weights[0, budget] == pytest.approx((up - down) / 2e-4, abs=2e-3)


def test_two_budgets_are_read_over_a_range_of_asymptotes() -> None:
    losses = np.array([[3.0, 2.8]])
    flat, steep = two_budget_range(np.array([1.0, 2.0]), losses, np.ones(2))
    target = np.array([2.9])
    costs = sorted([flat.cost_at(target)[0], steep.cost_at(target)[0]])
    for asymptote in (0.0, 1.0, 2.0, 2.5, 2.6):  # the last one has exponent one
        exponent = np.log((3.0 - asymptote) / (2.8 - asymptote)) / np.log(2.0)
        cost = ((3.0 - asymptote) / (2.9 - asymptote)) ** (1 / exponent)
        assert costs[0] - 1e-9 <= cost <= costs[1] + 1e-9
    reading = invert_ladder(np.array([1.0, 2.0]), losses, np.ones(2), target)
    assert reading.systematic[0] == pytest.approx(np.log(costs[1] / costs[0]) / 2)


def test_one_budget_has_no_curve() -> None:
    with pytest.raises(ValueError, match="loss gap"):
        invert_ladder(np.array([1.0]), np.array([[3.0]]), np.ones(1), np.array([2.9]))


def noisy_losses(cells: list[int], trunks: list[str], trunk_sigma: float, branch_sigma: float) -> np.ndarray:
    generator = np.random.default_rng(7)
    names = sorted(set(trunks))
    shared = generator.standard_normal((20_000, len(names)))[:, [names.index(trunk) for trunk in trunks]]
    own = generator.standard_normal((20_000, len(cells)))
    return np.array(cells) * 0.1 + trunk_sigma * shared + branch_sigma * own


def test_noise_separates_trunks_from_branches_and_its_variance_is_unbiased() -> None:
    cells = [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    trunks = ["a", "b", "c"] * 3 + ["x", "y", "z"]
    losses = noisy_losses(cells, trunks, 0.02, 0.01)
    noise = estimate_noise(noise_design(cells, trunks), losses)
    assert noise is not None
    assert noise.total.mean() == pytest.approx(0.02**2 + 0.01**2, rel=0.02)
    gradient = np.array([0.2, 0.2, 0.2, 0.5, 0.5, 0.5, 0.3, 0.3, 0.3, -1, -1, -1]) / 3
    variance, freedom = noise.variance_of(np.tile(gradient, (len(losses), 1)))
    assert variance.mean() == pytest.approx((losses @ gradient).var(), rel=0.03)
    # Three trunks of each arm: two degrees of freedom apiece, whatever the number of branches.
    assert 3.9 < np.median(freedom) < 6.0


def test_branches_of_one_trunk_are_one_unit() -> None:
    cells, trunks = [0, 0, 1, 1, 2, 2], ["a", "b"] * 3
    design = noise_design(cells, trunks)
    assert design.total_freedom(np.array([1.0]))[0] == pytest.approx(1.0)
    separate = noise_design(cells, ["a", "b", "c", "d", "e", "f"])
    assert separate.total_freedom(np.array([1.0]))[0] == pytest.approx(3.0)


def test_single_seeds_say_nothing_about_noise() -> None:
    assert estimate_noise(noise_design([0, 1, 2], ["a", "a", "a"]), np.array([[3.0, 2.9, 2.8]])) is None


def test_a_noise_floor_cell_serves_a_ladder_of_single_seeds() -> None:
    cells, trunks = [0, 1, 2, 3, 0, 0, 0, 0, 0], ["t", "t", "t", "m", "1", "2", "3", "4", "5"]
    losses = noisy_losses(cells, trunks, 0.02, 0.01)
    noise = estimate_noise(noise_design(cells, trunks), losses)
    assert noise is not None
    assert noise.trunk_share is None
    assert noise.total.mean() == pytest.approx(0.02**2 + 0.01**2, rel=0.02)
    _, freedom = noise.variance_of(np.tile(np.array([0, 1.0, 0, -1, 0, 0, 0, 0, 0]), (len(losses), 1)))
    assert freedom[0] == pytest.approx(5.0)


def test_mean_matrix_leaves_out_negative_cells() -> None:
    matrix = mean_matrix(np.array([0, 0, 1, -1]), 2)
    assert (matrix @ np.array([1.0, 3.0, 5.0, 100.0])).tolist() == [2.0, 5.0]
