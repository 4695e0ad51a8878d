"""The state of a run on disk: atomic, hashed, enough to go on exactly.

A checkpoint is a folder with a safetensors file of each rank (one, mostly) and a JSON note that names them with their
SHA-256. A rank's file holds its rows of every tensor, so that the files in order of rank make the whole, and any number of
ranks reads what any other wrote. The note is renamed into place last, so a folder holds a whole checkpoint or none. Which
state is kept for how long is the orchestrator's.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainers.contract.errors import InputError
from trainers.contract.reading import json_value, value_of
from trainers.contract.writing import write_atomically
from trainers.model.decoder import Decoder
from trainers.model.ranks import ALONE, Ranks, first_row_here, rows_here, shard_like

NOTE = "note.json"


class CheckpointError(InputError):
    """The folder holds no whole checkpoint, or its content is not what was written."""


@dataclass(slots=True)
class TrainState:
    """What training changes. There is no random state: the model has no dropout and data is a function of the step.

    `skipped_steps` had no finite gradient, `consecutive_skips` of them just now. `ranks` hold the tensors in shards.
    """

    model: Decoder
    optimizer: torch.optim.AdamW
    step: int = 0
    skipped_steps: int = 0
    consecutive_skips: int = 0
    ranks: Ranks = ALONE


def _weights(state: TrainState) -> dict[str, Tensor]:
    return {f"model/{name}": rows_here(parameter.detach()) for name, parameter in state.model.named_parameters()}


def _moments(state: TrainState) -> dict[str, Tensor]:
    return {
        f"optimizer/{key}/{name}": rows_here(value.detach())
        for name, parameter in state.model.named_parameters()
        for key, value in state.optimizer.state.get(parameter, {}).items()
    }


def save_checkpoint(folder: Path, state: TrainState, note: Mapping[str, Any]) -> None:
    """Write `state` and `note` (plain JSON values) into `folder`, replacing what was there. All ranks call it.

    Each writes its own file; the first writes its note once all files are on disk.
    """
    _save(folder, state, _weights(state) | _moments(state), note, weights_alone=False)


def save_weights(folder: Path, state: TrainState, note: Mapping[str, Any]) -> None:
    """The same without moments, a third of the bytes: enough for `read_weights`, and nothing can go on from it."""
    _save(folder, state, _weights(state), note, weights_alone=True)


def _save(
    folder: Path, state: TrainState, tensors: Mapping[str, Tensor], note: Mapping[str, Any], *, weights_alone: bool
) -> None:
    from safetensors.torch import save

    folder.mkdir(parents=True, exist_ok=True)
    content = save({name: tensor.contiguous().cpu() for name, tensor in tensors.items()})
    digest = hashlib.sha256(content).hexdigest()
    file = folder / f"state-{digest[:16]}-{secrets.token_hex(4)}.safetensors"
    with file.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    (_, *others) = written = state.ranks.gather((file.name, digest))
    if state.ranks.rank == 0:
        header = _Header(
            file.name,
            digest,
            state.step,
            state.skipped_steps,
            state.consecutive_skips,
            tuple(others),
            weights_alone,
        )
        write_atomically(folder / NOTE, json.dumps({"checkpoint": asdict(header), "note": dict(note)}))
        for old in folder.glob("state-*.safetensors"):
            if old.name not in [name for name, _ in written]:
                old.unlink(missing_ok=True)
    state.ranks.gather(None)  # nobody goes on, or writes here again, before the note is there


@dataclass(frozen=True, slots=True)
class _Header:
    """What a note says of the state beside it. `others` are the files of the ranks after the first, with their hashes;
    `weights_alone` where moments were left out."""

    file: str
    sha256: str
    step: int
    skipped_steps: int
    consecutive_skips: int
    others: tuple[tuple[str, str], ...] = ()
    weights_alone: bool = False

    @property
    def files(self) -> tuple[tuple[str, str], ...]:
        """Name and SHA-256 of every rank's file, in order of rank."""
        return (self.file, self.sha256), *self.others


