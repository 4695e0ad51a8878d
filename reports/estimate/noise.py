"""How far seeds scatter, when branches of one training trunk share their noise.

Model: final loss = mean of its cell + trunk effect + branch effect, the same two variances in every cell of a scale.
Both are estimated by the method of moments from two sums of squares of the residuals (trunk means, and branches about
their trunk's mean); the variance of any linear combination of final losses is then a quadratic form in the data, and
its degrees of freedom follow from Satterthwaite's approximation. So three branches of one trunk count as one seed.

Vectorised over R replicates; N runs, K cells, T trunks.

The validation text adds an error of its own: it is one sample of the text that there is, and every seed reads the same.
Runs that were scored on the same text are compared piece by piece, where what a piece is worth to both arms cancels. The
losses of pieces of about 1,024 tokens of two models differ with a deviation of 0.064 to 0.070 nats, so that 64 of them
leave an error of 0.0085 on the mean, which no further seed makes smaller.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import combinations
from operator import matmul
from typing import Any, Protocol

import numpy as np
from scipy.sparse import csr_array, eye_array

from reports.evidence.runs import FinishedRun, FloatArray

PRIOR_SIGMA = 0.0013
"""Seed deviation (nats) of the final loss at 124M parameters, from public repeated runs: the upper end of what is
reported. Used, and flagged, only where no cell has a second seed."""

PRIOR_MINIMUM_PARAMS = 1e8
"""Below this size models are noisier than the prior by an unknown factor, so it is not used."""

_SEPARABLE = 0.02
"""Smallest relative determinant at which trunk and branch variance are told apart."""


@dataclass(frozen=True, slots=True, eq=False)
class NoiseDesign:
    """Which runs share a cell and which share a trunk: `cells_NK` and `trunks_NT` are sparse, one for a member. `active_N`
    are the runs whose cell has a second one. `moments_22` are the expectations of the two sums of squares (of trunk means, of
    branches about them) as multiples of (trunk variance, branch variance), `traces` what their variances are made of,
    `total_2` and `total_22` the same for the sum of all squares."""

    cells_NK: Any
    trunks_NT: Any
    active_N: FloatArray
    moments_22: FloatArray
    traces: FloatArray
    total_2: FloatArray
    total_22: FloatArray

    @property
    def repeats(self) -> int:
        """Runs beyond the first of each cell, counted per branch."""
        rows, cells = self.cells_NK.shape
        return int(rows - cells)

    @property
    def separable(self) -> bool:
        """Whether trunk and branch variance can be estimated apart."""
        m = self.moments_22
        # Relative to its own terms the determinant does not change with the number of runs. Near zero the two
        # unknowns are one, as where every trunk has a single run.
        scale = abs(m[0, 0] * m[1, 1]) + abs(m[0, 1] * m[1, 0])
        return bool(scale > 0 and abs(np.linalg.det(m)) > _SEPARABLE * scale)

    def squares(self, loss_RN: FloatArray) -> tuple[FloatArray, FloatArray]:
        """The two sums of squares `[R, 2]` of final losses, and their pooled variance within cells `[R]`."""
        size_K = self.cells_NK.sum(0)
        residual_RN = loss_RN - (loss_RN @ self.cells_NK / size_K) @ self.cells_NK.T
        # Branches whose cell has no second seed have no residual; they must not dilute the mean of their trunk.
        size_T = np.maximum(self.active_N @ self.trunks_NT, 1)
        sum_RT = (residual_RN * self.active_N) @ self.trunks_NT
        all_R = np.square(residual_RN).sum(1)
        within_R = all_R - (np.square(sum_RT) / size_T).sum(1)
        # Each trunk counts once in the first, however many branches it has.
        between_R = np.square(sum_RT / size_T).sum(1)
        return np.stack([between_R, np.maximum(within_R, 0.0)], 1), all_R / max(self.repeats, 1)

    def extremes(self, gradient_RN: FloatArray) -> FloatArray:
        """Variance `[R, 2]` of `sum_n gradient_n * loss_n` per unit of trunk and of branch variance."""
        return np.stack([np.square(gradient_RN @ self.trunks_NT).sum(1), np.square(gradient_RN).sum(1)], 1)

    def coefficients(self, gradient_RN: FloatArray) -> FloatArray:
        """Multiples `[R, 2]` of the two sums of squares that estimate the variance of `sum_n gradient_n * loss_n`."""
        coefficient_R2: FloatArray = self.extremes(gradient_RN) @ np.linalg.inv(self.moments_22)
        # A negative multiple would take certainty from a noisy sum of squares. Without it the variance is a little
        # too large, never too small.
        return np.maximum(coefficient_R2, 0.0)

    def freedom(self, coefficient_R2: FloatArray, share_R: FloatArray) -> FloatArray:
        """Satterthwaite: 2 * mean^2 / variance of that combination `[R]`, where `share_R` of the variance is the trunks'."""
        parts_R2 = np.stack([share_R, 1.0 - share_R], 1)
        mean = np.einsum("ri,ij,rj->r", coefficient_R2, self.moments_22, parts_R2)
        # The variance of a quadratic form in normal data is twice the trace of its squared matrix times covariance;
        # the traces depend on the design only and are kept.
        spread = np.einsum("ri,rj,rk,rl,ijkl->r", coefficient_R2, parts_R2, coefficient_R2, parts_R2, self.traces)
        freedom: FloatArray = mean**2 / spread
        return freedom

    def total_freedom(self, share_R: FloatArray) -> FloatArray:
        """Degrees of freedom `[R]` of the pooled within-cell variance, where `share_R` of it belongs to the trunks."""
        parts_R2 = np.stack([share_R, 1.0 - share_R], 1)
        freedom: FloatArray = (parts_R2 @ self.total_2) ** 2 / np.einsum(
            "ri,rj,ij->r", parts_R2, parts_R2, self.total_22
        )
        return freedom


