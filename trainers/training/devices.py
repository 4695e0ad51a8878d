"""What this machine computes on, by the name that people compare: one spelling for workers, plans and provenance."""

from __future__ import annotations

import platform
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@cache
def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's model name on one line, or its architecture where the system does not tell."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(encoding="utf-8", errors="replace"), re.M)
    except OSError:
        found = None
    name = found.group(1) if found else platform.processor() or platform.machine()
    return " ".join(name.split()) or "unknown"


@cache
def device_name(device: str) -> str:
    """`NVIDIA H200` for a torch device such as `cuda:0`, the processor's model for `cpu`.

    Imports torch for a GPU only; raises its error when there is no such device.
    """
    if device == "cpu":
        return cpu_name()
    import torch

    return torch.cuda.get_device_name(device)


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given; a CPU always has."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)
