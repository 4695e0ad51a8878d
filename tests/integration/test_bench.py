"""The bench as a program: with nothing but torch and numpy, and as `sweeper bench` with a plan that uses its figures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.places import ROOT
from trainers.bench.result import read_figures
from trainers.training.devices import cpu_name

BARE = """
import runpy, sys
for name in ("typer", "rich", "pydantic", "mlflow", "ray", "optuna", "pandas", "plotly", "scipy", "yaml", "tokenizers",
             "safetensors", "psutil", "jinja2", "sweeper", "reports"):
    sys.modules[name] = None
sys.argv = ["bench", *sys.argv[1:]]
runpy.run_module("trainers.bench", run_name="__main__")
"""


def bench(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """`python -m trainers.bench` where only torch and numpy can be imported."""
    command = [sys.executable, "-c", BARE, *map(str, arguments)]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
def test_the_bench_needs_torch_and_numpy_only(tmp_path: Path) -> None:
    done = bench(
        "--scale", "pico", "--execution", "eager", "--steps", "2", "--device", "cpu", "--json", "--out", tmp_path
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["passed"]
    statuses = {check["name"]: check["status"] for check in figures["checks"]}
    assert statuses.pop("resume = no stop, eager") == "skipped"
    assert set(statuses.values()) == {"ok"}
    assert figures["ratios"].keys() >= {"superposition_over_baseline", "multi_hot_over_one_hot", "captured_over_eager"}
    assert figures["ratios"]["captured_over_eager"] is None
    assert figures["scales"]["pico"].keys() >= {"positions_per_second", "mfu", "peak_bytes"}
    kept = read_figures(tmp_path, cpu_name())
    assert kept is not None
    assert kept.flops_per_second == figures["plan"]["flops_per_second"]


@pytest.mark.slow
def test_a_mistake_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    done = bench("--scale", "huge", "--out", tmp_path)
    assert done.returncode == 2
    assert done.stderr.strip().startswith("--scale: 'huge' is not one of pico")
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []
