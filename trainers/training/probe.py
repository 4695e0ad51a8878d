"""Whether a form of the training step works on a device: a few steps of a tiny model over a phase boundary, in that form.

`auto` asks here before a sweep relies on an answer. By default in a process of its own, which takes its memory and whatever
it did to the device with it. What is tried in which order is `execution`'s.
"""

from __future__ import annotations

import subprocess
import sys
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from trainers.contract.scales import SCALES
from trainers.contract.schedule import phase_at
from trainers.contract.spec import Optimizer, Schedule, TrialSpec
from trainers.data.shards import TokenStream
from trainers.methods import phases_of
from trainers.model.decoder import build_model
from trainers.step.optim import build_optimizer
from trainers.step.step import TrainingStep

LONGEST_SECONDS = 300
"""A first compilation takes less; what takes longer does not work."""
_STEPS, _CONTEXT, _SEQUENCES = 6, 64, 4


def failure_of(execution: str, device: torch.device) -> str | None:
    """Why `execution` does not work on `device`, in one line, or None: then six steps over a boundary gave finite losses and
    gradients, and changed every weight."""
    shape = SCALES["pico"].shape
    spec = TrialSpec(
        scale="pico",
        shape=shape,
        method="tst",
        parameters=(("bag_size", 2), ("bag_weighting", "uniform"), ("step_ratio", 0.5)),
        corpus_fingerprint="none",
        tokenizer_fingerprint="none",
        context=_CONTEXT,
        tokens_per_step=_CONTEXT * _SEQUENCES,
        validation_tokens=_CONTEXT,
        schedule=Schedule(_STEPS, 1, 1, 1e-3),
        optimizer=Optimizer(),
        precision="bf16" if device.type == "cuda" else "fp32",
        seed=0,
    )
    tokens = np.random.default_rng(0).integers(0, shape.vocab_size, 8_192)
    stream = TokenStream(tokens, np.array([0, len(tokens)]), 0, tokens.nbytes)
    try:
        model = build_model(shape, _CONTEXT, 0, device)
        optimizer = build_optimizer(model, spec.optimizer)
        step = TrainingStep(spec, phases_of(spec), model, optimizer, stream, device, execution, _SEQUENCES // 2)
        before = [parameter.detach().clone() for parameter in model.parameters()]
        results = [step.run(index, phase_at(step.phases, index)) for index in range(_STEPS)]
        losses, norms = step.look(results)()
        step.close()
    except Exception as error:  # whatever goes wrong here would go wrong in every trial
        return f"{type(error).__name__}: {' '.join(str(error).split()) or 'no message'}"[:300]
    return fault_in(losses, norms, before, model)


def fault_in(losses: list[float], norms: list[float], before: list[Tensor], model: nn.Module) -> str | None:
    """What is wrong with some steps that began with the weights `before`, in one line; None: nothing.

    Losses by themselves do not tell: a step whose gradient is not finite is skipped, so that a broken backward leaves
    every weight as it was and every loss finite.
    """
    if not np.isfinite(losses).all():
        return f"its losses are {losses}"
    if not np.isfinite(norms).all():
        return f"its gradient norms are {norms}"
    pairs = zip(model.named_parameters(), before, strict=True)
    still = [name for (name, parameter), old in pairs if torch.equal(parameter.detach(), old)]
    return f"it left {', '.join(still)} unchanged" if still else None


@cache
def failure_elsewhere(execution: str, device: str) -> str | None:
    """`failure_of` in a process of its own, asked once: it compiles, which takes its time."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "trainers.training.probe", execution, device],
            capture_output=True,
            text=True,
            check=False,
            timeout=LONGEST_SECONDS,
        )
    # A compiler that waits for itself answers never, and a sweep must not wait with it.
    except subprocess.TimeoutExpired:
        return f"no answer within {LONGEST_SECONDS} seconds"
    if done.returncode == 0:
        return None
    return (done.stdout.strip() or done.stderr.strip() or f"the process ended with {done.returncode}").splitlines()[-1]


if __name__ == "__main__":
    reason = failure_of(sys.argv[1], torch.device(sys.argv[2]))
    print(reason or "works")
    sys.exit(reason is not None)
