"""What a share of a GPU costs, and that a file may ask for one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sweeper import UserError, session
from sweeper.engine.site import Site
from sweeper.executors.inline import InlineExecutor
from sweeper.options import RunOptions
from tests.support.places import ROOT, SHIPPED
from tests.support.tiny_sweep import Desk, result_of

SITE = Site(store="memory", stop_file="never", execution="eager")


def test_a_share_of_a_gpu_is_billed_as_that_share() -> None:
    """Four trials that share a GPU cost a quarter of it each; the clock has run while the others did, and says so."""
    whole, quarter = Desk(), Desk()
    for desk, devices in ((whole, 1), (quarter, 0.25)):
        sweep = desk.open(site=replace(SITE, on_gpu=True, devices_per_trial=devices))
        InlineExecutor().run(sweep, lambda job, on_point: result_of(job), lambda: None)
        assert sweep.spent_hours == pytest.approx(sum(r.timing.incurred_gpu_hours for r in desk.ledger.records()))
    for spec_id, record in quarter.ledger.written.items():
        assert record.timing.devices == 0.25
        other = whole.ledger.written[spec_id].timing
        assert record.timing.gpu_hours == pytest.approx(other.gpu_hours / 4)
        assert record.timing.billed_gpu_hours == pytest.approx(other.billed_gpu_hours / 4)


def test_a_file_may_ask_for_a_share_of_a_gpu(tmp_path: Path) -> None:
    """Planned at no more than the device's rate between the trials that share it: a share costs what a whole one does."""
    text = Path("search_spaces/quickstart.yaml").read_text(encoding="utf-8")
    assert "gpus: 0" in text
    hours = []
    for gpus in ("1", "0.25"):
        file = tmp_path / f"share-{gpus}.yaml"
        # A search that looks at losses would ask for other trials with four workers than with one.
        text = text.replace("sampler: auto", "sampler: random")
        file.write_text(text.replace("gpus: 0", f"gpus: {gpus}"), encoding="utf-8")
        hours.append(session.plan(RunOptions(file, tmp_path / "results")).hours_shared)
    assert hours[0] == pytest.approx(hours[1])


@pytest.mark.parametrize("gpus", ["0.25", "2"])
def test_a_machine_without_a_gpu_trains_no_share_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: str
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    text = (SHIPPED / "your-trainer.yaml").read_text(encoding="utf-8")
    file = tmp_path / "share.yaml"
    text = text.replace("../trainers/examples", str(ROOT / "trainers" / "examples"))
    file.write_text(text.replace("gpus: 0", f"gpus: {gpus}"), encoding="utf-8")
    said = rf"resources.gpus: {gpus} wanted for a trial, this machine has 0"
    with pytest.raises(UserError, match=said):
        session.run(RunOptions(file, tmp_path / "results", executor="inline"))
