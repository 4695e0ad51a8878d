"""A trial's clock and last loss, whatever its trainer says and however often it was interrupted."""

from __future__ import annotations

import math

import pytest

from sweeper.foreign.points import Sighting
from sweeper.foreign.track import BETWEEN, MOST_POINTS, OWN, WHOLE, Track


def track_of(*sightings: Sighting, total: int = 100, apart: float | None = None) -> Track:
    """A track of what was said, `apart` seconds of the wall between two sayings."""
    track = Track(total)
    for number, seen in enumerate(sightings):
        track.add([seen], None if apart is None else number * apart)
    return track


def test_the_last_step_s_loss_is_the_final_one_counted_from_0_or_from_1() -> None:
    assert track_of(Sighting(50, 3.0), Sighting(100, 2.0)).final_loss == 2.0
    assert track_of(Sighting(50, 3.0), Sighting(99, 2.0)).final_loss == 2.0
    assert track_of(Sighting(50, 3.0), Sighting(98, 2.0)).final_loss is None
    assert track_of(Sighting(None, 2.0)).final_loss == 2.0
    assert track_of(Sighting(50, 3.0), Sighting(90, 2.0)).final_loss is None, "it ended before its schedule did"
    assert track_of().final_loss is None


def test_a_final_loss_stands_before_the_last_point_s() -> None:
    track = track_of(Sighting(100, 2.1, seconds=10.0), Sighting(None, 2.0))
    assert track.final_loss == 2.0
    assert track.curve() == [(100, Sighting(100, 2.0, 10.0))]


def test_a_final_loss_is_the_end_s_also_where_points_come_seldom() -> None:
    track = track_of(Sighting(50, 3.0), Sighting(None, 2.0))
    assert track.final_loss == 2.0
    assert [(step, seen.loss) for step, seen in track.curve()] == [(50, 3.0), (100, 2.0)]


def test_points_that_waited_in_a_buffer_are_no_clock() -> None:
    held_back = Track(100)
    held_back.add([Sighting(step, 3.0) for step in (20, 40, 60, 80, 100)], 7.0)
    assert held_back.clock(50.0) == (WHOLE, 0.5)
    in_two = Track(100)
    in_two.add([Sighting(step, 3.0) for step in (20, 40, 60)], 7.0)
    in_two.add([Sighting(step, 3.0) for step in (80, 100)], 7.1)
    assert in_two.clock(50.0) == (WHOLE, 0.5)


def test_the_trainer_s_own_clock_is_taken_where_it_gives_one() -> None:
    every = track_of(Sighting(50, 3.0, 10.0), Sighting(100, 2.0, 30.0), apart=1.0)
    assert every.clock(99.0) == (OWN, pytest.approx(0.3))
    assert every.seconds_at(50, every.points[50], OWN, 0.3) == 10.0
    in_all = track_of(Sighting(50, 3.0), Sighting(100, 2.0), Sighting(None, 2.0, 40.0), apart=1.0)
    assert in_all.clock(99.0) == (OWN, pytest.approx(0.4))


def test_a_clock_that_was_set_back_gives_its_rate() -> None:
    back = track_of(Sighting(20, 3.0, 10.0), Sighting(40, 3.0, 20.0), Sighting(60, 2.5, 5.0), Sighting(100, 2.0, 25.0))
    clock, step_seconds = back.clock(99.0)
    assert (clock, step_seconds) == (OWN, pytest.approx(0.5))
    assert back.seconds_at(60, back.points[60], clock, step_seconds) == pytest.approx(30.0)


def test_else_the_wall_between_the_first_and_the_last_point_of_each_attempt() -> None:
    track = track_of(Sighting(20, 3.0), Sighting(60, 2.5), apart=8.0)
    track = Track(100, points=track.points, spans=track.spans)  # a further attempt
    track.add([Sighting(50, 2.6)], 1_000.0)
    track.add([Sighting(100, 2.0)], 1_012.0)
    assert track.clock(99.0) == (BETWEEN, pytest.approx(20.0 / 90))
    assert track_of(Sighting(100, 2.0), apart=1.0).clock(50.0) == (WHOLE, 0.5)


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf, 1e7])
def test_a_loss_that_left_all_bounds_is_a_divergence(loss: float) -> None:
    track = track_of(Sighting(50, 3.0), Sighting(60, loss))
    assert track.diverged is not None
    assert track.diverged[0] == 60


def test_what_no_cross_entropy_can_be_and_steps_beyond_the_end_are_objected_to() -> None:
    assert track_of(Sighting(1, -1.0)).objection == "a loss of -1 is none in nats per token"
    assert track_of(Sighting(101, 1.0)).objection == "it trains step 101 of 100"


def test_a_curve_is_thinned_evenly_and_keeps_its_ends() -> None:
    track = track_of(*(Sighting(step, 3.0) for step in range(1, 5_001)), total=5_000)
    steps = [step for step, _ in track.curve()]
    assert (len(steps), steps[0], steps[-1]) == (MOST_POINTS, 1, 5_000)
    assert steps == sorted(set(steps))
