"""The parts of a tour, each of them a process: `python -m trainers.bench.tour.parts DEVICE PART FILE` measures one of them.

A part tells what it has after every measurement, so that one that is ended at its limit has told the most of it. On a CPU
the same parts run small, where a CPU has what they need. Order and limits are `order`'s.
"""

from __future__ import annotations

import argparse
import importlib.util
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from torch.nn.attention import sdpa_kernel

from trainers.bench.ceilings import measure_ceilings, stated_peak
from trainers.bench.checks import FORM_TOLERANCES, GRADIENT_TOLERANCES, Bench, check_usual_kernels, gradient_error
from trainers.bench.clock import Pace, paired_ratio, take_turns
from trainers.bench.measure import free_memory, time_forms
from trainers.bench.result import FAIL, Timed
from trainers.bench.rivals import RIVALS, Rival, bytes_of
from trainers.bench.run import WIDE, WIDE_ROWS, bench_device
from trainers.bench.subject import Subject, bench_phases, bench_spec, make_subject, setting_of
from trainers.bench.tour.gpu_tests import FAILURES, Ended, run_tests
from trainers.bench.tour.order import CUT, OK, TRAINING, write_part
from trainers.bench.tour.process import ends_with_us
from trainers.bench.words import step_row
from trainers.contract.errors import InputError
from trainers.contract.faults import FAULT, USER
from trainers.contract.record import reason_of
from trainers.contract.scales import SCALES
from trainers.contract.schedule import phase_at
from trainers.model import losses
from trainers.model.attention import GPU_ORDER, NAMES, kernel_error
from trainers.model.losses import fused_linear_multi_hot, middle_pass
from trainers.planning.footprint import divisors_down
from trainers.superposition import target_weights
from trainers.training.devices import device_name, synchronise
from trainers.training.provenance import UNKNOWN, git_state

TILES: tuple[tuple[int, int], ...] = ((4_096, 8), (8_192, 16), (16_384, 32))
"""Entries of a row at once, and warps, of the loss's kernel; the first is what training takes."""
CHUNKS: tuple[int, ...] = (8_192, 4_096, 16_384)
CPU_CHUNKS: tuple[int, ...] = (512, 128, 256)
BAGS: tuple[int, ...] = (1, 6, 16)
MOST_KERNELS = 25
SHORT = Pace(rounds=3, block=4, warm_up=0, settle=2, most_rounds=3, seconds=0.0)
LONG = Pace(rounds=10, block=10, warm_up=0, settle=2, most_rounds=10, seconds=0.0)
"""For steps of a millisecond."""


class FoundWrongError(Exception):
    """A part has measured, and what it found is not right; its text is for the table."""


class Report:
    """What a part has found so far: figures for whoever reads the JSON, rows for the table."""

    def __init__(self, path: Path, device: torch.device) -> None:
        self.path, self.device = path, device
        self.figures: dict[str, Any] = {}
        self.rows: list[str] = []
        commit, _ = git_state(Path(__file__).resolve().parents[3])
        self.environment: dict[str, Any] = {
            "device": device_name(str(device)),
            "torch": torch.__version__,
            "python": sys.version.split()[0],
            "threads": torch.get_num_threads(),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "git_commit": None if commit == UNKNOWN else commit,
        }

    def add(self, key: str, figure: Any, *rows: str) -> None:
        """Keep a figure and its rows, on disk at once."""
        self.figures[key] = figure
        self.rows += rows
        self.write(CUT)

    def attempt(self, key: str, measure: Callable[[], tuple[Any, str]]) -> None:
        """Add what `measure` finds, or why it found nothing: the next measurement may do better."""
        try:
            figure, row = measure()
        except Exception as error:
            figure, row = {"failed": reason_of(error)[:300]}, f"{key}: {reason_of(error)[:120]}"
        self.add(key, figure, row)
        free_memory(self.device)

    def write(self, status: str, line: str = "") -> None:
        """The JSON as it stands."""
        told = {"line": line, "environment": self.environment, "figures": self.figures, "rows": self.rows}
        write_part(self.path, status, **told)