def _read(folder: Path) -> tuple[_Header, dict[str, Any]]:
    try:
        plain = json_value((folder / NOTE).read_bytes())
        return value_of(_Header, plain["checkpoint"], "a checkpoint"), dict(plain["note"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder.name}: holds no whole checkpoint ({error})") from error


def read_note(folder: Path) -> dict[str, Any]:
    """The note written beside the state. Raises `CheckpointError` where there is none."""
    return _read(folder)[1]


def _verify(folder: Path, name: str, sha256: str) -> None:
    try:
        with (folder / name).open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{folder.name}: its state file cannot be read ({error.strerror})") from error
    if digest != sha256:
        raise CheckpointError(f"{folder.name}: the state file is not the one that was written (SHA-256 differs)")


def _rows(files: Sequence[Any], key: str, start: int, count: int) -> Tensor:
    """Rows `[start, start + count)` of the tensor whose parts `files` hold in order; a scalar is in each of them."""
    if not files[0].get_slice(key).get_shape():
        scalar: Tensor = files[0].get_tensor(key).clone()  # nothing may go on pointing into the file
        return scalar
    parts, position = [], 0
    for file in files:
        part = file.get_slice(key)
        length = part.get_shape()[0]
        first, last = max(start - position, 0), min(start + count - position, length)
        if first < last:
            parts.append(part[first:last])
        position += length
    return torch.cat(parts or [files[0].get_slice(key)[0:0]])


def _whole_shape(files: Sequence[Any], key: str) -> tuple[int, ...]:
    shapes = [file.get_slice(key).get_shape() for file in files]
    return (sum(shape[0] for shape in shapes), *shapes[0][1:])


def _read_tensors(folder: Path, header: _Header, state: TrainState) -> dict[str, Tensor]:
    """This rank's rows of everything, by the names under which it was saved.

    With as many files as ranks a rank reads and checks its own file only; else every rank checks all files.
    """
    from safetensors import safe_open

    if header.weights_alone:
        raise CheckpointError(f"{folder.name}: holds weights alone, from which no training can go on")
    named = dict(state.model.named_parameters())
    own = len(header.files) == state.ranks.size
    wanted = [header.files[state.ranks.rank]] if own else header.files
    for name, digest in wanted:
        _verify(folder, name, digest)
    with ExitStack() as stack:
        files = [stack.enter_context(safe_open(folder / name, "pt")) for name, _ in wanted]
        keys = list(files[0].keys())
        stored = {key.removeprefix("model/"): _whole_shape(files, key) for key in keys if key.startswith("model/")}
        if stored != {name: tuple((rows_here(p) if own else p).shape) for name, p in named.items()}:
            raise CheckpointError(f"{folder.name}: the state is that of another model")
        tensors = {}
        for key in keys:
            parameter = named[key.split("/", 2 if key.startswith("optimizer/") else 1)[-1]]
            start = 0 if own else first_row_here(parameter)
            tensors[key] = _rows(files, key, start, rows_here(parameter).shape[0])
        return tensors


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Every weight by its name in the model, whole, however many ranks wrote it; moments stay on the disk.

    Raises `CheckpointError` when a byte differs from what was written.
    """
    from safetensors import safe_open

    header, _ = _read(folder)
    for name, digest in header.files:
        _verify(folder, name, digest)
    with ExitStack() as stack:
        files = [stack.enter_context(safe_open(folder / name, "pt")) for name, _ in header.files]
        keys = [key for key in files[0].keys() if key.startswith("model/")]  # noqa: SIM118 - a file, not a mapping
        return {key.removeprefix("model/"): _rows(files, key, 0, _whole_shape(files, key)[0]) for key in keys}


def load_checkpoint(folder: Path, state: TrainState) -> dict[str, Any]:
    """Fill `state` from `folder` and return the note. All ranks call it; another number of ranks may have written it.

    Raises `CheckpointError`, with `state` untouched, when a byte differs from what was written or the model is another:
    on every rank when it is so on any.
    """
    problem: CheckpointError | None = None
    try:
        header, note = _read(folder)
        tensors = _read_tensors(folder, header, state)
    except CheckpointError as error:
        problem = error
    if not state.ranks.every(problem is None):
        raise problem or CheckpointError(f"{folder.name}: another rank cannot use its file")
    moments: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer/"):
            _, moment, name = key.split("/", 2)
            moments.setdefault(name, {})[moment] = value
    with torch.no_grad():
        for name, parameter in state.model.named_parameters():
            rows_here(parameter).copy_(tensors[f"model/{name}"])
            if name in moments:
                state.optimizer.state[parameter] = {
                    key: shard_like(value.to(parameter.device), parameter) for key, value in moments[name].items()
                }
    state.step, state.skipped_steps = header.step, header.skipped_steps
    state.consecutive_skips = header.consecutive_skips
    return note
