"""The two ceilings of a device, measured beside the step: how fast it copies, how fast it multiplies.

An MFU is a share of a peak: the stated one of a GPU whose sheet we know, else the measured matmul, and it says which.
"""

from __future__ import annotations

from statistics import median

import torch

from trainers.bench.clock import time_calls
from trainers.bench.result import Ceilings
from trainers.training.devices import synchronise

DENSE_BF16_PEAKS: tuple[tuple[str, float], ...] = (
    ("B200", 2.25e15),
    ("GH200", 989e12),
    ("H200", 989e12),
    ("H100 PCIE", 756e12),
    ("H100", 989e12),
    ("A100", 312e12),
)
"""Dense bf16 tensor-core FLOP/s of the makers' data sheets, by what the device's name holds; the first that fits."""


def stated_peak(device_name: str) -> float | None:
    """Dense bf16 peak in FLOP/s of a device that we know, None for any other."""
    name = device_name.upper()
    return next((peak for part, peak in DENSE_BF16_PEAKS if part in name), None)


def copy_bandwidth(device: torch.device, num_bytes: int) -> float:
    """Bytes a second, read plus written, of copying a buffer of `num_bytes` that no cache holds."""
    source = torch.ones(num_bytes // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    synchronise(device)
    return 2 * num_bytes / median(time_calls(lambda: target.copy_(source), 10, device).seconds)


def matmul_speed(device: torch.device, size: int, dtype: torch.dtype, calls: int = 40) -> float:
    """FLOP/s of square matrices of `size`, by the fastest of `calls`: a ceiling is what can be reached."""
    left = torch.randn(size, size, device=device).to(dtype)
    right = torch.randn(size, size, device=device).to(dtype)
    out = torch.empty(size, size, device=device, dtype=dtype)
    for _ in range(3):
        torch.matmul(left, right, out=out)
    synchronise(device)
    blocks = [time_calls(lambda: torch.matmul(left, right, out=out), 1, device) for _ in range(calls)]
    return 2 * size**3 / min(block.compared for block in blocks)


def measure_ceilings(device: torch.device, device_name: str, precision: str) -> Ceilings:
    """Measure both; `precision` names the matmul that stands in for the peak where none is stated."""
    if device.type == "cuda":
        copied = copy_bandwidth(device, 2 << 30)
        speeds = {"bf16": max(matmul_speed(device, size, torch.bfloat16) for size in (8_192, 16_384))}
    else:
        copied = copy_bandwidth(device, 256 << 20)
        speeds = {
            "fp32": matmul_speed(device, 1_024, torch.float32),
            "bf16": matmul_speed(device, 1_024, torch.bfloat16),
        }
    peak = stated_peak(device_name) if device.type == "cuda" else None
    if peak is not None:
        return Ceilings(copied, speeds, peak, f"stated dense bf16 peak of {device_name}")
    chosen = precision if precision in speeds else next(iter(speeds))
    source = f"measured here: the large {chosen} matmul, for want of a stated peak"
    return Ceilings(copied, speeds, speeds[chosen], source)