def machine(report: Report) -> str:
    """Versions, the two ceilings, and every attention kernel: is it right, and how long do forward and backward take?"""
    device, on_gpu = report.device, report.device.type == "cuda"
    ceilings = measure_ceilings(device, report.environment["device"], "bf16" if on_gpu else "fp32")
    report.add("ceilings", asdict(ceilings))
    if on_gpu:
        memory = torch.cuda.get_device_properties(device).total_memory
        cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
        versions = {"CUDA": torch.version.cuda, "cuDNN": str(cudnn)}
        if losses.HAS_TRITON:
            versions["Triton"] = distribution("triton").version
        row = ", ".join(f"{name} {known}" for name, known in versions.items())
        report.add("versions", versions, f"{row}, {memory / 1e9:.0f} GB")
    shape, context = (SCALES["270m"].shape, 2_048) if on_gpu else (SCALES["pico"].shape, 64)
    precision, batch = ("bf16", 16) if on_gpu else ("fp32", 8)
    heads = (shape.num_heads, shape.num_kv_heads, shape.num_kv_heads)
    dtype = torch.bfloat16 if on_gpu else torch.float32

    def timed(kernel: Any) -> tuple[Any, str]:
        error = kernel_error(kernel, shape, context, precision, device)
        inputs = [torch.randn(batch, context, n, shape.head_width, device=device, dtype=dtype) for n in heads]
        query, key, value = (part.transpose(1, 2).requires_grad_() for part in inputs)

        def call() -> None:
            with sdpa_kernel([kernel]):
                out = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=heads[0] != heads[1])
                out.backward(out)  # type: ignore[no-untyped-call]

        (turns,) = take_turns([call], SHORT, device)
        found = {"seconds": turns.seconds, "error": error, "right": error <= 1.0}
        return (
            found,
            f"attention {NAMES[kernel]}: {turns.seconds * 1e3:.3f} ms, gradients {error:.2f} of what is allowed",
        )

    for kernel in GPU_ORDER:
        report.attempt(f"attention {NAMES[kernel]}", partial(timed, kernel))
    copied, peak = ceilings.copy_bytes_per_second / 1e9, ceilings.peak_flops / 1e12
    matmuls = ", ".join(f"{kind} {speed / 1e12:.3g}" for kind, speed in ceilings.matmul_flops_per_second.items())
    return f"copy {copied:.4g} GB/s, matmul {matmuls} TFLOP/s, peak {peak:.4g}"


def loss(report: Report) -> str:
    """The loss against float64 at the published vocabulary, its kernel's tiles, and the rows of a chunk."""
    device, on_gpu = report.device, report.device.type == "cuda"
    shape, rows = (SCALES["270m"].shape, 32_768) if on_gpu else (WIDE, WIDE_ROWS)
    dtype = torch.bfloat16 if on_gpu else torch.float32
    errors = [gradient_error(64, 64, shape.vocab_size, bag, "power_law", dtype, device, 7) for bag in (1, 16)]
    for bag, error in zip((1, 16), errors, strict=True):
        report.add(f"error s={bag}", error, f"gradients s={bag}: {error:.1e} from float64")
    hidden_ND = torch.randn(rows, shape.width, device=device, dtype=dtype)
    head_VD = torch.randn(shape.vocab_size, shape.width, device=device, dtype=dtype) / shape.width**0.5
    targets_NS = torch.randint(shape.vocab_size, (rows, 6), device=device)
    weights_S = torch.tensor(target_weights("uniform", 6), device=device)
    if losses.has_fast_pass(device.type):
        logits_CV = hidden_ND[: CHUNKS[0]] @ head_VD.T
        _tiles(report, lambda: middle_pass(logits_CV, targets_NS[: CHUNKS[0]], weights_S, rows))
        del logits_CV
    hidden_ND.requires_grad_(), head_VD.requires_grad_()

    def step(chunk: int) -> None:
        hidden_ND.grad = head_VD.grad = None
        fused_linear_multi_hot(hidden_ND, head_VD, targets_NS, weights_S, chunk).backward()  # type: ignore[no-untyped-call]

    chunks = CHUNKS if on_gpu else CPU_CHUNKS
    turns = take_turns([partial(step, chunk) for chunk in chunks], SHORT, device)
    for chunk, mine in zip(chunks, turns, strict=True):
        ratio = paired_ratio(mine, turns[0])
        row = f"chunk of {chunk} rows: {mine.seconds * 1e3:.3f} ms, {ratio:.3f} of the first"
        report.add(f"chunk {chunk}", {"seconds": mine.seconds, "over_first": ratio}, row)
    limit = GRADIENT_TOLERANCES[dtype]
    if not all(error <= limit for error in errors):
        raise FoundWrongError(f"gradients are {errors} from float64, and {limit} is allowed")
    return f"{rows} rows of {shape.vocab_size}: {turns[0].seconds * 1e3:.2f} ms"


