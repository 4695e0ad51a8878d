"""The Ray cluster that a sweep runs on: one of its own on this machine, or one that is there; and how it ends.

A cluster of its own lets nobody in (Ray listens on all interfaces, and whoever reaches it runs code): it has a token that
lives in this process's environment only. Its files lie in a short folder of their own, since socket names are cut at 107
characters. One that is joined is looked for first, because Ray itself waits for minutes, and is given our code and a file
that every node has to see.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from sweeper.executors.alive import Address, Reply, reply_of, watched
from trainers.contract.errors import InputError, UserError
from trainers.contract.record import reason_of

QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_WARN_THRESHOLD_S": "60",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_OVERRIDE_JOB_RUNTIME_ENV": "1",
    "RAY_worker_niceness": "0",
    "MALLOC_ARENA_MAX": "2",
}
"""Set where the user has not. Tune runs every trial of a reused worker in a new thread; without a limit each leaves an
arena of 50 MB behind in the C library (1.4 GB a worker after twenty stages, measured). Under `uv run` Ray would build its
workers anew in a copy of the checkout without our environment, and wait for them for ever. Its workers' niceness of 15 would
let any other program starve a sweep. A driver that is itself a job of Ray names the same code again, which is no conflict."""
OBJECT_STORE_BYTES = 100 * 2**20
"""Stages travel as short JSON and states through the shared folder, so Ray's store stays almost empty."""
ANSWER_SECONDS, PATIENT_SECONDS = 15, 90
LONGEST_FOLDER = 30
"""Of the 107 characters of a socket's name Ray needs 77 behind its folder."""
AUTH_MODE, TOKEN, TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
WORKER_BYTES = 1e9
BUSY = 8
"""Processes for each core that are waiting to run."""
PACKAGES = ("sweeper", "trainers", "reports")
KIND = "accelerator_type:"
"""How Ray names the resource that a node with GPUs of a kind has."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """What Ray offers over all nodes: CPUs, and GPUs by kind under Ray's name for it (empty where it knows none)."""

    cpus: int
    gpus_of: Mapping[str, float]
    nodes: int

    @property
    def gpus(self) -> float:
        """GPUs of all kinds."""
        return sum(self.gpus_of.values())

    @property
    def only_kind(self) -> str | None:
        """The kind of all GPUs, where Ray knows one: nodes of another may join later."""
        return next(iter(self.gpus_of)) or None if len(self.gpus_of) == 1 else None

    def usable_gpus(self, accelerator: str | None) -> float:
        """GPUs that trials may use: those of `accelerator`, or all where there is one kind.

        Trials that are compared run on one kind. Raises `InputError` where the choice is open, or the one made is not there.
        """
        there = (
            ", ".join(f"{kind or 'others'} ({gpus:g} GPUs)" for kind, gpus in sorted(self.gpus_of.items())) or "none"
        )
        if accelerator is None and len(self.gpus_of) > 1:
            raise InputError(
                f"resources.accelerator: not given, and this cluster has several kinds: {there}; trials that are compared "
                "run on one"
            )
        if accelerator is not None and accelerator not in self.gpus_of:
            raise InputError(f"resources.accelerator: {accelerator!r} is on no node; there are: {there}")
        return self.gpus if accelerator is None else self.gpus_of[accelerator]


