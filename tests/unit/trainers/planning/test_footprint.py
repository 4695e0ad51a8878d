"""The arithmetic of memory against what tensors of a step are alive at its peak, and what follows from it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from tests.support.live_bytes import peak_of
from tests.support.tiny_training import CPU, tiny_spec
from trainers.contract.flops import chunk_rows, count_parameters
from trainers.contract.scales import SCALES
from trainers.contract.schedule import number_of_heads
from trainers.contract.spec import ModelShape, TrialSpec
from trainers.methods import phases_of
from trainers.model.decoder import build_model
from trainers.planning.footprint import USABLE, fewest_gpus, footprint, largest_micro_batch, way_to_fit
from trainers.step.optim import build_optimizer
from trainers.step.step import TrainingStep


@dataclass(frozen=True)
class Counting:
    """A stream without end of every token in turn."""

    vocab_size: int
    tokens_per_epoch: int = 1 << 20

    def read(self, position: int, count: int) -> np.ndarray:
        return np.arange(position, position + count) % self.vocab_size


def spec_of(shape: ModelShape, context: int, sequences: int, method: str = "tst", **changes: Any) -> TrialSpec:
    return tiny_spec(
        method, shape=shape, context=context, tokens_per_step=context * sequences, validation_tokens=context, **changes
    )


def measured_peak(spec: TrialSpec, micro_sequences: int, recompute: bool = False) -> int:
    """Bytes of all tensors alive at the peak of a run's second step, model and optimizer included."""
    phases = phases_of(spec)
    model = build_model(spec.shape, spec.context, spec.seed, CPU, number_of_heads(phases))
    optimizer = build_optimizer(model, spec.optimizer)
    stream = Counting(spec.shape.vocab_size)
    step = TrainingStep(spec, phases, model, optimizer, stream, CPU, "eager", micro_sequences, recompute)
    step.run(0, step.phases[0])
    moments = [value for state in optimizer.state.values() for value in state.values()]
    already = sum(tensor.untyped_storage().nbytes() for tensor in (*model.parameters(), *model.buffers(), *moments))
    return already + peak_of(lambda: step.run(1, step.phases[0]))


DEEP = ModelShape(6, 64, 4, 2, 24, 200, 64)  # activations of many layers
GATED = ModelShape(1, 64, 4, 4, 16, 600, 64)  # the way back through a wide MLP
LEXICAL = ModelShape(2, 64, 4, 2, 24, 200, 4_096)  # the loss
WIDE = ModelShape(2, 256, 4, 2, 64, 688, 512)  # parameters
NORMED = ModelShape(4, 64, 4, 2, 24, 200, 64, qk_norm=True)
EXPERTS = ModelShape(2, 64, 4, 2, 16, 128, 512, qk_norm=True, num_experts=8, experts_per_token=2)


@pytest.mark.parametrize("method", ["baseline", "tst"])
@pytest.mark.parametrize(
    ("shape", "context", "sequences", "micro_sequences"),
    [
        (DEEP, 64, 16, 16),
        (DEEP, 64, 16, 2),
        (GATED, 64, 16, 16),
        (LEXICAL, 64, 16, 16),
        (LEXICAL, 64, 16, 1),
        (WIDE, 64, 1, 1),
        (WIDE, 64, 4, 1),
        (NORMED, 64, 16, 8),
        (EXPERTS, 64, 16, 16),
        (EXPERTS, 64, 16, 4),
    ],
)
def test_the_estimate_is_within_a_tenth_of_the_peak(
    method: str, shape: ModelShape, context: int, sequences: int, micro_sequences: int
) -> None:
    spec = spec_of(shape, context, sequences, method)
    stay = micro_sequences < sequences
    estimate = footprint(spec, micro_sequences, device_kind="cpu", gradients_stay=stay)
    assert estimate.total == pytest.approx(measured_peak(spec, micro_sequences), rel=0.1)