def _tiles(report: Report, call: Callable[[], object]) -> None:
    """The kernel's middle pass at other tiles, by turns. Its settings are the module's, as a trial would have them."""
    from trainers.model import losses_triton

    before = losses_triton.BLOCK, losses_triton.NUM_WARPS

    def with_tile(tile: tuple[int, int]) -> None:
        losses_triton.BLOCK, losses_triton.NUM_WARPS = tile
        call()

    try:
        turns = take_turns([partial(with_tile, tile) for tile in TILES], SHORT, report.device)
    finally:
        losses_triton.BLOCK, losses_triton.NUM_WARPS = before
    for (block, warps), mine in zip(TILES, turns, strict=True):
        ratio = paired_ratio(mine, turns[0])
        row = f"tile {block} x {warps} warps: {mine.seconds * 1e3:.3f} ms, {ratio:.3f} of the first"
        report.add(f"tile {block}x{warps}", {"seconds": mine.seconds, "over_first": ratio}, row)


def boundary(report: Report) -> str:
    """A short run of the captured step over a phase boundary against the eager one: losses, norms, and the usual kernels."""
    bench = Bench(report.device, seed=11)
    phases = bench_phases((4, 1), 5)
    found = {}
    for form in ("eager", "captured"):
        subject = bench.subject(phases)
        step = subject.step(form)
        results = [step.run(index, phase_at(phases, index)) for index in range(10)]
        found[form] = torch.tensor(step.look(results)(), dtype=torch.float64)
        step.close()
        synchronise(report.device)
        report.add(form, dict(zip(("losses", "norms"), found[form].tolist(), strict=True)))
    distance = float(((found["captured"] - found["eager"]).abs() / found["eager"].abs()).max())
    check = check_usual_kernels(bench, "captured")
    report.add("usual kernels", asdict(check), f"{check.status}: {check.name}, {check.value}")
    if not distance <= 10 * FORM_TOLERANCES[report.device.type]:
        raise FoundWrongError(f"losses or norms differ by {distance:.1e}")
    if check.status == FAIL:
        raise FoundWrongError(f"{check.name}: {check.value}, {check.note}")
    return f"captured is eager within {distance:.1e} over ten steps, norms included"


def _subject(report: Report, scale: str, bags: tuple[int, ...], micro_sequences: int | None, pace: Pace) -> Subject:
    setting = setting_of(scale, report.device, micro_sequences)
    phases = bench_phases(bags, 8 + 2 * pace.calls)
    return make_subject(scale, SCALES[scale].shape, setting, phases, report.device, 5)


def _peak(report: Report) -> float:
    stated = stated_peak(report.environment["device"])
    return stated or measure_ceilings(report.device, report.environment["device"], "fp32").peak_flops


def steps(
    report: Report,
    scale: str,
    forms: tuple[str, ...],
    bags: tuple[int, ...],
    rivals: tuple[Rival, ...],
    pace: Pace = SHORT,
) -> str:
    """Our step at some bag sizes in some forms, with rivals after it or else the kernels that the first form spends its time
    on."""
    micro = None if not rivals or report.device.type != "cuda" else _rivals_micro_batch(report, scale)
    subject = _subject(report, scale, bags, micro, pace)
    peak = _peak(report)
    baselines: list[Timed] = []
    for form in forms:
        timed, notes = time_forms(subject, (form,), pace, peak, rivals)
        baselines += [one for one in timed if one.variant == "baseline"]
        for one in timed:
            report.add(f"{one.variant} s={one.bag_size} {one.form}", asdict(one), "  ".join(step_row(one)))
        if notes:
            report.add(f"not timed, {form}", notes, *notes)
    if not rivals:
        report.attempt("kernels", partial(_kernels, report, subject, forms[0]))
    if not baselines:
        raise FoundWrongError(f"no step of {scale} could be timed")
    first, *others = baselines
    slower = [f"{one.form} takes {one.seconds / first.seconds:.2f} times as long" for one in others]
    speed = f"{scale}: {first.positions_per_second:,.0f} positions/s {first.form}, MFU {first.mfu:.1%}"
    return "; ".join([speed, *slower])


