"""Where a result comes from: commit, versions, device. Asked once a process, answered from memory afterwards.

What a record needs to be comparable is decided by `trainers.contract.record.Provenance`; this file only finds it out.
"""

from __future__ import annotations

import platform
import subprocess
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from trainers.contract.record import Provenance
from trainers.training.devices import device_name

UNKNOWN = "unknown"
PACKAGES = ("torch", "numpy", "ray", "optuna", "mlflow", "tst-sweeper")
_GIT_SECONDS = 10


def provenance(execution: str, device: str | None = None, now: datetime | None = None) -> Provenance:
    """Describe a run that starts `now`. `device` is a torch device (`cuda`, `cuda:1`); None or `cpu` is the processor.

    `execution` is the step's form (eager, compiled, captured). Outside a checkout the commit is `unknown`.
    """
    commit, dirty = git_state(Path(__file__).resolve().parents[2])
    device = device or "cpu"
    return Provenance(
        git_commit=commit,
        git_dirty=dirty,
        device=device_name(device),
        device_kind="cpu" if device == "cpu" else "cuda",
        execution=execution,
        versions=versions(),
        started_at=(now or datetime.now(UTC)).isoformat(timespec="seconds"),
    )


@cache
def git_state(root: Path) -> tuple[str, bool]:
    """Commit of the checkout whose top is `root`, and whether tracked files differ from it.

    `("unknown", False)` when `root` is no checkout of its own: an installed package inside somebody else's repository
    must not borrow that repository's commit.
    """
    if not (root / ".git").exists():
        return UNKNOWN, False
    try:
        commit = _git(root, "rev-parse", "HEAD")
        changes = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return UNKNOWN, False
    return commit, bool(changes)


def _git(root: Path, *arguments: str) -> str:
    command = ("git", "--no-optional-locks", "-C", str(root), *arguments)
    finished = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_GIT_SECONDS)
    return finished.stdout.strip()


@cache
def versions() -> tuple[tuple[str, str], ...]:
    """Installed versions of what can change a result, sorted by name; what is not installed is left out."""
    found = [("python", platform.python_version())]
    for package in PACKAGES:
        try:
            found.append((package, version(package)))
        except PackageNotFoundError:
            continue
    return tuple(sorted(found))
