"""A dry run: each method's command once at a small budget, to see that the contract holds before anything is spent.

Points, a final loss and a clock have to come; then the command is asked to end by SIGTERM in the middle, and where it claims to
resume, the same command in the same folder has to go on. What a step took is kept for plans. No more is promised than was
seen.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from sweeper.foreign.costs import Arm, DryTimes
from sweeper.foreign.track import WHOLE
from sweeper.foreign.trainer import ForeignTrainer
from sweeper.foreign.worker import STOP_WORDS, WATCHED, run_command
from sweeper.space.foreign_schema import ForeignSpace
from sweeper.space.schema import values_of
from sweeper.space.trials import make_spec
from trainers.contract.reading import json_value
from trainers.contract.record import Stopped
from trainers.contract.spec import ForeignSpec
from trainers.contract.stage import StageJob, StagePoint, StageResult
from trainers.contract.writing import write_atomically

NO_CLAIM = "not said to end decayed: no claim will be made; where it does, add `decayed: true` below `trainer:`"
FOLDER, MEASURED = "dry", "measured.json"
LEAST_STEPS, SHARE = 20, 20
"""A dry run has a twentieth of the shortest tuning budget's steps, and twenty at least where there are as many."""
LONGER = 10
"""Times as many, where a command ends before it can be asked to; at last as many as a tuning trial has."""

Status = Literal["ok", "note", "fail"]


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at, and what was found."""

    status: Status
    what: str
    found: str


@dataclass(frozen=True, slots=True)
class DryResult:
    """What was found, and in words how far the contract holds: None where something does not."""

    checks: tuple[Check, ...]
    holds: str | None


def _hinted(reason: str, steps: int) -> str:
    """A reason with what is special about a dry run: a trainer that evaluates every so often may not do so in so few steps."""
    if not reason.startswith("exit code 0"):
        return reason
    return f"{reason}. {steps:,} steps were asked for: does it evaluate at the last step, too?"


def dry_steps(space: ForeignSpace) -> int:
    """Total steps of a dry run, the same for every method."""
    shortest = min(method.budgets.rungs[0] for method in space.methods.values())
    return min(shortest, max(LEAST_STEPS, shortest // SHARE))


def example_specs(space: ForeignSpace, code: str, total_steps: int | None = None) -> Iterator[ForeignSpec]:
    """A trial of each method at the smallest scale, with the middle of each axis; a tuning trial where no steps are given."""
    for name, method in space.methods.items():
        parameters = {axis: values_of(given)[len(values_of(given)) // 2] for axis, given in method.axes.items()}
        spec = make_spec(
            space,
            scale=next(iter(space.scales)),
            method=name,
            parameters=parameters,
            total_steps=total_steps or method.budgets.rungs[-1],
            seed=space.seeds.tuning[0],
            corpus_fingerprint="",
            tokenizer_fingerprint="",
            vocab_size=0,
            code=code,
        )
        assert isinstance(spec, ForeignSpec)
        yield spec


def measured_by_a_dry_run(folder: Path, code: str) -> DryTimes:
    """What a dry run of this very code left in a sweep's folder; nothing where there was none."""
    try:
        plain = json_value((folder / FOLDER / MEASURED).read_bytes())
        if plain["code"] != code:
            return DryTimes()
        # The bounds are younger than the file's shape.
        told = [plain["seconds"], plain.get("at_most", [])]
        return DryTimes(*({(scale, method): float(seconds) for scale, method, seconds in rows} for rows in told))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return DryTimes()


