"""What the validation text adds to the error of a difference, estimated from the losses of its pieces."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from reports.estimate.noise import Sampling, interaction_of, sampling_of
from reports.evidence.runs import FinishedRun, run_from_record
from tests.support.strategies import record_of, spec_of
from trainers.contract.record import TextScore

ARMS = ["baseline"] * 3 + ["method"] * 3
DIFFERENCE = np.array([[-1 / 3] * 3 + [1 / 3] * 3])


def pieces_of(generator: np.random.Generator, num: int, arm: float, seed: float) -> np.ndarray:
    """Losses `[6, P]`: a piece's own worth to everybody, to each arm, and to each seed."""
    arms = arm / np.sqrt(2) * generator.standard_normal((2, num))
    own = seed * generator.standard_normal((6, num))
    return 3.0 + generator.standard_normal(num) + np.repeat(arms, 3, axis=0) + own


def test_the_estimate_is_unbiased_and_leaves_out_what_seeds_scatter() -> None:
    generator = np.random.default_rng(0)
    found, interactions = [], []
    for _ in range(400):
        pieces = pieces_of(generator, 100, arm=0.07, seed=0.05)
        interactions.append(interaction_of(pieces, ARMS))
        found.append(float(Sampling(pieces, interactions[-1]).variance_of(DIFFERENCE)[0]))
    assert np.mean(interactions) == pytest.approx(0.05**2, rel=0.03)
    assert np.mean(found) == pytest.approx(0.07**2 / 100, rel=0.05)


def test_what_a_piece_is_worth_to_both_arms_cancels() -> None:
    pieces = np.tile(np.random.default_rng(1).standard_normal(50), (6, 1))
    assert Sampling(pieces, 0.0).variance_of(DIFFERENCE)[0] == pytest.approx(0.0, abs=1e-30)


def test_one_seed_an_arm_has_no_interaction_to_take_out() -> None:
    pieces = pieces_of(np.random.default_rng(2), 64, arm=0.07, seed=0.05)
    assert interaction_of(pieces[[0, 3]], ["baseline", "method"]) == 0.0


def scored(seed: int, pieces: tuple[float, ...], piece_tokens: int = 1_024) -> FinishedRun:
    record = record_of(spec_of(seed=seed))
    return run_from_record(replace(record, score=TextScore(len(pieces) * 1_024, 2.7, piece_tokens, pieces)))


def test_runs_are_compared_on_the_same_pieces_or_not_at_all() -> None:
    pieces = tuple(np.linspace(2, 3, 16))
    runs = [scored(seed, pieces) for seed in range(3)]
    assert sampling_of(runs, ["a", "a", "b"]) is not None
    assert sampling_of([*runs, run_from_record(record_of(spec_of(seed=9)))], ["a", "a", "b", "b"]) is None
    assert sampling_of([*runs, scored(4, pieces[:-1])], ["a", "a", "b", "b"]) is None
    assert sampling_of([*runs, scored(4, pieces, 2_048)], ["a", "a", "b", "b"]) is None
    assert sampling_of([scored(seed, pieces[:4]) for seed in range(2)], ["a", "b"]) is None
