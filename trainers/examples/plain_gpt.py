"""A small GPT in plain PyTorch: one file, its own text, its own superposition, a log. It knows of no sweep.

Bytes of the Python standard library's sources; warm-up, constant, linear decay. In the first `--boundary-step` steps a
position reads the mean of `--bag-size` embeddings and predicts the next bag. Shapes: B sequences, L positions, s bytes a
bag, D features.
"""

from __future__ import annotations

import argparse
import signal
import sysconfig
import time
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor, nn
from torch.nn import functional

VOCABULARY = 256
CONTEXT, BATCH, HEADS = 64, 8, 4
WARMUP, DECAY = 50, 0.2
HELD_OUT = 32
"""Batches that the validation loss is measured on, the same for every run."""


class Block(nn.Module):
    """Attention and an MLP, each after a norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.joined, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x_BLD: Tensor) -> Tensor:
        B, L, D = x_BLD.shape
        q, k, v = self.joined(self.norms[0](x_BLD)).view(B, L, 3, HEADS, D // HEADS).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x_BLD = x_BLD + self.out(mixed.transpose(1, 2).reshape(B, L, D))
        return torch.add(x_BLD, self.mlp(self.norms[1](x_BLD)))


class PlainGPT(nn.Module):
    """Bytes, or bags of bytes, to logits."""

    def __init__(self, layers: int, width: int) -> None:
        super().__init__()
        self.bytes, self.positions = nn.Embedding(VOCABULARY, width), nn.Embedding(CONTEXT, width)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, VOCABULARY, bias=False)

    def forward(self, bags_BLs: Tensor) -> Tensor:
        x_BLD = self.bytes(bags_BLs).mean(2) + self.positions.weight[: bags_BLs.shape[1]]
        logits: Tensor = self.head(self.norm(self.blocks(x_BLD)))
        return logits


def read_text() -> Tensor:
    """The standard library's own modules, in the order of their names, as bytes."""
    library = Path(sysconfig.get_paths()["stdlib"])
    files = [*sorted(library.glob("*.py")), *sorted(library.glob("*/*.py"))]
    kept = [file for file in files if not {"site-packages", "test", "idlelib"} & set(file.parts)]
    return torch.tensor(bytearray(b"\0".join(file.read_bytes() for file in kept)), dtype=torch.uint8)


def batch(text: Tensor, bag: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Bags `[B, L, s]` from random places, and for each the bag that follows it."""
    span = bag * (CONTEXT + 1)
    starts = torch.randint(len(text) - span, (BATCH, 1), generator=draw)
    bags = text[starts + torch.arange(span)].long().view(BATCH, CONTEXT + 1, bag)
    return bags[:, :-1], bags[:, 1:]


def loss_of(model: nn.Module, bags: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy against all bytes of the next bag alike, nats."""
    log_probabilities = functional.log_softmax(model(bags), dim=-1)
    return -log_probabilities.gather(2, targets).mean()


@torch.no_grad()
def validation_loss(model: nn.Module, text: Tensor) -> float:
    """Next-byte loss on held-out text."""
    draw = torch.Generator().manual_seed(0)
    return sum(loss_of(model, *batch(text, 1, draw)).item() for _ in range(HELD_OUT)) / HELD_OUT


def rate_at(step: int, total: int) -> float:
    """Share of the peak learning rate."""
    return min(1.0, (step + 1) / WARMUP, (total - step) / max(1, DECAY * total))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train a small GPT on the standard library's sources.")
    for name, kind, default in (
        ("layers", int, 2), ("width", int, 64), ("steps", int, 1000), ("lr", float, 2e-3), ("seed", int, 0),
        ("bag-size", int, 1), ("boundary-step", int, 0), ("evaluate-every", int, 100), ("save", Path, None),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=kind, default=default)
    return parser.parse_args()


def main() -> None:
    given = arguments()
    ending: list[int] = []

    def end(number: int, frame: FrameType | None) -> None:
        ending.append(number)

    signal.signal(signal.SIGTERM, end)
    torch.manual_seed(given.seed)
    text = read_text()
    held_out, text = text[: len(text) // 20], text[len(text) // 20 :]
    model = PlainGPT(given.layers, given.width)
    optimizer = torch.optim.AdamW(model.parameters(), lr=given.lr, betas=(0.9, 0.95), weight_decay=0.1)
    draw, first, seconds = torch.Generator().manual_seed(given.seed), 0, 0.0
    if given.save is not None and given.save.exists():
        state = torch.load(given.save, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        draw.set_state(state["draw"])
        first, seconds = state["step"], state["seconds"]
    every = min(given.evaluate_every, max(1, given.steps // 4))
    for step in range(first, given.steps):
        began = time.process_time()
        for group in optimizer.param_groups:
            group["lr"] = given.lr * rate_at(step, given.steps)
        bag = given.bag_size if step < given.boundary_step else 1
        loss = loss_of(model, *batch(text, bag, draw))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        seconds += time.process_time() - began
        done = step + 1
        if done % every == 0 or done == given.steps:
            print(f"step {done} val_loss {validation_loss(model, held_out):.5f} seconds {seconds:.3f}", flush=True)
        if given.save is not None and ending:
            kept = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "draw": draw.get_state()}
            torch.save({**kept, "step": done, "seconds": seconds}, given.save)
        if ending:
            raise SystemExit(143)


if __name__ == "__main__":
    main()
