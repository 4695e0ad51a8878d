"""One foreign trial on one worker: start its command, watch it, and make of what it said the result of a stage.

The trial's folder in the store is named by its node, like any stage's: `trial/` is the trainer's own (`SWEEPER_OUT`),
`trial.json` tells it everything (`SWEEPER_TRIAL`), `log.txt` is its output over all attempts, `watched.json` what they took.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from sweeper.foreign.points import Sighting, reader_of
from sweeper.foreign.process import Ending, GuardedProcess, held, last_lines
from sweeper.foreign.track import WHOLE, Span, Track
from sweeper.foreign.trainer import ForeignTrainer
from sweeper.space.foreign_schema import VISIBLE
from trainers.contract.reading import json_value
from trainers.contract.record import LOG_ENDS, Diverged, Failed, PhaseTiming, Stopped
from trainers.contract.spec import ForeignSpec
from trainers.contract.stage import RESULT, PointCost, StageJob, StagePoint, StageResult, read_result, result_to_dict
from trainers.contract.writing import write_atomically
from trainers.methods import phases_of
from trainers.planning.command import command_line, environment, trial_to_dict
from trainers.planning.life import SignOfLife

MOST_ATTEMPTS = 3
"""Of a trainer that resumes and was killed or fell silent. One that exits by itself has said what it had to say."""
POLL_SECONDS = 0.1
PATIENCE_SECONDS = 30.0
"""For the guard of an earlier attempt, beyond its grace."""
RANKS = (
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    *("SLURM_PROCID", "SLURM_LOCALID", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"),
)
"""Which of its starter's processes this one is: Slurm numbers a cluster's nodes so. A trial is no rank but what it starts."""
STOP_WORDS = "stop requested"
NO_LOSS = "exit code 0 and no loss"
TELL_SECONDS = 0.5
"""Between two points that the screen is told of."""
LOG, TRIAL_FILE, OUT, WATCHED = "log.txt", "trial.json", "trial", "watched.json"

OnPoint = Callable[[StagePoint], None]


@dataclass(frozen=True, slots=True)
class TrialFolder:
    """Where things of one trial lie."""

    root: Path

    @property
    def out(self) -> Path:
        """The trainer's own."""
        return self.root / OUT

    @property
    def log(self) -> Path:
        """Its output."""
        return self.root / LOG

    def prepare(self, spec: ForeignSpec, resumes: bool) -> None:
        """Make it ready for an attempt; a trainer that does not resume finds it empty."""
        if not resumes:
            shutil.rmtree(self.out, ignore_errors=True)
            self.log.unlink(missing_ok=True)
        again = self.out.is_dir()
        self.out.mkdir(parents=True, exist_ok=True)
        told = trial_to_dict(spec, str(self.out), resumes=again)
        write_atomically(self.root / TRIAL_FILE, json.dumps(told, indent=1))


@dataclass(frozen=True, slots=True)
class Attempt:
    """How an attempt ended: by itself or at whose wish."""

    ending: Ending
    asked: str | None = None


@dataclass
class Watched:
    """What all attempts took so far, kept on the disk: a worker may die at any moment."""

    file: Path
    seconds: float
    spans: list[Span]

    @classmethod
    def load(cls, file: Path) -> Watched:
        """What earlier attempts left, nothing where it cannot be read."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            plain = json_value(file.read_bytes())
            return cls(file, float(plain["seconds"]), [Span(**span) for span in plain["spans"]])
        return cls(file, 0.0, [])

    def save(self, seconds: float, track: Track) -> None:
        """Keep what there is after further `seconds`."""
        plain = {"seconds": self.seconds + seconds, "spans": [asdict(span) for span in track.spans]}
        write_atomically(self.file, json.dumps(plain))


def environment_of(trainer: ForeignTrainer, spec: ForeignSpec, folder: TrialFolder) -> dict[str, str]:
    """This process's own without what it is to Ray and to whoever started it, then the trial's threads and devices, the file's,
    the contract's."""
    inherited = {n: value for n, value in os.environ.items() if not n.startswith("RAY_") and n not in RANKS}
    # A worker of Ray's sees its trial's devices alone, a process without one sees all.
    seen = os.environ.get(VISIBLE)
    devices = [str(index) for index in range(trainer.gpus)] if seen is None else seen.split(",")[: trainer.gpus]
    defaults = {"OMP_NUM_THREADS": str(trainer.cpus), VISIBLE: ",".join(devices), "PYTHONUNBUFFERED": "1"}
    contract = {"SWEEPER_TRIAL": str(folder.root / TRIAL_FILE), "SWEEPER_OUT": str(folder.out)}
    return {**inherited, **defaults, **environment(spec, machine_of(folder)), **contract}


