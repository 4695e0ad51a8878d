"""Do the intervals cover? The estimator against sweeps whose truth is known.

Simulates final losses `E + A * C^-a` plus seed noise, with branches of a trunk sharing most of it or not, runs the very
functions that reports use, and counts. `python -m reports.estimate.coverage` prints the table of the documentation.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from reports.estimate.inversion import ends_above, log_speedup, mean_matrix
from reports.estimate.noise import Sampling, estimate_noise, interaction_of, noise_design
from reports.evidence.runs import FloatArray

ASYMPTOTE, SLOPE, EXPONENT = 2.0, 0.19, 0.15
"""The true ladder: nats, nats per e-fold of compute at unit cost, and its bend."""

TRUNK_SHARE = 0.7
"""Part of the seed variance that branches of one trunk share in the simulation of shared trunks."""

NOISE_FLOOR_SEEDS = 5
LADDERS: tuple[tuple[float, ...], ...] = ((1.0, 2.0), (1.0, 1.5, 2.0), (1.0, 2.0, 4.0), (0.5, 1.0, 2.0, 4.0))
SIGMAS, SEEDS = (0.0013, 0.005, 0.02), (1, 2, 3, 5)
PIECE_DEVIATION = 0.068
"""Nats by which two arms differ on a piece of 1,024 tokens, measured."""


@dataclass(frozen=True, slots=True)
class Design:
    """One simulated sweep. Budgets in units of the method's cost; `sigma` nats. A single seed comes with a noise-floor
    cell of five further seeds at the cheapest budget. `clock_deviation`: of ln(step time), each arm's pool of six.
    `piece_deviation`: nats by which the arms differ on a piece of the validation text, of which there are `num_pieces`; each
    seed adds half as much of its own."""

    sigma: float
    seeds: int
    budgets: tuple[float, ...]
    shared_trunks: bool
    speedup: float = 1.3
    clock_deviation: float = 0.0
    piece_deviation: float = 0.0
    num_pieces: int = 64


@dataclass(frozen=True, slots=True)
class Coverage:
    """What `replicates` sweeps of a design said. `coverage` of the 95 % interval, `relative_bias` = mean error of ln S over
    its scatter, `log_error` that scatter, `false_not_reached` = how often a target that the largest budget exactly reaches
    is called not reached."""

    design: Design
    coverage: float
    relative_bias: float
    log_error: float
    false_not_reached: float


def true_loss(cost: FloatArray | float) -> FloatArray:
    """The simulated baseline's mean final loss at a cost."""
    return np.asarray(ASYMPTOTE + SLOPE / EXPONENT * np.asarray(cost, dtype=np.float64) ** -EXPONENT)


@dataclass(frozen=True, slots=True, eq=False)
class _Sample:
    """Final losses `[R, N]` of a design, with what is needed to read them."""

    loss_RN: FloatArray
    baseline_KN: FloatArray
    method_1N: FloatArray
    cells: list[int]
    trunks: list[tuple[str, int]]
    pieces_RNP: FloatArray | None = None


SEED_PIECES = 0.5
"""Deviation of a seed's own loss from piece to piece, over that of the difference between the arms."""


def _pieces(design: Design, sample: _Sample, generator: np.random.Generator) -> _Sample:
    """The sample as it is scored on a text of a few pieces: each run's loss is the mean of what it gets on them."""
    if design.piece_deviation == 0:
        return sample
    replicates, num_runs = sample.loss_RN.shape
    shape = (replicates, 1, design.num_pieces)
    by_arm = design.piece_deviation / np.sqrt(2) * generator.standard_normal((2, *shape))
    arm_N = np.array([int(trunk[0] == "method") for trunk in sample.trunks])
    own = SEED_PIECES * design.piece_deviation * generator.standard_normal((replicates, num_runs, design.num_pieces))
    common = generator.standard_normal(shape)  # what a piece is worth to every model: it cancels
    pieces_RNP = sample.loss_RN[:, :, None] + common + np.where(arm_N[:, None] == 1, by_arm[1], by_arm[0]) + own
    return replace(sample, loss_RN=pieces_RNP.mean(2), pieces_RNP=pieces_RNP)


@dataclass(frozen=True, slots=True, eq=False)
class _OwnPieces:
    """What a report would reckon for each replicate from its own pieces."""

    pieces_RNP: FloatArray
    cells: list[int]

    def variance_of(self, gradient_RN: FloatArray) -> FloatArray:
        """See `TextVariance`."""
        pairs = zip(self.pieces_RNP, np.broadcast_to(gradient_RN, self.pieces_RNP.shape[:2]), strict=True)
        return np.array(
            [
                Sampling(pieces_NP, interaction_of(pieces_NP, self.cells)).variance_of(gradient_N[None])[0]
                for pieces_NP, gradient_N in pairs
            ]
        )


def _text(sample: _Sample) -> _OwnPieces | None:
    return None if sample.pieces_RNP is None else _OwnPieces(sample.pieces_RNP, sample.cells)


