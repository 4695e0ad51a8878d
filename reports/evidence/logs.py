"""Logs with lines like `step:1375/1375 val_loss:3.2779 train_time:80000ms step_avg:58ms`, as points and as runs.

A log tells its steps, its losses and its wall time. It tells neither method nor seed nor the number of devices: the first
is the folder that it lies in, the second stays unknown, the third is said by whoever imports it.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

from reports.evidence.delimited import BadValueError, Problem, RunImportError, is_no_number, number

_LOG_LINE = re.compile(r"^.*?\bstep:(\d+)/(\d+)\b(.*)$", re.MULTILINE)
_LOG_VALUE = re.compile(r"(\w+):([-+.\w]+)")
_MILLISECONDS = {"ms": 1.0, "s": 1e3}
_RUN_COLUMNS = ("run", "method", "total_steps", "final_loss", "outcome", "gpu_hours")
_POINT_COLUMNS = ("run", "step", "loss", "gpu_hours")


@dataclass(frozen=True, slots=True)
class LogPoint:
    """One validation in a log: `milliseconds` of training so far where the line tells them; `line` counts from 1."""

    step: int
    total_steps: int
    loss: str
    milliseconds: float | None
    line: int

    def hours(self, devices: float | None) -> str:
        """Device-hours so far as a cell; empty where they are not known."""
        known = self.milliseconds is not None and devices is not None
        return repr(self.milliseconds * devices / 3.6e6) if known else ""  # type: ignore[operator]


@dataclass(frozen=True, slots=True)
class Log:
    """A run's log: the method whose folder it lies in, the run's name, and the text."""

    method: str
    run: str
    text: str


def log_points(text: str) -> list[LogPoint]:
    """The validations in a log. Everything else in it, such as the trainer's own source code, is passed over."""
    found: list[LogPoint] = []
    line, at = 1, 0
    for match in _LOG_LINE.finditer(text):
        line, at = line + text.count("\n", at, match.start()), match.start()
        values = dict(_LOG_VALUE.findall(match.group(3)))
        if "val_loss" in values:
            time = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s)", values.get("train_time", ""))
            spent = float(time.group(1)) * _MILLISECONDS[time.group(2)] if time else None
            found.append(LogPoint(int(match.group(1)), int(match.group(2)), values["val_loss"], spent, line))
    return found


def _wrong(point: LogPoint) -> str:
    """What is wrong with a validation, in words; empty where nothing is, or where it is a divergence."""
    if not is_no_number(point.loss):
        try:
            number({"val_loss": point.loss}, "val_loss", "a positive number", lambda loss: loss > 0)
        except BadValueError as error:
            return str(error)
    return ""


def logs_as_tables(logs: Sequence[Log], devices: float) -> tuple[str, str]:
    """Tables of runs and of their points, in our columns. A log that ends before its last step is of a stopped run.

    Raises `RunImportError` naming every log without a validation, and every validation that is none.
    """
    read = [(log, log_points(log.text)) for log in logs]
    message = "has no line like step:1375/1375 val_loss:3.2779 train_time:80000ms"
    if empty := [Problem(log.run, 1, message) for log, points in read if not points]:
        raise RunImportError(empty)
    if bad := [
        Problem(log.run, point.line, wrong) for log, found in read for point in found if (wrong := _wrong(point))
    ]:
        raise RunImportError(bad)
    runs, points = io.StringIO(), io.StringIO()
    run_rows, point_rows = (csv.writer(stream, lineterminator="\n") for stream in (runs, points))
    run_rows.writerow(_RUN_COLUMNS)
    point_rows.writerow(_POINT_COLUMNS)
    for log, found in read:
        last = found[-1]
        over = last.step >= last.total_steps
        outcome = "diverged" if is_no_number(last.loss) else "finished" if over else "stopped"
        loss = last.loss if outcome == "finished" else ""
        run_rows.writerow((log.run, log.method, last.total_steps, loss, outcome, last.hours(devices)))
        point_rows.writerows((log.run, point.step, point.loss, point.hours(devices)) for point in found)
    return runs.getvalue(), points.getvalue()