def noise_design(cells: Sequence[object], trunks: Sequence[object]) -> NoiseDesign:
    """Build the design from the cell and the trunk of every run (any hashable labels, length N).

    Nothing of size N x N is made: a sweep may confirm thousands of runs.
    """
    cells_NK, trunks_NT = _members(cells), _members(trunks)
    active_N = (cells_NK @ cells_NK.sum(0) > 1).astype(np.float64)
    blocks = _Blocks.of(cells_NK, trunks_NT, active_N)
    size_T = np.maximum(active_N @ trunks_NT, 1)
    # Each of the four matrices is a multiple of the identity and a number for each trunk. The forms take losses about the mean
    # of their cell, the sources are the covariances of trunk and branch effects.
    forms = ((0.0, size_T**-2), (1.0, -1 / size_T))
    sources = ((0.0, np.ones_like(size_T)), (1.0, np.zeros_like(size_T)))
    # E[x' F x] = tr(F Cov(x)), for each of the two sums of squares and each of the two variances.
    moments_22 = np.array([[blocks.trace(f, s) for s in sources] for f in forms])
    return NoiseDesign(
        cells_NK,
        trunks_NT,
        active_N,
        moments_22=moments_22,
        traces=np.array(
            [[[[blocks.trace(f, s, g, t) for t in sources] for g in forms] for s in sources] for f in forms]
        ),
        total_2=np.array([blocks.trace(s) for s in sources]),
        total_22=np.array([[blocks.trace(s, t) for t in sources] for s in sources]),
    )


Block = tuple[float, FloatArray]
"""`(a, d_T)`: the matrix `[N, N]` of `a` on its diagonal and `d` between all runs of a trunk. So are products of such."""


