"""Is the step right? Checked before anything is timed, with fresh random inputs, on a model of seconds.

Bit-equality is asked for wherever nothing but the path to the same arithmetic differs. Other forms of the step sum in
another order; what they may differ by stands beside each check.
"""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from trainers.bench.result import FAIL, OK, SKIPPED, Check
from trainers.bench.subject import Setting, Subject, bench_phases, make_subject
from trainers.contract.record import reason_of
from trainers.contract.scales import SCALES
from trainers.contract.schedule import Phase, phase_at
from trainers.model.attention import NAMES, attention_backend, kernel_error
from trainers.model.losses import fused_linear_multi_hot
from trainers.superposition import target_weights
from trainers.training.checkpoint import TrainState, load_checkpoint, save_checkpoint
from trainers.training.devices import synchronise

STEPS = 10
FORM_TOLERANCES = {"cpu": 1e-5, "cuda": 1e-2}
"""Relative difference of any step's loss between forms that sum in another order, amplified by ten steps of training:
float32 on a CPU, bfloat16 on a GPU."""
GRADIENT_TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
"""Relative error of a gradient in the L2 norm: float32 with room for its sums; bfloat16 keeps eight bits (2^-8 = 4e-3)."""
SPREAD_ROOM = 2.0
"""Where kernels are not deterministic, a form may be this many times as far from eager as eager is from itself."""


@dataclass(frozen=True, slots=True)
class Course:
    """A short training: the loss of every step, and all weights in one vector, on the CPU."""

    losses: Tensor
    weights: Tensor

    def distance(self, other: Course) -> float:
        """Largest relative difference of a step's loss; 0 only when losses and weights are equal to the last bit.

        Weights that differ where no loss does count as the relative L2 difference of the weights.
        """
        if torch.equal(self.losses, other.losses) and torch.equal(self.weights, other.weights):
            return 0.0
        losses = ((self.losses - other.losses).abs() / other.losses.abs()).max().item()
        weights = ((self.weights - other.weights).norm() / other.weights.norm()).item()
        return float(losses or weights)


def _course(subject: Subject, losses: list[float]) -> Course:
    weights = torch.cat([parameter.detach().flatten().float().cpu() for parameter in subject.model.parameters()])
    return Course(torch.tensor(losses), weights)


def _run(subject: Subject, form: str, steps: range) -> list[float]:
    step = subject.step(form)
    results = [step.run(index, phase_at(subject.phases, index)) for index in steps]
    losses, norms = step.look(results)()
    step.close()
    synchronise(subject.device)
    # A step without a finite gradient is skipped, and skipping forms agree with each other: their losses are no evidence.
    return [loss if math.isfinite(norm) else math.nan for loss, norm in zip(losses, norms, strict=True)]


@dataclass(frozen=True, slots=True)
class Bench:
    """What the checks train: a small model on `device`. `seed` is fresh for every run and kept in the result."""

    device: torch.device
    seed: int

    @property
    def scale(self) -> str:
        """Seconds on either kind of device; on a GPU with the head width of the published small models."""
        return "pico" if self.device.type != "cuda" else "25m"

    @property
    def setting(self) -> Setting:
        """Two micro-batches a step, so that sums over them are checked too."""
        return Setting(64, 4, 2, "fp32") if self.device.type != "cuda" else Setting(256, 8, 4, "bf16")

    def subject(self, phases: tuple[Phase, ...]) -> Subject:
        """A fresh model and optimizer, the same for the same seed."""
        return make_subject(self.scale, SCALES[self.scale].shape, self.setting, phases, self.device, self.seed)

    def course(self, form: str, phases: tuple[Phase, ...]) -> Course:
        """Train over all of `phases` from the seed."""
        subject = self.subject(phases)
        return _course(subject, _run(subject, form, range(phases[-1].end)))


def _judge(name: str, value: float, limit: float, note: str) -> Check:
    if not math.isfinite(value):  # within no limit, and no number of JSON: the figures beside it must still be kept
        return Check(name, FAIL, None, limit, f"found {value}; {note}")
    return Check(name, OK if value <= limit else FAIL, value, limit, note)


