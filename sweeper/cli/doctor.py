"""What this machine has, and whether the parts that a sweep needs work here."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import psutil

from trainers.contract.errors import UserError

PACKAGES = ("torch", "ray", "optuna", "mlflow", "plotly", "tokenizers")
LEAST_DISK_BYTES = 2e9


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. `fail` means that a sweep cannot run."""

    status: Literal["ok", "note", "fail"]
    what: str
    found: str


def _packages() -> list[Finding]:
    findings = []
    for package in PACKAGES:
        try:
            findings.append(Finding("ok", package, version(package)))
        except PackageNotFoundError:
            findings.append(Finding("fail", package, "not installed"))
    return findings


def _devices() -> list[Finding]:
    import torch

    from trainers.training.devices import cpu_name

    findings = [Finding("ok", "processor", f"{cpu_name()}, {len(os.sched_getaffinity(0))} cores for us")]
    memory = psutil.virtual_memory()
    findings.append(Finding("ok", "memory", f"{memory.total / 1e9:.0f} GB, {memory.available / 1e9:.0f} GB free"))
    if not torch.cuda.is_available():
        return [*findings, Finding("note", "GPU", "none; trials run on the processor, one core each")]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        findings.append(Finding("ok", f"GPU {index}", f"{properties.name}, {properties.total_memory / 1e9:.0f} GB"))
    return findings


def _disk(results: Path) -> Finding:
    folder = results if results.exists() else Path()
    free = shutil.disk_usage(folder).free
    return Finding("ok" if free >= LEAST_DISK_BYTES else "fail", "disk for results", f"{free / 1e9:.0f} GB free")


def _compiler() -> Finding:
    found = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if found:
        return Finding("ok", "C++ compiler", f"{found}; compiled steps are possible")
    return Finding("note", "C++ compiler", "none; steps run eagerly")


def _browser() -> Finding:
    found = shutil.which("chromium") or shutil.which("google-chrome")
    return Finding("ok" if found else "note", "Chromium", found or "none; only the browser tests need one")


def _ray() -> Finding:
    from sweeper.executors.cluster import attach

    try:
        with attach(None, num_cpus=1) as cluster:
            return Finding("ok", "Ray starts", f"{cluster.cpus} CPU, {cluster.gpus:g} GPU")
    except UserError as error:
        return Finding("fail", "Ray starts", str(error))


def examine(results: Path, *, start_ray: bool) -> list[Finding]:
    """Look at everything; starting Ray takes some seconds."""
    findings = [Finding("ok", "Python", f"{platform.python_version()} in {sys.prefix}"), *_packages()]
    if all(finding.status == "ok" for finding in findings):
        findings += _devices()
    findings += [_disk(results), _compiler(), _browser()]
    return [*findings, _ray()] if start_ray else findings
