"""From standard errors to intervals: Student's quantile, and the degrees of freedom of errors that add.

The one place for both, whether it is seeds and clock that add, the scales of a mean, or the two sweeps of a comparison.
"""

from __future__ import annotations

import numpy as np
from scipy.special import ndtri, stdtrit

from reports.evidence.runs import FloatArray

CONFIDENCE = 0.95


def t_quantile(probability: float, freedom: FloatArray | float) -> FloatArray:
    """Student's t quantile; the normal one where the degrees of freedom are infinite."""
    freedom = np.asarray(freedom, dtype=np.float64)
    finite = np.isfinite(freedom)
    student = stdtrit(np.where(finite, freedom, 1.0), probability)
    result: FloatArray = np.where(finite, student, ndtri(probability))
    return result


def add_variances(*parts: tuple[FloatArray | float, FloatArray | float]) -> tuple[FloatArray, FloatArray]:
    """The sum of independent variances, given with their degrees of freedom, and its own (Welch and Satterthwaite):
    `total^2 / sum(v^2 / freedom)`.

    Arrays are broadcast, so that replicates can be added to one clock. Infinite where every part is exact or zero.
    """
    total = np.asarray(sum(variance for variance, _ in parts))
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = sum(np.square(variance) / freedom for variance, freedom in parts)
        freedom: FloatArray = np.where(np.greater(spread, 0), np.square(total) / spread, np.inf)
    return total, freedom