def _draw(design: Design, target_cost: float, replicates: int, generator: np.random.Generator) -> _Sample:
    num = len(design.budgets)
    runs = [
        (budget, ("baseline", seed if design.shared_trunks else seed + 100 * budget))
        for budget, seed in itertools.product(range(num), range(design.seeds))
    ]
    runs += [(num, ("method", seed)) for seed in range(design.seeds)]
    estimating = len(runs)
    # A sweep of single seeds has a noise floor to go with it; its runs tell the deviation and enter no mean.
    if design.seeds == 1:
        runs += [(0, ("floor", seed)) for seed in range(NOISE_FLOOR_SEEDS)]
    cells, trunks = [cell for cell, _ in runs], [trunk for _, trunk in runs]
    names = sorted(set(trunks))
    share = TRUNK_SHARE if design.shared_trunks else 0.0
    trunk_noise = generator.standard_normal((replicates, len(names)))[:, [names.index(trunk) for trunk in trunks]]
    own_noise = generator.standard_normal((replicates, len(runs)))
    mean_N = true_loss(np.array([*design.budgets, target_cost]))[cells]
    loss_RN = mean_N + design.sigma * (np.sqrt(share) * trunk_noise + np.sqrt(1 - share) * own_noise)
    cell_of_run = np.array(cells)
    cell_of_run[estimating:] = -1
    means = mean_matrix(cell_of_run, num + 1)
    return _Sample(loss_RN, means[:num], means[num:], cells, trunks)


def simulate(design: Design, replicates: int, generator: np.random.Generator) -> Coverage:
    """Run a design `replicates` times through the estimator. Sweeps whose target falls outside the ladder by chance are
    read as reports read them, as long as a reading exists."""
    sample = _pieces(design, _draw(design, design.speedup, replicates, generator), generator)
    noise = estimate_noise(noise_design(sample.cells, sample.trunks), sample.loss_RN)
    assert noise is not None
    pool, arms = 6, 2
    clock = generator.standard_normal((replicates, arms, pool)) * design.clock_deviation
    clock_shift = clock.mean(2) @ np.array([1.0, -1.0])
    clock_variance = (clock.var(2, ddof=1) / pool).sum(1)
    result = log_speedup(
        sample.loss_RN,
        baseline_KN=sample.baseline_KN,
        method_1N=sample.method_1N,
        cost_K=np.array(design.budgets),
        method_cost=1.0,
        noise=noise,
        sampling=_text(sample),
        clock_variance=clock_variance,
        clock_freedom=arms * (pool - 1),
    )
    truth = np.log(design.speedup)
    readable = np.isfinite(result.value)
    # The clock's error is added to the answer and told to the estimator only as a variance, as in a sweep.
    value = (result.value + clock_shift)[readable]
    half = (result.high - result.value)[readable]
    error = float(value.std())
    # The hardest case for "not reached": a target that the largest budget just reaches.
    boundary = _pieces(design, _draw(design, design.budgets[-1], replicates, generator), generator)
    boundary_noise = estimate_noise(noise_design(boundary.cells, boundary.trunks), boundary.loss_RN)
    assert boundary_noise is not None
    wrong = ends_above(boundary.loss_RN, boundary.baseline_KN[-1:], boundary.method_1N, boundary_noise, _text(boundary))
    return Coverage(
        design=design,
        coverage=float((np.abs(value - truth) <= half).mean()),
        relative_bias=float(value.mean() - truth) / error,
        log_error=error,
        false_not_reached=float(wrong.mean()),
    )


def standard_designs() -> tuple[Design, ...]:
    """Every combination of deviation, seeds, ladder and trunks that the documentation's table shows."""
    return tuple(
        Design(sigma, seeds, budgets, shared)
        for budgets, seeds, sigma, shared in itertools.product(LADDERS, SEEDS, SIGMAS, (False, True))
    )


def scored_designs() -> tuple[Design, ...]:
    """Sweeps scored on 64 pieces of text, which put more error on a difference than seeds do, and on 485."""
    return tuple(
        Design(0.005, seeds, (1.0, 2.0, 4.0), shared, piece_deviation=PIECE_DEVIATION, num_pieces=pieces)
        for pieces, seeds, shared in itertools.product((64, 485), (2, 3, 5), (False, True))
    )


def markdown_table(rows: Sequence[Coverage]) -> str:
    """The table as Markdown."""
    head = "| budgets | seeds | deviation | trunks | pieces of text | coverage | bias / error | error of ln S "
    lines = [head + "| falsely not reached |", "|---|---|---|---|---|---|---|---|---|"]
    for row in rows:
        design = row.design
        budgets = " / ".join(f"{budget:g}" for budget in design.budgets)
        trunks = "shared" if design.shared_trunks else "separate"
        pieces = design.num_pieces if design.piece_deviation else "exact"
        lines.append(
            f"| {budgets} | {design.seeds} | {design.sigma:g} | {trunks} | {pieces} "
            f"| {100 * row.coverage:.1f} % | {row.relative_bias:+.2f} | {row.log_error:.4f} "
            f"| {100 * row.false_not_reached:.1f} % |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    random = np.random.default_rng(0)
    print(markdown_table([simulate(design, 4_000, random) for design in standard_designs() + scored_designs()]))