@dataclass(frozen=True, slots=True, eq=False)
class _Blocks:
    """Traces over the active runs: `size_T` of them in each trunk, `means_KT` takes a trunk to its cells (in units in which the
    projection on the cell means is `V V'` with orthonormal columns, of which it is `V' Z`)."""

    size_T: FloatArray
    means_KT: Any

    @classmethod
    def of(cls, cells_NK: Any, trunks_NT: Any, active_N: FloatArray) -> _Blocks:
        size_K = cells_NK.sum(0)
        scale_K = np.where(size_K > 1, size_K**-0.5, 0.0)
        return cls(active_N @ trunks_NT, (cells_NK.multiply(scale_K[None, :]).T @ trunks_NT).tocsr()[size_K > 1])

    def trace(self, *blocks: Block) -> float:
        """Of the product `C B1 C B2 ...`, where C takes the cell means away.

        C is `I - V V'`: the product is a sum over the places where `-V V'` is taken. Between two of those stands a product of
        blocks, and a cyclic product of the small matrices `V' B V` is left.
        """
        total, num = 0.0, len(blocks)
        for cuts in (cuts for n in range(num + 1) for cuts in combinations(range(num), n)):
            if not cuts:
                alone, shared_T = self._product(blocks)
                total += alone * float(self.size_T.sum()) + float(shared_T @ self.size_T)
                continue
            ends = (*cuts[1:], cuts[0] + num)
            parts = [
                self._seen(self._product([blocks[place % num] for place in range(start, end)]))
                for start, end in zip(cuts, ends, strict=True)
            ]
            total += (-1) ** len(cuts) * float(reduce(matmul, parts).trace())
        # Where no trunk has a second run a sum is nothing, and its rounding must not look like a design.
        return total if abs(total) > 1e-12 * float(self.size_T.sum()) else 0.0

    def _product(self, blocks: Sequence[Block]) -> Block:
        alone, shared_T = 1.0, np.zeros_like(self.size_T)
        for a, d_T in blocks:
            alone, shared_T = alone * a, alone * d_T + a * shared_T + shared_T * d_T * self.size_T
        return alone, shared_T

    def _seen(self, block: Block) -> Any:
        """`V' B V`, `[K, K]` and sparse."""
        alone, shared_T = block
        return alone * eye_array(self.means_KT.shape[0]) + self.means_KT.multiply(shared_T[None, :]) @ self.means_KT.T


def _members(labels: Sequence[object]) -> Any:
    codes: dict[object, int] = {}
    index = [codes.setdefault(label, len(codes)) for label in labels]
    shape = (len(index), len(codes))
    return csr_array((np.ones(len(index)), (np.arange(len(index)), index)), shape=shape)