def machine_of(folder: TrialFolder) -> dict[str, str]:
    """The placeholders that are this machine's."""
    return {"trial": str(folder.root / TRIAL_FILE), "out": str(folder.out), "python": sys.executable}


def run_command(trainer: ForeignTrainer, job: StageJob, on_point: OnPoint = lambda point: None) -> StageResult:
    """Run a trial's command to its end and leave `result.json` where it finished or diverged.

    A trial that stopped or failed leaves its folder; the next attempt goes on there, or begins anew where the trainer does
    not resume. Where the code is no longer the trial's, it stops before anything runs.

    Raises `StillRunsError` while an earlier attempt cannot be ended.
    """
    done = read_result(Path(job.store), job.node)
    return done if done is not None else CommandRun(trainer, job, on_point).run()


@dataclass
class CommandRun:
    """The attempts of one trial on one worker."""

    trainer: ForeignTrainer
    job: StageJob
    on_point: OnPoint

    def __post_init__(self) -> None:
        spec = self.job.spec
        assert isinstance(spec, ForeignSpec), "a trial of our own trainer has no command"
        self.spec = spec
        self.folder = TrialFolder(Path(self.job.store) / self.job.node)
        self.folder.root.mkdir(parents=True, exist_ok=True)
        self.track = Track(spec.schedule.total_steps)
        self.phase = phases_of(spec)[0].name
        self._told = 0.0

    def run(self) -> StageResult:
        """Attempt after attempt, as long as a further one may help."""
        with SignOfLife(self.job) as self.life:
            return self._run()

    def _run(self) -> StageResult:
        for attempt in range(1, MOST_ATTEMPTS + 1):
            if (changed := self.trainer.changed()) is not None:
                outcome: Stopped | Diverged | Failed | None = Stopped(self.track.step, changed)
                break
            ended = self._attempt()
            outcome = self._outcome(ended)
            lost = isinstance(outcome, Failed) and (ended.ending.killed or ended.asked is not None)
            if not (self.trainer.resumes and lost) or attempt == MOST_ATTEMPTS or self._stop_is_asked():
                break
        result = self._result(outcome)
        if not isinstance(outcome, Stopped | Failed):
            write_atomically(self.folder.root / RESULT, json.dumps(result_to_dict(result)))
        return result

    def _attempt(self) -> Attempt:
        """One run of the command, read to its end."""
        folder, trainer, spec = self.folder, self.trainer, self.spec
        with held(folder.root / "lock", trainer.grace_seconds + PATIENCE_SECONDS) as lock:
            folder.prepare(spec, trainer.resumes)
            watched = Watched.load(folder.root / WATCHED)
            self.track = track = Track(spec.schedule.total_steps, spans=watched.spans if trainer.resumes else [])
            self.reader = reader_of(trainer.metrics, folder.out, folder.log)
            # What an attempt left that was cut is half a line at worst: forgiven, as whoever goes on says it again.
            track.add(self.reader.cut(forgive=True), None)
            self.reader.bad = None
            began = time.monotonic()
            process = GuardedProcess(
                command=command_line(spec, machine_of(folder)),
                directory=Path(trainer.directory),
                environment=environment_of(trainer, spec, folder),
                log=folder.log,
                lock=lock,
                grace_seconds=trainer.grace_seconds,
            )
            with process:
                ended = self._watch(process, watched, began)
            track.add(self.reader.cut(forgive=ended.ending.code != 0), time.monotonic())
            watched.save(time.monotonic() - began, track)
        return ended

    def _watch(self, process: GuardedProcess, watched: Watched, began: float) -> Attempt:
        """Read what it says until it ends; end it where it diverged, fell silent, or nobody wants it any more."""
        asked: str | None = None
        heard, size = time.monotonic(), -1
        while (ending := process.poll()) is None:
            time.sleep(POLL_SECONDS)
            now = time.monotonic()
            seen = self.reader.read()
            self.track.add(seen, now)
            written = self.folder.log.stat().st_size if self.folder.log.exists() else 0
            if seen or written != size:
                heard, size = now, written
            self.life.moved()  # that of this process: the command's own silence is told of below
            if seen:
                watched.save(now - began, self.track)
                self._tell(now, watched.seconds + now - began)
            if asked is None and (asked := self._why_end(now - heard)) is not None:
                process.end()
        return Attempt(ending, asked)

    def _why_end(self, silence: float) -> str | None:
        """Why a running command should end now, None where it should not."""
        if self.track.diverged or self.track.objection or self.reader.bad:
            return "what it said"
        if self._stop_is_asked():
            return STOP_WORDS
        if silence > self.trainer.stall_seconds:
            return f"silent for {self.trainer.stall_seconds / 60:g} minutes"
        return None

    def _stop_is_asked(self) -> bool:
        return Path(self.job.stop_file).exists()

    def _tell(self, now: float, billed: float) -> None:
        step = self.track.step
        if (seen := self.track.points.get(step)) is None:
            return
        self.life.look(step, seen.loss, 0.0)
        if now - self._told > TELL_SECONDS:
            self._told = now
            clock, step_seconds = self.track.clock(billed)
            # A clock with the start-up in it may yet turn out to be a better one.
            cost = None if clock == WHOLE else self._cost(step, seen, clock, step_seconds)
            self.on_point(StagePoint(step, seen.loss, seen.phase or self.phase, cost=cost))

    def _cost(self, step: int, seen: Sighting, clock: str, step_seconds: float) -> PointCost:
        return PointCost(
            seconds=self.track.seconds_at(step, seen, clock, step_seconds),
            tokens=self.trainer.tokens_at(self.spec, step) if seen.tokens is None else seen.tokens,
            flops=self.trainer.flops_at(step) if seen.flops is None else seen.flops,
        )

    def _outcome(self, ended: Attempt) -> Stopped | Diverged | Failed | None:
        """What became of the trial; None where it finished."""
        track, code = self.track, ended.ending.code
        if track.diverged:
            return Diverged(*track.diverged)
        problem = track.objection or self.reader.bad
        if problem is None and code == 0 and track.final_loss is not None:
            return None
        if ended.asked == STOP_WORDS:
            return Stopped(track.step, STOP_WORDS)
        if problem is not None:
            said = f"its output cannot be used: {problem}"
        elif ended.asked is not None:
            said = ended.asked
        elif code == 0 and not track.points:
            said = f"{NO_LOSS}: {self.reader.why_nothing()}"
        else:
            said = ended.ending.words
        where = f" at step {track.step:,} of {track.total_steps:,}" if track.points else ""
        tail = last_lines(self.folder.log)
        return Failed(f"{said}{where}" + (f"{LOG_ENDS}{tail}" if tail else ""))

    def _result(self, outcome: Stopped | Diverged | Failed | None) -> StageResult:
        track, job = self.track, self.job
        billed = Watched.load(self.folder.root / WATCHED).seconds
        clock, step_seconds = track.clock(billed)
        steps = job.end if outcome is None else track.step
        return StageResult(
            node=job.node,
            parent=job.parent,
            start=job.start,
            end=job.end,
            outcome=outcome,
            points=tuple(
                StagePoint(
                    step=step,
                    loss=seen.loss,
                    phase=seen.phase or self.phase,
                    cost=self._cost(step, seen, clock, step_seconds),
                )
                for step, seen in track.curve()
            ),
            timings=(PhaseTiming(self.phase, 1, steps, step_seconds),) if steps else (),
            busy_seconds=billed,
            billed_seconds=billed,
            skipped_steps=0,
            booked_by=job.booked_by,
            device=self.trainer.device,
            execution=job.execution,
            devices=job.devices,
            clock=clock,
        )
