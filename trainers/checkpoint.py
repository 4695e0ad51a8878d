"""The state of a run on disk: atomic, hashed, enough to go on exactly.

A checkpoint is a folder with one safetensors file and a JSON note that names it and holds its SHA-256. The note is renamed
into place last, so a folder holds a whole checkpoint or none. Which state is kept for how long is the orchestrator's.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainers.model import Decoder

NOTE = "note.json"


class CheckpointError(ValueError):
    """The folder holds no whole checkpoint, or its content is not what was written."""


@dataclass(slots=True)
class TrainState:
    """What training changes. There is no random state: the model has no dropout and data is a function of the step.

    `skipped_steps` had no finite gradient, `consecutive_skips` of them just now.
    """

    model: Decoder
    optimizer: torch.optim.AdamW
    step: int = 0
    skipped_steps: int = 0
    consecutive_skips: int = 0


def _named(state: TrainState) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, parameter in state.model.named_parameters():
        tensors[f"model/{name}"] = parameter.detach()
        for key, value in state.optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer/{key}/{name}"] = value.detach()
    return {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` by `text`: readers see the old file or the new one, also after a crash."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def save_checkpoint(folder: Path, state: TrainState, note: Mapping[str, Any]) -> None:
    """Write `state` and `note` (plain JSON values) into `folder`, replacing what was there."""
    from safetensors.torch import save

    folder.mkdir(parents=True, exist_ok=True)
    content = save(_named(state))
    digest = hashlib.sha256(content).hexdigest()
    file = folder / f"state-{digest[:16]}-{secrets.token_hex(4)}.safetensors"
    with file.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    header = _Header(file.name, digest, state.step, state.skipped_steps, state.consecutive_skips)
    write_atomically(folder / NOTE, json.dumps({"checkpoint": asdict(header), "note": dict(note)}))
    for old in folder.glob("state-*.safetensors"):
        if old.name != file.name:
            old.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class _Header:
    """What a note says of the state beside it."""

    file: str
    sha256: str
    step: int
    skipped_steps: int
    consecutive_skips: int


def _read(folder: Path) -> tuple[_Header, dict[str, Any]]:
    try:
        plain = json.loads((folder / NOTE).read_text(encoding="utf-8"))
        return _Header(**plain["checkpoint"]), dict(plain["note"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder.name}: holds no whole checkpoint ({error})") from error


def read_note(folder: Path) -> dict[str, Any]:
    """The note written beside the state. Raises `CheckpointError` where there is none."""
    return _read(folder)[1]


def load_checkpoint(folder: Path, state: TrainState) -> dict[str, Any]:
    """Fill `state` from `folder` and return the note.

    Raises `CheckpointError`, with `state` untouched, when a byte differs from what was written or the model is another.
    """
    from safetensors.torch import load

    header, note = _read(folder)
    try:
        content = (folder / header.file).read_bytes()
    except OSError as error:
        raise CheckpointError(f"{folder.name}: its state file cannot be read ({error.strerror})") from error
    if hashlib.sha256(content).hexdigest() != header.sha256:
        raise CheckpointError(f"{folder.name}: the state file is not the one that was written (SHA-256 differs)")
    tensors = load(content)
    shapes = {f"model/{name}": parameter.shape for name, parameter in state.model.named_parameters()}
    if shapes != {name: tensor.shape for name, tensor in tensors.items() if name.startswith("model/")}:
        raise CheckpointError(f"{folder.name}: the state is that of another model")
    with torch.no_grad():
        for name, parameter in state.model.named_parameters():
            parameter.copy_(tensors[f"model/{name}"])
            moments = {
                key.split("/")[1]: value
                for key, value in tensors.items()
                if key.startswith("optimizer/") and key.split("/", 2)[2] == name
            }
            if moments:
                state.optimizer.state[parameter] = {key: value.to(parameter.device) for key, value in moments.items()}
    state.step, state.skipped_steps = header.step, header.skipped_steps
    state.consecutive_skips = header.consecutive_skips
    return note
