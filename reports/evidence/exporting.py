"""The runs of a study as CSV, in the columns that `importing` reads: a table that was exported can be imported."""

from __future__ import annotations

import csv
import io

from reports.evidence.importing import COLUMNS, OPTIONAL_COLUMNS, OWN
from reports.evidence.runs import BASELINE, FinishedRun
from reports.evidence.study import Study
from trainers.contract.spec import Scalar
from trainers.methods import PARAMETER_COLUMNS, parameter_of


def runs_to_csv(study: Study) -> str:
    """Every run, one line each; hours on the pooled clock where the run was compared, else its own."""
    hours = {run_id: value for scale in study.scales for run_id, value in scale.hours.items()}
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    names = (*OPTIONAL_COLUMNS, *COLUMNS)
    writer.writerow(names)
    for run in study.runs:
        fields = _fields(run, hours.get(run.run_id, run.gpu_hours))
        writer.writerow([_text(fields[name]) for name in names])
    return stream.getvalue()


def _fields(run: FinishedRun, hours: float | None) -> dict[str, object]:
    parameters = dict(run.parameters)
    further = {name: value for name, value in parameters.items() if name not in PARAMETER_COLUMNS}
    return {
        "run": run.run_id,
        "learning_rate": run.learning_rate,
        "device": run.device,
        "params": run.params,
        "stage": run.purpose,
        "decayed": "yes" if run.decayed else "no",
        "outcome": run.outcome,
        "parameters": " ".join(f"{name}={value}" for name, value in further.items()),
        "flops": run.flops,
        "execution": run.execution,
        "validation_set": run.validation,
        "learning_rate_unit": OWN if run.own_learning_rate else None,
        "scores": " ".join(f"{name}={value!r}" for name, value in run.scores),
        "scale": run.scale,
        "method": run.method,
        "seed": run.seed,
        "total_steps": run.total_steps,
        **{name: parameters.get(name, _absent(run, name)) for name in PARAMETER_COLUMNS},
        "gpu_hours": hours,
        "tokens": run.tokens,
        "final_loss": run.final_loss,
    }


def _absent(run: FinishedRun, name: str) -> Scalar | None:
    """What the baseline has in a method's column; of another method without the parameter nothing is known."""
    return parameter_of(name).absent if run.method == BASELINE else None


def _text(value: object) -> str:
    """A cell that reads back to the same number; empty for what is not known. Text cannot start a spreadsheet formula."""
    if value is None:
        return ""
    if isinstance(value, float):
        return repr(value)
    text = str(value)
    return f"'{text}" if text and text[0] in "=+-@" and not isinstance(value, int) else text