@dataclass
class DryRun:
    """The dry run of a file in its sweep's `folder`; `say` is told which command runs. `timed` keeps what a step took."""

    space: ForeignSpace
    trainer: ForeignTrainer
    folder: Path
    say: Callable[[str], None]
    timed: bool = True
    seconds: dict[Arm, float] = field(default_factory=dict)
    at_most: dict[Arm, float] = field(default_factory=dict)
    unseen: dict[str, None] = field(default_factory=dict)

    def run(self) -> DryResult:
        """Every method in turn."""
        root = self.folder / FOLDER
        shutil.rmtree(root, ignore_errors=True)
        checks: list[Check] = []
        if not self.space.trainer.decayed:
            checks.append(Check("note", "schedule", NO_CLAIM))
        for spec in example_specs(self.space, self.trainer.fingerprint, dry_steps(self.space)):
            checks += list(self._method(spec, root / spec.method))
        kept = {
            name: [(*arm, seconds) for arm, seconds in times.items()]
            for name, times in (("seconds", self.seconds), ("at_most", self.at_most))
        }
        write_atomically(root / MEASURED, json.dumps({"code": self.trainer.fingerprint, **kept}))
        return DryResult(tuple(checks), None if any(check.status == "fail" for check in checks) else self._holds())

    def _holds(self) -> str:
        of = max(method.budgets.rungs[-1] for method in self.space.methods.values())
        tried = f"{dry_steps(self.space):,} of {of:,} steps"
        if not self.unseen:
            return f"the contract holds, tried over {tried}"
        return f"the contract holds as far as it could be tried, over {tried}: {' and '.join(self.unseen)} was not seen"

    def _method(self, spec: ForeignSpec, root: Path) -> Iterator[Check]:
        name = spec.method
        self.say(f"{name}: {spec.schedule.total_steps:,} steps")
        done = self._run(spec, root / "whole")
        if done.outcome is not None:
            yield Check("fail", f"{name}: run", _hinted(done.outcome.reason, spec.schedule.total_steps))
            return
        steps, step_seconds = done.timings[0].steps, done.timings[0].median_step_seconds
        self._keep(spec, done)
        yield Check(
            "ok", f"{name}: points", f"{len(done.points)}, the last at step {done.points[-1].step:,} of {steps:,}"
        )
        yield Check("ok", f"{name}: final loss", f"{done.points[-1].loss:.6g}")
        said = f"{done.clock}, {step_seconds:.3g} s a step; {done.billed_seconds:.3g} s in all"
        if done.clock == WHOLE:
            said += "; start-up is in it, and in all hours as soon as one confirmed run has no other clock: "
            said += "give `seconds` or write points as they come"
        yield Check("note" if done.clock == WHOLE else "ok", f"{name}: clock", said)
        yield from self._interrupted(spec, root / "interrupted", done)

    def _keep(self, spec: ForeignSpec, done: StageResult) -> None:
        """What a step took. Where start-up is in it, it is a bound, and the run over most steps has the best."""
        if not self.timed or done.outcome is not None:
            return
        arm, step_seconds = (spec.scale, spec.method), done.timings[0].median_step_seconds
        if done.clock != WHOLE:
            self.seconds.setdefault(arm, step_seconds)
        else:
            self.at_most[arm] = min(step_seconds, self.at_most.get(arm, step_seconds))

    def _interrupted(self, spec: ForeignSpec, root: Path, whole: StageResult) -> Iterator[Check]:
        """Ask it to end once it has said something, then run it again where it claims to go on. One that is too quick to be
        asked is tried again over more steps."""
        name, stop = spec.method, root / "stop"
        short, full = spec.schedule.total_steps, self.space.methods[spec.method].budgets.rungs[-1]
        for total in sorted({short, min(LONGER * short, full), full}):
            tried = replace(spec, schedule=replace(spec.schedule, total_steps=total))
            shutil.rmtree(root, ignore_errors=True)
            self.say(f"{name}: SIGTERM in the middle{f' of {total:,} steps' if total > short else ''}")
            asked: list[float] = []

            def ask(point: StagePoint, asked: list[float] = asked) -> None:
                if not asked:
                    asked.append(time.monotonic())
                    stop.touch()

            first = self._run(tried, root, ask)
            self._keep(tried, first)
            took = time.monotonic() - asked[0] if asked else 0.0
            outcome = first.outcome
            stopped = outcome if isinstance(outcome, Stopped) and outcome.reason == STOP_WORDS else None
            in_the_middle = stopped is not None and stopped.step < total - 1
            if in_the_middle or (outcome is not None and stopped is None):
                break
        if outcome is not None and stopped is None:
            yield Check("fail", f"{name}: SIGTERM", outcome.reason)
            return
        if stopped is None or not in_the_middle:
            yield Check("note", f"{name}: SIGTERM", f"{total:,} steps had ended before it could be asked")
            self.unseen["resumption" if self.trainer.resumes else "an end by SIGTERM"] = None
            return
        if took >= self.trainer.grace_seconds:
            yield Check(
                "fail", f"{name}: SIGTERM", f"did not end within {self.trainer.grace_seconds:g} s and was killed"
            )
        else:
            yield Check("ok", f"{name}: SIGTERM", f"ended after {took:.2g} s, at step {stopped.step:,}")
        if not self.trainer.resumes:
            yield Check("note", f"{name}: resumption", "not claimed (resumes: true): a stopped trial begins anew")
            return
        stop.unlink()
        self.say(f"{name}: going on")
        yield self._resumed(name, self._run(tried, root), whole if total == short else None, root)

    def _resumed(self, name: str, again: StageResult, whole: StageResult | None, root: Path) -> Check:
        what = f"{name}: resumption"
        if again.outcome is not None:
            return Check("fail", what, again.outcome.reason)
        spans = json.loads((root / again.node / WATCHED).read_text(encoding="utf-8"))["spans"]
        first, last = spans[0]["first"], spans[-1]["first"]
        if len(spans) < 2 or last <= first:
            return Check("fail", what, f"it began anew: its first point after the interruption is of step {last:,}")
        said = f"went on at step {last:,}"
        if whole is not None:
            apart = abs(again.points[-1].loss - whole.points[-1].loss)
            said += f"; final loss {apart:.2g} from that of the uninterrupted run"
        return Check("ok", what, said)

    def _run(
        self, spec: ForeignSpec, root: Path, on_point: Callable[[StagePoint], None] = lambda point: None
    ) -> StageResult:
        root.mkdir(parents=True, exist_ok=True)
        job = StageJob(
            node="trial",
            parent=None,
            start=0,
            end=spec.schedule.total_steps,
            spec=spec,
            booked_by=spec.spec_id,
            store=str(root.resolve()),
            corpus="",
            stop_file=str(root / "stop"),
            device="",
            execution="command",
            evaluate_every=0,
        )
        return run_command(self.trainer, job, on_point)
