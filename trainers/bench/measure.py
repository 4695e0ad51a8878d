"""How long a step takes: every form of ours and its rivals by turns, the loss alone, the parts of a step, the memory."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from trainers.bench.clock import Pace, Turns, paired_ratio, take_turns, time_calls
from trainers.bench.result import LossTimed, ScaleFigures, Timed
from trainers.bench.rivals import RIVALS, Rival, RivalStep, bytes_of
from trainers.bench.subject import Setting, Subject, bench_phases, counted, make_subject
from trainers.contract.flops import count_parameters, flops_per_position
from trainers.contract.record import reason_of
from trainers.contract.scales import SCALES
from trainers.contract.schedule import Phase
from trainers.contract.spec import ModelShape
from trainers.model.attention import attention_kernels, forced_attention
from trainers.model.losses import fused_linear_multi_hot, has_fast_pass
from trainers.step.batch import read_batch
from trainers.step.compiling import compiled
from trainers.step.fit import advice
from trainers.step.optim import clipped_step
from trainers.step.precision import WorkingWeights
from trainers.step.step import TrainingStep
from trainers.superposition import target_weights, weights_of
from trainers.training.devices import synchronise

Value = TypeVar("Value")

BAG_SIZES: tuple[int, ...] = (2, 4, 6, 8, 16)
GPU_BAG_SIZES: tuple[int, ...] = (6, 16)
"""The bag of the published 3B run, and the one that reads most: a step of a published scale takes half a second."""
PART_REPEATS = 10
PARTS = ("batch", "embedding", "body", "loss", "backward", "update")


@dataclass(frozen=True, slots=True)
class Variant:
    """Something to time. `bag_size` 1 is next-token training; `stream` as in `time_calls`, None for the current one."""

    name: str
    form: str
    bag_size: int
    call: Callable[[], object]
    stream: torch.cuda.Stream | None = None


def _ours(subject: Subject, form: str) -> tuple[list[Variant], list[TrainingStep]]:
    """Our step at every bag size in one form. On a GPU one step serves all phases, for the sake of its memory; on a CPU
    each has its own, so that no phase is entered while the clock runs."""
    if subject.device.type == "cuda":
        steps = [subject.step(form)] * len(subject.phases)
    else:
        steps = [subject.step(form) for _ in subject.phases]
    variants = [
        Variant(
            "baseline" if phase.bag_size == 1 else "superposition",
            form,
            phase.bag_size,
            counted(step.run, phase),
            step.replay_stream,
        )
        for step, phase in zip(steps, subject.phases, strict=True)
    ]
    return variants, steps


def _rivals(subject: Subject, form: str, rivals: tuple[Rival, ...]) -> list[Variant]:
    """`rivals` in one form. A captured rival there is none: neither survives capture as it is written."""
    if form == "captured":
        return []
    phases = {phase.bag_size: phase for phase in subject.phases}
    return [
        Variant(
            rival.name,
            form,
            rival.bag_size,
            counted(RivalStep(subject, rival.loss_of, form).run, phases[rival.bag_size]),
        )
        for rival in rivals
    ]


def _too_large(subject: Subject, variant: Variant) -> str | None:
    """Why an eager rival is not even tried on this GPU: whole logits of the published scales take a hundred gigabytes."""
    rival = next((rival for rival in RIVALS if rival.name == variant.name), None)
    if rival is None or variant.form != "eager" or subject.device.type != "cuda":
        return None
    needs = bytes_of(rival, subject.spec, subject.setting.micro_sequences)
    memory = torch.cuda.get_device_properties(subject.device).total_memory
    return f"not timed: about {needs / 1e9:.0f} GB, and the device has {memory / 1e9:.0f}" if needs > memory else None


def free_memory(device: torch.device) -> None:
    """Collect what nobody holds any more, and give a GPU's cached blocks back, before something else needs the room."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def peak_bytes(call: Callable[[], object], device: torch.device, state_bytes: Callable[[], int]) -> int | None:
    """Most bytes in use while a variant steps (see `CONVENTIONS`); None where the profiler saw no memory.

    On a GPU the calls include a captured step's warm-up: memory that a graph uses inside its pool is not counted later.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        call()
        call()
        synchronise(device)
        return torch.cuda.max_memory_allocated(device)
    call()
    activities = [torch.profiler.ProfilerActivity.CPU]
    # There is one cycle, so that `acc_events` adds nothing to it; without it torch 2.11 warns that others would be lost.
    with torch.profiler.profile(activities=activities, profile_memory=True, acc_events=True) as profile:
        call()
    results = profile.profiler.kineto_results if profile.profiler is not None else None
    events = results.events() if results is not None else []
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    held, peak = 0, 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    return state_bytes() + peak if changes else None


def _timed(
    subject: Subject, variants: list[Variant], turns: list[Turns], peaks: list[int | None], peak_flops: float
) -> tuple[Timed, ...]:
    of = {(v.name, v.form, v.bag_size): t for v, t in zip(variants, turns, strict=True)}
    positions = subject.spec.tokens_per_step
    flops = flops_per_position(subject.spec.shape, subject.spec.context)
    found = []
    for variant, mine, peak in zip(variants, turns, peaks, strict=True):
        rate = positions / mine.seconds
        ours = of.get(("superposition", variant.form, variant.bag_size)) if variant.name == "paper" else None
        baseline = of.get(("baseline", variant.form, 1))
        found.append(
            Timed(
                variant=variant.name,
                form=variant.form,
                bag_size=variant.bag_size,
                seconds=mine.seconds,
                spread=mine.spread,
                samples=len(mine.values),
                positions_per_second=rate,
                mfu=flops * rate / peak_flops,
                peak_bytes=peak,
                over_baseline=paired_ratio(mine, baseline) if baseline and variant.name != "baseline" else None,
                over_ours=paired_ratio(mine, ours) if ours else None,
            )
        )
    return tuple(found)


def step_parts(subject: Subject, phase: Phase, repeats: int) -> dict[str, float]:
    """Share of each part in an eager step's time, from its parts run one by one with a wait after each."""
    spec, device = subject.spec, subject.device
    parts = spec.sequences_per_step // subject.setting.micro_sequences
    kernels = attention_kernels(spec.shape, spec.context, spec.precision, device)
    weights = WorkingWeights(subject.model, spec.precision)
    model = weights.model
    weights_T = weights_of(phase, device)
    totals = dict.fromkeys(PARTS, 0.0)

    def timed(part: str, call: Callable[[], Value]) -> Value:
        made: list[Value] = []
        synchronise(device)
        totals[part] += time_calls(lambda: made.append(call()), 1, device).compared
        return made[0]

    def update() -> None:
        clipped_step(subject.optimizer, spec.optimizer.clip_norm, 1e-3)
        subject.optimizer.zero_grad(set_to_none=True)
        weights.refresh()

    def backward(loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]
        weights.collect()

    for index in range(repeats + 1):
        if index == 1:
            totals.update(dict.fromkeys(PARTS, 0.0))  # what went before was warm-up
        read = partial(read_batch, subject.stream, spec, subject.phases, phase, phase.start + index, device)
        inputs_BLS, targets_BLT = timed("batch", read)
        for rows_BLS, wanted_BLT in zip(inputs_BLS.chunk(parts), targets_BLT.chunk(parts), strict=True):
            with forced_attention(kernels):
                embedded_BLD = timed("embedding", partial(model.embed, rows_BLS))
                hidden_ND = timed("body", partial(model.body, embedded_BLD)).flatten(0, 1)
                targets_NS = wanted_BLT.flatten(0, 1)
                loss = timed(
                    "loss", partial(fused_linear_multi_hot, hidden_ND, model.head.weight, targets_NS, weights_T)
                )
                timed("backward", partial(backward, loss))
        timed("update", update)
    whole = sum(totals.values())
    return {part: seconds / whole for part, seconds in totals.items()}


