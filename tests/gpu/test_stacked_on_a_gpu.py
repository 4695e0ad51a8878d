"""What only a GPU can show of stacks: graphs replayed for several runs at once against the same functions called, and against
runs trained alone.

Nothing here has run on a GPU yet.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.gpu.a_gpu import CUDA, NEEDS_A_GPU, for_a_gpu
from tests.tiny_training import CORPUS, job_of, tiny_spec, train_tiny
from trainers.captured import Calls
from trainers.checkpoint import TrainState
from trainers.methods import phases_of
from trainers.model import build_model
from trainers.optim import build_optimizer
from trainers.spec import TrialSpec
from trainers.stack_stage import STACKED, run_stack
from trainers.stacked import Slice, StackedStep
from trainers.stacked_static import StaticStack

pytestmark = NEEDS_A_GPU


def gpu_specs(precision: str) -> list[TrialSpec]:
    specs = [
        tiny_spec(total_steps=20, step_ratio=0.5, seed=seed, learning_rate=0.002 * (1 + seed)) for seed in range(3)
    ]
    return [for_a_gpu(spec, precision) for spec in specs]


def slices_of(specs: list[TrialSpec]) -> list[Slice]:
    slices = []
    for spec in specs:
        model = build_model(spec.shape, spec.context, spec.seed, CUDA)
        state = TrainState(model, build_optimizer(model, spec.optimizer))
        slices.append(Slice.of(spec, phases_of(spec), CORPUS.stream(spec.seed, 64), state))
    return slices


def losses_of(engine: StaticStack) -> torch.Tensor:
    """All 20 steps, over the phase boundary at 10."""
    parts = []
    for _ in range(2):
        engine.enter()
        parts.append(torch.tensor(engine.look([engine.run(ahead) for ahead in range(10)])[0]))
        for part in engine.slices:
            part.state.step += 10
    engine.close()
    return torch.cat(parts, 1)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_replays_of_a_stack_are_its_calls(precision: str) -> None:
    """Within what atomics in the embedding's and the attention's backward leave open."""
    specs = gpu_specs(precision)
    replayed = losses_of(StaticStack(StackedStep(slices_of(specs), CUDA)))
    engine = StaticStack(StackedStep(slices_of(specs), CUDA))
    engine.recorder = Calls()
    torch.testing.assert_close(replayed, losses_of(engine), rtol=2e-2 if precision == "bf16" else 1e-4, atol=0)


def test_a_stack_learns_what_its_stages_learn_alone(tmp_path: Path) -> None:
    specs = gpu_specs("fp32")
    jobs = [job_of(spec, tmp_path, node=f"run-{i}", execution=STACKED, device="cuda:0") for i, spec in enumerate(specs)]
    for index, result in enumerate(run_stack(jobs, CORPUS)):
        alone = train_tiny(job_of(specs[index], tmp_path, node=f"alone-{index}", device="cuda:0"))
        assert [point.step for point in result.points] == [point.step for point in alone.points]
        losses = [point.loss for point in result.points]
        assert losses == pytest.approx([point.loss for point in alone.points], rel=1e-3)
