"""The published runs as runs of ours: the figures of the paper's headline table, nothing added but arithmetic.

Efficient Pre-Training with Token Superposition (arXiv 2605.06546), table 1. Data tokens are counted from the steps, not
from the rounded token counts; FLOPs from the shapes in `trainers.contract.scales`. What the paper does not give stays None: one
run each, so no seed deviation, and no record of how either arm was tuned.

A folder beside this file holds the records of one of our own sweeps; its name is the date, what was trained, and on what.
"""

from __future__ import annotations

import csv
from importlib.resources import files
from pathlib import Path

from reports.evidence.runs import BASELINE, FinishedRun, Parameters
from reports.evidence.study import Study, SweepContext, build_study
from trainers.contract.flops import count_parameters, flops_per_position
from trainers.contract.record_lines import RECORDS_FILE
from trainers.contract.scales import SCALES

TOKENS_PER_STEP = {"270M": 2_097_152, "600M": 2_097_152, "3B": 2_097_152, "10B-A1B": 8_388_608}
"""Latent positions a step, from the paper's recipe table."""

LEARNING_RATE = {"270M": 2e-3, "600M": 1e-3, "3B": 2e-4, "10B-A1B": 3e-4}
"""Peak learning rates, tuned for the baseline and used for both arms."""

TOKENIZER = {"270M": "Llama 3", "600M": "Llama 3", "3B": "Llama 3", "10B-A1B": "Qwen3"}

CONTEXT = 2_048
"""Context length: published for the larger models only, taken for all; it moves FLOPs of both arms alike."""

LIMITS: tuple[str, ...] = (
    "One seed for each run: no seed deviation can be measured, so any interval rests on a deviation from elsewhere.",
    "Few budgets: three for the baseline at 3B, two at 270M, one at 600M and at 10B-A1B, where no curve can be fitted.",
    "The losses are training losses as published, not losses on a held-out set.",
    "One learning rate, tuned for the baseline and used for both arms; trials of either arm are not reported.",
)
"""What the published data cannot support, in words."""


def published_folders() -> dict[str, Path]:
    """Our own published sweeps: folders by name, each with a `records.jsonl`."""
    home = Path(__file__).parent
    return {file.parent.name: file.parent for file in sorted(home.glob(f"*/{RECORDS_FILE}"))}


def published_runs() -> tuple[FinishedRun, ...]:
    """The runs of the headline table, scales named as in `trainers.contract.scales` (`270m`, `600m`, `3b`, `10b-a1b`)."""
    with files(__package__).joinpath("table1_runs.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    return tuple(_run(row, number) for number, row in enumerate(rows, start=1))


def _run(row: dict[str, str], number: int) -> FinishedRun:
    size, method = row["params"], row["method"]
    total, boundary, bag_size = int(row["total_steps"]), int(row["tst_steps"]), int(row["bag_size"])
    shape = SCALES[size.lower()].shape
    latent = TOKENS_PER_STEP[size] * total
    parameters: Parameters = ()
    if method != BASELINE:
        parameters = (("bag_size", bag_size), ("step_ratio", round(boundary / total, 3)))
    return FinishedRun(
        run_id=f"table1-{number:02d}",
        scale=size.lower(),
        method=method,
        parameters=parameters,
        purpose="confirmation",
        total_steps=total,
        decayed=True,
        outcome="finished",
        trunk=f"table1-{number:02d}",
        learning_rate=LEARNING_RATE[size],
        boundary_step=boundary,
        final_loss=float(row["final_loss"]),
        gpu_hours=float(row["b200_hours"]),
        flops=flops_per_position(shape, CONTEXT) * latent,
        tokens=float(TOKENS_PER_STEP[size] * (boundary * bag_size + total - boundary)),
        params=float(count_parameters(shape).total),
        device="NVIDIA B200",
        device_kind="cuda",
        precision="bf16",
        tokens_per_step=TOKENS_PER_STEP[size],
        validation="training loss, as published",
        tokenizer=TOKENIZER[size],
    )


def published_study() -> Study:
    """The published runs as a study: its summary has the matched pairs, and what our estimator says of the same data."""
    context = SweepContext(
        name="published",
        question="How much faster is token superposition, by the runs that were published with it?",
        kind="published",
        command="sweeper report --published",
        created_at="2026-05-01T00:00:00Z",
        corpus_description="DCLM; DCLM and FineWeb-Edu in equal parts at 10B-A1B",
    )
    return build_study(context, published_runs())
