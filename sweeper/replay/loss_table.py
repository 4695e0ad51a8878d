"""Published tables of final losses, standing in for training: what a trial "ends" at, and what the table says is best.

A cell plus seed noise of a stated deviation is a replayed trial. Nothing is trained here, and no number that comes from
here may enter a claim about a method; whoever shows it says "replay" beside it.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Set
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sweeper.search.domain import Axis, Domain, Parameters, Scalar
from trainers.contract.errors import InputError, given
from trainers.contract.spec import Spec
from trainers.methods import BASELINE

TABLE_METHODS = (BASELINE, "tst")
"""What the published tables were trained with."""
COLUMNS = ("table", "params", "total_steps", "bag_weighting", "step_ratio", "bag_size", "final_loss")
SEED_DEVIATION = 0.001
"""Nats; public runs of 124M parameters show 0.0010 to 0.0013."""
TOLERANCE = 0.0015
"""Nats above the best of the smoothed table that count as found."""


@dataclass(frozen=True, slots=True)
class LossTable:
    """One scale, budget and bag weighting. `losses` holds (step_ratio, bag_size, nats) of fully trained models.

    `seed_deviation` in nats is what two seeds differ by, where the table is known to have one of its own.
    """

    table: str
    params: str
    total_steps: int
    bag_weighting: str
    losses: tuple[tuple[float, int, float], ...]
    seed_deviation: float | None = None
    _known: dict[tuple[float, int], float] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        known = {(ratio, bag): loss for ratio, bag, loss in self.losses}
        if len(known) != len(self.losses):
            raise InputError(f"table {self.table} ({self.params}): a cell of (step_ratio, bag_size) occurs twice")
        object.__setattr__(self, "_known", known)

    @property
    def name(self) -> str:
        """What people call it."""
        return f"{self.params}, {self.total_steps} steps, {self.bag_weighting} (table {self.table})"

    def loss(self, step_ratio: float, bag_size: int) -> float:
        """The table's loss in nats, between cells by linear interpolation in r and log2 s.

        No superposition (r = 0 or s = 1) is the table's baseline. Raises `InputError` outside the table's cells.
        """
        if step_ratio == 0 or bag_size == 1:
            plain = [loss for ratio, bag, loss in self.losses if ratio == 0 or bag == 1]
            if not plain:
                raise InputError(f"table {self.table}: it has no baseline (step_ratio 0)")
            return plain[0]
        exact = self._known.get((round(step_ratio, 12), bag_size))
        return exact if exact is not None else self._between(step_ratio, bag_size)

    def knows(self, step_ratio: float, bag_size: int) -> bool:
        """Whether `loss` has an answer."""
        try:
            self.loss(step_ratio, bag_size)
        except InputError:
            return False
        return True

    def _between(self, step_ratio: float, bag_size: int) -> float:
        """Linear in r within each row of bag size, then linear in log2 s between the nearest rows that reach r."""
        rows: list[tuple[float, float]] = []
        # Only rows that reach the ratio on both sides: nothing is continued beyond the published cells.
        for bag in sorted({bag for _, bag in self._known if bag > 1}):
            cells = sorted((ratio, loss) for (ratio, other), loss in self._known.items() if other == bag and ratio > 0)
            if cells[0][0] <= step_ratio <= cells[-1][0]:
                ratios, losses = zip(*cells, strict=True)
                rows.append((math.log2(bag), float(np.interp(step_ratio, ratios, losses))))
        place = math.log2(bag_size)
        if not rows or not rows[0][0] <= place <= rows[-1][0]:
            raise InputError(
                f"step_ratio {step_ratio}, bag_size {bag_size} lies outside table {self.table} ({self.params})"
            )
        return float(np.interp(place, [row[0] for row in rows], [row[1] for row in rows]))


def refuse_other_methods(spec: Spec) -> None:
    """Raise `InputError` for a trial of a method that the tables are not of: it may have their parameters' names."""
    if spec.method not in TABLE_METHODS:
        raise InputError(f"method: {spec.method} is not in the table, which has {', '.join(TABLE_METHODS)}")


def seed_noise(seed: int, replicate: int, step_ratio: float, bag_size: int, deviation: float) -> float:
    """Normal noise in nats that a cell's trial on one seed always gets again; `replicate` gives another world."""
    # Seeded by what the trial is, so that asking twice gives the same loss, in any order and in any process.
    key = [replicate, seed, round(step_ratio * 1e6), bag_size]
    return deviation * float(np.random.default_rng(key).standard_normal())


def read_tables(path: Path) -> tuple[LossTable, ...]:
    """Tables of a CSV file with `COLUMNS`, in the file's order; cells may be missing.

    Raises `InputError` naming the file, and the line and value where a row cannot be read.
    """
    found: dict[tuple[str, str, int, str], list[tuple[float, int, float]]] = {}
    lines: dict[object, int] = {}
    with given(path), path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
        if missing:
            raise InputError(f"{path.name}:1: columns {', '.join(missing)} are missing; needed: {', '.join(COLUMNS)}")
        for row in reader:
            try:
                key = row["table"], row["params"], int(row["total_steps"]), row["bag_weighting"]
                cell = round(float(row["step_ratio"]), 12), int(row["bag_size"]), float(row["final_loss"])
            except (TypeError, ValueError) as error:
                raise InputError(f"{path.name}:{reader.line_num}: {error}") from error
            if not (0 <= cell[0] <= 1 and cell[1] >= 1 and math.isfinite(cell[2])):
                raise InputError(
                    f"{path.name}:{reader.line_num}: {cell} is not (ratio in [0, 1], bag from 1, finite loss)"
                )
            first = lines.setdefault((key, cell[:2]), reader.line_num)
            if first != reader.line_num:
                raise InputError(
                    f"{path.name}:{reader.line_num}: step_ratio {cell[0]:g}, bag_size {cell[1]} of table {key[0]} "
                    f"({key[1]}) occurs twice, first in line {first}"
                )
            found.setdefault(key, []).append(cell)
    if not found:
        raise InputError(f"{path.name}: no row in the table")
    return tuple(LossTable(*key, tuple(cells)) for key, cells in found.items())


