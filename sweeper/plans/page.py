"""A plan for others than the terminal: as JSON for machines, as a self-contained page with the tree of stages drawn.

Nothing is computed here that the plan does not hold; how the page looks is `reports.pages.plan`'s.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from reports.html.theme import hours
from sweeper.plans.plan import Plan, ScalePlan
from trainers.contract.writing import write_atomically

PLAN_SCHEMA = 1


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """Plain JSON values: totals, one entry a scale and arm, and every stage. Hours are device-hours, disk in bytes."""
    price = plan.price_per_hour
    return {
        "schema": PLAN_SCHEMA,
        "kind": "plan",
        "total": {
            "steps_alone": sum(arm.steps_alone for arm in plan.arms),
            "steps_shared": sum(arm.steps_shared for arm in plan.arms),
            "steps_saved": plan.steps_saved,
            "hours_alone": plan.hours_alone,
            "hours_shared": plan.hours_shared,
            "price_alone": None if price is None else plan.hours_alone * price,
            "price_shared": None if price is None else plan.hours_shared * price,
        },
        **asdict(plan),
    }


def write_plan_page(plan: Plan, path: Path) -> None:
    """Write the page to `path`, whole or not at all. Raises `OSError` where that cannot be done."""
    from reports.pages.plan import PlannedSweep, render_plan

    planned = PlannedSweep(
        name=plan.name,
        question=plan.question,
        clock=plan.clock,
        price=plan.price_per_hour,
        currency=plan.currency,
        arms=plan.arms,
        stages=plan.stages,
        notes=(
            f"Corpus: {plan.corpus}. Step times: {plan.cost_source}.",
            *(_note(scale, plan) for scale in plan.scales),
        ),
    )
    write_atomically(path, render_plan(planned, plan_to_json(plan)))


def _note(scale: ScalePlan, plan: Plan) -> str:
    resolves = f"resolves a speedup of {scale.resolves:.2f} or more" if scale.resolves else "gives no interval"
    kept = (
        f", of which {scale.models_bytes / 1e9:,.3g} GB stay: {scale.models} models to export" if scale.models else ""
    )
    return (
        f"{scale.scale}: {hours(scale.wall_hours)} of wall time on {plan.workers} "
        f"{'worker' if plan.workers == 1 else 'workers'}, at most {scale.disk_bytes / 1e9:,.3g} GB of checkpoints "
        f"(budget {plan.disk_budget / 1e9:,.3g} GB){kept}; {resolves} ({scale.resolves_reason})."
    ) + (f" It {scale.fit.sentence}." if scale.fit is not None else "")
