"""The sums and traces of a design without matrices of N x N, against the same with them."""

from __future__ import annotations

import numpy as np
import pytest

from reports.estimate.noise import noise_design


def written_out(cells: list[int], trunks: list[int]) -> dict[str, np.ndarray]:
    """Slow and readable: every matrix `[N, N]` of the model, and the traces that its moments are."""
    same_cell, shared = (np.equal.outer(labels, labels).astype(float) for labels in (cells, trunks))
    center = np.eye(len(cells)) - same_cell / same_cell.sum(1, keepdims=True)
    repeated = same_cell.sum(1) > 1
    active = shared * np.outer(repeated, repeated)
    size = np.maximum(active.sum(1), 1)[:, None]
    mean = active / size
    between = center @ mean.T @ (mean / size) @ center
    about_mean = np.diag(repeated.astype(float)) - mean
    forms = (between, center @ about_mean.T @ about_mean @ center)
    sources = (shared, np.eye(len(cells)))
    return {
        "forms": np.array(forms),
        "center": center,
        "moments": np.array([[np.trace(f @ s) for s in sources] for f in forms]),
        "traces": np.array(
            [[[[np.trace(f @ s @ g @ t) for t in sources] for g in forms] for s in sources] for f in forms]
        ),
        "total": np.array([np.trace(center @ s) for s in sources]),
        "totals": np.array([[np.trace(center @ s @ center @ t) for t in sources] for s in sources]),
    }


@pytest.mark.parametrize("seed", range(20))
def test_a_design_is_what_its_matrices_say(seed: int) -> None:
    draw = np.random.default_rng(seed)
    size = int(draw.integers(2, 25))
    cells, trunks = (list(map(int, draw.integers(0, draw.integers(1, 9), size))) for _ in range(2))
    design, expected = noise_design(cells, trunks), written_out(cells, trunks)
    assert design.repeats == round(float(np.trace(expected["center"])))
    close = {"rtol": 1e-9, "atol": 1e-9}
    np.testing.assert_allclose(design.moments_22, expected["moments"], **close)
    np.testing.assert_allclose(design.traces, expected["traces"], **close)
    np.testing.assert_allclose(design.total_2, expected["total"], **close)
    np.testing.assert_allclose(design.total_22, expected["totals"], **close)
    losses = draw.normal(3.0, 0.1, (3, size))
    squares, total = design.squares(losses)
    np.testing.assert_allclose(squares, np.einsum("rn,fnm,rm->rf", losses, expected["forms"], losses), **close)
    everything = np.einsum("rn,nm,rm->r", losses, expected["center"], losses)
    np.testing.assert_allclose(total * max(design.repeats, 1), everything, **close)


def test_thousands_of_seeds_need_no_square_of_them() -> None:
    """With matrices of N x N this one design would be 13 GB for each."""
    cells = [cell for cell in range(4) for _ in range(10_000)]
    design = noise_design(cells, [f"{cell // 3} {seed}" for cell in range(4) for seed in range(10_000)])
    assert design.repeats == 40_000 - 4
    assert design.separable
    assert design.total_freedom(np.ones(1))[0] == pytest.approx(2 * 9_999, rel=0.2)
