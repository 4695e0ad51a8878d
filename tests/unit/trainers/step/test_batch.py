"""Which tokens a step reads."""

from __future__ import annotations

import torch

from tests.support.tiny_training import CORPUS, CPU, tiny_spec
from trainers.contract.schedule import data_position, phase_at
from trainers.methods import phases_of
from trainers.step.batch import lane_position, read_batch


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
