"""How far seeds scatter, when branches of one training trunk share their noise.

Model: final loss = mean of its cell + trunk effect + branch effect, the same two variances in every cell of a scale.
Both are estimated by the method of moments from two sums of squares of the residuals (trunk means, and branches about
their trunk's mean); the variance of any linear combination of final losses is then a quadratic form in the data, and
its degrees of freedom follow from Satterthwaite's approximation. So three branches of one trunk count as one seed.

Vectorised over R replicates; N runs, matrices `[N, N]` depend on the design only.

The validation text adds an error of its own: it is one sample of the text that there is, and every seed reads the same.
Runs that were scored on the same text are compared piece by piece, where what a piece is worth to both arms cancels. The
losses of pieces of about 1,024 tokens of two models differ with a deviation of 0.064 to 0.070 nats, so that 64 of them
leave an error of 0.0085 on the mean, which no further seed makes smaller.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

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
    """Which runs share a cell and which share a trunk. `center_NN` removes the cell means, `shared_NN` is one for
    runs of one trunk; `between_NN`, `within_NN` are the two sums of squares, `moments_22` their expectations as
    multiples of (trunk variance, branch variance)."""

    center_NN: FloatArray
    shared_NN: FloatArray
    between_NN: FloatArray
    within_NN: FloatArray
    moments_22: FloatArray
    traces: FloatArray

    @property
    def repeats(self) -> int:
        """Runs beyond the first of each cell, counted per branch."""
        return round(float(np.trace(self.center_NN)))

    @property
    def separable(self) -> bool:
        """Whether trunk and branch variance can be estimated apart."""
        m = self.moments_22
        # Relative to its own terms the determinant does not change with the number of runs. Near zero the two
        # unknowns are one, as where every trunk has a single run.
        scale = abs(m[0, 0] * m[1, 1]) + abs(m[0, 1] * m[1, 0])
        return bool(scale > 0 and abs(np.linalg.det(m)) > _SEPARABLE * scale)

    def coefficients(self, gradient_RN: FloatArray) -> FloatArray:
        """Multiples `[R, 2]` of the two sums of squares that estimate the variance of `sum_n gradient_n * loss_n`."""
        shared_R = np.einsum("rn,nm,rm->r", gradient_RN, self.shared_NN, gradient_RN)
        alone_R = np.einsum("rn,rn->r", gradient_RN, gradient_RN)
        coefficient_R2: FloatArray = np.stack([shared_R, alone_R], 1) @ np.linalg.inv(self.moments_22)
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
        forms = [self.center_NN @ source for source in (self.shared_NN, np.eye(len(self.shared_NN)))]
        traces_22 = np.array([[np.sum(f * g.T) for g in forms] for f in forms])
        parts_R2 = np.stack([share_R, 1.0 - share_R], 1)
        mean = parts_R2 @ np.array([np.trace(form) for form in forms])
        spread = np.einsum("ri,rj,ij->r", parts_R2, parts_R2, traces_22)
        freedom: FloatArray = mean**2 / spread
        return freedom


def noise_design(cells: Sequence[object], trunks: Sequence[object]) -> NoiseDesign:
    """Build the design from the cell and the trunk of every run (any hashable labels, length N)."""
    same_cell_NN = _equal(cells)
    shared_NN = _equal(trunks)
    center_NN = np.eye(len(cells)) - same_cell_NN / same_cell_NN.sum(1, keepdims=True)
    repeated = same_cell_NN.sum(1) > 1
    # Branches whose cell has no second seed have no residual; they must not dilute the mean of their trunk.
    active_NN = shared_NN * repeated[None, :] * repeated[:, None]
    size_N = np.maximum(active_NN.sum(1), 1)
    trunk_mean_NN = active_NN / size_N[:, None]
    # Each trunk counts once in `between`, however many branches it has.
    between_NN = center_NN.T @ (trunk_mean_NN.T @ (trunk_mean_NN / size_N[:, None])) @ center_NN
    deviation_NN = np.diag(repeated.astype(np.float64)) - trunk_mean_NN
    within_NN = center_NN.T @ (deviation_NN.T @ deviation_NN) @ center_NN
    forms, sources = (between_NN, within_NN), (shared_NN, np.eye(len(cells)))
    # E[x' F x] = tr(F Cov(x)), for each of the two sums of squares and each of the two variances.
    moments_22 = np.array([[np.sum(form * source) for source in sources] for form in forms])
    products = [[form @ source for source in sources] for form in forms]
    traces = np.array(
        [
            [[[np.sum(fs * gt.T) for gt in products_g] for products_g in products] for fs in products_f]
            for products_f in products
        ]
    )
    return NoiseDesign(center_NN, shared_NN, between_NN, within_NN, moments_22, traces)


def _equal(labels: Sequence[object]) -> FloatArray:
    codes: dict[object, int] = {}
    index = np.array([codes.setdefault(label, len(codes)) for label in labels])
    same: FloatArray = (index[:, None] == index[None, :]).astype(np.float64)
    return same


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
            shared_R = np.einsum("rn,nm,rm->r", gradient_RN, self.design.shared_NN, gradient_RN)
            alone_R = np.einsum("rn,rn->r", gradient_RN, gradient_RN)
            return self.total * np.maximum(shared_R, alone_R), self.total_freedom()
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
    squares_R2 = np.stack(
        [np.einsum("rn,nm,rm->r", loss_RN, form, loss_RN) for form in (design.between_NN, design.within_NN)], 1
    )
    total = np.einsum("rn,nm,rm->r", loss_RN, design.center_NN, loss_RN) / np.trace(design.center_NN)
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

    shared_NN: FloatArray
    sigma: float

    def variance_of(self, gradient_RN: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Variance `[R]` of linear combinations of the losses; infinite degrees of freedom."""
        shared_R = np.einsum("rn,nm,rm->r", gradient_RN, self.shared_NN, gradient_RN)
        alone_R = np.einsum("rn,rn->r", gradient_RN, gradient_RN)
        return self.sigma**2 * np.maximum(shared_R, alone_R), np.full(len(gradient_RN), np.inf)


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
    for cell in dict.fromkeys(cells):
        part = pieces_NP[[other == cell for other in cells]]
        if len(part) < 2:
            continue
        residual = part - part.mean(0) - part.mean(1, keepdims=True) + part.mean()
        squares += float(np.square(residual).sum())
        freedom += (len(part) - 1) * (part.shape[1] - 1)
    return squares / freedom if freedom else 0.0
