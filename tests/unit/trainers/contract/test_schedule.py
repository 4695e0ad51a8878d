"""The run as a function of the step, at the edges."""

from __future__ import annotations

import pytest

from tests.support.tiny_training import tiny_spec
from trainers.contract.schedule import Phase, boundary_step, data_position, phase_at, steps_of
from trainers.methods import METHODS, phases_of


@pytest.mark.parametrize(
    ("ratio", "total", "expected"),
    [(0.3, 20_000, 6_000), (0.25, 2, 1), (0.5, 5, 3), (0.0, 7, 0), (1.0, 7, 7), (0.05, 9, 0), (0.15, 10, 2)],
)
def test_the_boundary_is_rounded_half_up(ratio: float, total: int, expected: int) -> None:
    assert boundary_step(ratio, total) == expected


@pytest.mark.parametrize(
    ("fraction", "total", "expected"), [(0.2, 2_500, 500), (0.1, 25, 3), (0.1, 24, 2), (0.0, 9, 0), (1.0, 9, 9)]
)
def test_a_fraction_of_a_run_is_rounded_half_up(fraction: float, total: int, expected: int) -> None:
    assert steps_of(fraction, total) == expected


def test_tst_has_two_phases_that_meet_at_the_boundary() -> None:
    assert phases_of(tiny_spec(total_steps=10, step_ratio=0.3, bag_size=4, bag_weighting="power_law")) == (
        Phase("superposition", 0, 3, bag_size=4, target_size=4, weighting="power_law"),
        Phase("next-token", 3, 10),
    )


@pytest.mark.parametrize(("ratio", "names"), [(0.0, ["next-token"]), (1.0, ["superposition"])])
def test_an_empty_phase_is_left_out(ratio: float, names: list[str]) -> None:
    assert [phase.name for phase in phases_of(tiny_spec(step_ratio=ratio))] == names


def test_the_baseline_reads_the_closed_form_of_one_phase() -> None:
    phases = phases_of(tiny_spec("baseline", total_steps=10))
    assert [data_position(phases, 16, step) for step in (0, 1, 10)] == [0, 16, 160]


@pytest.mark.parametrize("step", [-1, 12])
def test_a_step_outside_the_run_is_refused(step: int) -> None:
    with pytest.raises(IndexError, match="outside the run's 12 steps"):
        phase_at(phases_of(tiny_spec(total_steps=12)), step)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bag_size": 0}, "bag_size: 0"),
        ({"step_ratio": 1.4}, r"1.4 is not in \[0, 1\]"),
        ({"step_ratio": float("nan")}, "nan is not in"),
        ({"bag_weighting": "linear"}, "'linear' is not one of"),
    ],
)
def test_impossible_bags_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        phases_of(tiny_spec(**changes))  # type: ignore[arg-type]


def test_methods_refuse_foreign_and_missing_parameters() -> None:
    with pytest.raises(ValueError, match=r"baseline: parameters \['bag_size'\] given, \[\] needed"):
        phases_of(tiny_spec("baseline", parameters=(("bag_size", 2),)))
    with pytest.raises(ValueError, match="'bag_weighting', 'step_ratio'"):
        phases_of(tiny_spec(parameters=(("bag_size", 2),)))
    with pytest.raises(ValueError, match="'dropout' is not one of baseline, tst"):
        phases_of(tiny_spec("dropout"))


def test_the_table_of_methods_is_keyed_by_their_names() -> None:
    assert all(name == method.name for name, method in METHODS.items())
