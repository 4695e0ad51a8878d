"""What several ranks a trial mean to a sweep: how many there are, what a step is guessed to cost, what is booked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sweeper import UserError, session
from sweeper.engine.site import Site
from sweeper.options import RunOptions
from sweeper.plans.costs import ASSUMED_CPU_FLOPS, run_seconds, step_cost
from sweeper.space.schema import Resources
from tests.support.places import ROOT
from tests.support.strategies import PROVENANCE
from tests.support.tiny_sweep import Desk, result_of
from tests.support.tiny_training import tiny_spec
from trainers.contract.record import Failed, LossCurve, PhaseTiming, RunRecord, Timing
from trainers.contract.stage import StageJob

TINY = ROOT / "tests" / "integration" / "tiny.yaml"
SPEC = tiny_spec()


@pytest.mark.parametrize(
    ("resources", "ranks"),
    [
        ({}, 1),
        ({"gpus": 1}, 1),
        ({"gpus": 0.25}, 1),
        ({"gpus": 8}, 8),
        ({"gpus": 0, "cpus": 4, "ranks": 2}, 2),
    ],
)
def test_a_trial_has_a_rank_on_each_gpu_or_as_many_as_are_asked_for(resources: dict[str, object], ranks: int) -> None:
    assert Resources.model_validate(resources).num_ranks == ranks


def measured_on(devices: int, seconds: float) -> RunRecord:
    timing = Timing((PhaseTiming("next-token", 1, 10, seconds),), devices, 0.0, 0.0)
    return RunRecord(SPEC, "tuning", Failed("for its clock"), LossCurve(()), timing, PROVENANCE, 0)


def test_a_step_costs_what_as_many_devices_measured_and_else_a_share() -> None:
    known = [measured_on(1, 3.0), measured_on(2, 1.75)]
    one = step_cost(known, PROVENANCE.device, on_gpu=False)
    two = step_cost(known, PROVENANCE.device, on_gpu=False, devices=2, ranks=2)
    assert one.source == two.source == "measured here by earlier runs"
    assert run_seconds(one, SPEC) / run_seconds(two, SPEC) == pytest.approx(3.0 / 1.75)
    guess = step_cost(known, PROVENANCE.device, on_gpu=False, devices=4, ranks=4)
    assert (guess.measured, guess.flops_per_second) == ({}, 4 * ASSUMED_CPU_FLOPS)


def space_file(folder: Path, resources: str) -> Path:
    path = folder / "ranks.yaml"
    text = TINY.read_text(encoding="utf-8")
    path.write_text(text.replace("resources: {gpus: 0, cpus: 1}", f"resources: {resources}"), encoding="utf-8")
    return path


def test_two_ranks_are_planned_to_take_half_the_time_and_the_same_hours(tmp_path: Path) -> None:
    one = session.plan(RunOptions(space_file(tmp_path, "{gpus: 0, cpus: 1}"), tmp_path, workers=1))
    two = session.plan(RunOptions(space_file(tmp_path, "{gpus: 0, cpus: 2, ranks: 2}"), tmp_path, workers=1))
    assert two.scales[0].wall_hours == pytest.approx(one.scales[0].wall_hours / 2)
    assert two.hours_shared == pytest.approx(one.hours_shared)


def test_a_sweep_counts_the_devices_of_each_stage() -> None:
    desk = Desk()
    sweep = desk.open(site=Site(store="memory", stop_file="never", execution="eager", devices_per_trial=4))
    job = sweep.next_job()
    assert isinstance(job, StageJob)
    assert job.devices == 4
    result = replace(result_of(job), devices=job.devices)
    sweep.finish(result)
    assert sweep.spent_hours == pytest.approx(4 * result.billed_seconds / 3600)


def test_one_process_cannot_be_several_ranks(tmp_path: Path) -> None:
    file = space_file(tmp_path, "{gpus: 0, cpus: 2, ranks: 2}")
    options = RunOptions(file, tmp_path / "results", executor="inline")
    with pytest.raises(UserError, match="inline trains in one process; 2 ranks of a trial need ray"):
        session.run(options, lambda line: None, lambda view: None)