def _rivals_micro_batch(report: Report, scale: str) -> int:
    """The largest micro-batch at which both rivals should fit this GPU eagerly, and at least one sequence."""
    setting = setting_of(scale, report.device, None)
    spec = bench_spec(scale, SCALES[scale].shape, setting, 1)
    room = 0.9 * torch.cuda.get_device_properties(report.device).total_memory
    fits = (n for n in divisors_down(setting.micro_sequences) if all(bytes_of(r, spec, n) <= room for r in RIVALS))
    return next(fits, 1)


def _kernels(report: Report, subject: Subject, form: str) -> tuple[Any, str]:
    """Where a step's time goes: the kernels (on a CPU the operations) that take most of it, by the profiler."""
    step, phase = subject.step(form), subject.phases[0]
    for index in range(3):
        step.run(phase.start + index, phase)
    synchronise(report.device)
    kind = torch.profiler.ProfilerActivity
    on_gpu = report.device.type == "cuda"
    activities = [kind.CPU, kind.CUDA] if on_gpu else [kind.CPU]
    with torch.profiler.profile(activities=activities, acc_events=True) as profile:
        step.run(phase.start + 3, phase)
        synchronise(report.device)
    step.close()
    events = [
        (event.self_device_time_total if on_gpu else event.self_cpu_time_total, event.count, event.key)
        for event in profile.key_averages()
    ]
    whole = sum(time for time, _, _ in events) or 1.0
    largest = sorted(events, reverse=True)[:MOST_KERNELS]
    report.rows += [f"{time / whole:6.1%} {count:5d} x {key[:100]}" for time, count, key in largest]
    found = [{"microseconds": time, "calls": count, "name": key[:200]} for time, count, key in largest]
    named = sorted({word for word in ("cudnn", "flash", "fmha") for _, _, key in events if word in key.lower()})
    return found, f"above: where the time of one step goes, {form}; attention by name: {', '.join(named) or 'none'}"


def variants(report: Report) -> str:
    """Matmuls as a GPU might do them otherwise: sums of parts in float32, and Inductor's own search at width 576."""
    device, width = report.device, SCALES["270m"].shape.width
    left, right = (
        torch.randn(*size, device=device, dtype=torch.bfloat16) for size in ((32_768, width), (width, 3_072))
    )
    flags = torch.backends.cuda.matmul

    def multiply(reduced: bool) -> None:
        flags.allow_bf16_reduced_precision_reduction = reduced
        left @ right
        left.T @ left  # as gradients of weights have it: short sides, many rows, where sums are split

    def split() -> tuple[Any, str]:
        exact, reduced = take_turns([partial(multiply, False), partial(multiply, True)], SHORT, device)
        ratio = paired_ratio(exact, reduced)
        return {"over_reduced": ratio}, f"parts of a sum in float32: {ratio:.3f} of the time in bfloat16"

    def searched() -> tuple[Any, str]:
        found = torch.compile(lambda a, b: a @ b, options={"max_autotune_gemm": True}, dynamic=False)
        found(left, right)
        theirs, ours = take_turns([lambda: left @ right, lambda: found(left, right)], SHORT, device)
        ratio = paired_ratio(ours, theirs)
        return {"over_cublas": ratio}, f"Inductor's own matmul at width {width}: {ratio:.3f} of cuBLAS's time"

    report.attempt("split sums", split)
    report.attempt("searched matmul", searched)
    return "; ".join(report.rows)