def _first_calls(subject: Subject, variants: list[Variant]) -> tuple[list[Variant], list[int | None], list[str]]:
    """The variants whose first steps work, with their peaks; and a line for each of the others, whatever went wrong there.

    Raises the `OutOfMemoryError` of a step of ours: a smaller micro-batch is then advised.
    """
    kept: list[Variant] = []
    peaks: list[int | None] = []
    notes: list[str] = []
    for variant in variants:
        reason = _too_large(subject, variant)
        try:
            if reason is None:
                peaks.append(peak_bytes(variant.call, subject.device, subject.state_bytes))
                kept.append(variant)
        except Exception as error:
            if isinstance(error, torch.OutOfMemoryError) and variant.name in OURS:
                raise
            reason = reason_of(error)
        if reason is not None:
            notes.append(f"{variant.name} s={variant.bag_size}, {variant.form}: {reason}")
            subject.optimizer.zero_grad(set_to_none=True)
            free_memory(subject.device)
    return kept, peaks, notes


def _time_group(
    subject: Subject, forms: tuple[str, ...], pace: Pace, peak_flops: float, rivals: tuple[Rival, ...]
) -> tuple[tuple[Timed, ...], list[str]]:
    """Time forms and rivals by turns, and give back what they hold of the device. Rivals make their first calls last, so that
    what they leave in the allocator is in nobody's way."""
    ours: list[Variant] = []
    theirs: list[Variant] = []
    steps: list[TrainingStep] = []
    try:
        for form in forms:
            variants, mine = _ours(subject, form)
            ours += variants
            steps += mine
            theirs += _rivals(subject, form, rivals)
        kept, peaks, notes = _first_calls(subject, ours + theirs)
        streams = [variant.stream for variant in kept]
        turns = take_turns([variant.call for variant in kept], pace, subject.device, streams)
    finally:
        for step in steps:
            step.close()
        subject.optimizer.zero_grad(set_to_none=True)
    return _timed(subject, kept, turns, peaks, peak_flops), notes


