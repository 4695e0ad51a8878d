"""What a command finds in its environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from sweeper.foreign.costs import DryTimes
from sweeper.foreign.dry import measured_by_a_dry_run
from sweeper.foreign.trainer import ForeignTrainer
from sweeper.foreign.worker import TrialFolder, Watched, environment_of
from sweeper.space.foreign_schema import Metrics
from tests.unit.trainers.planning.test_command import SPEC


def found(gpus: int) -> dict[str, str]:
    trainer = ForeignTrainer("/", (), {}, Metrics(points="points.jsonl"), False, 60.0, "imaginary", cpus=3, gpus=gpus)
    return environment_of(trainer, SPEC, TrialFolder(Path("/trial")))


@pytest.mark.parametrize(
    ("seen", "gpus", "visible"),
    [
        (None, 0, ""),
        (None, 2, "0,1"),
        ("5", 1, "5"),
        ("4,5,6,7", 2, "4,5"),
        ("4,5", 0, ""),
        ("", 1, ""),
    ],
)
def test_a_command_sees_as_many_devices_as_its_trial_has(
    monkeypatch: pytest.MonkeyPatch, seen: str | None, gpus: int, visible: str
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if seen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
    assert found(gpus)["CUDA_VISIBLE_DEVICES"] == visible


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "3", '{"seconds": 1}', '{"seconds": [], "spans": 3}', "\0"])
def test_what_took_how_long_is_not_known_where_its_file_is_damaged(tmp_path: Path, text: str) -> None:
    (tmp_path / "dry").mkdir()
    for file in (tmp_path / "watched.json", tmp_path / "dry" / "measured.json"):
        file.write_text(text, encoding="utf-8")
    assert Watched.load(tmp_path / "watched.json") == Watched(tmp_path / "watched.json", 0.0, [])
    assert measured_by_a_dry_run(tmp_path, "code") == DryTimes()


def test_a_command_is_no_rank_of_whoever_started_the_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a second node of Slurm every worker of Ray is process 1, and would be taken for a trial's second rank."""
    for name in ("SLURM_PROCID", "RANK", "RAY_ADDRESS"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    environment = found(0)
    assert not {"SLURM_PROCID", "RANK", "RAY_ADDRESS"} & environment.keys()
    assert environment["SLURM_JOB_ID"] == "7"


def test_the_file_has_its_say_in_the_environment_with_values_filled_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUN", "mine")
    environment = found(0)
    assert (environment["RUN"], environment["JSON"]) == ("tst 6", "{}")
    assert (environment["SWEEPER_OUT"], environment["OMP_NUM_THREADS"]) == ("/trial/trial", "3")
