"""What a person watching a sweep is shown, as values: the screen draws them, `status` prints them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from sweeper.engine.arms import NOISE_FLOOR_SEEDS, Arm
from sweeper.engine.probes import num_probes
from sweeper.engine.sweep import Sweep
from trainers.contract.record import RunRecord
from trainers.methods import BASELINE, describe_parameters


@dataclass(frozen=True, slots=True)
class ArmView:
    """One arm. `state` is waiting, tuning, confirming or done; hours are device-hours, `hours_left` an estimate. Runs that an
    earlier state of the file asked for are in no other count, and their hours are among those spent."""

    scale: str
    method: str
    state: str
    done: int
    running: int
    left: int
    best_loss: float | None
    best_parameters: str
    hours_spent: float
    hours_left: float | None
    ended_badly: int = 0
    of_earlier_files: int = 0

    @property
    def total(self) -> int:
        """Trials of the arm: tuning, probes and confirmation together."""
        return self.done + self.running + self.left


@dataclass(frozen=True, slots=True)
class SweepView:
    """The whole sweep. `clock` is GPU-hours or CPU-hours; `latest` is the last thing that happened, in words."""

    name: str
    clock: str
    arms: tuple[ArmView, ...]
    hours_spent: float
    hours_left: float | None
    latest: str


def describe_point(record: RunRecord) -> str:
    """The searched values of a trial, short: `s=3 r=0.2 lr=0.004`."""
    words = describe_parameters(record.spec.parameters)
    return f"{words} lr={record.spec.schedule.learning_rate:g}".lstrip()


def _state(arm: Arm | None, done: int, total: int) -> str:
    if done >= total:
        return "done"
    if arm is None:
        return "ended" if done else "waiting"  # without a winner, an arm is closed
    return "confirming" if arm.winner else "tuning"


def _arm_view(sweep: Sweep, scale: str, method: str, steps_left: Mapping[tuple[str, str], int]) -> ArmView:
    space, key = sweep.space, (scale, method)
    confirmation, rungs = space.methods[method].budgets.confirmation, space.methods[method].budgets.rungs
    arm = next((arm for arm in sweep.arms if (arm.scale, arm.method) == key), None)
    mine = [r for r in sweep.finished.values() if (r.spec.scale, r.spec.method) == key]
    records = [record for record in mine if record.spec.spec_id not in sweep.of_earlier_files]
    seeds = len(space.seeds.confirmation)
    floor = NOISE_FLOOR_SEEDS - 1 if seeds == 1 and method == BASELINE else 0
    tuning = arm.trials if arm else space.search.trials_per_arm
    # Probes are asked for only when the search has its winner, but they are known to come.
    probes = num_probes(space, len((arm.probes if arm else None) or {}))
    total = tuning + probes + seeds * len(confirmation) + floor
    running = sum((s.spec.scale, s.spec.method) == key for s in sweep.book.running.values())
    best = arm.best if arm else None
    steps, hours = sweep.arm_steps[key], sweep.arm_hours[key]
    # What has been asked for is known to the step, shared prefixes and all; what the searches will ask for is not, and
    # counts as if every trial were trained alone.
    to_come = steps_left[key]
    if arm is not None:
        to_come += (tuning - len(arm.asked)) * rungs[0]
        to_come += 0 if arm.winner else seeds * sum(confirmation) + floor * confirmation[0]
        to_come += 0 if arm.probes else probes * confirmation[-1]
    hours_left = sweep.step_hours[key] / steps * to_come if steps else None
    return ArmView(
        scale=scale,
        method=method,
        state=_state(arm, len(records), total),
        done=len(records),
        running=running,
        left=max(0, total - len(records) - running),
        best_loss=best.final_loss if best else None,
        best_parameters=describe_point(best) if best else "",
        hours_spent=hours,
        hours_left=hours_left,
        ended_badly=sum(record.final_loss is None for record in records),
        of_earlier_files=len(mine) - len(records),
    )


def view_of(sweep: Sweep) -> SweepView:
    """The sweep as it stands."""
    steps_left: Counter[tuple[str, str]] = Counter()
    for segment in (*sweep.book.needed(), *sweep.book.running.values()):
        steps_left[segment.spec.scale, segment.spec.method] += segment.steps
    arms = tuple(
        _arm_view(sweep, scale, method, steps_left) for scale in sweep.space.scales for method in sweep.space.methods
    )
    left = [arm.hours_left for arm in arms]
    return SweepView(
        name=sweep.space.name,
        clock="GPU-hours" if sweep.site.on_gpu else "CPU-hours",
        arms=arms,
        hours_spent=sweep.spent_hours + sweep.open_hours,
        hours_left=None if None in left else sum(hours for hours in left if hours is not None),
        latest=sweep.latest,
    )


def not_done(view: SweepView) -> str:
    """What a sweep that stopped early did not do, in words."""
    left = [f"{arm.left + arm.running} of {arm.scale} {arm.method}" for arm in view.arms if arm.left + arm.running]
    return f"not done: {', '.join(left)}" if left else "nothing is left to start"