@dataclass(frozen=True, slots=True, eq=False)
class Noise:
    """Estimated variances, each `[R]`. `total` is the variance of one final loss (trunk plus branch)."""

    design: NoiseDesign
    squares_R2: FloatArray
    total: FloatArray
    trunk_share: FloatArray | None

    def variance_of(self, gradient_RN: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Variance of `sum_n gradient_n * loss_n` and its degrees of freedom, each `[R]`.

        Unbiased where trunk and branch variance are separable; otherwise the larger of the two extremes (branches of
        a trunk identical, or independent), which errs to the wide side.
        """
        # Not separable: branches may be identical or independent and the data cannot say, so the wider interval is
        # taken.
        if self.trunk_share is None:
            return self.total * self.design.extremes(gradient_RN).max(1), self.total_freedom()
        coefficient_R2 = self.design.coefficients(gradient_RN)
        variance = np.einsum("ri,ri->r", coefficient_R2, self.squares_R2)
        return variance, self.design.freedom(coefficient_R2, self.trunk_share)

    def total_freedom(self) -> FloatArray:
        """Degrees of freedom of `total` `[R]`, trunks counted once."""
        return self.design.total_freedom(np.ones(len(self.total)) if self.trunk_share is None else self.trunk_share)


def estimate_noise(design: NoiseDesign, loss_RN: FloatArray) -> Noise | None:
    """Estimate from the final losses `[R, N]`. None where no cell has a second seed."""
    if design.repeats == 0:
        return None
    squares_R2, total = design.squares(loss_RN)
    if not design.separable:
        return Noise(design, squares_R2, total, None)
    parts_R2 = squares_R2 @ np.linalg.inv(design.moments_22).T
    with np.errstate(divide="ignore", invalid="ignore"):
        share = parts_R2[:, 0] / parts_R2.sum(1)
    # Moments may leave [0, 1] by chance. Where both are zero nothing scatters, and one trunk counts as one seed.
    share = np.clip(np.where(np.isfinite(share), share, 1.0), 0.0, 1.0)
    return Noise(design, squares_R2, total, share)


@dataclass(frozen=True, slots=True, eq=False)
class PriorNoise:
    """A seed deviation taken from elsewhere: `sigma` nats, exact, with branches of a trunk identical or independent,
    whichever makes the wider interval."""

    design: NoiseDesign
    sigma: float

    def variance_of(self, gradient_RN: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Variance `[R]` of linear combinations of the losses; infinite degrees of freedom."""
        return self.sigma**2 * self.design.extremes(gradient_RN).max(1), np.full(len(gradient_RN), np.inf)


# the validation text, which all seeds share


class TextVariance(Protocol):
    """What knows how much the validation text adds to the variance of a combination of losses."""

    def variance_of(self, gradient_RN: FloatArray) -> FloatArray:
        """Variance `[R]` of `sum_n gradient_n * loss_n`."""
        ...


LEAST_PIECES = 8
"""Fewer say nothing of their own scatter."""


@dataclass(frozen=True, slots=True, eq=False)
class Sampling:
    """Losses of P pieces of N runs `[N, P]`; `interaction` is the variance of a single loss of a piece that belongs to its
    seed alone, nats², 0 where no cell has a second seed."""

    pieces_NP: FloatArray
    interaction: float

    def variance_of(self, gradient_RN: FloatArray) -> FloatArray:
        """Sampling variance `[R]` of `sum_n gradient_n * loss_n`, for combinations whose weights sum to zero.

        The part by which seeds scatter from piece to piece is taken out: the scatter between seeds holds it already.
        """
        num_pieces = self.pieces_NP.shape[1]
        combined_RP = gradient_RN @ self.pieces_NP
        twice = self.interaction * np.square(gradient_RN).sum(1)
        variance: FloatArray = np.maximum(combined_RP.var(1, ddof=1) - twice, 0.0) / num_pieces
        return variance


def sampling_of(runs: Sequence[FinishedRun], cells: Sequence[object]) -> Sampling | None:
    """From the runs of a scale and the cell of each. None unless all were scored on the same pieces, enough of them."""
    scores = [None if run.record is None else run.record.score for run in runs]
    known = [score for score in scores if score is not None]
    texts = {(run.validation, score.piece_tokens, len(score.pieces)) for run, score in zip(runs, known, strict=False)}
    if len(known) < len(scores) or len(texts) != 1 or len(known[0].pieces) < LEAST_PIECES:
        return None
    pieces_NP = np.array([score.pieces for score in known], dtype=np.float64)
    return Sampling(pieces_NP, interaction_of(pieces_NP, cells))


def interaction_of(pieces_NP: FloatArray, cells: Sequence[object]) -> float:
    """Residual variance of a two-way layout (seeds x pieces) within each cell, pooled over the cells with repeats."""
    squares, freedom = 0.0, 0
    members: dict[object, list[int]] = {}
    for row, cell in enumerate(cells):
        members.setdefault(cell, []).append(row)
    for rows in members.values():
        part = pieces_NP[rows]
        if len(part) < 2:
            continue
        residual = part - part.mean(0) - part.mean(1, keepdims=True) + part.mean()
        squares += float(np.square(residual).sum())
        freedom += (len(part) - 1) * (part.shape[1] - 1)
    return squares / freedom if freedom else 0.0
