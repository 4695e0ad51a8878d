"""The page's code for TorchTitan as far as a CPU lets it: its loss, its batches and its model with bags, but no run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.unit.trainers.examples.test_superposition_at_home import (
    BATCH,
    CONTEXT,
    PHASES,
    STARTS,
    STEPS,
    TOKENS,
    block,
    ids_alone,
    slow_batch,
    slow_loss,
)
from trainers.contract.schedule import data_position, phase_at

pytest.importorskip("torchtitan.trainer", reason="TorchTitan is not installed")
pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def code() -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": __name__}
    exec(ids_alone() + block("TorchTitan"), names)
    return names


class Loader:
    """A loader as theirs: rows of `dataset.seq_len` tokens, the labels one further, beside positions."""

    def __init__(self) -> None:
        self.dataset = SimpleNamespace(seq_len=CONTEXT)

    def __iter__(self) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        for step in range(STEPS):
            here, length = STARTS + data_position(PHASES, CONTEXT, step), self.dataset.seq_len
            rows = TOKENS[(here + torch.arange(length + 1)) % len(TOKENS)]
            yield {"input": rows[:, :-1], "positions": torch.arange(length).expand(BATCH, -1)}, rows[:, 1:]


def test_batches_hold_bags_up_to_the_boundary_and_what_they_always_held_after_it(code: dict[str, Any]) -> None:
    trainer = object.__new__(code["SuperposedTrainer"])
    trainer.phases, trainer.dataloader, trainer.step = PHASES, Loader(), 0
    trainer.config = SimpleNamespace(training=SimpleNamespace(seq_len=CONTEXT))
    trainer.metrics_processor = SimpleNamespace(ntokens_since_last_log=0, data_loading_times=[])
    batches = trainer.batch_generator(trainer.dataloader)
    for step in range(STEPS):
        trainer.step = step + 1
        inputs, labels = next(batches)
        pairs = [slow_batch(phase_at(PHASES, step), step, lane) for lane in range(BATCH)]
        bags, targets = (torch.tensor([pair[side] for pair in pairs]) for side in (0, 1))
        if step >= PHASES[0].end:
            bags, targets = bags.squeeze(2), targets.squeeze(2)
        assert torch.equal(inputs["input"], bags)
        assert torch.equal(labels, targets)
        assert inputs["positions"].tolist() == [list(range(CONTEXT))] * BATCH


def test_its_llama_reads_bags_and_its_chunked_loss_is_the_slow_one(code: dict[str, Any]) -> None:
    from torchtitan.components.loss import ChunkedLossWrapper
    from torchtitan.models.common.attention import ScaledDotProductAttention
    from torchtitan.models.llama3 import model_registry

    config = model_registry("debugmodel").model
    config.layers = config.layers[:1]
    attention = config.layers[0].attention
    attention.inner_attention = ScaledDotProductAttention.Config()
    attention.rope = replace(attention.rope, max_seq_len=CONTEXT)
    torch.manual_seed(1)
    model = config.build()
    model.init_weights()
    table = model.tok_embeddings
    code["read_bags"](table)
    bags, targets = (torch.randint(0, config.vocab_size, (BATCH, CONTEXT, 3)) for _ in range(2))
    torch.testing.assert_close(table(bags), table.weight[bags].mean(2), rtol=1e-6, atol=1e-6)
    assert torch.equal(table(bags[..., 0]), table.weight[bags[..., 0]])

    slow = slow_loss(model(bags), targets)
    slow.backward()  # type: ignore[no-untyped-call]
    wanted = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    loss_fn = ChunkedLossWrapper.Config(num_chunks=2, loss_fn=code["MultiHotLoss"].Config()).build(compile_config=None)
    loss_fn.set_lm_head(model.lm_head)
    model._skip_lm_head = True
    loss, _ = loss_fn(model(bags), targets, torch.tensor(targets.numel()))
    loss.backward()
    torch.testing.assert_close(loss, slow, rtol=1e-5, atol=0)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-4, atol=1e-6, msg=name)
