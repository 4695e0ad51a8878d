"""What this machine computes on: the device of a worker, and the name that people compare."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

import torch


@cache
def cpu_name() -> str:
    """The processor's model name, or its architecture where the system does not tell."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def device_name(device: torch.device) -> str:
    """`NVIDIA H200` or the processor's model."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


def worker_device(gpus: float) -> str:
    """The device of a worker that was given `gpus`: the first one visible to it, else the CPU."""
    return "cuda:0" if gpus and torch.cuda.is_available() else "cpu"
