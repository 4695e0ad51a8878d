"""The parts of a tour: their order and limits, the clock that they share, what is kept of them, and the table.

Each part is a process of its own: whatever crashes, hangs or runs out of memory there costs its own figures. `tour.json` is
written whole after each; the table is made of whatever it holds. What the parts measure is `parts`'s. Without torch.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from trainers.bench.tour.process import run_bound
from trainers.contract.errors import InputError
from trainers.contract.faults import USER
from trainers.contract.reading import json_value
from trainers.contract.writing import write_atomically

TOUR_SCHEMA = 1
OK, FAILED, CUT = "ok", "failed", "cut"
"""`cut`: ended at its limit, with the figures that it had by then."""
TOUR = "tour.json"
"""All parts, in one file, because it is what travels; logs and what the parts themselves write lie in `PARTS`."""
PARTS = "parts"
TRAINING = "training"
RECORDS = "records.jsonl"
MOST_TABLE = 11_500
"""Characters of the table: whoever sees only the end of an output should see all of it."""
GRACE_SECONDS = 5.0
ENOUGH = 1 / 3
"""Of a part's limit: limits have room for slow machines, and time that is left over is better used than not."""


@dataclass(frozen=True, slots=True)
class Part:
    """A process: `command` writes its JSON to the path that it is given last. `seconds` is its limit; an `elastic` part is told
    how many it has and uses them all, and is not over before it says so. `asked` are the device and the list that it is for."""

    name: str
    seconds: float
    command: tuple[str, ...]
    elastic: bool = False
    asked: Mapping[str, str] = field(default_factory=dict)


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
CPU_LIMITS: dict[str, float] = {"machine": 60, "loss": 60, "boundary": 60, "steps": 90, "rivals": 90}


@dataclass(frozen=True, slots=True)
class Training:
    """A list of trials, the folder of its corpus, and how often and on how many tokens they are evaluated on the way."""

    specs: Path
    corpus: Path
    evaluate_every: int = 0
    evaluate_tokens: int = 0


def parts_of(device: str, training: Training | None, out: Path) -> list[Part]:
    """The parts for a device; training as the last one where a list of trials is given, which has to be there."""
    limits = CPU_LIMITS if device == "cpu" else GPU_LIMITS
    start = (sys.executable, "-m", "trainers.bench.tour.parts", device)
    asked = {"device": device}
    parts = [Part(name, seconds, (*start, name), asked=asked) for name, seconds in limits.items()]
    if training is not None:
        given = {
            "--specs": training.specs,
            "--corpus": training.corpus,
            "--records": out.resolve() / RECORDS,
            "--evaluate-every": training.evaluate_every,
            "--evaluate-tokens": training.evaluate_tokens,
        }
        words = [str(word) for pair in given.items() for word in pair]
        asked = {**asked, "list": sha256(training.specs.read_bytes()).hexdigest()[:16]}
        parts.append(Part(TRAINING, 60, (*start, TRAINING, *words), elastic=True, asked=asked))
    return parts


def read_tour(folder: Path) -> dict[str, dict[str, Any]]:
    """What there is of each part, by name; nothing where there is no tour, or one of another schema. What is no part is left
    out."""
    plain = _read(folder / TOUR)
    parts = plain.get("parts") if plain.get("schema") == TOUR_SCHEMA else None
    return {name: part for name, part in parts.items() if _is_part(part)} if isinstance(parts, dict) else {}


def _is_part(plain: object) -> bool:
    return (
        isinstance(plain, dict)
        and isinstance(plain.get("status"), str)
        and isinstance(plain.get("seconds"), int | float)
        and all(isinstance(plain.get(name, {}), dict) for name in ("environment", "asked"))
        and isinstance(plain.get("rows", []), list)
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        plain = json_value(path.read_bytes())
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
        code = run_bound(command, log, seconds, GRACE_SECONDS)
    if code == USER:
        raise InputError(_last_line(log_path))
    took = round(time.perf_counter() - began, 1)
    told = {**_read(path), "asked": dict(part.asked), "given": round(seconds, 1), "seconds": took}
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
    after: Callable[[], None] = lambda: None,
) -> list[str]:
    """Run the parts in their order while there is time; returns the names of those that are left for another command.

    With `resume`, parts whose JSON lies there are not run again, failed ones neither unless `again` names them: what failed
    once would take the same time to fail twice. Those that had less time than there is now are, and elastic ones that are
    not over. A part begins where its whole limit is left, the first one always; then those that measure where `ENOUGH` of
    it is. `after` is called when a part is over. Raises `InputError` where what lies in `resume` is of another device or list.
    """
    end, out = time.perf_counter() + seconds, out.resolve()
    (out / PARTS).mkdir(parents=True, exist_ok=True)
    done = {} if resume is None else read_tour(resume)
    _refuse_others(parts, done, again)
    found = {**read_tour(out), **done}
    _write_tour(out, found)
    todo = [part for part in parts if part.name in again or not _is_over(part, done.get(part.name), seconds)]
    waiting, started = list(todo), False
    for enough in (1.0, ENOUGH):
        for part in list(waiting):
            room = end - time.perf_counter()
            if room < part.seconds * (1.0 if part.elastic else enough) and started:
                continue
            started = True
            waiting.remove(part)
            if part.elastic and resume is not None and resume.resolve() != out and (resume / RECORDS).exists():
                shutil.copyfile(resume / RECORDS, out / RECORDS)  # trials that ended there are not trained again
            told = run_part(part, out / PARTS, room if part.elastic else min(part.seconds, max(room, 1.0)))
            _refuse_another_device(part.name, told, done)
            found[part.name] = told
            _write_tour(out, found)
            say(headline(part.name, told))
            after()
    unfinished = [part for part in todo if part in waiting or found[part.name]["status"] == CUT]
    return [part.name for part in unfinished if part in waiting or not _is_over(part, found[part.name], seconds)]


def _is_over(part: Part, told: Mapping[str, Any] | None, seconds: float) -> bool:
    """Whether there is nothing to be gained by running a part (again) in a command of `seconds`."""
    if told is None:
        return False
    if (
        part.elastic
    ):  # it goes on from its records; a failure may have been the moment's, such as another process's lock
        return bool(told["status"] == OK)
    room = min(part.seconds, seconds)
    return bool(told["status"] != CUT or told.get("given", room) >= room - GRACE_SECONDS)


def _refuse_others(parts: Sequence[Part], done: Mapping[str, Mapping[str, Any]], again: Sequence[str]) -> None:
    """What an earlier tour says of what it was asked for has to be what is asked for now; older ones do not say it."""
    for part in parts:
        before = done.get(part.name, {}).get("asked", {})
        for what, wanted in part.asked.items():
            if before.get(what, wanted) != wanted and not (what == "list" and part.name in again):
                raise InputError(
                    f"--resume: {part.name} is there of another {what} ({before[what]}, this command has {wanted}); "
                    "give another --out and --resume"
                )


def _refuse_another_device(name: str, told: Mapping[str, Any], done: Mapping[str, Mapping[str, Any]]) -> None:
    """Figures of two devices make no table: only a part that ran can tell which device this is."""
    here = told.get("environment", {}).get("device")
    others = {part["environment"].get("device") for part in done.values() if part.get("environment")} - {here, None}
    if here is not None and others:
        raise InputError(
            f"--resume: its parts are of {', '.join(sorted(others))}, and {name} ran on {here} here; give another --out and "
            "--resume"
        )


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
