"""Is the training step of this device right, and how fast is it against what it could be?

`python -m trainers.bench` needs torch and numpy only; `sweeper bench` is the same with a coloured table. Imports nothing heavy,
so that a plan can read what an earlier run kept (`result`) where torch is not installed.
"""

from __future__ import annotations

import os


def prepare_environment() -> None:
    """Ask cuBLAS for reproducible sums, and the profiler to keep its log off the terminal.

    Has an effect before torch is imported only, and where the user has set nothing.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