@contextlib.contextmanager
def attach(
    address: str | None,
    *,
    num_cpus: int | None = None,
    num_gpus: float | None = None,
    shared: Path | None = None,
    lost: Callable[[str], None] = lambda name: None,
) -> Iterator[Cluster]:
    """Join the Ray cluster at `address` (`auto` for the one of this machine), or start one here and end it afterwards.

    `shared` is the folder in which every node of a joined cluster has to see this process's files; `lost` is told, from a
    thread, which server is gone: nothing that Ray is asked returns then. Raises `UserError` with
    one line when the cluster cannot be reached, asks for a token that is not there, or does not see the folder.
    """
    os.environ.update({key: value for key, value in QUIET.items() if key not in os.environ})
    if address is not None:
        os.environ.update(_looked_for(address))
    elif AUTH_MODE not in os.environ and TOKEN not in os.environ and TOKEN_PATH not in os.environ:
        # For the whole process: Ray reads a token once.
        os.environ.update({AUTH_MODE: "token", TOKEN: secrets.token_hex(32)})
    # After the settings: Ray reads some of them while it is imported.
    import ray

    if ray.is_initialized():
        raise UserError("Ray runs in this process already; end it with ray.shutdown()")
    _have_settings_read()
    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a worker that dies is a page of traceback there
    _keep_to_itself()
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}
    with contextlib.ExitStack() as stack:
        if address is None:
            # Without a dashboard: it takes 300 MB and seconds to start, and MLflow shows what there is to see.
            options |= {"address": "local", "num_cpus": num_cpus, "num_gpus": num_gpus, "include_dashboard": False}
            options |= {"object_store_memory": OBJECT_STORE_BYTES, "_node_ip_address": "127.0.0.1"}
            options |= {"_temp_dir": str(stack.enter_context(_short_folder()))}
        else:
            options |= {"address": address, "runtime_env": {"py_modules": our_packages()}}
        stack.callback(ray.shutdown)  # also of what has started when a signal comes in between
        try:
            ray.init(**options)
        except Exception as error:  # a busy machine's is a bare one: "timed out during startup"
            where = f"no Ray cluster at {address}" if address else "Ray does not start on this machine"
            raise UserError(f"{where}: {reason_of(error)}") from error
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        if address is not None and shared is not None:
            _refuse_blind_nodes(nodes, shared)
        stack.enter_context(watched(_servers(nodes), lost))
        yield Cluster(int(resources.get("CPU", 0)), _gpus_by_kind(nodes), len(nodes))


def _have_settings_read() -> None:
    """Whoever calls, in a notebook say, may have imported Ray before the settings were made."""
    from ray import _raylet

    if hasattr(_raylet, "AuthenticationTokenLoader"):
        _raylet.Config.initialize("")  # type: ignore[attr-defined]
        _raylet.AuthenticationTokenLoader.instance().reset_cache()


def _keep_to_itself() -> None:
    """Ray prints pages of its servers' logs among our results when one of them ends, and takes SIGTERM for itself when it
    starts. No setting is against either."""
    from ray._private import utils, worker

    if hasattr(worker, "print_to_stdstream"):
        worker.print_to_stdstream = lambda *lines, **options: None
    if hasattr(utils, "set_sigterm_handler"):
        utils.set_sigterm_handler = lambda handler: None


def _servers(nodes: list[Any]) -> dict[str, Address]:
    """The head, and the raylet of this machine that our calls go through."""
    import ray

    context = ray.get_runtime_context()
    host, _, port = context.gcs_address.rpartition(":")
    (mine,) = [node for node in nodes if node["NodeID"] == context.get_node_id()]
    raylet = (mine["NodeManagerAddress"], int(mine["NodeManagerPort"]))
    return {"head": (host.strip("[]"), int(port)), "raylet of this machine": raylet}


def _gpus_by_kind(nodes: list[Any]) -> dict[str, float]:
    found: dict[str, float] = {}
    for node in nodes:
        has = node["Resources"]
        if has.get("GPU"):
            kind = next((name.removeprefix(KIND) for name in has if name.startswith(KIND)), "")
            found[kind] = found.get(kind, 0.0) + has["GPU"]
    return found


def our_packages() -> list[str]:
    """Folders of our code, which travel to the nodes: they may have another version of it, or none."""
    # Asked one by one: in a job that brought them, each lies in a folder of its own.
    found = [importlib.util.find_spec(name) for name in PACKAGES]
    return [place for spec in found if spec for place in spec.submodule_search_locations or ()]


