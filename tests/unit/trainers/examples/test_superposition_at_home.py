"""The page's code for other trainers, run as it stands, each against a slow loop of look-ups and cross-entropies."""

from __future__ import annotations

import ast
import builtins
import re
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.support.places import ROOT
from trainers.contract.schedule import Phase, data_position, phase_at
from trainers.superposition import boundary_step, superposition_phases

STEPS, CONTEXT, BATCH, VOCABULARY, WIDTH = 6, 4, 3, 11, 8
TOKENS = torch.randint(0, VOCABULARY, (60,), generator=torch.Generator().manual_seed(0))
STARTS = 20 * torch.arange(BATCH)[:, None]
"""A sequence reads past the next one's start and the last one past the end of the text."""
PHASES = superposition_phases(STEPS, 3, 3)


def block(section: str) -> str:
    """The code of a section of the page."""
    text = (ROOT / "trainers" / "examples" / "README.md").read_text("utf-8")
    (found,) = re.findall(rf"^## {re.escape(section)}\n.*?^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    return str(found)


def ids_alone() -> str:
    """The code for a model that takes ids alone, with the bags of these tests."""
    code = block("A model that takes ids alone")
    assert "BOUNDARY, BAG_SIZE = 3_000, 8 " in code
    return code.replace("3_000, 8 ", "3, 3 ")


def free_names(code: str) -> set[str]:
    """The names that code reads and nowhere says where they come from."""
    tree, read, known = ast.parse(code), set(), set(dir(builtins))
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Load()):
                read.add(name)
            case ast.Name(id=name) | ast.arg(arg=name) | ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                known.add(name)
            case ast.alias(name=name, asname=other):
                known.add(other or name)
    return read - known


@pytest.mark.parametrize(
    ("section", "yours"),
    [
        (
            "A plain PyTorch loop",
            {"total_steps", "tokens", "batch", "context", "embedding", "body", "head", "optimizer"},
        ),
        ("Transformers", set()),
        ("TorchTitan", set()),
        (
            "nanochat",
            {
                *("model", "num_iterations", "tokenizing_distributed_data_loader_with_state_bos_bestfit", "tokenizer"),
                *("args", "device", "dataloader_state_dict", "grad_accum_steps", "optimizer"),
            },
        ),
    ],
)
def test_the_code_reads_nothing_but_what_is_the_trainers(section: str, yours: set[str]) -> None:
    code = block(section)
    assert free_names(ids_alone() + code if section in ("TorchTitan", "nanochat") else code) <= yours


def slow_batch(phase: Phase, step: int, lane: int) -> tuple[list[list[int]], list[list[int]]]:
    """Bags of a sequence and the bags that follow them, one token after the other."""
    bag, here = phase.bag_size, int(STARTS[lane]) + data_position(PHASES, CONTEXT, step)
    bags = [[int(TOKENS[(here + j * bag + k) % len(TOKENS)]) for k in range(bag)] for j in range(CONTEXT + 1)]
    return bags[:-1], bags[1:]


def slow_loss(logits_BLV: Tensor, targets_BLT: Tensor) -> Tensor:
    """The mean over positions and targets of ordinary cross-entropies."""
    columns = targets_BLT.flatten(0, 1).T
    return torch.stack([F.cross_entropy(logits_BLV.flatten(0, 1), wanted) for wanted in columns]).mean()


def slow_training(embedding: nn.Embedding, rest: Any, optimizer: torch.optim.Optimizer) -> list[float]:
    """Train `STEPS` steps; `rest` makes logits of embedded positions. Losses."""
    losses = []
    for step in range(STEPS):
        pairs = [slow_batch(phase_at(PHASES, step), step, lane) for lane in range(BATCH)]
        bags, targets = (torch.tensor([pair[side] for pair in pairs]) for side in (0, 1))
        loss = slow_loss(rest(embedding(bags).mean(2)), targets)
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return losses


def parts_of_a_model() -> tuple[nn.Embedding, nn.Linear, nn.Linear]:
    torch.manual_seed(1)
    return nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)


