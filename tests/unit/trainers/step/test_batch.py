"""Which tokens a step reads, and what each position is asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.support.tiny_training import CORPUS, CPU, tiny_spec
from trainers.contract.schedule import Phase, data_position, phase_at
from trainers.methods import phases_of
from trainers.step.batch import cut_batch, lane_position, read_batch


def slow_cut(tokens: list[int], context: int, bag: int, num_targets: int) -> tuple[list[list[int]], list[list[int]]]:
    """One sequence, one position after the other."""
    inputs = [[tokens[j * bag + k] for k in range(bag)] for j in range(context)]
    targets = [[tokens[(j + 1) * bag + k] for k in range(num_targets)] for j in range(context)]
    return inputs, targets


@pytest.mark.parametrize(
    ("bag", "num_targets"), [(1, 1), (3, 3), (5, 5), pytest.param(3, 1, id="input"), pytest.param(1, 4, id="output")]
)
def test_targets_are_the_tokens_that_follow_the_bag(bag: int, num_targets: int) -> None:
    context, phase = 4, Phase("any", 0, 1, bag_size=bag, target_size=num_targets)
    tokens = np.random.default_rng(0).integers(0, 1_000, (2, context * bag + num_targets))
    inputs, targets = cut_batch(tokens, context, phase)
    for row in range(2):
        slow = slow_cut(tokens[row].tolist(), context, bag, num_targets)
        assert (inputs[row].tolist(), targets[row].tolist()) == slow


def test_superposition_is_asked_for_the_whole_next_bag() -> None:
    inputs, targets = cut_batch(np.arange(12)[None], 3, Phase("superposition", 0, 1, bag_size=3, target_size=3))
    assert inputs.tolist() == [[[0, 1, 2], [3, 4, 5], [6, 7, 8]]]
    assert targets.tolist() == [[[3, 4, 5], [6, 7, 8], [9, 10, 11]]]


def test_lanes_read_on_where_the_last_step_left_off_across_the_boundary() -> None:
    spec = tiny_spec(total_steps=10, step_ratio=0.4, bag_size=3, sequences=3)
    phases, stream = phases_of(spec), CORPUS.stream(spec.seed, 32)
    read: list[list[int]] = [[], [], []]
    for step in range(10):
        inputs, _ = read_batch(stream, spec, phases, phase_at(phases, step), step, CPU)
        for lane in range(3):
            read[lane] += inputs[lane].flatten().tolist()
    stride = len(CORPUS.train) // 3
    for lane in range(3):
        assert read[lane] == stream.read(lane * stride, 8 * (3 * 4 + 6)).tolist()


def test_a_step_reads_the_tokens_that_are_counted() -> None:
    spec = tiny_spec(total_steps=10, step_ratio=0.4, bag_size=3, sequences=3)
    phases, stream, counted = phases_of(spec), CORPUS.stream(0, 32), 0
    for step in range(10):
        assert data_position(phases, spec.tokens_per_step, step) == counted
        counted += read_batch(stream, spec, phases, phase_at(phases, step), step, CPU)[0].numel()
    assert data_position(phases, spec.tokens_per_step, 10) == counted == 24 * (3 * 4 + 6)


def test_lanes_start_evenly_over_the_epoch() -> None:
    spec = tiny_spec("baseline", sequences=4)
    assert [lane_position(1_003, spec, phases_of(spec), 0, lane) for lane in range(4)] == [0, 250, 500, 750]


def test_batches_are_integers_of_the_shapes_that_the_model_takes() -> None:
    spec = tiny_spec(sequences=2)
    phases = phases_of(spec)
    inputs, targets = read_batch(CORPUS.stream(0, 32), spec, phases, phases[0], 0, CPU)
    assert (inputs.dtype, targets.dtype) == (torch.int64, torch.int64)
    assert (tuple(inputs.shape), tuple(targets.shape)) == ((2, 8, 3), (2, 8, 3))