def benchmark_domain(table: LossTable) -> Domain:
    """The table's cells of step ratio 0.1 to 0.9 and bag size 2 to 12, all its superposed cells where it has none of those.

    At its budget, fanning out over r. Raises `InputError` for a table that holds nothing but a baseline.
    """
    superposed = [(ratio, bag) for ratio, bag, _ in table.losses if ratio > 0 and bag > 1]
    usual = [(ratio, bag) for ratio, bag in superposed if 0.1 <= ratio <= 0.9 and 2 <= bag <= 12]
    cells = usual or superposed
    if not cells:
        raise InputError(
            f"{table.name}: nothing can be asked, it has no cell with step_ratio above 0 and bag_size above 1"
        )
    return answered_domain(
        table,
        Axis("bag_size", tuple(sorted({bag for _, bag in cells})), "log"),
        Axis("step_ratio", tuple(sorted({ratio for ratio, _ in cells}))),
        among=set(cells),
    )


def answered_domain(
    table: LossTable,
    bags: Axis,
    ratios: Axis,
    *,
    among: Set[tuple[float, int]] | None = None,
    seeds: tuple[int, ...] = (0,),
) -> Domain:
    """The grid of two axes without the cells that the table has no answer for, or that are not `among` the given ones.

    Raises `InputError` where nothing is left.
    """
    constant = ("bag_weighting", table.bag_weighting)

    def point(ratio: Scalar, bag: Scalar) -> Parameters:
        return tuple(sorted((constant, ("bag_size", bag), ("step_ratio", ratio))))

    grid = [(float(ratio), int(bag)) for ratio in ratios.values for bag in bags.values]
    absent = {cell for cell in grid if not (table.knows(*cell) if among is None else cell in among)}
    if len(absent) == len(grid):
        raise InputError(f"{table.name}: nothing can be asked, it has an answer for none of the {len(grid)} cells")
    return Domain(
        axes=(bags, ratios),
        rungs=(table.total_steps,),
        constants=(constant,),
        seeds=seeds,
        fan_axis=ratios.name if len(ratios.values) > 1 else None,
        absent=frozenset(point(ratio, bag) for ratio, bag in absent),
    )


@dataclass(frozen=True, slots=True)
class Truth:
    """What a table says about each cell of a domain: nats above the best one, as published and smoothed.

    Smoothing has weights 1-2-1 along both axes, over the cells that are there: one cell's minimum is luck too.
    """

    raw_regret: dict[Parameters, float]
    smoothed_regret: dict[Parameters, float]


def truth_of(table: LossTable, domain: Domain) -> Truth:
    """Regrets of all points of `domain`; a cell between those of the table is interpolated, and cannot be the best one
    where any other can."""
    ratios, bags = domain.axis("step_ratio").values, domain.axis("bag_size").values
    grid_RS: NDArray[np.float64] = np.full((len(ratios), len(bags)), np.nan)
    cells = [(dict(point)["step_ratio"], dict(point)["bag_size"]) for point in domain.points]
    published = [(ratio, bag) for ratio, bag in cells if (float(ratio), int(bag)) in table._known]
    for ratio, bag in published or cells:
        grid_RS[ratios.index(ratio), bags.index(bag)] = table.loss(float(ratio), int(bag))
    smooth_RS = _smoothed(grid_RS)
    # Only published cells can be the best: an interpolated one cannot beat its neighbours.
    best_raw, best_smooth = np.nanmin(grid_RS), np.nanmin(np.where(np.isnan(grid_RS), np.nan, smooth_RS))
    raw: dict[Parameters, float] = {}
    smoothed: dict[Parameters, float] = {}
    for point in domain.points:
        given = dict(point)
        i, j = ratios.index(given["step_ratio"]), bags.index(given["bag_size"])
        loss = table.loss(float(given["step_ratio"]), int(given["bag_size"]))
        raw[point] = float(loss - best_raw)
        smoothed[point] = float((loss if np.isnan(smooth_RS[i, j]) else smooth_RS[i, j]) - best_smooth)
    return Truth(raw, smoothed)


def _smoothed(grid: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights 1-2-1 along both axes, renormalised over the cells that are there."""
    # Missing cells weigh nothing, and at the edges the weights are renormalised, so that no cell is pulled towards
    # zero.
    weight = (~np.isnan(grid)).astype(float)
    total = np.nan_to_num(grid) * weight
    for axis in (0, 1):
        total, weight = _one_two_one(total, axis), _one_two_one(weight, axis)
    smooth: NDArray[np.float64] = np.divide(total, weight, out=np.full_like(total, np.nan), where=weight > 0)
    return smooth


def _one_two_one(values: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    padded = np.pad(values, [(1, 1) if other == axis else (0, 0) for other in range(values.ndim)])
    size = values.shape[axis]
    before, middle, after = (padded.take(range(offset, offset + size), axis=axis) for offset in range(3))
    return before + 2 * middle + after
