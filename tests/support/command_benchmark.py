"""What the sweep of a command costs beside that of our own trainer: `python -m tests.support.command_benchmark`, minutes.

The tiny sweep of the tests by our trainer and by `python -m trainers.run` as a command, in this process, one trial at a time;
after each command the same one again without a sweep, so that both have the same machine. Prints the figures of
trainers/examples/README.md.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from unittest.mock import patch

from sweeper.executors.inline import InlineExecutor, StageSource, Train
from sweeper.foreign.trainer import ForeignTrainer
from sweeper.foreign.worker import TrialFolder, environment_of, machine_of
from tests.integration.test_foreign_sweeps import records_of, sweep_both
from trainers.contract.spec import ForeignSpec
from trainers.contract.stage import StageJob, StagePoint, StageResult
from trainers.planning.command import command_line
from trainers.training.devices import cpu_name


@dataclass
class Sweeps:
    """Seconds by sweep: of its driver from the first stage to the last, and of its stages; of commands without one."""

    driven: list[float] = field(default_factory=list)
    stages: list[list[float]] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)

    def run(self, source: StageSource, train: Train, watch: Callable[[], None]) -> None:
        """In the place of the executor's own."""
        inside: list[float] = []
        outside = 0.0

        def one(job: StageJob, on_point: Callable[[StagePoint], None]) -> StageResult:
            nonlocal outside
            began = time.perf_counter()
            result = train(job, on_point)
            inside.append(time.perf_counter() - began)
            if isinstance(job.spec, ForeignSpec):
                outside += self.without_a_sweep(train.args[0], job, job.spec)  # type: ignore[attr-defined]
            return result

        began = time.perf_counter()
        WHOLE(InlineExecutor(), source, one, watch)
        self.driven.append(time.perf_counter() - began - sum(inside) - outside)
        self.stages.append(inside)

    def without_a_sweep(self, trainer: ForeignTrainer, job: StageJob, spec: ForeignSpec) -> float:
        """Run a trial's command as it is; returns all that it took here."""
        began = time.perf_counter()
        folder = TrialFolder(Path(job.store).parent / "alone" / job.node)
        folder.prepare(spec, resumes=False)
        words, environment = command_line(spec, machine_of(folder)), environment_of(trainer, spec, folder)
        started = time.perf_counter()
        subprocess.run(words, cwd=trainer.directory, env=environment, check=True, capture_output=True)
        self.alone.append(time.perf_counter() - started)
        return time.perf_counter() - began


WHOLE = InlineExecutor.run


def main() -> None:
    """Both sweeps, then the figures."""
    sweeps = Sweeps()

    def run(self: InlineExecutor, source: StageSource, train: Train, watch: Callable[[], None]) -> None:
        sweeps.run(source, train, watch)

    with tempfile.TemporaryDirectory() as name, patch.object(InlineExecutor, "run", run):
        results = Path(name)
        sweep_both(results)
        print(cpu_name())
        for kind, inside, driver in zip(("tiny", "as-command"), sweeps.stages, sweeps.driven, strict=True):
            trials = len(records_of(results, kind))
            print(
                f"{kind}: {trials} trials, {len(inside)} stages; driver {driver / trials:.3f} s a trial, "
                f"stages {sum(inside) / trials:.2f} s a trial"
            )
        more = [inside - alone for inside, alone in zip(sweeps.stages[1], sweeps.alone, strict=True)]
        print(f"a command takes {median(sweeps.alone):.2f} s without the sweep and {median(more):.2f} s more in it")


if __name__ == "__main__":
    main()
