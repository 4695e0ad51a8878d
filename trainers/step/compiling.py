"""How code is compiled, in one place: whole graphs, fixed shapes, one cache on disk for all trials and workers.

What is compiled is `step`'s: the decoder's body by itself, so that every bag size uses the same code, and the bag embedding
and the loss apart from it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch

from trainers.model.losses import HAS_TRITON

CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
MOST_VARIANTS = 256
"""Shapes that one function may be compiled for in a process: a worker trains trials of many shapes and bag sizes, and with
whole graphs the compiler's own limit of 8 would be an error instead of a fall back."""

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def compiler_path() -> str | None:
    """The C++ compiler that Inductor would use, None where there is none."""
    return shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++") or shutil.which("clang++")


def can_compile(device: torch.device) -> bool:
    """Whether Inductor works here: it needs a C++ compiler, and Triton for a GPU."""
    return compiler_path() is not None and (HAS_TRITON or device.type != "cuda")


def cache_folder() -> Path:
    """Where compiled kernels are kept: `TORCHINDUCTOR_CACHE_DIR`, else in the user's cache folder."""
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named)
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "tst-sweeper" / "inductor"


def compiled(function: Callable[Arguments, Result], unrolled: int | None = None) -> Callable[Arguments, Result]:
    """`function` compiled as one graph of fixed shapes, at its first call. Kernels come from the cache where they can.

    Sums of up to `unrolled` terms are written out; None leaves that to the compiler.
    """
    os.environ.setdefault(CACHE_VARIABLE, str(cache_folder()))  # first: the compiler's import settles on a folder
    from torch import _dynamo as dynamo

    dynamo.config.recompile_limit = MOST_VARIANTS
    options: dict[str, Any] | None = None if unrolled is None else {"unroll_reductions_threshold": unrolled}
    # A break in the graph is an error and no silent loss of speed; a shape that differs is another program, never a symbol.
    code: Callable[Arguments, Result] = torch.compile(function, fullgraph=True, dynamic=False, options=options)
    return code
