"""Which scales of a sweep train several trials in one step: what the user asked for, or what was measured to pay."""

from __future__ import annotations

from pathlib import Path

from sweeper.space_schema import SearchSpace
from trainers.bench.result import FOLDER as BENCH


def stacks_of(space: SearchSpace, wanted: str, results: Path, device: str) -> dict[str, int]:
    """The most trials of a stack, by scale; scales that are not stacked are left out.

    `wanted` is `auto` (only where `trainers.stack_bench` measured this device with this batch, and found it faster by its
    margin), or a number; 1 is none. Nothing is measured here, so that the same command finds the same answer. Raises
    `ValueError` for anything else.
    """
    if wanted == "auto":
        from trainers.stack_bench import read_figures

        batch = (space.context, space.tokens_per_step // space.context, space.precision)
        measured = {
            figures.scale: figures.best_width()
            for figures in read_figures(results / BENCH, device)
            if (figures.context, figures.sequences, figures.precision) == batch
        }
        return {scale: measured[scale] for scale in space.scales if measured.get(scale, 1) > 1}
    if not wanted.isdecimal() or int(wanted) < 1:
        raise ValueError(f"--stack: {wanted!r} is neither auto nor a positive number")
    return dict.fromkeys(space.scales, int(wanted)) if int(wanted) > 1 else {}
