"""Take it home: what the reader's own trainer has to be told. The end of the verdict, not a section of its own.

Read from the confirmed configuration at the budget of the verdict; nothing is scaled to another model here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reports.estimate.verdict import NotReached, Reached, ScaleVerdict, Words
from reports.evidence.runs import FinishedRun, Parameters
from reports.evidence.study import Cell, Configuration, Study
from reports.html import theme
from reports.html.blocks import Block, Code, Column, Heading, Prose, Table
from reports.summary import Summary
from trainers.contract.schedule import boundary_step
from trainers.contract.spec import TrialSpec
from trainers.methods import describe_parameters, parameter_of


@dataclass(frozen=True, slots=True)
class Recipe:
    """One scale's confirmed settings. Lengths in optimizer steps; `tokens` are data tokens, None where unknown.
    `boundary_step` is 0 for a method of one phase; `optimizer` is known of our own trainer's runs alone."""

    scale: str
    method: str
    parameters: Parameters
    learning_rate: float | None
    total_steps: int
    boundary_step: int
    warmup_steps: int | None
    decay_steps: int | None
    context: int | None
    tokens_per_step: int | None
    tokens: float | None
    epochs: float | None
    optimizer: str | None


@dataclass(frozen=True, slots=True)
class RecipeInfo:
    """All confirmed recipes, the main one (for the snippet) among them, and whether they are worth following."""

    recipes: tuple[Recipe, ...]
    main: Recipe
    advice: str


def words_of(configuration: Configuration) -> str:
    """`s=3 r=0.2 lr=2e-3`."""
    parts = [describe_parameters(configuration.parameters)]
    if configuration.learning_rate is not None:
        parts.append(f"lr={theme.learning_rate(configuration.learning_rate)}")
    return " ".join(part for part in parts if part)


def info(study: Study, summary: Summary) -> RecipeInfo | None:
    """The recipes of the method to follow at every scale that confirmed one; None without any."""
    best = _to_follow(summary)
    wanted = [verdict for verdict in summary.verdicts if best is None or verdict.method == best.method]
    found = [(verdict, recipe) for verdict in wanted if (recipe := _recipe(study, verdict)) is not None]
    if not found:
        return None
    main = next((recipe for verdict, recipe in found if verdict is best), found[-1][1])
    advice = _advice(study.context.kind, best)
    rivals = {verdict.method for verdict in summary.verdicts}
    # The best of several estimates is lucky by construction, even where each one is fair.
    if best is not None and len(rivals) > 1 and best.words is Words.FASTER:
        advice += (
            f" {theme.method_label(best.method)} is the fastest of {len(rivals)} methods that were compared here: a "
            "winner of several is a little luckier than its own interval says."
        )
    return RecipeInfo(tuple(recipe for _, recipe in found), main, advice)


def _to_follow(summary: Summary) -> ScaleVerdict | None:
    """The fastest of the methods that are faster, at the scale of the headline; the headline's where none is."""
    main = summary.main
    faster = [
        (verdict.speedup.speedup, verdict)
        for verdict in summary.verdicts
        if main is not None and verdict.scale == main.scale and verdict.words is Words.FASTER
        if isinstance(verdict.speedup, Reached)
    ]
    return max(faster, key=lambda pair: pair[0])[1] if faster else main


def _advice(kind: str, main_verdict: ScaleVerdict | None) -> str:
    if kind == "published":
        return "The published settings, with the learning rate that was tuned for the baseline."
    words = main_verdict.words if main_verdict is not None else Words.UNCONFIRMED
    bound = main_verdict.speedup if main_verdict is not None else None
    if isinstance(bound, NotReached) and (bound.lower_bound or 0.0) > 1:
        return "The confirmed settings: no baseline run ended as low."
    if words == Words.FASTER:
        return "The confirmed settings, as they were trained here."
    if words == Words.SLOWER:
        return "The best settings that the search found. They lost to the baseline: a record, not a recommendation."
    return "The best settings that the search found. The runs do not yet show that they pay; they are the ones to test."


