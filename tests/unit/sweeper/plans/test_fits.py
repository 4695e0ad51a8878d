"""What a search space asks for against what its trials get: said in the plan, refused before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from sweeper.cli.app import app
from sweeper.plans.fits import DeviceMemory, fits_of, refuse_what_does_not_fit
from sweeper.space.load import load_own_space
from sweeper.space.schema import SearchSpace
from tests.support.places import SHIPPED

SPACES = SHIPPED
H200 = DeviceMemory("cuda", 141e9, "assumed")


def space_with(text: str, tmp_path: Path, file: str = "moe-10b-a1b.yaml") -> Path:
    """A published file with other resources."""
    lines = (SPACES / file).read_text(encoding="utf-8").splitlines()
    changed = [f"resources: {text}" if line.startswith("resources:") else line for line in lines]
    path = tmp_path / file
    path.write_text("\n".join(changed), encoding="utf-8")
    return path


OWN = sorted(path.name for path in SPACES.glob("*.yaml") if "\ntrainer:" not in path.read_text(encoding="utf-8"))
"""Files of the built-in trainer: what another one's steps take is not known."""


@pytest.mark.parametrize("file", OWN)
def test_every_file_fits_the_devices_that_it_asks_for(file: str) -> None:
    space = load_own_space(SPACES / file)
    gpus = 0.0 if space.resources.gpus in (0, "auto") else float(space.resources.gpus)
    memory = H200 if gpus else DeviceMemory("cpu", 8e9, "assumed")
    fits = fits_of(space, gpus, memory, None)
    assert set(fits) == set(space.scales)
    refuse_what_does_not_fit(fits)
    assert all(fit.sentence.startswith("fits on") for fit in fits.values())


def experts(tmp_path: Path) -> SearchSpace:
    return load_own_space(space_with("{gpus: 1}", tmp_path))


def test_what_does_not_fit_is_refused_in_one_line_that_says_what_would(tmp_path: Path) -> None:
    (fit,) = fits_of(experts(tmp_path), 1.0, H200, None).values()
    assert fit.fewest is not None
    with pytest.raises(
        ValueError, match=rf"^scales: 10b-a1b does not fit: .* resources.gpus: {fit.fewest.gpus} would do$"
    ):
        refuse_what_does_not_fit({fit.scale: fit})
    (fits,) = fits_of(experts(tmp_path), float(fit.fewest.gpus), H200, None).values()
    assert fits.way is not None
    (hopeless,) = fits_of(experts(tmp_path), 1.0, DeviceMemory("cuda", 2e9, "assumed"), None).values()
    assert "no number of GPUs up to 64 would do" in str(hopeless.refusal)


def test_a_micro_batch_that_is_given_is_the_one_that_has_to_fit(tmp_path: Path) -> None:
    space = experts(tmp_path)
    (one,) = fits_of(space, 4.0, H200, 1).values()
    (all_at_once,) = fits_of(space, 4.0, H200, 512).values()
    assert one.way is not None
    assert one.way.micro_sequences == 1
    assert all_at_once.refusal is not None
    (again,) = fits_of(space, 4.0, H200, 1, recompute=True).values()
    assert again.way is not None
    assert again.way.needs.total < one.way.needs.total


@pytest.mark.parametrize("command", ["plan", "run"])
def test_plan_and_run_refuse_before_anything_starts(tmp_path: Path, command: str) -> None:
    file = space_with("{gpus: 1, gpu_memory_gb: 141}", tmp_path)
    results = tmp_path / "results"
    done = CliRunner().invoke(app, [command, str(file), "--results", str(results)])
    assert done.exit_code == 2
    assert done.stderr.count("\n") == 1
    assert "10b-a1b does not fit" in done.stderr
    assert "resources.gpu_memory_gb" in done.stderr
    assert not results.exists()


def test_the_plan_says_where_a_scale_fits() -> None:
    done = CliRunner().invoke(app, ["plan", str(SPACES / "quickstart.yaml"), "--results", "nowhere"])
    assert done.exit_code == 0
    assert "pico fits on the CPU with 8 sequences at a time" in done.stdout