@contextlib.contextmanager
def _short_folder() -> Iterator[Path]:
    """A folder for Ray's own files, gone afterwards. A job's `TMPDIR` may be too long for a socket's name.

    Ray opens its folder and the sockets in it to every user of the machine: it lies in one that is ours alone.
    """
    places = [Path(place) for place in (tempfile.gettempdir(), "/tmp", "/dev/shm")]
    for place in places:
        if len(str(place)) + len("/ray-12345678/r") <= LONGEST_FOLDER and os.access(place, os.W_OK | os.X_OK):
            folder = Path(tempfile.mkdtemp(prefix="ray-", dir=place))
            break
    else:
        raise UserError(
            f"Ray needs a folder for its sockets that is short and can be written; none of {', '.join(map(str, places))} "
            "is: set TMPDIR"
        )
    try:
        yield folder / "r"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _looked_for(address: str) -> Mapping[str, str]:
    """What the environment needs so that the cluster at `address` lets us in.

    Asked by a process of its own: Ray's client would wait for three and a half minutes and then end this one.
    """
    found = _asked(address, {})
    if found and "AuthToken" in found and AUTH_MODE not in os.environ:
        if _asked(address, {AUTH_MODE: "token"}) is None:
            return {AUTH_MODE: "token"}
        raise UserError(
            f"the Ray cluster at {address} asks for a token: give its own in {TOKEN} or {TOKEN_PATH}, or in ~/.ray/auth_token"
        )
    if found is not None:
        raise UserError(f"no Ray cluster at {address}: {found}")
    return {}


def _asked(address: str, environment: Mapping[str, str]) -> str | None:
    """None where a cluster answers at `address`, else what was wrong, in one line."""
    reply = _reply(address)
    if reply is Reply.SILENCE:
        return f"somebody listens there, but nobody answered within {ANSWER_SECONDS} seconds"
    # Where somebody speaks, a busy machine may take longer than that to load Ray before it asks.
    seconds = PATIENT_SECONDS if reply is Reply.WORD else ANSWER_SECONDS
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds, env={**os.environ, **environment}
        )
    except subprocess.TimeoutExpired:
        return f"nobody answered within {seconds} seconds"
    said = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    return None if done.returncode == 0 else (said or ["no answer"])[-1][:300]


def _reply(address: str) -> Reply:
    host, _, port = address.rpartition(":")
    return reply_of((host.strip("[]"), int(port)), ANSWER_SECONDS) if port.isdecimal() else Reply.NOTHING


def _refuse_blind_nodes(nodes: list[Any], shared: Path) -> None:
    """Raise `UserError` with the names of nodes that do not see what is written into `shared`."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    marker = shared / f"seen-{uuid.uuid4().hex}"
    marker.write_text("every node of the cluster has to see this file", encoding="utf-8")

    @ray.remote(num_cpus=0, max_retries=0)
    def sees(path: str) -> bool:
        return os.path.exists(path)

    try:
        asked = {
            node["NodeManagerHostname"] + " " + node["NodeManagerAddress"]: sees.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote(str(marker))
            for node in nodes
        }
        blind = sorted(name for name, answer in asked.items() if not ray.get(answer, timeout=300))
    finally:
        marker.unlink(missing_ok=True)
    if blind:
        raise UserError(
            f"{shared}: not seen by {', '.join(blind)}; --results has to lie on a path that all nodes share"
        )


def kill_process(host: str, pid: int) -> None:
    """End a worker of this cluster on whichever node it is, also one that was stopped; nothing where it has gone."""
    if host == socket.gethostname():
        _kill_worker(pid)
        return
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    for node in ray.nodes():  # type: ignore[no-untyped-call]
        if node["Alive"] and node["NodeManagerHostname"] == host:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ray.remote(num_cpus=0, max_retries=0)(_kill_worker).options(scheduling_strategy=there).remote(pid)


def _kill_worker(pid: int) -> None:
    with contextlib.suppress(OSError):
        # A number is used again some day: only what is a worker of Ray's is ended.
        if b"ray::" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)


def missing_worker_reason() -> str:
    """Why no worker may have come on this machine, as far as can be seen from here."""
    if os.environ.get("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0") != "0" and "UV" in os.environ:
        return "under `uv run` Ray builds its workers anew; set RAY_ENABLE_UV_RUN_RUNTIME_ENV=0"
    memory, load = psutil.virtual_memory(), os.getloadavg()[0] / (os.cpu_count() or 1)
    if memory.available < WORKER_BYTES:
        return (
            f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB of memory are free, a worker takes about 0.5"
        )
    if load > BUSY:
        return (
            f"the machine has {load:.0f} processes to run for each of its cores; fewer `--workers`, or another machine"
        )
    return "something else holds its cores or devices, or a firewall or proxy keeps its processes from 127.0.0.1"
