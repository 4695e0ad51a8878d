"""Checks of what only some imported tables say: each can be absent, pass and warn."""

from __future__ import annotations

from dataclasses import replace

import pytest

from reports.checks.check_stated import check_execution, check_loss_unit
from reports.evidence.study import Study
from reports.evidence.units import LossUnit
from tests.support.finished_runs import ladder, make_study


def executed(baseline: list[str | None], method: list[str | None]) -> Study:
    arms = ((ladder(budgets=(4_000,)), baseline), (ladder("tst", (4_000,), speedup=1.3), method))
    return make_study([replace(run, execution=way) for runs, ways in arms for run, way in zip(runs, ways, strict=True)])


@pytest.mark.parametrize(
    ("baseline", "method", "status", "number"),
    [
        (["eager"] * 3, ["eager"] * 3, "pass", "1 value"),
        (["eager"] * 3, ["compiled"] * 3, "warn", "2 stated"),
        (["eager"] * 3, [None] * 3, "warn", "1 stated"),
        (["eager"] * 3, ["eager", "compiled", "eager"], "warn", "several in one arm"),
    ],
)
def test_execution(baseline: list[str | None], method: list[str | None], status: str, number: str) -> None:
    found = check_execution(executed(baseline, method))
    assert found is not None
    assert (found.status, found.number) == (status, number)


def test_execution_that_no_run_states_is_no_check() -> None:
    assert check_execution(executed([None] * 3, [None] * 3)) is None


@pytest.mark.parametrize(
    ("loss", "unit", "vocab_size", "found"),
    [
        (3.0, LossUnit(), None, None),
        (3.0, LossUnit("perplexity"), None, ("pass", "perplexity")),
        (3.0, LossUnit("bits_per_byte", 4.2), None, ("pass", "bits per byte (4.2 bytes a token)")),
        (33.1, LossUnit(), None, ("warn", "33.100")),
        (13.7, LossUnit(), None, None),
        (13.7, LossUnit(), 50_304, ("warn", "13.700")),
        (10.8, LossUnit(), 50_304, None),
    ],
)
def test_losses_in_nats(loss: float, unit: LossUnit, vocab_size: int | None, found: tuple[str, str] | None) -> None:
    first, *others = ladder()
    odd = replace(first, final_loss=loss, loss_unit=unit, vocab_size=vocab_size)
    check = check_loss_unit(make_study([odd, *(replace(run, loss_unit=unit) for run in others)]))
    assert (None if check is None else (check.status, check.number)) == found