@pytest.mark.parametrize("shape", [DEEP, LEXICAL, EXPERTS])
def test_the_estimate_holds_with_recomputed_activations(shape: ModelShape) -> None:
    spec = spec_of(shape, 64, 8)
    estimate = footprint(spec, 4, device_kind="cpu", checkpoint_activations=True)
    assert estimate.total == pytest.approx(measured_peak(spec, 4, recompute=True), rel=0.1)
    assert estimate.total < footprint(spec, 4, device_kind="cpu").total


def test_the_estimate_counts_every_output_head() -> None:
    spec = replace(spec_of(DEEP, 64, 8, "baseline"), method="multi_token", parameters=(("heads", 3),))
    assert footprint(spec, 4, device_kind="cpu").total == pytest.approx(measured_peak(spec, 4), rel=0.1)


def test_bytes_of_a_parameter() -> None:
    """fp32: master 4, gradient 4, moments 8; bf16 also a working weight and its gradient of 2 each."""
    parameters = count_parameters(DEEP).total
    full, half = (footprint(spec_of(DEEP, 64, 8, precision=kind), 1) for kind in ("fp32", "bf16"))
    assert (full.weights, full.gradients, full.moments) == (4 * parameters, 4 * parameters, 8 * parameters)
    assert half.weights + half.gradients + half.moments == 20 * parameters
    assert full.gathered == half.gathered == 0


def test_ranks_share_what_is_sharded_and_gather_the_rest() -> None:
    spec = spec_of(SCALES["3b"].shape, 2_048, 64, precision="bf16")
    one, eight = footprint(spec, 1), footprint(spec, 1, ranks=8)
    assert eight.moments == pytest.approx(one.moments / 8, rel=1e-6)
    assert (eight.activations, eight.loss) == (one.activations, one.loss)
    assert 0 < eight.gathered < one.weights
    assert eight.total < one.total / 2


def test_a_chunk_of_logits_is_bounded_in_rows_and_bytes() -> None:
    assert chunk_rows(512, 4) == 8_192
    assert chunk_rows(151_936, 4) * 151_936 * 4 <= 2 << 30
    assert chunk_rows(1 << 40, 4) == 64


def test_the_largest_micro_batch_fits_and_the_next_does_not() -> None:
    spec = spec_of(SCALES["270m"].shape, 2_048, 96, precision="bf16")
    micro = largest_micro_batch(spec, 80e9)
    assert micro is not None
    assert 96 % micro == 0
    following = next(number for number in range(micro + 1, 97) if 96 % number == 0)
    assert footprint(spec, micro).total <= USABLE * 80e9 < footprint(spec, following).total
    assert (largest_micro_batch(spec, 80e9, checkpoint_activations=True) or 0) > micro
    assert largest_micro_batch(spec, 1e9) is None
    assert largest_micro_batch(spec, 80e9, ranks=5) is None  # 96 sequences do not go into five equal shares


def test_the_published_scales_fit_where_they_should() -> None:
    """The mixture of experts cannot live on one H200 (16 bytes a parameter are 162 GB), and can on a few."""
    small = fewest_gpus(spec_of(SCALES["270m"].shape, 2_048, 1_024, precision="bf16"), 141e9)
    experts = fewest_gpus(spec_of(SCALES["10b-a1b"].shape, 4_096, 2_048, precision="bf16"), 141e9)
    assert small is not None
    assert experts is not None
    assert small.gpus == 1
    assert 2 <= experts.gpus <= 8
    assert experts.needs.total <= USABLE * 141e9
    assert fewest_gpus(spec_of(SCALES["10b-a1b"].shape, 4_096, 2_048, precision="bf16"), 2e9) is None


def test_a_given_micro_batch_is_taken_or_refused() -> None:
    spec = spec_of(DEEP, 64, 16)
    room = footprint(spec, 4).total / USABLE
    fit = way_to_fit(spec, room, 1, micro_sequences=4)
    assert fit is not None
    assert (fit.micro_sequences, fit.needs) == (4, footprint(spec, 4))
    assert way_to_fit(spec, room, 1, micro_sequences=8) is None
