"""Final losses of one scale as arrays, with the seed deviation that they show.

Every confirmation run of every arm and the noise-floor runs are one pool for the deviation; which of them enter a
reading is said by the cells. Knows nothing of clocks or speedups.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reports.estimate.inversion import mean_matrix
from reports.estimate.noise import (
    PRIOR_MINIMUM_PARAMS,
    PRIOR_SIGMA,
    Noise,
    PriorNoise,
    Sampling,
    estimate_noise,
    noise_design,
    sampling_of,
)
from reports.estimate.verdict import SeedDeviation
from reports.evidence.runs import FinishedRun, FloatArray
from reports.evidence.study import Cell, ScaleStudy, configuration_of


@dataclass(frozen=True, slots=True, eq=False)
class Observations:
    """N runs of one scale: final losses `[N]`, their order by run id, and their noise (None where nothing is known of
    it; a prior where no cell has a second seed and the model is large enough for one). `sampling` is None where the losses
    of pieces were not kept."""

    losses: FloatArray
    index: dict[str, int]
    noise: Noise | PriorNoise | None
    deviation: SeedDeviation
    sampling: Sampling | None = None

    def means(self, cells: Sequence[Cell]) -> FloatArray:
        """Matrix `[cells, N]` that turns final losses into the cells' means."""
        cell_of_run = np.full(len(self.losses), -1)
        for number, cell in enumerate(cells):
            for run in cell.runs:
                cell_of_run[self.index[run.run_id]] = number
        return mean_matrix(cell_of_run, len(cells))

    def variance(self, gradient_RN: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Variance and degrees of freedom `[R]` of linear combinations of the losses; NaN where nothing is known."""
        if self.noise is None:
            return np.full(len(gradient_RN), np.nan), np.full(len(gradient_RN), np.inf)
        return self.noise.variance_of(gradient_RN)

    def sampling_variance(self, gradient_RN: FloatArray) -> FloatArray:
        """What the validation text adds to the variance `[R]` of differences of losses; 0 where it is not known."""
        return np.zeros(len(gradient_RN)) if self.sampling is None else self.sampling.variance_of(gradient_RN)


def observe(scale: ScaleStudy) -> Observations:
    """Collect the runs of a scale that say something about its seed deviation."""
    arms = scale.arms + scale.apart
    runs: list[FinishedRun] = [run for arm in arms for cell in arm.cells + arm.other_cells for run in cell.runs]
    floor = [run for arm in arms for run in arm.noise_floor]
    runs += floor
    losses = np.array([run.final_loss for run in runs], dtype=np.float64)
    index = {run.run_id: number for number, run in enumerate(runs)}
    if not runs:
        return Observations(losses, index, None, SeedDeviation(0.0, None, 0.0, 0, "unknown"))
    cells = [(run.method, configuration_of(run), run.total_steps) for run in runs]
    design = noise_design(cells, [run.trunk for run in runs])
    noise = estimate_noise(design, losses[None, :])
    sampling = sampling_of(runs, cells)
    if noise is None:
        # A public figure is better than none only where it may be true: small models scatter more, by an unknown
        # factor, and a page without an interval says so.
        if (scale.params or 0.0) < PRIOR_MINIMUM_PARAMS:
            return Observations(losses, index, None, SeedDeviation(0.0, None, 0.0, 0, "unknown"), sampling)
        prior = PriorNoise(design, PRIOR_SIGMA)
        return Observations(losses, index, prior, SeedDeviation(PRIOR_SIGMA, None, np.inf, 0, "prior"), sampling)
    repeated = {cell for cell, count in Counter(cells).items() if count > 1}
    confirmed = {cell for cell, run in zip(cells, runs, strict=True) if run.purpose == "confirmation"}
    # A cell counts for the confirmation if it repeats without the noise floor's help: the page names whose scatter it
    # is.
    alone = Counter(cells[: len(runs) - len(floor)])
    num_confirmed = sum(alone[cell] > 1 for cell in confirmed)
    deviation = SeedDeviation(
        total=float(np.sqrt(noise.total[0])),
        trunk_share=None if noise.trunk_share is None else float(noise.trunk_share[0]),
        degrees_of_freedom=float(noise.total_freedom()[0]),
        num_cells=len(repeated),
        source=("confirmation" if not floor else "confirmation and noise floor" if num_confirmed else "noise floor"),
    )
    return Observations(losses, index, noise, deviation, sampling)
