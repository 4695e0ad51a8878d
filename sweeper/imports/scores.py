"""What lm-eval found about an exported model, beside the loss of the run that it is of. Shown, and in no claim.

Of a results file are read: every task's metrics, whether it saw a part of the samples only, and which folder was evaluated,
whose weights say which run they are. How scores are kept is the ledger's.
"""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeper.exporting import record_of
from sweeper.ledger.mlflow_ledger import Ledger
from sweeper.lock import driving
from trainers.contract.errors import InputError, given

MOST_NAME = 200
"""Characters in the name of a score, which MLflow bounds."""
_STRANGE = re.compile(r"[^\w.:-]+|^\.*$")
"""What a part of a metric's name in MLflow cannot be, or a cell of a table of runs."""


@dataclass(frozen=True, slots=True)
class Results:
    """A results file: `scores` by `TASK/METRIC` (behind the task the number of its shots, behind the metric the filter, where
    there are any), the folder of the model where the file names one, and what a reader should know."""

    scores: tuple[tuple[str, float], ...]
    model: str | None
    remarks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Attached:
    """Whose scores were taken in, all that the run has now, and the report."""

    run: str
    scores: tuple[tuple[str, float], ...]
    remarks: tuple[str, ...]
    report: Path


def attach_scores(results: Path, name: str, path: Path, run: str | None, tracking_uri: str | None) -> Attached:
    """Keep the scores of an lm-eval results file with a run of sweep `name`, and write its report anew. `run` is a spec id or
    its beginning; without it the evaluated folder says which it is. Tasks that the run has scores of already are replaced.

    Raises `UserError` in one line, before anything is stored.
    """
    from sweeper.reporting import study_of, write_report_files

    read = read_results(path)
    with Ledger.open(results, name, tracking_uri, create=False) as ledger:
        if ledger.about().origin != "sweep":
            raise InputError(f"{name}: is a table that was imported; its scores stand in its column `scores`")
        record = record_of(ledger.records(), run or _run_of(path, read), name)
        with driving((results / name).resolve()):
            scores = ledger.add_scores(record.spec, path.name, read.scores)
            study = study_of(ledger, shlex.join(["sweeper", "report", name]))
            write_report_files(study, results / name)
    from sweeper.options import REPORT

    return Attached(record.spec.spec_id, scores, read.remarks, (results / name / REPORT).resolve())


def read_results(path: Path) -> Results:
    """Raises `InputError` for a file that is not lm-eval's, or holds no finite metric."""
    with given(path):
        content = path.read_bytes()
    try:
        plain = json.loads(content)  # not as JSON is read elsewhere: a metric may be NaN, and is passed over
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is no results file of lm-eval: {error}") from None
    tasks = plain.get("results") if isinstance(plain, Mapping) else None
    if not isinstance(tasks, Mapping):
        raise InputError(f"{path}: is no results file of lm-eval: it has no `results`")
    shots, config = (_mapping(plain.get(key)) for key in ("n-shot", "config"))
    scores: dict[str, float] = {}
    for task, metrics in tasks.items():
        shot = shots.get(task)
        named = f"{task}-{shot}shot" if isinstance(shot, int) and shot > 0 else str(task)
        for key, value in _mapping(metrics).items():
            metric, _, how = str(key).partition(",")
            if how and _is_number(value) and not metric.endswith("_stderr"):
                parts = (named, metric, *([how] if how != "none" else []))
                scores["/".join(_STRANGE.sub("_", part) for part in parts)] = float(value)
    if not scores:
        raise InputError(f"{path}: holds no score")
    if too_long := [name for name in scores if len(name) > MOST_NAME]:
        raise InputError(f"{path}: a score's name has {len(too_long[0])} characters; {MOST_NAME} are allowed")
    limit = config.get("limit")
    remarks = (f"{path.name}: scored on a part of the samples only (limit {limit:g})",) if _is_number(limit) else ()
    return Results(tuple(scores.items()), _model_of(config.get("model_args")), remarks)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _is_number(value: Any) -> bool:
    try:
        return not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:
        return False


def _model_of(arguments: Any) -> str | None:
    """`pretrained` of the arguments, which are `key=value,key=value` or a mapping."""
    if isinstance(arguments, str):
        arguments = dict(part.split("=", 1) for part in arguments.split(",") if "=" in part)
    found = _mapping(arguments).get("pretrained")
    return found if isinstance(found, str) else None


def _run_of(path: Path, read: Results) -> str:
    """The run that the weights in the evaluated folder are of."""
    from safetensors import SafetensorError, safe_open

    from trainers.export import SPEC_ID, WEIGHTS_FILE

    if read.model is None:
        raise InputError(f"{path}: does not say which folder was evaluated; name the run with --run")
    file = Path(read.model) / WEIGHTS_FILE
    try:
        with safe_open(file, "pt") as weights:
            found = (weights.metadata() or {}).get(SPEC_ID)
    except (OSError, SafetensorError):
        raise InputError(f"{path}: the evaluated {file} cannot be read here; name the run with --run") from None
    if found is None:
        raise InputError(f"{path}: {file} was not exported by this tool; name the run with --run")
    return str(found)