def check_forms(bench: Bench, forms: tuple[str, ...]) -> list[Check]:
    """Every form against eager over ten steps, five of superposition and five after it; the captured one also against the
    step that it replays, which does the same operations one launch at a time."""
    if all(form == "eager" for form in forms):
        return []
    phases = bench_phases((4, 1), STEPS // 2)
    eager, spread = _repeated(bench, "eager", phases)
    tolerance = max(FORM_TOLERANCES[bench.device.type], SPREAD_ROOM * spread)
    checks = []
    for form in (form for form in forms if form != "eager"):
        course = bench.course(form, phases)
        note = "largest relative difference of a loss"
        checks.append(_judge(f"{form} = eager over {STEPS} steps", course.distance(eager), tolerance, note))
        if form == "captured":
            twin = "compiled" if "compiled" in forms else "eager"
            reference, spread = _repeated(bench, twin, phases)
            note = f"{twin} differs from itself by {spread:.1e}" if spread else f"{twin} repeats itself bitwise"
            name = f"replay = {twin}, its own operations, over {STEPS} steps"
            checks.append(_judge(name, course.distance(reference), SPREAD_ROOM * spread, note))
        torch.compiler.reset()
    return checks


def _repeated(bench: Bench, form: str, phases: tuple[Phase, ...]) -> tuple[Course, float]:
    """A course, and the most that it differs by when it is run again; a CPU's never does."""
    first = bench.course(form, phases)
    again = 0 if bench.device.type != "cuda" else 3
    return first, max((first.distance(bench.course(form, phases)) for _ in range(again)), default=0.0)


def gradient_error(
    rows: int,
    width: int,
    vocabulary: int,
    bag: int,
    weighting: str,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
) -> float:
    """Relative L2 error of the gradients of hidden states and head (the larger), against float64 autograd.

    Targets are drawn from a few tokens, so that bags hold duplicates.
    """
    generator = torch.Generator().manual_seed(seed)
    hidden_ND = torch.randn(rows, width, generator=generator).to(device, dtype)
    head_VD = (torch.randn(vocabulary, width, generator=generator) / width**0.5).to(device, dtype)
    targets_NS = torch.randint(min(vocabulary, 4), (rows, bag), generator=generator).to(device)
    weights_S = torch.tensor(target_weights(weighting, bag), dtype=torch.float32, device=device)

    exact = [part.double().cpu().requires_grad_() for part in (hidden_ND, head_VD)]
    logits_NV = exact[0] @ exact[1].T
    picked_N = (logits_NV.gather(1, targets_NS.cpu()) * weights_S.double().cpu()).sum(-1)
    (logits_NV.logsumexp(-1) - picked_N).mean().backward()

    ours = [part.clone().requires_grad_() for part in (hidden_ND, head_VD)]
    loss = fused_linear_multi_hot(ours[0], ours[1], targets_NS, weights_S)
    gots = torch.autograd.grad(loss, ours)
    wanted = [part.grad for part in exact if part.grad is not None]
    errors = [(got.double().cpu() - want).norm() / want.norm() for got, want in zip(gots, wanted, strict=True)]
    return max(float(error) for error in errors)


def check_gradients(bench: Bench) -> list[Check]:
    """The loss's gradients against float64: every weighting, bags from 1 to 32, more rows than a chunk on a GPU."""
    on_gpu = bench.device.type == "cuda"
    rows, width, vocabulary = (20_000, 128, 4_099) if on_gpu else (300, 24, 203)
    checks = []
    for dtype, limit in GRADIENT_TOLERANCES.items():
        errors = [
            gradient_error(rows, width, vocabulary, bag, weighting, dtype, bench.device, bench.seed + index)
            for index, (bag, weighting) in enumerate(
                (
                    (1, "uniform"),
                    (4, "uniform"),
                    (8, "power_law"),
                    (16, "exponential"),
                    (32, "uniform"),
                    (6, "first_token"),
                )
            )
        ]
        kind = str(dtype).removeprefix("torch.")
        note = "largest relative error; duplicates, every weighting, bags of 1 to 32"
        worst = max(errors) if all(error == error for error in errors) else float("nan")
        checks.append(_judge(f"gradients = float64 reference, {kind}", worst, limit, note))
    return checks


def check_bag_of_one(bench: Bench, form: str) -> Check:
    """Superposition with bags of one is the baseline, whatever its weighting is called."""
    baseline = (Phase("next-token", 0, STEPS),)
    bags = (Phase("superposition", 0, STEPS, bag_size=1, target_size=1, weighting="power_law"),)
    reference, spread = _repeated(bench, form, baseline)
    value = bench.course(form, bags).distance(reference)
    return _judge(f"s = 1 superposition = baseline, {form}", value, SPREAD_ROOM * spread, "bitwise")


def check_resume(bench: Bench, form: str) -> Check:
    """Half the steps, a checkpoint, another process's model and optimizer filled from it, the other half."""
    name = f"resume = no stop, {form}"
    try:
        import safetensors  # noqa: F401  what checkpoints are written with; the rest of the bench does without
    except ImportError:
        return Check(name, SKIPPED, None, None, "safetensors is not installed, so no checkpoint can be written")
    phases = bench_phases((4, 1), STEPS // 2)
    half = STEPS // 2 + 2  # behind the boundary: both phases have been stepped before the stop
    first = bench.subject(phases)
    losses = _run(first, form, range(half))
    second = bench.subject(phases)
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(Path(folder), TrainState(first.model, first.optimizer, half), {})
        state = TrainState(second.model, second.optimizer)
        load_checkpoint(Path(folder), state)
    losses += _run(second, form, range(state.step, STEPS))
    reference, spread = _repeated(bench, form, phases)
    value = _course(second, losses).distance(reference)
    return _judge(name, value, SPREAD_ROOM * spread, "through a checkpoint on disk")


@contextmanager
def _deterministic(device: torch.device) -> Iterator[None]:
    """Ask a GPU for kernels that repeat themselves to the last bit, where it has them."""
    before, warned = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    with warnings.catch_warnings():
        if device.type == "cuda":
            warnings.simplefilter("ignore")
            torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before, warn_only=warned)


def check_attention(bench: Bench) -> Check:
    """The kernel that training takes, forward and backward against the plain formula."""
    shape, context = SCALES[bench.scale].shape, bench.setting.context
    name = attention_backend(shape, context, bench.setting.precision, bench.device)
    kernel = next(backend for backend, known in NAMES.items() if known == name)
    error = kernel_error(kernel, shape, context, bench.setting.precision, bench.device)
    return _judge(f"gradients of {name} attention = math", error, 1.0, "in units of what rounding may make")


def check_usual_kernels(bench: Bench, form: str) -> Check:
    """A course with the kernels that training takes, against one with those that repeat themselves, which the other checks
    use: on a GPU the look-up's backward is another one there."""
    phases = bench_phases((4, 1), STEPS // 2)
    with _deterministic(bench.device):
        reference = bench.course("eager", phases)
    first = bench.course(form, phases)
    spread = first.distance(bench.course(form, phases)) if bench.device.type == "cuda" else 0.0
    tolerance = max(FORM_TOLERANCES[bench.device.type], SPREAD_ROOM * spread)
    note = f"it differs from itself by {spread:.1e}"
    return _judge(f"usual kernels = those that repeat themselves, {form}", first.distance(reference), tolerance, note)


def check_all(bench: Bench, forms: tuple[str, ...], say: Callable[[str], None]) -> tuple[Check, ...]:
    """All checks that this device can make. One that raises has failed, and the others go on."""
    checks: list[Check] = []

    def add(name: str, check: Callable[[], list[Check]]) -> None:
        try:
            checks.extend(check())
        except Exception as error:
            checks.append(Check(name, FAIL, None, None, reason_of(error)))
        torch.compiler.reset()

    with _deterministic(bench.device):
        say(f"checking: {', '.join(forms)} against each other")
        add(f"{', '.join(forms)} against each other", lambda: check_forms(bench, forms))
        say("checking: gradients")
        add("gradients = float64 reference", lambda: check_gradients(bench))
        add("gradients of attention = math", lambda: [check_attention(bench)])
        for form in forms:
            say(f"checking: bags of one and resumption, {form}")
            add(f"s = 1 equals the baseline, {form}", lambda form=form: [check_bag_of_one(bench, form)])  # type: ignore[misc]
            add(f"resume = no stop, {form}", lambda form=form: [check_resume(bench, form)])  # type: ignore[misc]
    if bench.device.type == "cuda":
        say(f"checking: usual kernels, {forms[-1]}")
        add("usual kernels", lambda: [check_usual_kernels(bench, forms[-1])])
    return tuple(checks)
