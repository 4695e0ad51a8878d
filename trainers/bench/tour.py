"""`python -m trainers.bench.tour`: everything worth knowing about a device within the minutes that one command may take.

Each part is a process of its own with a limit: whatever crashes, hangs or runs out of memory there costs its own figures.
`tour.json` is written whole after each; the table comes last, from whatever it holds. The same command with `--resume` goes on.
What the parts measure is `tour_parts`'s; this is the order, the clock and the table, without torch.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainers.bench import prepare_environment
from trainers.contract.errors import InputError
from trainers.contract.faults import USER, end_of
from trainers.contract.writing import write_atomically

PROGRAM = "python -m trainers.bench.tour"
TOUR_SCHEMA = 1
OK, FAILED, CUT = "ok", "failed", "cut"
"""`cut`: ended at its limit, with the figures that it had by then."""
TOUR = "tour.json"
"""All parts, in one file, because it is what travels; logs and what the parts themselves write lie in `PARTS`."""
PARTS = "parts"
CACHES = "caches.tar.gz"
RECORDS = "records.jsonl"
MOST_CACHE_BYTES = 15 << 20
"""An archive of compiled kernels above this is not kept: it is there to travel, and compiling again costs a minute."""
MOST_TABLE = 11_500
"""Characters of the table: whoever sees only the end of an output should see all of it."""
GRACE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Part:
    """A process: `command` writes its JSON to the path that it is given last. `seconds` is its limit; an `elastic` part is told
    how many it has and uses them all, and is not over before it says so."""

    name: str
    seconds: float
    command: tuple[str, ...]
    elastic: bool = False


GPU_LIMITS: dict[str, float] = {
    "machine": 60,
    "loss": 60,
    "boundary": 90,
    "captured-270m": 180,
    "compiled-270m": 120,
    "toy": 60,
    "captured-1m": 60,
    "variants": 60,
    "tests": 300,
    "captured-600m": 150,
    "rivals-270m": 150,
    "captured-3b": 240,
}
"""In this order: what everything else rests on comes first, what is most likely to fail or to be cut last."""
CPU_LIMITS: dict[str, float] = {"machine": 60, "loss": 60, "boundary": 60, "steps": 120, "rivals": 120}


def parts_of(device: str, specs: Path | None, corpus: Path | None, out: Path) -> list[Part]:
    """The parts for a device; training as the last one where a list of trials is given. Raises `InputError` for half of it."""
    if (specs is None) != (corpus is None):
        raise InputError("--specs and --corpus: one without the other; give both or none")
    limits = CPU_LIMITS if device == "cpu" else GPU_LIMITS
    start = (sys.executable, "-m", "trainers.bench.tour_parts", device)
    parts = [Part(name, seconds, (*start, name)) for name, seconds in limits.items()]
    if specs is not None:
        given = ("training", "--specs", str(specs), "--corpus", str(corpus), "--records", str(out.resolve() / RECORDS))
        parts.append(Part("training", 60, (*start, *given), elastic=True))
    return parts


def read_tour(folder: Path) -> dict[str, dict[str, Any]]:
    """What there is of each part, by name; nothing where there is no tour, or one of another schema."""
    plain = _read(folder / TOUR)
    return dict(plain["parts"]) if plain.get("schema") == TOUR_SCHEMA and isinstance(plain.get("parts"), dict) else {}


def _read(path: Path) -> dict[str, Any]:
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        return plain if isinstance(plain, dict) else {}
    except (OSError, ValueError):
        return {}


def write_part(path: Path, status: str, **values: Any) -> None:
    """What a part tells while it runs: readers see the old file or the new one. `rows` are its lines in the table.

    What is no number (a loss that is NaN is worth telling) becomes its name: JSON has none for it.
    """
    plain = json.loads(json.dumps({"status": status, **values}), parse_constant=str)
    write_atomically(path, json.dumps(plain, allow_nan=False))


def _write_tour(out: Path, parts: dict[str, dict[str, Any]]) -> None:
    plain = {"schema": TOUR_SCHEMA, "kind": "tour", "parts": parts}
    write_atomically(out / TOUR, json.dumps(plain, indent=1, allow_nan=False) + "\n")


def run_part(part: Part, folder: Path, seconds: float) -> dict[str, Any]:
    """Run a part for at most `seconds`; what it told, and what became of the process. Its log and its own files lie in
    `folder`. Raises `InputError` where the part says that it was asked for something that cannot be."""
    path, log_path = folder / f"{part.name}.json", folder / f"{part.name}.log"
    path.unlink(missing_ok=True)
    began = time.perf_counter()
    command = [*part.command, *(["--seconds", str(int(seconds - GRACE_SECONDS))] if part.elastic else []), str(path)]
    with log_path.open("wb") as log:
        # A session of its own, so that what the part has started ends with it.
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code: int | None = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with contextlib.suppress(ProcessLookupError):  # all of it has ended by itself
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if code == USER:
        raise InputError(_last_line(log_path))
    told = {**_read(path), "seconds": round(time.perf_counter() - began, 1)}
    if code is None:
        return {**told, "status": CUT, "reason": f"not over after {told['seconds']:.0f} s"}
    if code != 0 or told.get("status") not in (OK, CUT):
        ended = f"ended with {code}" if code >= 0 else f"ended by signal {-code}"
        return {**told, "status": FAILED, "reason": f"{ended}: {_last_line(log_path)}"}
    return told


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else "it said nothing"


def run_tour(
    parts: Sequence[Part],
    out: Path,
    seconds: float,
    say: Callable[[str], None],
    *,
    resume: Path | None = None,
    again: Sequence[str] = (),
) -> list[str]:
    """Run the parts in their order while there is time; returns the names of those that are left for another command.

    With `resume`, parts whose JSON lies there are not run again, failed ones neither unless `again` names them: what failed
    once would take the same time to fail twice. A part begins only where its whole limit is left, the first one always.
    """
    end, out = time.perf_counter() + seconds, out.resolve()
    (out / PARTS).mkdir(parents=True, exist_ok=True)
    done = {} if resume is None else read_tour(resume)
    found = {**read_tour(out), **done}
    _write_tour(out, found)
    left: list[str] = []
    started = False
    for part in parts:
        if part.name in done and part.name not in again and not (part.elastic and done[part.name]["status"] == CUT):
            continue
        room = end - time.perf_counter()
        if room < part.seconds and started:
            left.append(part.name)
            continue
        started = True
        if part.elastic and resume is not None and resume.resolve() != out and (resume / RECORDS).exists():
            shutil.copyfile(resume / RECORDS, out / RECORDS)  # trials that ended there are not trained again
        found[part.name] = run_part(part, out / PARTS, room if part.elastic else min(part.seconds, max(room, 1.0)))
        _write_tour(out, found)
        say(headline(part.name, found[part.name]))
        if part.elastic and found[part.name]["status"] == CUT:
            left.append(part.name)
    return left


def headline(name: str, part: dict[str, Any]) -> str:
    """A part in one line."""
    said = part.get("reason") or part.get("line") or ""
    return f"{name}: {part['status']}, {part['seconds']:.0f} s; {said}"


def table(names: Sequence[str], out: Path, left: Sequence[str]) -> str:
    """What there is, in the order of the parts; rows are dropped from the longest parts until it is short enough."""
    tour = read_tour(out)
    found = {name: tour[name] for name in names if name in tour}
    rows = {name: list(part.get("rows", [])) for name, part in found.items()}
    devices = list(dict.fromkeys(where["device"] for part in found.values() if (where := part.get("environment"))))

    def text() -> str:
        lines = [f"tour of {', '.join(devices) or 'nothing'}"]
        for name, part in found.items():
            lines += [headline(name, part)[:400], *(f"  {row}"[:160] for row in rows[name])]
        lines.append(f"left: {', '.join(left)}; the same command with --resume goes on" if left else "nothing is left")
        return "\n".join(lines)

    while len(text()) > MOST_TABLE and any(rows.values()):
        longest = max(rows, key=lambda name: len(rows[name]))
        rows[longest] = rows[longest][: len(rows[longest]) // 2]
    return text()[:MOST_TABLE]


@contextmanager
def _caches(out: Path, resume: Path | None) -> Iterator[None]:
    """Compiled kernels for this command's parts: from `resume`'s archive, and into one in `out` when they are done.

    In a folder of their own, where the user has set none: thousands of small files are no part of the results.
    """
    with tempfile.TemporaryDirectory() as folder, _environment(folder):
        if resume is not None and (resume / CACHES).exists():
            with contextlib.suppress(OSError, tarfile.TarError), tarfile.open(resume / CACHES) as archive:
                archive.extractall(folder, filter="data")
        yield
        with tarfile.open(out / CACHES, "w:gz") as archive:
            archive.add(folder, arcname=".")
        if (out / CACHES).stat().st_size > MOST_CACHE_BYTES:
            (out / CACHES).unlink()


@contextmanager
def _environment(folder: str) -> Iterator[None]:
    names = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}
    ours = {variable: str(Path(folder) / name) for variable, name in names.items() if variable not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for variable in ours:
            os.environ.pop(variable, None)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=PROGRAM, description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--seconds", type=float, default=540.0, help="most seconds that this command may take (default 540)")
    add("--out", type=Path, required=True, help="folder of the tour's JSON, of logs and of compiled kernels")
    add("--resume", type=Path, help="folder of an earlier command; may be --out: what is there is not done again")
    add("--again", action="append", default=[], help="a part to run in spite of --resume; may be repeated")
    add("--part", action="append", default=[], help="only this part; may be repeated")
    add("--device", default="cuda", help="cuda, or cpu for a small version of what a CPU can do (default cuda)")
    add("--specs", type=Path, help="trials to train in the time that is left, from `sweeper plan FILE --specs`")
    add("--corpus", type=Path, help="folder of the prepared corpus that those trials are for")
    add("--debug", action="store_true", help="show tracebacks")
    return parser


def _chosen(given: argparse.Namespace) -> list[Part]:
    if given.device not in ("cpu", "cuda"):
        raise InputError(f"--device: {given.device!r} is not cpu or cuda")
    if not given.seconds > 2 * GRACE_SECONDS:
        raise InputError(f"--seconds: {given.seconds:g} is not more than {2 * GRACE_SECONDS:g}")
    parts = parts_of(given.device, given.specs, given.corpus, given.out)
    names = [part.name for part in parts]
    for option, asked in (("--part", given.part), ("--again", given.again)):
        if unknown := [name for name in asked if name not in names]:
            raise InputError(f"{option}: {unknown[0]!r} is not one of {', '.join(names)}")
    return [part for part in parts if part.name in given.part or not given.part]


def main(arguments: Sequence[str] | None = None) -> int:
    """0: every part is ok; 1: one failed or was cut; 2: the arguments are wrong; 3: parts are left for another command."""
    given = _parser().parse_args(arguments)
    try:
        parts = _chosen(given)
        prepare_environment()  # the parts inherit it
        given.out.mkdir(parents=True, exist_ok=True)
        with _caches(given.out, given.resume):
            left = run_tour(
                parts,
                given.out,
                given.seconds - GRACE_SECONDS,
                lambda line: print(line, flush=True),
                resume=given.resume,
                again=given.again,
            )
    except Exception as error:
        return end_of(error, PROGRAM, given.out, debug=given.debug)
    names = [part.name for part in parts]
    print("\n" + table(names, given.out, left), flush=True)
    if left:
        return 3
    found = read_tour(given.out)
    return 0 if all(found[name]["status"] == OK for name in names) else 1


if __name__ == "__main__":
    sys.exit(main())