def time_forms(
    subject: Subject, forms: tuple[str, ...], pace: Pace, peak_flops: float, rivals: tuple[Rival, ...]
) -> tuple[tuple[Timed, ...], list[str]]:
    """Our step at every bag size of the subject and `rivals`, in the order of `forms`, and what could not be timed.

    On a GPU one form after the other, the last one first: its working weights and graphs fill what the model leaves, and
    the form that a run takes should be measured before another has failed. On a CPU all take turns.
    """
    groups = [forms] if subject.device.type != "cuda" else [(form,) for form in reversed(forms)]
    steps: list[Timed] = []
    notes: list[str] = []
    for group in groups:
        try:
            # A captured step is captured again at every change of phase; the others need one step to settle.
            settled = pace if "captured" in group or subject.device.type != "cuda" else replace(pace, settle=1)
            timed, said = _time_group(subject, group, settled, peak_flops, rivals)
            steps += timed
            notes += said
        except torch.OutOfMemoryError:
            notes.append(f"{', '.join(group)}: {_advice(subject)}")
        except Exception as error:  # one form that the device refuses must not take the others' figures with it
            notes.append(f"{', '.join(group)}: {reason_of(error)}")
        free_memory(subject.device)
    return tuple(sorted(steps, key=lambda timed: forms.index(timed.form))), notes


def _advice(subject: Subject) -> str:
    peak, memory = 0, 0
    if subject.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(subject.device)
        memory = torch.cuda.get_device_properties(subject.device).total_memory
    return advice(subject.spec, subject.setting.micro_sequences, peak, memory, False)


def _steps_and_parts(
    subject: Subject, forms: tuple[str, ...], pace: Pace, peak_flops: float
) -> tuple[tuple[Timed, ...], dict[str, dict[str, float]], list[str]]:
    """All steps of a scale, the shares of an eager step's parts, and what could not be measured."""
    steps, notes = time_forms(subject, forms, pace, peak_flops, RIVALS)
    parts: dict[str, dict[str, float]] = {}
    try:
        for phase in (subject.phases[0], subject.phases[-2]):
            label = "baseline" if phase.bag_size == 1 else f"superposition s={phase.bag_size}"
            parts[label] = step_parts(subject, phase, PART_REPEATS)
    except Exception as error:  # what was timed before stays
        notes.append(f"parts of a step: {reason_of(error)}")
    return steps, parts, notes


