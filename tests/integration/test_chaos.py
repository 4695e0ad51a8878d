"""Random parts of a sweep and of its cluster die, one after the other; its records are those of an undisturbed one.

`CHAOS_SEED` chooses which and when (printed, so that a failure can be had again), `CHAOS_DEATHS` how many.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.integration.test_command_line import FILE, results
from tests.integration.test_lost_machines import (
    DEADLINE,
    SECONDS_BETWEEN_STATES,
    WORKER,
    Nodes,
    driver,
    nodes_at,
    records_of,
    refuse_lost_steps,
    swept_alone,
)
from tests.support.counted_steps import counted, counting

__all__ = ["results"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.alone,
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning"),
]
PARTS = ("driver", "driver's SIGTERM", "worker", "raylet", "node", "head")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of half a minute on one core."""
    text = FILE.read_text(encoding="utf-8").replace("tuning: 30", "tuning: 1000")
    text = text.replace("[40, 60, 80]", "[1100, 1400, 1700]").replace("[40]", "[1100]")
    made = tmp_path_factory.mktemp("file") / "some.yaml"
    made.write_text(text.replace("evaluate_every: 20", "evaluate_every: 500"), encoding="utf-8")
    return made


def test_a_sweep_among_random_deaths_comes_to_the_same_records(
    file: Path, results: Path, tmp_path: Path, corpora: Path
) -> None:
    undisturbed = swept_alone(file, tmp_path / "undisturbed", corpora)
    seed = int(os.environ.get("CHAOS_SEED", random.randrange(1000)))
    dice, deaths = random.Random(seed), Counter[str]()
    left = int(os.environ.get("CHAOS_DEATHS", "6"))
    print(f"CHAOS_SEED={seed}")
    steps = tmp_path / "steps"
    with nodes_at(**counting(steps, SECONDS_BETWEEN_STATES)) as nodes:
        command = [file, results, "--address", nodes.address]
        run, before = driver(*command), counted(steps)
        deadline = time.monotonic() + DEADLINE
        while run.poll() != 0:
            assert time.monotonic() < deadline, f"CHAOS_SEED={seed}: {dict(deaths)}"
            if run.poll() is not None:
                refuse_noise(run, seed)
                run = driver(*command)
            # Something dies while there is training to be lost: joining a cluster takes most of the time between.
            if left and counted(steps).trained > before.trained:
                time.sleep(dice.uniform(0, 6))
                what = dice.choice(PARTS)
                deaths[what] += 1
                left -= 1
                before = counted(steps)
                die(what, run, nodes)
            time.sleep(0.2)
        refuse_noise(run, seed)
    print(dict(deaths))
    assert records_of(results) == undisturbed, f"CHAOS_SEED={seed}"
    refuse_lost_steps(steps)


def die(what: str, run: subprocess.Popen[str], nodes: Nodes) -> None:
    """Kill a part, and start again what a machine would start again."""
    if what == "driver":
        run.kill()
    elif what == "driver's SIGTERM":
        run.send_signal(signal.SIGTERM)
    elif what == "node":
        nodes.end(1)
    elif what == "head":
        nodes.end(1)
        nodes.end(0)
    elif (process := nodes.part(1, WORKER if what == "worker" else "raylet")) is not None:
        process.kill()
    if what in ("driver", "driver's SIGTERM"):
        run.wait(timeout=120)
    for node in (0, 1):
        if nodes.part(node, "raylet") is None:
            nodes.end(node)
            nodes.start(node)


def refuse_noise(run: subprocess.Popen[str], seed: int) -> None:
    """Whatever ended a driver, what it says is meant for a reader."""
    _, said = run.communicate(timeout=120)
    assert "Traceback" not in said, f"CHAOS_SEED={seed}: {said}"
    assert run.returncode in (0, 1, 2, 143, -signal.SIGKILL), f"CHAOS_SEED={seed}: {run.returncode}: {said}"
