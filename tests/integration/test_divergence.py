"""What a user sees of trials that diverge, from the command to `status`, the ledger and the page; the rest goes on."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from sweeper.ledger.location import DATABASE as LEDGER
from sweeper.ledger.mlflow_ledger import Ledger
from sweeper.studies.keeper import DATABASE as STUDIES
from tests.conformance.sweep_of import essence
from tests.integration.test_cluster import environment
from tests.integration.test_command_line import FILE, SWEEPER, results
from tests.support.counted_steps import counted, counting
from trainers.contract.record import Diverged, Finished, RunRecord

__all__ = ["results"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning"),
]


def command(*arguments: object, **more: str) -> subprocess.CompletedProcess[str]:
    words = [str(SWEEPER), *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=900, env=environment(**more))


def records_of(results: Path) -> list[RunRecord]:
    with Ledger.open(results, "tiny", create=False) as ledger:
        assert not ledger.pending()
        return ledger.records()


def reasons_in_status(results: Path) -> Counter[tuple[str, str]]:
    shown = command("status", "tiny", "--results", results, "--json")
    assert shown.returncode == 0, shown.stderr
    return Counter((failure["outcome"], failure["reason"]) for failure in json.loads(shown.stdout)["failures"])


def test_a_divergence_is_shown_everywhere_and_without_ledger_and_studies_nothing_is_trained_again(
    results: Path, tmp_path: Path
) -> None:
    file, steps = tmp_path / "some.yaml", tmp_path / "steps"
    file.write_text(FILE.read_text(encoding="utf-8").replace("[0.002, 0.004]", "[0.002, 1.0e+15]"), encoding="utf-8")
    words = ["run", file, "--results", results, "--executor", "inline"]
    done = command(*words, **counting(steps))
    assert done.returncode == 0, done.stderr
    assert "2 trials did not finish; `sweeper status` says why" in done.stderr
    records = records_of(results)
    ends = Counter(type(record.outcome) for record in records)
    assert ends == {Diverged: 2, Finished: len(records) - 2}
    assert reasons_in_status(results) == {("diverged", "validation loss is nan"): 2}
    assert "diverged: validation loss is nan" in (results / "tiny" / "report.html").read_text(encoding="utf-8")

    trained = counted(steps)
    assert trained.trained > 0
    for file_that_is_lost in (results / LEDGER, results / "tiny" / STUDIES):
        file_that_is_lost.unlink()
    again = command(*words, **counting(steps))
    assert again.returncode == 0, again.stderr
    assert counted(steps) == trained
    remade = records_of(results)
    assert essence(remade) == essence(records)
    assert sum(r.timing.incurred_gpu_hours for r in remade) == sum(r.timing.incurred_gpu_hours for r in records)
