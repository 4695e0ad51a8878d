"""A sweep as a job of a Ray cluster: its driver runs there and outlives the terminal that asked for it.

The search-space file and our code travel with the job; everything else that is named is a path of the cluster's. How the
driver joins its cluster is `cluster`'s.
"""

from __future__ import annotations

import logging
import os
import shlex
import tempfile
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from sweeper.executors.cluster import QUIET, our_packages
from sweeper.ledger.location import refuse_odd_address
from sweeper.space.load import load_search_space
from sweeper.space.schema import SearchSpace
from trainers.contract.errors import InputError, UserError, given
from trainers.contract.faults import without_login
from trainers.contract.record import reason_of

DRIVER = ("python", "-c", "from sweeper.cli import main; main()", "run")
"""In the cluster's own environment: our code is on its path, and no script of ours need be installed."""


def submit(file: Path, results: Path, address: str, options: Mapping[str, object]) -> str:
    """Start `sweeper run` of `file` where the dashboard of a Ray cluster answers at `address`; returns the job's id.

    `results` is a folder that all nodes share, `options` are those of `run` by name; None is left out. Raises `UserError`
    in one line where the file has mistakes, a path means nothing on the cluster, or nobody takes the job.
    """
    space = load_search_space(file)
    if not isinstance(space, SearchSpace):
        raise UserError(
            f"{file}: a job has our code only; run it where your trainer's lies: `sweeper run --address auto`"
        )
    _refuse_what_is_only_here(space, results, options)
    if urlsplit(address).scheme not in ("http", "https"):
        raise UserError(f"address: {address!r} is not a dashboard's, such as http://127.0.0.1:8265")
    words = [*DRIVER, file.name, "--results", str(results), "--address", "auto"]
    for name, value in options.items():
        words += [] if value is None else [f"--{name}", str(value)]
    os.environ.update({key: value for key, value in QUIET.items() if key not in os.environ})
    try:
        from ray.job_submission import JobSubmissionClient
    except ImportError as error:
        raise UserError(f"submit needs Ray's jobs ({error}): pip install 'tst-sweeper[cluster]'") from error
    # They name every package that they send; the second has a level of its own.
    for name in ("ray", "ray.dashboard.modules.dashboard_sdk"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        with given(file):
            Path(folder, file.name).write_bytes(file.read_bytes())
        try:
            client = JobSubmissionClient(address)
            return str(
                client.submit_job(
                    entrypoint=shlex.join(words),
                    runtime_env={"working_dir": folder, "py_modules": our_packages()},
                    metadata={"sweep": space.name},
                )
            )
        except Exception as error:  # also of Ray's own kinds, where a token is missing or wrong
            said = without_login(f"no job was started at {address}: {reason_of(error)}")
            raise UserError(f"{said}; it needs Ray's dashboard there, which `tst-sweeper[cluster]` brings") from error


def _refuse_what_is_only_here(space: SearchSpace, results: Path, options: Mapping[str, object]) -> None:
    texts = [*space.corpus.paths, *(path for part in space.corpus.parts for path in part.paths)]
    named = [("corpus.paths", path) for path in texts] + [("tokenizer.path", space.tokenizer.path or os.sep)]
    for key, path in [("results", str(results)), *named]:
        if not os.path.isabs(path):
            raise InputError(f"{key}: {path!r} is relative; a job needs a path of the cluster's from / on")
    uri = str(options.get("tracking-uri") or "")
    refuse_odd_address(uri)
    if without_login(uri) != uri:  # Ray shows a job's command to whoever opens the dashboard
        raise InputError(
            "tracking-uri: a job's command is shown to others; set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD on the cluster, and give the address without them"
        )