def measure_scale(
    scale: str,
    setting: Setting,
    forms: tuple[str, ...],
    usual: str,
    pace: Pace,
    device: torch.device,
    peak_flops: float,
    seed: int,
) -> ScaleFigures:
    """Time one scale. What does not fit or fails is left out, with a line in the note; without any step the figures are
    None."""
    shape = SCALES[scale].shape
    phases = bench_phases((1, *(GPU_BAG_SIZES if device.type == "cuda" else BAG_SIZES)), 2 + pace.calls)
    try:
        found = _steps_and_parts(make_subject(scale, shape, setting, phases, device, seed), forms, pace, peak_flops)
    except Exception as error:  # the model itself
        found = (), {}, [reason_of(error)]
    steps, parts, notes = found
    torch.compiler.reset()
    free_memory(device)
    main = next((timed for timed in steps if (timed.variant, timed.form) == ("baseline", usual)), None)
    flops = flops_per_position(shape, setting.context)
    return ScaleFigures(
        scale=scale,
        parameters=count_parameters(shape).total,
        context=setting.context,
        sequences=setting.sequences,
        micro_sequences=setting.micro_sequences,
        precision=setting.precision,
        form=usual,
        positions_per_second=main.positions_per_second if main else None,
        mfu=main.mfu if main else None,
        peak_bytes=max((t.peak_bytes or 0 for t in steps if t.form == usual and t.variant in OURS), default=0) or None,
        flops_per_second=main.positions_per_second * flops if main else None,
        steps=steps,
        parts=parts,
        note="; ".join(notes),
    )


OURS = ("baseline", "superposition")


def one_hot_loss(hidden_ND: Tensor, head_VD: Tensor, targets_NS: Tensor, weights_S: Tensor) -> Tensor:
    """What a user writes for next-token training: whole logits and PyTorch's cross-entropy."""
    return F.cross_entropy(torch.matmul(hidden_ND, head_VD.T).float(), targets_NS[:, 0])


def time_losses(
    name: str,
    rows: int,
    shape: ModelShape,
    dtype: torch.dtype,
    forms: tuple[str, ...],
    pace: Pace,
    device: torch.device,
) -> tuple[LossTimed, ...]:
    """Forward and backward of the loss alone at every bag size, against one-hot cross-entropy, by turns."""
    generator = torch.Generator().manual_seed(0)
    hidden_ND = torch.randn(rows, shape.width, generator=generator).to(device, dtype).requires_grad_()
    head_VD = (torch.randn(shape.vocab_size, shape.width, generator=generator) / shape.width**0.5).to(device, dtype)
    head_VD.requires_grad_()
    calls: list[tuple[str, int, Callable[[], object]]] = []

    def call_of(loss_of: Callable[..., Tensor], bag: int) -> Callable[[], object]:
        targets_NS = torch.randint(shape.vocab_size, (rows, bag), generator=generator).to(device)
        weights_S = torch.tensor(target_weights("uniform", bag), device=device)

        def call() -> None:
            hidden_ND.grad = head_VD.grad = None
            loss_of(hidden_ND, head_VD, targets_NS, weights_S).backward()  # type: ignore[no-untyped-call]

        return call

    for form in (form for form in forms if form != "captured"):
        for bag, function in ((1, one_hot_loss), *((bag, fused_linear_multi_hot) for bag in BAG_SIZES)):
            # as the step has it: not compiled where it is our own kernel
            whole = function is fused_linear_multi_hot and has_fast_pass(device.type)
            chosen = compiled(function) if form == "compiled" and not whole else function
            calls.append((form, bag, call_of(chosen, bag)))
    turns = take_turns([call for _, _, call in calls], pace, device)
    torch.compiler.reset()
    one_hot = {form: mine for (form, bag, _), mine in zip(calls, turns, strict=True) if bag == 1}
    return tuple(
        LossTimed(name, form, bag, mine.seconds, paired_ratio(mine, one_hot[form]))
        for (form, bag, _), mine in zip(calls, turns, strict=True)
    )
