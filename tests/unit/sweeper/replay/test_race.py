"""Replaying published tables: reading, interpolating, judging, and the race itself."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sweeper.replay.loss_table import LossTable, benchmark_domain, read_tables, seed_noise, truth_of
from sweeper.replay.race import Contestant, Rules, compare_strategies, num_races, run_race
from sweeper.replay.report import against_best_table
from sweeper.replay.valleys import GRIDS, HALVES, KINDS, PER_KIND, valleys
from tests.support.places import ROOT
from trainers.contract.spec import ModelShape, Optimizer, Schedule, TrialSpec

PUBLISHED = ROOT / "reports" / "published" / "final_loss_by_r_and_s.csv"
HEADER = "table,params,total_steps,bag_weighting,step_ratio,bag_size,final_loss\n"


def made_table(rows: int = 5, columns: int = 5) -> LossTable:
    """A bowl with its lowest cell in the middle, and a baseline."""
    cells = [
        (round(0.1 * (i + 1), 1), 2 + j, 3 + 0.01 * (i - rows // 2) ** 2 + 0.005 * (j - columns // 2) ** 2)
        for i in range(rows)
        for j in range(columns)
    ]
    return LossTable("made", "1M", 1000, "uniform", ((0.0, 1, 3.2), *cells))


def spec_of(ratio: float, bag: int, total_steps: int = 1000, seed: int = 0) -> TrialSpec:
    return TrialSpec(
        scale="nano",
        shape=ModelShape(2, 48, 3, 3, 16, 128, 512),
        method="tst",
        parameters=(("bag_size", bag), ("bag_weighting", "uniform"), ("step_ratio", ratio)),
        corpus_fingerprint="c",
        tokenizer_fingerprint="t",
        context=64,
        tokens_per_step=512,
        validation_tokens=512,
        schedule=Schedule(total_steps, 10, 100, 0.002),
        optimizer=Optimizer(),
        precision="fp32",
        seed=seed,
    )


def test_published_tables_are_read_whole() -> None:
    tables = read_tables(PUBLISHED)
    assert [(table.params, len(table.losses)) for table in tables] == [("270M", 151), ("600M", 120)]
    assert tables[0].loss(0.3, 7) == 3.1392
    assert tables[1].loss(0.0, 1) == 3.0186
    assert len(benchmark_domain(tables[0]).points) == 99


def test_between_cells_losses_are_interpolated_and_outside_refused() -> None:
    table = made_table()
    assert table.loss(0.15, 2) == pytest.approx((table.loss(0.1, 2) + table.loss(0.2, 2)) / 2)
    holes = replace(table, losses=tuple(cell for cell in table.losses if cell[:2] != (0.3, 4)))
    between = holes.loss(0.3, 4)
    assert between == pytest.approx((table.loss(0.2, 4) + table.loss(0.4, 4)) / 2)
    assert table.loss(0.0, 6) == table.loss(0.3, 1) == 3.2
    with pytest.raises(ValueError, match="outside table"):
        table.loss(0.7, 3)
    with pytest.raises(ValueError, match="outside table"):
        table.loss(0.3, 16)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("table,params\n", r"t\.csv:1: columns total_steps"),
        (HEADER, "no row"),
        (HEADER + "1,1M,100,uniform,0.3,four,3.1\n", r"t\.csv:2: .*'four'"),
        (HEADER + "1,1M,100,uniform,1.3,4,3.1\n", r"t\.csv:2: .*ratio in \[0, 1\]"),
        (HEADER + "1,1M,100,uniform,0.3,4,nan\n", r"t\.csv:2: .*finite loss"),
        (
            HEADER + "1,1M,100,uniform,0.3,4,3.1\n1,1M,100,uniform,0.3,4,3.2\n",
            r"t\.csv:3: .*occurs twice, first in line 2",
        ),
    ],
)
def test_bad_tables_name_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_tables(path)


def test_smoothing_takes_its_weights_from_the_cells_that_are_there() -> None:
    table = made_table(rows=3, columns=3)
    regret = truth_of(table, benchmark_domain(table)).smoothed_regret
    losses = np.array([[table.loss(r, s) for s in (2, 3, 4)] for r in (0.1, 0.2, 0.3)])
    kernel = np.array([1.0, 2.0, 1.0])
    centre = kernel @ losses @ kernel / 16
    corner = np.array([2.0, 1.0]) @ losses[:2, :2] @ np.array([2.0, 1.0]) / 9
    names = {(dict(point)["step_ratio"], dict(point)["bag_size"]): value for point, value in regret.items()}
    assert names[0.2, 3] == pytest.approx(0.0)
    assert names[0.1, 2] == pytest.approx(corner - centre)


def test_one_lucky_cell_is_not_the_truth() -> None:
    table = made_table()
    lucky = replace(table, losses=tuple((*c[:2], c[2] - 0.02 if c[:2] == (0.1, 2) else c[2]) for c in table.losses))
    truth = truth_of(lucky, benchmark_domain(lucky))
    point = next(p for p in truth.raw_regret if {("step_ratio", 0.1), ("bag_size", 2)} <= set(p))
    assert truth.raw_regret[point] > 0 or truth.smoothed_regret[point] > truth.raw_regret[point]
    assert min(truth.smoothed_regret.values()) == 0.0


def test_seed_noise_belongs_to_seed_and_cell() -> None:
    draws = np.array([seed_noise(seed, 0, 0.3, bag, 0.001) for seed in range(40) for bag in range(2, 12)])
    assert seed_noise(3, 0, 0.3, 4, 0.001) == seed_noise(3, 0, 0.3, 4, 0.001)
    assert abs(draws.mean()) < 0.0002
    assert 0.0009 < draws.std() < 0.0011
    assert len(set(draws.tolist())) == 400


def test_the_race_counts_what_is_spent() -> None:
    tables = read_tables(PUBLISHED)
    rules = Rules(trials=20)
    domain = benchmark_domain(tables[0])
    shared = run_race(tables[0], domain, Contestant("surface"), rules, seed=0)
    alone = run_race(tables[0], domain, Contestant("surface", shared=False), rules, seed=0)
    assert shared.spent is not None
    assert shared.held is not None
    assert 1 <= shared.spent <= shared.held <= shared.trials
    assert shared.regret <= 0.0015 + 1e-9
    assert alone.spent is not None
    assert float(alone.spent).is_integer()
    assert shared == run_race(tables[0], domain, Contestant("surface"), rules, seed=0)


def test_a_hopeless_race_is_not_a_number() -> None:
    """One trial cannot settle it: not reached stays None in the race and in the median."""
    tables = read_tables(PUBLISHED)
    result = compare_strategies(
        tables[:1], [Contestant("random", shared=False, by_luck=True)], seeds=5, rules=Rules(trials=1)
    )
    standing = result.standings[0]
    assert standing.median_spent is None
    assert standing.reached < 0.5
    assert json.loads(json.dumps(result.to_json()))["kind"] == "replay"


def test_warm_start_needs_another_table() -> None:
    tables = read_tables(PUBLISHED)
    contestants = [Contestant("random"), Contestant("random", warm=True)]
    one = compare_strategies(tables[:1], contestants, seeds=2, rules=Rules(trials=6))
    two = compare_strategies(tables, contestants, seeds=2, rules=Rules(trials=6))
    assert [standing.warm_start for standing in one.standings] == [False]
    assert [standing.warm_start for standing in two.standings] == [False, True] * 2


def without(table: LossTable, *cells: tuple[float, int]) -> LossTable:
    return replace(table, losses=tuple(cell for cell in table.losses if cell[:2] not in cells))


@pytest.mark.parametrize("sampler", ["surface", "tpe", "random", "grid"])
@pytest.mark.parametrize("shared", [True, False])
def test_a_cell_without_an_answer_is_never_asked_for_nor_recommended(sampler: str, shared: bool) -> None:
    whole = made_table()
    # The best cell and a corner: both are where a search would go.
    table = without(whole, (0.3, 4), (0.1, 2), (0.5, 6))
    domain = benchmark_domain(table)
    assert len(domain.points) == 22
    race = run_race(table, domain, Contestant(sampler, shared), Rules(trials=30, patience=30), seed=1)
    assert race.trials == 30
    assert set(truth_of(table, domain).smoothed_regret) == set(domain.points)


@pytest.mark.parametrize(
    "kept",
    [
        {(0.1, bag) for bag in (2, 3, 4, 5, 6)},  # one value of r, so that nothing fans out
        {(ratio, 3) for ratio in (0.1, 0.2, 0.3, 0.4, 0.5)},
        {(0.2, 4)},
        {(0.1, 2), (0.2, 3), (0.3, 4)},
    ],
)
def test_any_shape_of_table_can_be_raced(kept: set[tuple[float, int]]) -> None:
    table = made_table()
    table = replace(table, losses=tuple(cell for cell in table.losses if cell[:2] in kept))
    contestants = [
        Contestant(name, shared) for name in ("surface", "random", "grid", "tpe") for shared in (True, False)
    ]
    result = compare_strategies([table], contestants, seeds=2, rules=Rules(trials=200))
    assert all(standing.reached == 1 for standing in result.standings)


def test_a_table_of_cells_beyond_the_benchmark_is_raced_as_it_is() -> None:
    table = LossTable("made", "1M", 100, "uniform", ((0.05, 16, 3.0), (0.05, 32, 3.1), (0.95, 16, 3.2)))
    assert len(benchmark_domain(table).points) == 3
    with pytest.raises(ValueError, match="nothing can be asked"):
        benchmark_domain(replace(table, losses=((0.0, 1, 3.0),)))


def test_the_races_do_not_depend_on_the_number_of_processes() -> None:
    tables = [made_table(), without(made_table(4, 3), (0.1, 2))]
    contestants = [Contestant("random"), Contestant("surface", shared=False), Contestant("random", warm=True)]
    seen: list[int] = []
    alone = compare_strategies(tables, contestants, seeds=10, rules=Rules(trials=5), watch=seen.append)
    both = compare_strategies(tables, contestants, seeds=10, rules=Rules(trials=5), workers=2)
    assert alone == both
    assert seen == sorted(seen)
    assert seen[-1] == num_races(contestants, 2, 10) == 60


RACING = """
from sweeper.replay.race import Contestant, Rules, compare_strategies
from tests.unit.sweeper.replay.test_race import made_table
contestants = [Contestant("surface", shared=False)]
say = lambda ended: print(ended, flush=True)
compare_strategies([made_table()], contestants, seeds=10_000, rules=Rules(trials=5), workers=2, watch=say)
"""


def test_processes_of_a_killed_race_end_with_it() -> None:
    def racing() -> list[int]:
        children = Path(f"/proc/{command.pid}/task/{command.pid}/children").read_text().split()
        return [int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    def alive(pid: int) -> bool:
        state = Path(f"/proc/{pid}/stat")
        return state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z"

    with subprocess.Popen([sys.executable, "-c", RACING], cwd=ROOT, stdout=subprocess.PIPE, text=True) as command:
        assert command.stdout is not None
        assert command.stdout.readline(), "a race has ended"
        processes = racing()
        assert len(processes) == 2
        command.kill()
    deadline = time.monotonic() + 60
    while any(map(alive, processes)):
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
def test_the_default_search_keeps_its_promise_on_the_published_tables() -> None:
    """At most 6 full-budget equivalents in the median without a warm start, at most 3 with one."""
    tables = read_tables(PUBLISHED)
    contestants = [Contestant("surface"), Contestant("surface", warm=True)]
    result = compare_strategies(tables, contestants, seeds=15)
    for standing in result.standings:
        assert standing.median_spent is not None
        assert standing.median_spent <= (3.0 if standing.warm_start else 6.0)


@pytest.mark.parametrize("half", sorted(HALVES))
def test_the_made_up_family_is_the_same_everywhere_and_its_best_cells_count_as_found(half: str) -> None:
    family = valleys(half)
    assert family == valleys(half)
    assert len({table.name for table in family}) == len(family) == PER_KIND * len(KINDS)
    assert all(0.0005 <= (table.seed_deviation or 0) <= 0.02 for table in family)
    points = {table.name: len(benchmark_domain(table).points) for table in family}
    grids = {len(ratios) * len(bags) for ratios, bags in GRIDS}
    assert {count in grids for count in points.values()} == {True, False}, "some lack cells, some lack none"
    for table in family:
        raw = truth_of(table, benchmark_domain(table))
        assert min(raw.smoothed_regret[point] for point, regret in raw.raw_regret.items() if regret < 0.003) <= 0.0015


def test_the_halves_share_no_table() -> None:
    assert not {table.losses for table in valleys("fitted")} & {table.losses for table in valleys("held-back")}


def test_the_default_is_held_against_the_best_other_of_each_table() -> None:
    one, two = made_table(), made_table(4, 3)
    names = ("surface", "random", "grid")
    result = compare_strategies([one, two], [Contestant(name) for name in names], seeds=4, rules=Rules(trials=12))
    (median, ninetieth) = result.against_best()
    assert (median.shared, median.quantile, ninetieth.quantile) == (True, "median_spent", "ninetieth_spent")
    spent = {(item.label, item.sampler): item.median_spent or 12 for item in result.standings}
    expected = [
        (spent[label, "surface"], min(spent[label, "random"], spent[label, "grid"]))
        for label in dict.fromkeys(item.label for item in result.standings)
    ]
    assert list(median.pairs) == expected
    assert replace(median, pairs=((6.0, 3.0), (2.0, 4.0), (1.5, 1.0))).geometric_mean == pytest.approx(1.5 ** (1 / 3))
    assert replace(median, pairs=((6.0, 3.0), (2.0, 4.0), (1.5, 1.0))).beyond == 1
    assert result.to_json()["default_against_best"][0]["worst"] == median.worst
    (grids, _) = result.against_best("grid")
    label = result.standings[0].label
    assert grids.pairs[0] == (spent[label, "grid"], min(spent[label, "random"], spent[label, "surface"]))
    head, _, first, *others = against_best_table(result).splitlines()
    assert "(4 seeds, " in head
    assert first.startswith(f"| surface | {median.geometric_mean:.2f}, {median.worst:.2f}, {median.beyond} | ")
    assert [line.split()[1] for line in others] == ["random", "grid"]
    assert replace(result, standings=result.standings[:1]).against_best() == ()
