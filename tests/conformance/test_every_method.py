"""What every method must be, whichever it is: countable, resumable and shareable to the last bit, the baseline where it
changes nothing, and able to learn. A new row of `METHODS` is tested by being there."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from tests.support.method_specs import NEUTRAL, TYPICAL, method_spec
from tests.support.strategies import PROVENANCE
from tests.support.tiny_training import CORPUS, CPU, VOCABULARY, job_of, state_digest, train_tiny
from trainers.contract.flops import flops_at, flops_per_step
from trainers.contract.record import Finished, record_from_dict, record_to_dict
from trainers.contract.schedule import data_position, number_of_heads, phase_at
from trainers.contract.spec import TrialSpec, spec_from_dict, spec_to_dict
from trainers.contract.stage import StagePoint, StageResult
from trainers.methods import METHODS, PARAMETER_TABLE, phases_of
from trainers.model.decoder import build_model
from trainers.planning.assemble import assemble_record
from trainers.planning.lineage import ROOT, build_tree, path_of
from trainers.step.batch import lane_position, read_batch
from trainers.step.optim import build_optimizer
from trainers.step.step import TrainingStep
from trainers.training.stage import PARTIAL

RATIOS = (0.0, 0.25, 0.4, 1.0)
every_method = pytest.mark.parametrize("method", METHODS)


def alone(spec: TrialSpec, store: Path) -> str:
    """Train `spec` by itself and give the digest of its end state."""
    train_tiny(job_of(spec, store, node=spec.spec_id))
    return state_digest(store, spec.spec_id)


@every_method
def test_a_method_has_a_label_and_parameters_that_a_file_can_name(method: str) -> None:
    row = METHODS[method]
    assert row.name == method
    assert row.label not in {other.label for name, other in METHODS.items() if name != method}
    assert set(row.parameters) <= set(PARAMETER_TABLE) & set(TYPICAL)
    spec = method_spec(method)
    assert spec_from_dict(json.loads(json.dumps(spec_to_dict(spec)))) == spec
    assert spec_from_dict(spec_to_dict(spec)).spec_id == spec.spec_id


@every_method
@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("total", [1, 7, 20])
def test_phases_are_contiguous_and_none_is_empty(method: str, ratio: float, total: int) -> None:
    phases = phases_of(method_spec(method, {"step_ratio": ratio}, total_steps=total, warmup_steps=0, decay_steps=0))
    assert (phases[0].start, phases[-1].end) == (0, total)
    assert all(phase.start < phase.end for phase in phases)
    assert all(before.end == after.start and before.name != after.name for before, after in pairwise(phases))


class Lengths(TorchFunctionMode):
    """Notes how many positions attention is asked about."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[int] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            self.seen.add(args[0].shape[-2])
        return func(*args, **(kwargs or {}))


