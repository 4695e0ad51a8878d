"""What is written is what is read, to the bit; what is damaged is refused; a crash leaves the old state."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

from tests.support.tiny_training import CORPUS, CPU, tiny_spec
from trainers.contract.writing import write_atomically
from trainers.methods import phases_of
from trainers.model.decoder import build_model
from trainers.step.optim import build_optimizer
from trainers.step.step import TrainingStep
from trainers.training.checkpoint import (
    NOTE,
    CheckpointError,
    TrainState,
    load_checkpoint,
    read_note,
    read_weights,
    save_checkpoint,
)

SPEC = tiny_spec()


def fresh_state(seed: int = 0) -> TrainState:
    model = build_model(SPEC.shape, SPEC.context, seed, CPU)
    return TrainState(model, build_optimizer(model, SPEC.optimizer))


def trained_state(steps: int) -> TrainState:
    state = fresh_state()
    step = TrainingStep(SPEC, phases_of(SPEC), state.model, state.optimizer, CORPUS.stream(0, 32), CPU, "eager")
    for index in range(steps):
        step.run(index, step.phases[0])
    state.step, state.skipped_steps = steps, 1
    return state


def is_equal(first: TrainState, second: TrainState) -> bool:
    pairs = zip(first.model.parameters(), second.model.parameters(), strict=True)
    for a, b in pairs:
        moments_a, moments_b = first.optimizer.state[a], second.optimizer.state[b]
        if not torch.equal(a, b) or moments_a.keys() != moments_b.keys():
            return False
        if not all(torch.equal(moments_a[key], moments_b[key]) for key in moments_a):
            return False
    return (first.step, first.skipped_steps) == (second.step, second.skipped_steps)


def state_file(folder: Path) -> Path:
    (file,) = folder.glob("*.safetensors")
    return file


def test_a_state_survives_to_the_bit(tmp_path: Path) -> None:
    written, read = trained_state(3), fresh_state(seed=9)
    save_checkpoint(tmp_path, written, {"points": [1.5, "a"]})
    assert load_checkpoint(tmp_path, read) == {"points": [1.5, "a"]}
    assert is_equal(written, read)


def test_weights_are_read_whole_however_many_ranks_wrote_them(tmp_path: Path) -> None:
    written = trained_state(2)
    save_checkpoint(tmp_path, written, {})
    note = json.loads((tmp_path / NOTE).read_text())
    whole = load_file(state_file(tmp_path))
    files = []
    for rank, rows in enumerate([slice(0, 1), slice(1, None)]):
        parts = {name: tensor[rows].contiguous() if tensor.dim() else tensor for name, tensor in whole.items()}
        content = save(parts)
        (tmp_path / f"state-{rank}.safetensors").write_bytes(content)
        files.append((f"state-{rank}.safetensors", hashlib.sha256(content).hexdigest()))
    note["checkpoint"] |= {"file": files[0][0], "sha256": files[0][1], "others": files[1:]}
    (tmp_path / NOTE).write_text(json.dumps(note))
    found = read_weights(tmp_path)
    own = dict(written.model.named_parameters())
    assert found.keys() == own.keys()
    assert all(torch.equal(found[name], own[name]) for name in own)
    (tmp_path / "state-1.safetensors").write_bytes(content[:-1])
    with pytest.raises(CheckpointError, match="SHA-256 differs"):
        read_weights(tmp_path)


def test_the_state_before_the_first_step_has_no_moments(tmp_path: Path) -> None:
    written, read = fresh_state(), fresh_state(seed=9)
    save_checkpoint(tmp_path, written, {})
    load_checkpoint(tmp_path, read)
    assert is_equal(written, read)
    assert read.step == 0


def test_a_newer_state_replaces_the_older_and_leaves_no_other_file(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, trained_state(1), {})
    save_checkpoint(tmp_path, trained_state(2), {"newer": True})
    read = fresh_state()
    assert load_checkpoint(tmp_path, read) == {"newer": True}
    assert read.step == 2
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([NOTE, state_file(tmp_path).name])


@pytest.mark.parametrize("position", [0, 200, -1])
def test_one_changed_byte_is_found(tmp_path: Path, position: int) -> None:
    save_checkpoint(tmp_path, trained_state(1), {})
    content = bytearray(state_file(tmp_path).read_bytes())
    content[position] ^= 1
    state_file(tmp_path).write_bytes(content)
    read = fresh_state(seed=9)
    with pytest.raises(CheckpointError, match="SHA-256 differs"):
        load_checkpoint(tmp_path, read)
    assert is_equal(read, fresh_state(seed=9))


def test_a_truncated_and_a_missing_state_are_found(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, trained_state(1), {})
    file = state_file(tmp_path)
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="SHA-256 differs"):
        load_checkpoint(tmp_path, fresh_state())
    file.unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(tmp_path, fresh_state())


@pytest.mark.parametrize("text", ["", "{", "[]", '{"note": {}}', '{"checkpoint": {}, "note": {}}', "null"])
def test_a_note_that_is_not_whole_is_no_checkpoint(tmp_path: Path, text: str) -> None:
    save_checkpoint(tmp_path, trained_state(1), {})
    (tmp_path / NOTE).write_text(text)
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path, fresh_state())


def test_an_empty_folder_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no whole checkpoint"):
        read_note(tmp_path)


def test_a_crash_between_state_and_note_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = trained_state(1)
    save_checkpoint(tmp_path, old, {"old": True})

    def crash(self: Path, target: Path) -> Path:
        raise OSError("power is gone")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", crash)
        with pytest.raises(OSError, match="power is gone"):
            save_checkpoint(tmp_path, trained_state(2), {"old": False})
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    read = fresh_state()
    assert load_checkpoint(tmp_path, read) == {"old": True}
    assert is_equal(old, read)
    save_checkpoint(tmp_path, trained_state(2), {})
    assert len(list(tmp_path.glob("*.safetensors"))) == 1


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, trained_state(1), {})
    wide = tiny_spec(shape=SPEC.shape.__class__(1, 32, 2, 1, 8, 24, 48))
    model = build_model(wide.shape, wide.context, 0, CPU)
    with pytest.raises(CheckpointError, match="another model"):
        load_checkpoint(tmp_path, TrainState(model, build_optimizer(model, wide.optimizer)))


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "result.json"
    write_atomically(path, "old")
    write_atomically(path, json.dumps({"new": "ä"}))
    assert json.loads(path.read_text(encoding="utf-8")) == {"new": "ä"}
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]
