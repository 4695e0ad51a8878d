"""How samplers fare on the held-back tables: `python -m tests.support.race_benchmark REPLAY.json [...]`, seconds.

Reads what `sweeper replay --valleys held-back --json` printed, from one or several files of the same rules. Prints each sampler
beside the best other one, then beside each other one, and the default beside three further samples of itself: how often the
best of four is another by luck alone. Prints the figures of sweeper/README.md.
"""

from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import mean, median
from typing import Any

from reports.pages.replay import DEFAULT, AgainstBest

SEEDS, DRAWS = 40, 200
Spent = Mapping[tuple[str, str, bool], Mapping[str, Sequence[float]]]
"""Full runs of every seed, by table, kind and sharing, and by sampler."""


def spent_in(files: Sequence[Path]) -> dict[tuple[str, str, bool], dict[str, list[float]]]:
    """What every race of a cold search cost; one that never got there costs all of its trials."""
    found: dict[tuple[str, str, bool], dict[str, list[float]]] = {}
    for file in files:
        plain: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        for one in plain["standings"]:
            if one["contestant"] == one["sampler"]:
                costs = [plain["trials"] if race["spent"] is None else race["spent"] for race in one["races"]]
                found.setdefault((one["table"], one["params"], one["shared"]), {})[one["sampler"]] = costs
    return found


def ninetieth(costs: Sequence[float]) -> float:
    """The smallest that nine in ten do not exceed."""
    return sorted(costs)[math.ceil(0.9 * len(costs)) - 1]


QUANTILES = (("median", median), ("90th percentile", ninetieth))


def beside(spent: Spent, sampler: str, others: Sequence[str]) -> list[AgainstBest]:
    """A sampler beside the best of `others` on each table: shared and alone, median and 90th percentile."""
    found = []
    for shared, (name, quantile) in product((True, False), QUANTILES):
        costs = [
            (float(quantile(here[sampler][:SEEDS])), min(float(quantile(here[other][:SEEDS])) for other in others))
            for (_, _, is_shared), here in spent.items()
            if is_shared == shared
        ]
        found.append(AgainstBest(shared, name, tuple(costs)))
    return found


def against_itself(costs: Mapping[tuple[str, str, bool], Sequence[float]]) -> list[int]:
    """How often the default is beyond the best of three further samples of its own races, for each of the draws."""
    generator, found = random.Random(0), []
    for _ in range(DRAWS):
        drawn = {place: generator.sample(all_of, 4 * SEEDS) for place, all_of in costs.items()}
        parts = {
            place: {str(part): of[part * SEEDS : (part + 1) * SEEDS] for part in range(4)}
            for place, of in drawn.items()
        }
        found.append(sum(one.beyond for one in beside(parts, "0", ("1", "2", "3"))))
    return found


def main(files: Sequence[str]) -> None:
    """Print them."""
    spent = spent_in([Path(file) for file in files])
    samplers = list(dict.fromkeys(name for here in spent.values() for name in here))
    for sampler in samplers:
        others = [other for other in samplers if other != sampler]
        if not others:
            break
        rows = beside(spent, sampler, others)
        shown = " | ".join(f"{one.geometric_mean:.2f}, {one.worst:.2f}, {one.beyond}" for one in rows)
        print(f"| {sampler} | {shown} | {sum(one.beyond for one in rows)} |")
        each = {other: sum(one.beyond for one in beside(spent, sampler, [other])) for other in others}
        print("  beyond", ", ".join(f"{other}: {count}" for other, count in each.items()))
    costs = {place: here[DEFAULT] for place, here in spent.items() if len(here.get(DEFAULT, ())) >= 4 * SEEDS}
    if costs:
        counts = against_itself(costs)
        print(f"{DEFAULT} against itself: {mean(counts):.1f} ({min(counts)} to {max(counts)})")


if __name__ == "__main__":
    main(sys.argv[1:])
