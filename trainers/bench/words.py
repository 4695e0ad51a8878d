"""A bench's result as rows of text, for whoever prints them: the trainers plainly, `sweeper bench` in colour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trainers.bench.result import BenchResult, Check, LossTimed, ScaleFigures, Timed, ratios


@dataclass(frozen=True, slots=True)
class TextTable:
    """A title, column names (the first is left-aligned, the others right) and rows. `notes` follow it, a line each."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def _duration(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} us"
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def _bytes(count: int | None) -> str:
    if count is None:
        return "-"
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _count(value: float) -> str:
    return f"{value:,.0f}"


def check_cells(check: Check) -> tuple[str, str, str]:
    """Status, name, and what was found against what is allowed."""
    if check.value is None or check.limit is None:
        return check.status, check.name, check.note
    if check.limit == 0:
        found = "bitwise" if check.value == 0 else f"differs by {check.value:.1e}, must be bitwise"
    else:
        found = f"{check.value:.1e}, at most {check.limit:.1e}"
    return check.status, check.name, found


def _label(timed: Timed) -> str:
    names = {
        "baseline": "baseline",
        "superposition": f"superposition s={timed.bag_size}",
        "paper": f"paper's form s={timed.bag_size}",
        "plain": "plain PyTorch",
    }
    return f"{names[timed.variant]}, {timed.form}"


def step_row(timed: Timed) -> tuple[str, ...]:
    """Label, time, spread, positions a second, MFU, peak memory, and the ratio to the baseline."""
    return (
        _label(timed),
        _duration(timed.seconds),
        f"{timed.spread:.0%}",
        _count(timed.positions_per_second),
        f"{timed.mfu:.1%}",
        _bytes(timed.peak_bytes),
        _ratio(timed.over_baseline),
    )


def scale_table(scale: ScaleFigures) -> TextTable:
    """One row a variant."""
    batch = f"{scale.sequences} x {scale.context} positions"
    if scale.micro_sequences != scale.sequences:
        batch += f" in parts of {scale.micro_sequences}"
    notes = [scale.note] if scale.note else []
    for label, parts in scale.parts.items():
        shares = ", ".join(f"{part} {share:.0%}" for part, share in parts.items())
        notes.append(f"parts of an eager {label} step: {shares}")
    return TextTable(
        title=f"{scale.scale}: {scale.parameters / 1e6:,.3g}M parameters, {batch}, {scale.precision}",
        columns=("step", "time", "iqr", "positions/s", "MFU", "peak", "x base"),
        rows=tuple(step_row(timed) for timed in scale.steps),
        notes=tuple(notes),
    )


def loss_table(losses: Sequence[LossTimed]) -> TextTable:
    """One row a shape and form: one-hot cross-entropy, then each bag size as a multiple of it."""
    bags = sorted({timed.bag_size for timed in losses if timed.bag_size > 1})
    rows = []
    for shape, form in dict.fromkeys((timed.shape, timed.form) for timed in losses):
        mine = {timed.bag_size: timed for timed in losses if (timed.shape, timed.form) == (shape, form)}
        rows.append((f"{shape}, {form}", _duration(mine[1].seconds), *(_ratio(mine[bag].over_one_hot) for bag in bags)))
    return TextTable(
        title="the loss alone, forward and backward, as multiples of PyTorch's one-hot cross-entropy",
        columns=("shape, form", "one-hot", *(f"s={bag}" for bag in bags)),
        rows=tuple(rows),
    )


FORM_RATIOS: tuple[tuple[str, str], ...] = (
    ("superposition_over_baseline_by_form", "superposition step / baseline step, largest"),
    ("multi_hot_over_one_hot_by_form", "multi-hot loss / one-hot cross-entropy, largest"),
    ("paper_over_ours_by_form", "paper's form / superposition step, largest"),
    ("plain_over_baseline_by_form", "plain PyTorch step / baseline step, largest"),
)
GAINS: tuple[tuple[str, str], ...] = (
    ("compiled_over_eager", "speed of compiled / eager, smallest"),
    ("captured_over_eager", "speed of captured / eager, smallest"),
    ("captured_over_compiled", "speed of captured / compiled, smallest"),
)


def ratio_table(result: BenchResult) -> TextTable:
    """The headline ratios, a column a form; a gain of one form over another stands under the faster."""
    values, forms = ratios(result), result.environment.forms
    rows = [(text, *(_ratio(values[key].get(form)) for form in forms)) for key, text in FORM_RATIOS]
    for key, text in GAINS:
        if values[key] is not None:
            rows.append((text, *(_ratio(values[key]) if key.startswith(form) else "" for form in forms)))
    return TextTable(title="ratios", columns=("", *forms), rows=tuple(rows))


def tables(result: BenchResult) -> list[TextTable]:
    """Everything that is printed as a table, in order."""
    return [*(scale_table(scale) for scale in result.scales), loss_table(result.losses), ratio_table(result)]


def opening(result: BenchResult) -> list[str]:
    """Where it ran, and the ceilings."""
    where, ceilings = result.environment, result.ceilings
    speeds = ", ".join(
        f"{kind} matmul {flops / 1e12:,.3g} TFLOP/s" for kind, flops in ceilings.matmul_flops_per_second.items()
    )
    lines = [
        f"{where.device}, torch {where.torch_version}, {where.threads} thread{'s' if where.threads > 1 else ''}",
        f"ceilings: copy {ceilings.copy_bytes_per_second / 1e9:,.3g} GB/s, {speeds}",
        f"MFU over {ceilings.peak_flops / 1e12:,.3g} TFLOP/s ({ceilings.peak_source})",
    ]
    return lines + [f"{form}: not measured ({reason})" for form, reason in where.unavailable.items()]


def plain_table(table: TextTable) -> str:
    """The table in fixed columns."""
    rows = [table.columns, *table.rows]
    widths = [max(len(row[index]) for row in rows) for index in range(len(table.columns))]
    lines = [table.title]
    for row in rows:
        cells = [
            cell.ljust(width) if not index else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join([*lines, *table.notes])


def plain(result: BenchResult) -> str:
    """The whole result as plain text."""
    checks = [
        "  ".join((status.ljust(7), f"{name}: {found}")) for status, name, found in map(check_cells, result.checks)
    ]
    parts = ["\n".join(opening(result)), "\n".join(checks), *map(plain_table, tables(result))]
    return "\n\n".join(parts)
