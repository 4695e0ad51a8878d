"""What is put on the bench: a scale's decoder, its optimizer, random tokens, and the step in every form that runs here.

Decides batch and precision a scale is stepped with. Time does not depend on what tokens say, so none are prepared, but on
how often they come: they follow Zipf's law, and go through the trainers' own stream, so that reading costs what it costs in
a run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch

from trainers.contract.errors import InputError
from trainers.contract.scales import SCALES
from trainers.contract.schedule import Phase
from trainers.contract.spec import ModelShape, Optimizer, Schedule, TrialSpec
from trainers.data.shards import TokenStream, piece_offsets
from trainers.model.decoder import Decoder, build_model
from trainers.step.optim import build_optimizer
from trainers.step.step import TrainingStep
from trainers.training.execution import EXECUTIONS, resolve_execution
from trainers.training.stage import PIECE_CONTEXTS

LEAST_TOKENS = 1_000_000
FORMS: tuple[str, ...] = ("eager", "compiled", "captured")


@dataclass(frozen=True, slots=True)
class Setting:
    """How a scale is stepped: positions a sequence, sequences an optimizer step, sequences through the model at once."""

    context: int
    sequences: int
    micro_sequences: int
    precision: str


TOY = Setting(64, 8, 8, "fp32")
"""The quickstart's step."""
GPU_SETTINGS: dict[str, Setting] = {
    "1m": Setting(256, 64, 64, "bf16"),
    "270m": Setting(2_048, 64, 16, "bf16"),
    "600m": Setting(2_048, 32, 8, "bf16"),
    "3b": Setting(2_048, 8, 2, "bf16"),
}
"""Four micro-batches a step. The published step has 1,024 sequences, in which the update is a still smaller share. 1m is
stepped as `gpu-1m.yaml` trains it."""


def setting_of(scale: str, device: torch.device, micro_sequences: int | None) -> Setting:
    """The setting of a scale on a device, with another micro-batch where one is asked for.

    Raises `InputError` for a micro-batch that does not divide the batch.
    """
    if device.type != "cuda":
        chosen = TOY
    elif scale in GPU_SETTINGS:
        chosen = GPU_SETTINGS[scale]
    else:
        toy = SCALES[scale].shape.vocab_size <= 4_096
        chosen = replace(TOY, precision="bf16") if toy else Setting(1_024, 32, 8, "bf16")
    if micro_sequences is None:
        return chosen
    if chosen.sequences % micro_sequences:
        raise InputError(
            f"--micro-sequences: {micro_sequences} does not divide the {chosen.sequences} sequences that the bench "
            f"steps {scale} with"
        )
    return replace(chosen, micro_sequences=micro_sequences)


def bench_spec(scale: str, shape: ModelShape, setting: Setting, total_steps: int, seed: int = 0) -> TrialSpec:
    """A trial of `total_steps` with a learning rate that leaves random tokens a calm thing to train on."""
    return TrialSpec(
        scale=scale,
        shape=shape,
        method="baseline",
        parameters=(),
        corpus_fingerprint="random tokens",
        tokenizer_fingerprint="none",
        context=setting.context,
        tokens_per_step=setting.context * setting.sequences,
        validation_tokens=setting.context,
        schedule=Schedule(total_steps, 0, 0, 1e-3),
        optimizer=Optimizer(),
        precision=setting.precision,
        seed=seed,
    )


def bench_phases(bag_sizes: Iterable[int], steps_each: int) -> tuple[Phase, ...]:
    """One phase a bag size, contiguous; a bag of 1 is the baseline."""
    return tuple(
        Phase(
            "next-token" if bag == 1 else f"superposition-{bag}", index * steps_each, (index + 1) * steps_each, bag, bag
        )
        for index, bag in enumerate(bag_sizes)
    )