@every_method
def test_kernels_of_attention_are_tried_at_every_length_that_is_trained(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A processor has one kernel and nothing to try: in its place a device that is asked and names no favourite."""
    tried: set[int] = set()
    monkeypatch.setattr(
        "trainers.step.step.attention_kernels", lambda shape, context, precision, device: tried.add(context) or ()
    )
    spec = method_spec(method, total_steps=5, warmup_steps=1, decay_steps=1)
    phases = phases_of(spec)
    model = build_model(spec.shape, spec.context, 0, CPU, number_of_heads(phases))
    optimizer = build_optimizer(model, spec.optimizer)
    step = TrainingStep(spec, phases, model, optimizer, CORPUS.stream(0, 32), CPU, "eager")
    with Lengths() as lengths:
        for index in range(5):
            step.run(index, phase_at(phases, index))
    assert lengths.seen | {spec.context} == tried
    assert min(tried) < spec.context or method not in ("patch", "length_warmup")


@every_method
@pytest.mark.parametrize("ratio", RATIOS)
def test_what_a_step_reads_and_computes_is_what_is_counted(method: str, ratio: float) -> None:
    """Tokens by the batches themselves; FLOPs by the matrices that a position goes through and the length it looks back."""
    spec = method_spec(method, {"step_ratio": ratio}, total_steps=10, sequences=3)
    phases, shape = phases_of(spec), spec.shape
    stream, model = CORPUS.stream(0, 32), build_model(spec.shape, spec.context, 0, CPU, number_of_heads(phases))
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    tokens, flops = 0, 0.0
    lanes: list[list[int]] = [[] for _ in range(spec.sequences_per_step)]
    for step in range(10):
        assert data_position(phases, spec.tokens_per_step, step) == tokens
        assert flops_at(spec, phases, step) == pytest.approx(flops, rel=1e-12)
        phase = phase_at(phases, step)
        inputs, targets = read_batch(stream, spec, phases, phase, step, CPU)
        assert targets.shape == (*inputs.shape[:2], phase.target_size)
        for lane, part in zip(lanes, inputs.reshape(spec.sequences_per_step, -1).tolist(), strict=True):
            lane += part
        tokens += inputs.numel()
        positions, length = inputs.shape[0] * inputs.shape[1], inputs.shape[1]
        blocks = shape.num_layers + phase.heads - 1
        used = sum(size for name, size in sizes.items() if not name.startswith(("embedding.", "extra_blocks.")))
        used += (phase.heads - 1) * (sizes["head.weight"] + sum(model_block_sizes(sizes)))
        counted = positions * (6 * used + 12 * blocks * shape.num_heads * shape.head_width * length / 2)
        assert flops_per_step(spec, phase) == pytest.approx(counted, rel=1e-12)
        flops += counted
    assert data_position(phases, spec.tokens_per_step, 10) == tokens
    for number, lane in enumerate(lanes):
        start = lane_position(stream.tokens_per_epoch, spec, phases, 0, number)
        assert lane == stream.read(start, len(lane)).tolist(), "a lane reads its stretch once, without a gap"


def model_block_sizes(sizes: dict[str, int]) -> list[int]:
    return [size for name, size in sizes.items() if name.startswith("blocks.0.")]


@every_method
def test_a_method_learns(method: str, tmp_path: Path) -> None:
    spec = method_spec(method, total_steps=150, decay_steps=40, learning_rate=0.02)
    points = train_tiny(job_of(spec, tmp_path, evaluate_every=150, keep_state=False)).points
    assert points[-1].loss < math.log(VOCABULARY) - 1.0


@every_method
@pytest.mark.parametrize("stop_at", [4, 8, 12])
def test_a_run_that_was_stopped_ends_like_one_that_was_not(method: str, stop_at: int, tmp_path: Path) -> None:
    """Stopped before, at and behind the boundary."""
    spec = method_spec(method, total_steps=20)
    job = job_of(spec, tmp_path / "stopped", node=spec.spec_id)
    stop_file = Path(job.stop_file)
    stop_file.parent.mkdir()

    def stop(point: StagePoint) -> None:
        if point.step == stop_at:
            stop_file.touch()

    train_tiny(job, stop)
    assert (tmp_path / "stopped" / spec.spec_id / PARTIAL).is_dir()
    stop_file.unlink()
    resumed = train_tiny(job)
    assert [point.step for point in resumed.points] == [4, 8, 12, 16, 20]
    assert sum(timing.steps for timing in resumed.timings) == 20
    assert state_digest(tmp_path / "stopped", spec.spec_id) == alone(spec, tmp_path / "alone")


@every_method
def test_the_step_on_static_state_ends_in_the_eager_bits(method: str, tmp_path: Path) -> None:
    """Also where a phase uses fewer parameters than the model has: what it does not use neither decays nor drifts."""
    spec = method_spec(method, total_steps=16, sequences=2)
    train_tiny(job_of(spec, tmp_path, node="static", execution="captured", micro_sequences=1))
    train_tiny(job_of(spec, tmp_path, node="eager", micro_sequences=1))
    assert state_digest(tmp_path, "static") == state_digest(tmp_path, "eager")


@every_method
@pytest.mark.parametrize("micro", [None, 1])
def test_the_step_on_static_state_is_the_eager_step_to_the_last_bit(
    method: str, micro: int | None, tmp_path: Path
) -> None:
    """What a GPU records as graphs, called: across the boundary, with what a phase draws anew, in pieces and heads."""
    spec = method_spec(method, total_steps=20)
    for form in ("eager", "captured"):
        train_tiny(job_of(spec, tmp_path, node=form, execution=form, micro_sequences=micro))
    assert state_digest(tmp_path, "eager") == state_digest(tmp_path, "captured")


@every_method
def test_a_shared_prefix_changes_nothing(method: str, tmp_path: Path) -> None:
    """Budgets and boundaries of one method, beside the baseline and TST, trained as the tree of their stages."""
    companions = [name for name in ("tst", "baseline") if name != method]
    cases = [(method, 0.25, 12), (method, 0.5, 12), (method, 0.5, 16), *((name, 0.5, 12) for name in companions)]
    specs = [method_spec(name, {"step_ratio": ratio}, total_steps=total) for name, ratio, total in cases]
    specs = list({spec.spec_id: spec for spec in specs}.values())
    paths = [path_of(spec, "eager") for spec in specs]
    tree = build_tree(paths)
    assert tree.steps < sum(spec.schedule.total_steps for spec in specs)
    results: dict[str, StageResult] = {}
    for segment in sorted(tree.segments.values(), key=lambda segment: segment.start):
        parent = None if segment.parent == ROOT else segment.parent
        job = job_of(segment.spec, tmp_path / "shared", node=segment.node, parent=parent)
        booked = segment.trials[0]
        results[segment.node] = train_tiny(replace(job, start=segment.start, end=segment.end, booked_by=booked))
    for path in paths:
        spec = path.spec
        assert state_digest(tmp_path / "shared", path.node(path.end)) == alone(spec, tmp_path / "alone")
        chain = [results[node] for node in tree.ways[spec.spec_id]]
        record = assemble_record(spec, "tuning", chain, PROVENANCE, devices=1, corpus_tokens=1_500, evaluate_every=4)
        phases = phases_of(spec)
        assert isinstance(record.outcome, Finished)
        assert record_from_dict(json.loads(json.dumps(record_to_dict(record)))) == record
        assert record.tokens == data_position(phases, spec.tokens_per_step, path.end)
        assert record.curve.points[-1].flops == flops_at(spec, phases, path.end)
        timed = [(timing.phase, timing.bag_size, timing.steps) for timing in record.timing.phases]
        assert timed == [(phase.name, phase.bag_size, phase.end - phase.start) for phase in phases]


@every_method
@pytest.mark.parametrize("neutral", [{"step_ratio": 0.0}, NEUTRAL], ids=["no first phase", "a first phase of ones"])
def test_what_changes_nothing_is_the_baseline_to_the_last_bit(
    method: str, neutral: dict[str, float | int | str], tmp_path: Path
) -> None:
    spec = method_spec(method, neutral)
    phases = phases_of(spec)
    if any(phase.fresh or phase.fresh_moments for phase in phases) or number_of_heads(phases) > 1:
        assert alone(spec, tmp_path) != alone(method_spec("baseline"), tmp_path)
    else:
        assert alone(spec, tmp_path) == alone(method_spec("baseline"), tmp_path)


@every_method
def test_a_typical_run_is_not_the_baseline(method: str, tmp_path: Path) -> None:
    """Else the comparison would be of the baseline with itself. Only weights that both models have are looked at."""
    from safetensors.torch import load_file

    weights = []
    for spec in (method_spec(method), method_spec("baseline")):
        alone(spec, tmp_path / spec.method)
        (file,) = (tmp_path / spec.method / spec.spec_id / "state").glob("state-*.safetensors")
        weights.append(load_file(file)["model/blocks.0.attention.query_key_value.weight"])
    assert torch.equal(*weights) == (method == "baseline")
