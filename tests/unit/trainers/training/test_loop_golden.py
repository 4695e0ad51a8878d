"""Losses of whole tiny runs against those that were written down: the numerics of a spec do not drift unseen.

When they change on purpose, raise `trainers.contract.spec.NUMERICS_VERSION` and write the new ones with
`python -m tests.unit.trainers.training.test_loop_golden`.
"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from tests.support.places import GOLDEN
from tests.support.tiny_training import job_of, tiny_spec, train_tiny
from trainers.contract.spec import NUMERICS_VERSION, TrialSpec

FILE = GOLDEN / "losses_cpu.json"
LENGTHS: dict[str, Any] = {"total_steps": 40, "warmup_steps": 4, "decay_steps": 10, "sequences": 4}
RUNS: dict[str, TrialSpec] = {
    "baseline": tiny_spec("baseline", **LENGTHS),
    "tst uniform": tiny_spec(bag_size=3, step_ratio=0.3, **LENGTHS),
    "tst power law": tiny_spec(bag_size=4, step_ratio=0.5, bag_weighting="power_law", **LENGTHS),
    "tst exponential": tiny_spec(bag_size=2, step_ratio=0.9, bag_weighting="exponential", **LENGTHS),
    "tst first token": tiny_spec(bag_size=2, step_ratio=1.0, bag_weighting="first_token", **LENGTHS),
    "tst bfloat16": tiny_spec(bag_size=3, step_ratio=0.3, precision="bf16", **LENGTHS),
}


def losses_of(spec: TrialSpec, store: Path) -> list[float]:
    """Validation losses every ten steps, at the boundary and at the end."""
    return [point.loss for point in train_tiny(job_of(spec, store, evaluate_every=10)).points]


@pytest.mark.parametrize("name", RUNS)
def test_losses_are_those_that_were_written_down(name: str, tmp_path: Path) -> None:
    golden = json.loads(FILE.read_text(encoding="utf-8"))
    assert golden["numerics"] == NUMERICS_VERSION
    # processors order their sums differently, and forty steps carry that on; bfloat16 has 8 bits
    assert losses_of(RUNS[name], tmp_path) == pytest.approx(
        golden["losses"][name], rel=2e-2 if RUNS[name].precision == "bf16" else 1e-4
    )


def test_every_run_is_another() -> None:
    losses = json.loads(FILE.read_text(encoding="utf-8"))["losses"]
    assert set(losses) == set(RUNS)
    assert len({values[-1] for values in losses.values()}) == len(RUNS)


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        written = {name: losses_of(spec, Path(folder) / name) for name, spec in RUNS.items()}
    FILE.write_text(json.dumps({"numerics": NUMERICS_VERSION, "losses": written}, indent=1) + "\n", encoding="utf-8")