def zipf_tokens(vocabulary: int, count: int, seed: int) -> np.ndarray:
    """`count` token ids, int32, of which the n-th most frequent comes in proportion to 1/n, as in text.

    Of uniform tokens hardly two in a batch are the same: that hides how the look-up's backward fares where many rows of a
    gradient add up in one place, as they do for the commonest tokens of any text.
    """
    cumulative = np.cumsum(1.0 / np.arange(1, vocabulary + 1))
    generator = np.random.default_rng(seed)
    ranks = np.searchsorted(cumulative, generator.random(count, dtype=np.float32) * cumulative[-1])
    tokens: np.ndarray = generator.permutation(vocabulary).astype(np.int32)[np.minimum(ranks, vocabulary - 1)]
    return tokens


def random_stream(spec: TrialSpec, phases: tuple[Phase, ...], seed: int) -> TokenStream:
    """Enough random tokens that no lane laps the epoch: the stream keeps two epochs in order, and a third would be arranged
    inside somebody's timed step."""
    lane = spec.context * sum(phase.bag_size * (phase.end - phase.start) for phase in phases)
    count = max(LEAST_TOKENS, lane + spec.context * phases[-1].bag_size)
    tokens = zipf_tokens(spec.shape.vocab_size, count, seed)
    offsets = piece_offsets(np.array([0, count]), PIECE_CONTEXTS * spec.context)
    return TokenStream(tokens, offsets, seed, materialise_bytes=tokens.nbytes + 1)


def available_forms(wanted: Iterable[str], device: torch.device) -> tuple[tuple[str, ...], dict[str, str]]:
    """Forms that run here, and for each of the others one line that says why not.

    Raises `InputError` for a form that nobody has, or when none is left.
    """
    forms: list[str] = []
    unavailable: dict[str, str] = {}
    for form in dict.fromkeys(wanted):
        if form not in FORMS and form not in EXECUTIONS:
            raise InputError(f"--execution: {form!r} is not one of {', '.join(FORMS)}")
        try:
            forms.append(resolve_execution(form, device))
        except ValueError as error:
            unavailable[form] = str(error)
    if not forms:
        raise InputError("; ".join(unavailable.values()))
    return tuple(dict.fromkeys(forms)), unavailable


def usual_form(forms: tuple[str, ...], device: torch.device) -> str:
    """The form that a run takes here by itself, or the last of `forms` where it was not asked for."""
    usual = resolve_execution("auto", device)
    return usual if usual in forms else forms[-1]


@dataclass(slots=True)
class Subject:
    """One model with everything that steps it. Forms and rivals step the same weights: only time is looked at."""

    spec: TrialSpec
    phases: tuple[Phase, ...]
    setting: Setting
    model: Decoder
    optimizer: torch.optim.AdamW
    stream: TokenStream
    device: torch.device

    def step(self, form: str) -> TrainingStep:
        """The trainers' step in one form."""
        return TrainingStep(
            self.spec,
            self.phases,
            self.model,
            self.optimizer,
            self.stream,
            self.device,
            form,
            self.setting.micro_sequences,
        )

    def state_bytes(self) -> int:
        """Bytes of weights and optimizer state, gradients left out."""
        moments = [v for state in self.optimizer.state.values() for v in state.values() if torch.is_tensor(v)]
        return sum(tensor.numel() * tensor.element_size() for tensor in (*self.model.parameters(), *moments))


def make_subject(
    scale: str,
    shape: ModelShape,
    setting: Setting,
    phases: tuple[Phase, ...],
    device: torch.device,
    seed: int,
) -> Subject:
    """Build a subject from its seed."""
    spec = bench_spec(scale, shape, setting, phases[-1].end, seed)
    model = build_model(shape, setting.context, seed, device)
    optimizer = build_optimizer(model, spec.optimizer)
    return Subject(spec, phases, setting, model, optimizer, random_stream(spec, phases, seed), device)


def counted(run: Callable[[int, Phase], object], phase: Phase) -> Callable[[], object]:
    """Calls `run` with one step of `phase` after the other."""
    steps = iter(range(phase.start, phase.end))
    return lambda: run(next(steps), phase)
