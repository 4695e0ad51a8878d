"""How much the validation text itself, one sample of the text that there is, puts on a difference of two losses.

Runs that were scored on the same text are compared piece by piece: what a piece adds to both cancels. The losses of pieces
of about 1,024 tokens of two models differ with a deviation of 0.064 to 0.070 nats, so that 64 of them leave an error of
0.0085 on the mean, which no further seed makes smaller: every seed reads the same pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from reports.evidence.runs import FinishedRun, FloatArray


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
