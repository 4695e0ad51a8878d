"""`python -m trainers.bench.tour`: everything worth knowing about a device within the minutes that one command may take.

Each part is a process of its own with a limit: whatever crashes, hangs or runs out of memory there costs its own figures.
A part's JSON is written whole; the table comes last, from whatever JSON there is. The same command with `--resume` goes on.
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
from trainers.contract.faults import end_of
from trainers.contract.writing import write_atomically

PROGRAM = "python -m trainers.bench.tour"
TOUR_SCHEMA = 1
OK, FAILED, CUT = "ok", "failed", "cut"
"""`cut`: ended at its limit, with the figures that it had by then."""
CACHES = "caches.tar.gz"
RECORDS = "records.jsonl"
MOST_CACHE_BYTES = 48 << 20
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


def read_part(folder: Path, name: str) -> dict[str, Any] | None:
    """A part's JSON; None where there is none, or not one of this schema."""
    try:
        plain: dict[str, Any] = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        return plain if plain["schema"] == TOUR_SCHEMA and plain["part"] == name else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_part(path: Path, name: str, status: str, **values: Any) -> None:
    """Write a part's JSON: readers see the old file or the new one. `rows` are its lines in the table."""
    plain = {"schema": TOUR_SCHEMA, "kind": "tour part", "part": name, "status": status, **values}
    write_atomically(path, json.dumps(plain, indent=1, allow_nan=False) + "\n")


def run_part(part: Part, out: Path, seconds: float) -> dict[str, Any]:
    """Run a part for at most `seconds` and return its JSON, which is written whatever becomes of the process."""
    path = out / f"{part.name}.json"
    path.unlink(missing_ok=True)
    began = time.perf_counter()
    command = [*part.command, *(["--seconds", str(int(seconds - GRACE_SECONDS))] if part.elastic else []), str(path)]
    with (out / f"{part.name}.log").open("wb") as log:
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
    took = round(time.perf_counter() - began, 1)
    plain = read_part(out, part.name) or {}
    kept = {key: value for key, value in plain.items() if key not in ("schema", "kind", "part", "status", "seconds")}
    if code == 0 and plain.get("status") in (OK, CUT):
        write_part(path, part.name, plain["status"], **kept, seconds=took)
    elif code is None:
        write_part(path, part.name, CUT, **kept, seconds=took, reason=f"not over after {took:.0f} s")
    else:
        ended = f"ended with {code}" if code is not None and code >= 0 else f"ended by signal {-(code or 0)}"
        reason = f"{ended}: {_last_line(out / f'{part.name}.log')}"
        write_part(path, part.name, FAILED, **kept, seconds=took, reason=reason)
    return read_part(out, part.name) or {}


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
    left: list[str] = []
    started = False
    for part in parts:
        done = None if resume is None or part.name in again else read_part(resume, part.name)
        if done is not None and not (part.elastic and done["status"] == CUT):
            if resume is not None and resume.resolve() != out:
                write_atomically(out / f"{part.name}.json", json.dumps(done, indent=1, allow_nan=False) + "\n")
            continue
        room = end - time.perf_counter()
        if room < part.seconds and started:
            left.append(part.name)
            continue
        started = True
        if part.elastic and resume is not None and resume.resolve() != out and (resume / RECORDS).exists():
            shutil.copyfile(resume / RECORDS, out / RECORDS)  # trials that ended there are not trained again
        plain = run_part(part, out, room if part.elastic else min(part.seconds, max(room, 1.0)))
        say(headline(plain))
        if part.elastic and plain["status"] == CUT:
            left.append(part.name)
    return left


def headline(plain: dict[str, Any]) -> str:
    """A part in one line."""
    said = plain.get("reason") or plain.get("line") or ""
    return f"{plain['part']}: {plain['status']}, {plain['seconds']:.0f} s; {said}"


def table(names: Sequence[str], out: Path, left: Sequence[str]) -> str:
    """What there is, in the order of the parts; rows are dropped from the longest parts until it is short enough."""
    found = [plain for name in names if (plain := read_part(out, name))]
    rows = {plain["part"]: list(plain.get("rows", [])) for plain in found}
    devices = list(dict.fromkeys(where["device"] for plain in found if (where := plain.get("environment"))))

    def text() -> str:
        lines = [f"tour of {', '.join(devices) or 'nothing'}"]
        for plain in found:
            lines += [headline(plain)[:400], *(f"  {row}"[:160] for row in rows[plain["part"]])]
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
    add("--out", type=Path, required=True, help="folder of the parts' JSON, of their logs and of compiled kernels")
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
    return 0 if all((read_part(given.out, name) or {}).get("status") == OK for name in names) else 1


if __name__ == "__main__":
    sys.exit(main())
