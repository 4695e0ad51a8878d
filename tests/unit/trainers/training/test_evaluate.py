"""Validation loss: the same tokens, one by one, whatever the batch size of the evaluation."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.support.live_bytes import peak_of
from tests.support.tiny_training import CPU, SHAPE
from trainers.model.decoder import build_model
from trainers.step.precision import WorkingWeights
from trainers.training import evaluate
from trainers.training.evaluate import validation_loss

TOKENS = np.random.default_rng(0).integers(0, SHAPE.vocab_size, 45).astype(np.int64)


def test_the_loss_is_the_mean_over_whole_windows_one_position_after_the_other() -> None:
    model = build_model(SHAPE, 8, 0, CPU)
    losses = []
    for window in range(5):  # 44 targets hold five whole windows of 8; the last four tokens are left out
        start = window * 8
        with torch.no_grad():
            logits = model.head(model(torch.from_numpy(TOKENS[start : start + 8]).view(1, 8, 1)))[0]
        losses += [float(F.cross_entropy(logits[i], torch.tensor(TOKENS[start + i + 1]))) for i in range(8)]
    assert validation_loss(model, TOKENS, 8, CPU) == pytest.approx(sum(losses) / 40, rel=1e-6)


def test_the_size_of_a_forward_pass_changes_nothing_but_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model(SHAPE, 8, 0, CPU)
    whole = validation_loss(model, TOKENS, 8, CPU)
    monkeypatch.setattr(evaluate, "EVALUATION_POSITIONS", 16)
    assert validation_loss(model, TOKENS, 8, CPU) == pytest.approx(whole, rel=1e-6)


@pytest.mark.parametrize("rows", [1, 16, 24])
def test_how_many_logits_exist_at_once_changes_memory_only(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    vocabulary = 3_000
    model = build_model(replace(SHAPE, vocab_size=vocabulary), 8, 0, CPU)
    whole = validation_loss(model, TOKENS, 8, CPU)
    before = peak_of(lambda: validation_loss(model, TOKENS, 8, CPU))
    monkeypatch.setattr(evaluate, "EVALUATION_LOGITS", rows * vocabulary)
    assert validation_loss(model, TOKENS, 8, CPU) == pytest.approx(whole, rel=1e-6)
    # without a bound all 40 positions have logits and their log-softmax at once
    saved = 2 * 4 * (40 - rows) * vocabulary
    assert peak_of(lambda: validation_loss(model, TOKENS, 8, CPU)) <= before - 0.9 * saved


def test_reading_the_loss_leaves_no_gradient_and_changes_no_weight() -> None:
    model = build_model(SHAPE, 8, 0, CPU)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    validation_loss(model, TOKENS, 8, CPU)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_read_only_tokens_of_any_integer_type_are_taken() -> None:
    model, small = build_model(SHAPE, 8, 0, CPU), TOKENS.astype(np.uint16)
    small.flags.writeable = False
    assert validation_loss(model, small, 8, CPU) == validation_loss(model, TOKENS, 8, CPU)


def test_bf16_is_near_and_a_broken_model_says_so() -> None:
    model = build_model(SHAPE, 8, 0, CPU)
    exact = validation_loss(model, TOKENS, 8, CPU)
    assert validation_loss(WorkingWeights(model, "bf16").model, TOKENS, 8, CPU) == pytest.approx(exact, rel=0.02)
    with torch.no_grad():
        model.norm.weight.fill_(float("nan"))
    assert math.isnan(validation_loss(model, TOKENS, 8, CPU))