def _cell(study: Study, verdict: ScaleVerdict) -> Cell | None:
    for scale in study.scales:
        for arm in scale.methods:
            if scale.scale == verdict.scale and arm.method == verdict.method and arm.cells:
                return next((cell for cell in arm.cells if cell.total_steps == verdict.target_steps), arm.cells[-1])
    return None


def _recipe(study: Study, verdict: ScaleVerdict) -> Recipe | None:
    cell = _cell(study, verdict)
    if cell is None or verdict.best is None:
        return None
    run: FinishedRun = cell.runs[0]
    ratio = float(dict(verdict.best.parameters).get("step_ratio", 0.0))
    schedule = run.record.spec.schedule if run.record is not None else None
    if schedule is not None and not schedule.decay_steps:
        schedule = None  # a trainer of its own decays in a way that it has not told
    boundary = run.boundary_step
    return Recipe(
        scale=verdict.scale,
        method=verdict.method,
        parameters=verdict.best.parameters,
        learning_rate=verdict.best.learning_rate,
        total_steps=cell.total_steps,
        boundary_step=boundary_step(ratio, cell.total_steps) if boundary is None else boundary,
        warmup_steps=None if schedule is None else schedule.warmup_steps,
        decay_steps=None if schedule is None else schedule.decay_steps,
        context=run.context,
        tokens_per_step=run.tokens_per_step,
        tokens=cell.tokens,
        epochs=run.epochs,
        optimizer="AdamW" if run.record is not None and isinstance(run.record.spec, TrialSpec) else None,
    )


def figure(shown: RecipeInfo) -> Sequence[Block]:
    """The table over scales and the snippet of the main one."""
    columns = (
        Column("Scale", numeric=False),
        Column("Method", numeric=False),
        Column("Settings", numeric=False),
        Column("Boundary step"),
        Column("Total steps"),
        Column("Peak learning rate"),
        Column("Data tokens"),
        Column("Epochs of its corpus"),
    )
    rows = tuple(
        (
            recipe.scale,
            theme.method_label(recipe.method),
            describe_parameters(recipe.parameters) or "–",
            f"{recipe.boundary_step:,}" if recipe.boundary_step else "–",
            f"{recipe.total_steps:,}",
            theme.learning_rate(recipe.learning_rate),
            theme.count(recipe.tokens),
            theme.number(recipe.epochs),
        )
        for recipe in shown.recipes
    )
    return (
        Heading("Take it home"),
        Prose(shown.advice),
        Table("What the method was trained with", columns, rows),
        Code(snippet(shown.main), f"The same for {shown.main.scale}, in the manner of a TorchTitan configuration file"),
    )


def snippet(recipe: Recipe) -> str:
    """A configuration in TOML. What the runs do not say is left out rather than guessed."""
    lines = ["[training]", f"steps = {recipe.total_steps}"]
    if recipe.context is not None:
        lines.append(f"seq_len = {recipe.context}  # latent positions of ordinary training")
        if recipe.tokens_per_step is not None:
            lines.append(f"global_batch_size = {recipe.tokens_per_step // recipe.context}  # sequences")
    if recipe.optimizer is not None or recipe.learning_rate is not None:
        lines += ["", "[optimizer]"]
    if recipe.optimizer is not None:
        lines.append(f'name = "{recipe.optimizer}"')
    if recipe.learning_rate is not None:
        lines.append(f"lr = {recipe.learning_rate:.6g}")
    if recipe.warmup_steps is not None and recipe.decay_steps is not None:
        lines += [
            "",
            "[lr_scheduler]",
            f"warmup_steps = {recipe.warmup_steps}",
            f"decay_ratio = {recipe.decay_steps / recipe.total_steps:.6g}",
            'decay_type = "linear"',
        ]
    lines += ["", f"[{recipe.method}]"]
    for name, value in recipe.parameters:
        written = f'"{value}"' if isinstance(value, str) else f"{value:g}"
        lines.append(f"{name} = {written}  # {parameter_of(name).words}")
    if recipe.boundary_step:
        lines.append(f"boundary_step = {recipe.boundary_step}  # from here on ordinary training")
    if recipe.tokens is not None:
        lines.append(f"# reads {theme.count(recipe.tokens)} data tokens in all")
    return "\n".join(lines)
