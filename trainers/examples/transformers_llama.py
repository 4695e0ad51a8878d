"""Hugging Face's `transformers.Trainer` on a tiny Llama, with superposition added: two methods of the trainer, and its data.

Bytes of the Python standard library's sources; warm-up, constant, linear decay. In the first `--boundary-step` steps a
position reads the mean of `--bag-size` embeddings and is asked for the whole next bag. Points go to the sweep, where one
runs it. Shapes: B sequences, L positions, S bytes a bag, V bytes that there are.
"""

from __future__ import annotations

import argparse
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from trainers.examples.plain_gpt import read_text
from trainers.examples.sweeper_points import point
from trainers.superposition import (
    Phase,
    cut_batch,
    mean_of_bags,
    multi_hot_cross_entropy,
    phase_at,
    superposition_phases,
    window_tokens,
)

VOCABULARY, CONTEXT, BATCH, EVALUATED = 256, 64, 8, 64
WARMUP, DECAY = 50, 0.2
HELD_OUT = 32
"""Steps' batches that the validation loss is measured on, the same for every run."""


class Windows(IterableDataset[dict[str, Any]]):
    """The windows of steps `[first, end)` of the phases, `BATCH` for each, at random places that seed and step decide."""

    def __init__(self, text: Tensor, phases: tuple[Phase, ...], seed: int, first: int = 0) -> None:
        self.text, self.phases, self.seed, self.first = text, phases, seed, first

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for step in range(self.first, self.phases[-1].end):
            phase = phase_at(self.phases, step)
            count = window_tokens(CONTEXT, phase)
            draw = torch.Generator().manual_seed(1_000_003 * self.seed + step)
            starts = torch.randint(len(self.text) - count, (BATCH, 1), generator=draw)
            bags, targets = cut_batch(self.text[starts + torch.arange(count)].long(), CONTEXT, phase)
            yield from ({"bags": b, "targets": t} for b, t in zip(bags, targets, strict=True))


class SuperposedTrainer(Trainer):  # type: ignore[misc]
    """A trainer whose inputs are bags and whose loss is that of the whole next bag; bags of one token are as ever."""

    def compute_loss(self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, **_: Any) -> Any:
        embeddings = mean_of_bags(inputs["bags"], self.model.get_input_embeddings().weight)
        outputs = model(inputs_embeds=embeddings)
        loss = multi_hot_cross_entropy(outputs.logits.flatten(0, 1), inputs["targets"].flatten(0, 1))
        return (loss, outputs) if return_outputs else loss


class Told(TrainerCallback):  # type: ignore[misc]
    """Counts processor seconds of the steps, tells the sweep each validation loss, saves and stops on SIGTERM."""

    def __init__(self, out: Path) -> None:
        self.kept, self.ending, self.began = out / "seconds", False, 0.0
        self.seconds = float(self.kept.read_text()) if self.kept.exists() else 0.0
        signal.signal(signal.SIGTERM, self.end)

    def end(self, number: int, frame: FrameType | None) -> None:
        self.ending = True

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.began = time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.seconds += time.process_time() - self.began
        if self.ending:
            control.should_save = control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.kept.write_text(str(self.seconds))

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any) -> None:
        print(f"step {state.global_step} val_loss {metrics['eval_loss']:.5f}", flush=True)
        point(state.global_step, metrics["eval_loss"], seconds=self.seconds)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train a tiny Llama on the standard library's sources.")
    for name, kind, default in (
        ("layers", int, 2), ("width", int, 64), ("steps", int, 1000), ("lr", float, 4e-3), ("seed", int, 0),
        ("bag-size", int, 1), ("boundary-step", int, 0), ("evaluate-every", int, 100), ("out", Path, Path("llama")),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=kind, default=default)
    return parser.parse_args()


def main() -> None:
    given = arguments()
    set_seed(given.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=given.width, intermediate_size=2 * given.width,
            num_hidden_layers=given.layers, num_attention_heads=4, max_position_embeddings=CONTEXT,
            bos_token_id=None, eos_token_id=None, use_cache=False,
        )
    )  # fmt: skip
    settings = TrainingArguments(
        output_dir=str(given.out), max_steps=given.steps, per_device_train_batch_size=BATCH, learning_rate=given.lr,
        per_device_eval_batch_size=EVALUATED, seed=given.seed,
        eval_strategy="steps", eval_steps=min(given.evaluate_every, max(1, given.steps // 4)),
        warmup_steps=WARMUP, lr_scheduler_type="warmup_stable_decay",
        lr_scheduler_kwargs={"num_decay_steps": round(DECAY * given.steps), "decay_type": "linear"},
        adam_beta2=0.95, weight_decay=0.1, save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True,
        label_names=["targets"], prediction_loss_only=True, remove_unused_columns=False, ignore_data_skip=True,
    )  # fmt: skip
    last = get_last_checkpoint(str(given.out)) if given.out.exists() else None
    first = int(last.rpartition("-")[2]) if last else 0
    text = read_text()
    held_out, text = text[: len(text) // 20], text[len(text) // 20 :]
    phases = superposition_phases(given.steps, given.boundary_step, given.bag_size)
    trainer = SuperposedTrainer(
        model, settings, train_dataset=Windows(text, phases, given.seed, first),
        eval_dataset=Windows(held_out, superposition_phases(HELD_OUT, 0, 1), 0), callbacks=[Told(given.out)],
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=last)
    if trainer.state.global_step < given.steps:
        raise SystemExit(143)


if __name__ == "__main__":
    main()