def test_the_plain_loop_trains_as_the_slow_one() -> None:
    embedding, body, head = parts_of_a_model()
    model = nn.ModuleList((embedding, body, head))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    names: dict[str, Any] = {"total_steps": STEPS, "context": CONTEXT, "tokens": TOKENS, "batch": BATCH}
    names |= {"embedding": embedding, "body": body, "head": head, "optimizer": optimizer}
    code = block("A plain PyTorch loop").replace("tst.boundary_step(0.3, total_steps), bag_size=8", "3, bag_size=3")
    assert "superposition_phases(total_steps, 3, bag_size=3)" in code
    exec(code, names)
    slow = parts_of_a_model()
    optimizer = torch.optim.SGD(nn.ModuleList(slow).parameters(), lr=0.5)
    slow_training(slow[0], lambda x: slow[2](slow[1](x)), optimizer)
    for found, wanted in zip(model.parameters(), nn.ModuleList(slow).parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    assert boundary_step(0.5, STEPS) == 3


class StandInGPT(nn.Module):
    """What nanochat's model is to its trainer: tables named as there, logits where no targets are given."""

    def __init__(self) -> None:
        super().__init__()
        table, self.body, self.lm_head = parts_of_a_model()
        self.transformer = nn.ModuleDict({"wte": table})
        self.value_embeds = nn.ModuleDict({"0": nn.Embedding.from_pretrained(table.weight.detach() / 2, freeze=False)})

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> Tensor:
        batch, length = idx.shape[:2]
        x = self.body(self.transformer["wte"](idx)) + self.value_embeds["0"](idx)
        logits: Tensor = self.lm_head(x.view(batch, length, WIDTH)).float()
        return logits if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def rows_of(width: int, first: int) -> Iterator[Tensor]:
    """Windows of `width` tokens from each lane, from position `first` on, each beginning where the next bag would."""
    for step in range(first, STEPS):
        here = STARTS + data_position(PHASES, CONTEXT, step)
        yield TOKENS[(here + torch.arange(width)) % len(TOKENS)]


def test_the_code_for_nanochat_trains_its_stand_in_as_the_slow_loop_does() -> None:
    asked: list[tuple[int, Any]] = []

    def loader(tokenizer: object, batch: int, length: int, **given: Any) -> Iterator[tuple[Tensor, Tensor, int]]:
        asked.append((length, given["resume_state_dict"]))
        first = given["resume_state_dict"] or 0
        for step, row in enumerate(rows_of(length + 1, first), first + 1):
            yield row[:, :-1], row[:, 1:], step

    model, slow = StandInGPT(), StandInGPT()
    names: dict[str, Any] = {
        "model": model, "num_iterations": STEPS, "tokenizer": None, "device": torch.device("cpu"),
        "args": Namespace(device_batch_size=BATCH, max_seq_len=CONTEXT), "dataloader_state_dict": None,
        "grad_accum_steps": 1, "optimizer": torch.optim.SGD(model.parameters(), lr=0.5), 
        "tokenizing_distributed_data_loader_with_state_bos_bestfit": loader,
    }  # fmt: skip
    exec(ids_alone() + block("nanochat"), names)
    assert asked == [(CONTEXT * 3 + 2, None), (CONTEXT, 3)]
    optimizer, wte, ve = (
        torch.optim.SGD(slow.parameters(), lr=0.5), slow.transformer["wte"], slow.value_embeds["0"],
    )  # fmt: skip
    for step in range(STEPS):
        pairs = [slow_batch(phase_at(PHASES, step), step, lane) for lane in range(BATCH)]
        bags, targets = (torch.tensor([pair[side] for pair in pairs]) for side in (0, 1))
        loss = slow_loss(slow.lm_head(slow.body(wte(bags).mean(2)) + ve(bags).mean(2)), targets)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    for found, wanted in zip(model.parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    # Validation goes on as ever: single tokens without a third dimension.
    ordinary = TOKENS[: BATCH * CONTEXT].view(BATCH, CONTEXT)
    torch.testing.assert_close(model(ordinary, ordinary), slow(ordinary, ordinary), rtol=1e-5, atol=1e-6)


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_code_for_transformers_trains_as_the_slow_loop_does(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the extra `examples` is not installed")
    pytest.importorskip("accelerate", reason="the extra `examples` is not installed")
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(1)
    model, slow = transformers.LlamaForCausalLM(config), transformers.LlamaForCausalLM(config)
    slow.load_state_dict(model.state_dict())
    names: dict[str, Any] = {}
    exec(block("Transformers"), names)
    settings = transformers.TrainingArguments(
        output_dir=str(tmp_path), max_steps=STEPS, per_device_train_batch_size=BATCH, learning_rate=0.5, optim="sgd",
        lr_scheduler_type="constant", max_grad_norm=0.0, logging_steps=1, report_to="none", save_strategy="no",
        use_cpu=True, disable_tqdm=True, remove_unused_columns=False,
    )  # fmt: skip
    windows = names["Windows"](TOKENS, PHASES, CONTEXT, BATCH)
    trainer = names["SuperposedTrainer"](model, settings, train_dataset=windows)
    trainer.train()
    told = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    losses = slow_training(
        slow.get_input_embeddings(), lambda x: slow(inputs_embeds=x).logits, torch.optim.SGD(slow.parameters(), lr=0.5)
    )
    assert [float(loss) for loss in told] == pytest.approx(losses, abs=1e-3)
    for found, wanted in zip(model.parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