def tests(report: Report) -> str:
    """The tests that need a GPU, each with a limit of its own; pytest's output is a log beside the JSON."""
    root = Path(__file__).resolve().parents[3]
    if importlib.util.find_spec("pytest") is None or not (root / "tests" / "gpu").is_dir():
        return "skipped: pytest or tests/gpu is not here"

    def tell(one: Ended) -> None:
        failed = one.outcome in FAILURES
        report.add(one.name, asdict(one), *([f"{one.name}: {one.outcome}, {one.said}"] if failed else []))

    found = run_tests(root / "tests" / "gpu", root, ("-m", "gpu"), report.path.with_name("pytest.log"), tell)
    counts = Counter(one.outcome for one in found)
    said = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items())) or "no test was chosen"
    if any(outcome in FAILURES for outcome in counts):
        raise FoundWrongError(said)
    return said


def training(report: Report, given: argparse.Namespace) -> tuple[str, str]:
    """A list of trials in the seconds that are given; goes on where an earlier command stopped."""
    command = [sys.executable, "-m", "trainers.run", str(given.specs), "--corpus", str(given.corpus)]
    command += ["--out", str(given.records), "--hours", str(max(given.seconds - 20, 1) / 3600)]
    command += ["--evaluate-every", str(given.evaluate_every), "--evaluate-tokens", str(given.evaluate_tokens)]
    command += ["--device", report.device.type]
    # Whoever interrupts the tour asks all of its processes to end: the run saves its state, and this one waits for it.
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    done = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=ends_with_us())
    said = (done.stdout.strip() or done.stderr.strip() or "it said nothing").splitlines()
    report.add("run", {"code": done.returncode}, *said[-30:])
    if done.returncode not in (0, 1, 3):
        raise FoundWrongError((done.stderr.strip() or said[-1]).splitlines()[-1])
    return (CUT if done.returncode == 3 else OK), said[-1]


def largest(report: Report) -> str:
    """The 3B step, where its 67 GB of state leave room for activations."""
    if torch.cuda.get_device_properties(report.device).total_memory < 100e9:
        return "skipped: 3b needs a GPU of more than 100 GB"
    return steps(report, "3b", ("captured",), (1, 16), ())


MEASURES: dict[str, Callable[[Report], str]] = {
    "machine": machine,
    "loss": loss,
    "boundary": boundary,
    "steps": lambda report: steps(report, "pico", ("eager",), BAGS, ()),
    "rivals": lambda report: steps(report, "pico", ("eager",), (1, 6), RIVALS),
    "captured-270m": lambda report: steps(report, "270m", ("captured",), BAGS, ()),
    "compiled-270m": lambda report: steps(report, "270m", ("compiled", "eager"), (1,), ()),
    "toy": lambda report: steps(report, "pico", ("captured", "compiled", "eager"), (1,), (), LONG),
    "captured-1m": lambda report: steps(report, "1m", ("captured",), BAGS, ()),
    "variants": variants,
    "tests": tests,
    "captured-600m": lambda report: steps(report, "600m", ("captured",), BAGS, ()),
    "rivals-270m": lambda report: steps(report, "270m", ("compiled", "eager"), (1, 6), RIVALS),
    "captured-3b": largest,
}
"""Every part but `training`, which takes arguments of its own."""


def main() -> int:
    """Measure one part; an exception ends the process, and its last line is what the table says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("device")
    parser.add_argument("part")
    parser.add_argument("path", type=Path)
    for name in ("--specs", "--corpus", "--records"):
        parser.add_argument(name, type=Path)
    for name in ("--evaluate-every", "--evaluate-tokens"):
        parser.add_argument(name, type=int, default=0)
    parser.add_argument("--seconds", type=float, default=60.0)
    given = parser.parse_args()
    try:
        device = bench_device(given.device)
    except InputError as error:  # nothing that another part would do better
        print(error, file=sys.stderr)
        return USER
    torch.set_num_threads(1 if device.type == "cpu" else torch.get_num_threads())
    report = Report(given.path, device)
    try:
        if given.part == TRAINING:
            status, line = training(report, given)
        else:
            status, line = OK, MEASURES[given.part](report)
    except FoundWrongError as error:
        report.write(CUT)
        print(error)
        return FAULT
    report.write(status, line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
