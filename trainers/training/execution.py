"""Which form of the training step a run takes: what may be asked for, what a machine can do, and what `auto` comes to.

The forms themselves are `step`'s; whether one works on a device is tried by `probe`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from trainers.contract.errors import InputError
from trainers.step.compiling import can_compile
from trainers.training.probe import failure_elsewhere

EXECUTIONS: tuple[str, ...] = ("auto", "eager", "compiled", "captured")
"""What may be asked for."""


def resolve_execution(
    wanted: str, device: torch.device, say: Callable[[str], None] = lambda line: None, ranks: int = 1
) -> str:
    """`eager`, `compiled` or `captured`. Raises `InputError` when a form is asked for that this machine cannot run.

    On a CPU `auto` is eager: small models, for which compiling costs more than it brings, are what a CPU is for. On a GPU
    `auto` is the first of captured, compiled and eager that works there when it is tried; several `ranks` begin with compiled,
    because gathering their shards cannot be captured. What is missing for the best form is told to `say`, in one line.
    """
    if wanted not in EXECUTIONS:
        raise InputError(f"execution: {wanted!r} is not one of {', '.join(EXECUTIONS)}")
    if wanted == "auto":
        if device.type != "cuda":
            return "eager"
        # Fastest first. What a device can do is tried, because versions and drivers promise more than they hold.
        forms = (["captured"] if ranks == 1 else []) + (["compiled"] if can_compile(device) else [])
        if not forms:
            say("execution: eager: compiling for ranks needs Triton and a C++ compiler, which are not here")
        wanted = (*forms, "eager")[0]
        if torch.cuda.is_available():  # else this is the driver of a cluster, whose workers have the GPUs
            wanted = first_that_works(forms, lambda form: failure_elsewhere(form, str(device)), say)
    if wanted == "captured" and ranks > 1:
        raise InputError(f"execution: captured runs on one rank and trials here have {ranks}; use auto or compiled")
    if wanted == "captured" and device.type != "cuda":
        raise InputError("execution: captured needs a CUDA device and trials here run on the CPU; use auto or eager")
    if wanted == "compiled" and not can_compile(device):
        raise InputError("execution: compiled needs a C++ compiler and none is installed; use eager or auto")
    if wanted == "captured" and not can_compile(device):
        say("execution: captured, without compiled kernels: they need Triton and a C++ compiler, which are not here")
    return wanted


def first_that_works(forms: Sequence[str], failure: Callable[[str], str | None], say: Callable[[str], None]) -> str:
    """The first form for which `failure` knows no reason, `eager` the last of them; `say` is told why others were left.

    Where not even `eager` works it is taken all the same, and `say` has told why training is about to fail.
    """
    for form in (*forms, "eager"):
        reason = failure(form)
        if reason is None:
            return form
        say(f"execution: {form} does not work here: {reason}")
    return "eager"
