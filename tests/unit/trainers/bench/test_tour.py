"""A tour survives its parts: what crashes, hangs or takes all memory costs itself, and nothing is done twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import small
from tests.support.places import ROOT
from trainers.bench.tour import (
    CACHES,
    CPU_LIMITS,
    CUT,
    FAILED,
    GPU_LIMITS,
    MOST_TABLE,
    OK,
    PARTS,
    TOUR,
    TOUR_SCHEMA,
    Part,
    headline,
    main,
    parts_of,
    read_tour,
    run_tour,
    table,
)
from trainers.bench.tour_parts import MEASURES
from trainers.contract.errors import InputError
from trainers.contract.record_lines import read_records
from trainers.planning.spec_lines import TrialLine, trials_to_text

TELLS = """
import sys
from pathlib import Path
from trainers.bench.tour import write_part
path = Path(sys.argv[-1])
with path.with_name("ran").open("a") as ran:
    ran.write(path.stem + " ")
def tell(status, **values):
    write_part(path, status, environment={"device": "some device"}, **values)
"""
"""What a part begins with here: it notes that it ran, and can write its JSON."""
CODE = {
    "fine": "tell('ok', line='all is well', rows=['a row'], figures={'x': 1})",
    "crash": "tell('cut', rows=['before']); raise RuntimeError('no kernel image for this device')",
    "hang": "import signal; tell('cut', figures={'x': 2}); signal.pause()",
    "killed": "import os; os.kill(os.getpid(), 9)",
    "memory": "import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30)); bytearray(1 << 31)",
    "silent": "pass",
    "nan": "tell('ok', figures={'loss': float('nan'), 'losses': [1.0, float('inf')]})",
    "refused": "tell('cut'); print('--device: cuda, and no GPU here'); sys.exit(2)",
}


def part(name: str, seconds: float = 60.0, *, elastic: bool = False, code: str = "") -> Part:
    return Part(name, seconds, (sys.executable, "-c", TELLS + (code or CODE[name])), elastic)


def ran(folder: Path) -> list[str]:
    noted = folder / PARTS / "ran"
    return noted.read_text().split() if noted.exists() else []


@pytest.fixture
def said() -> list[str]:
    return []


def test_a_part_that_fails_costs_itself_only(tmp_path: Path, said: list[str]) -> None:
    names = ["crash", "killed", "memory", "hang", "silent", "fine"]
    parts = [part(name, seconds=4.0 if name == "hang" else 60.0) for name in names]
    assert run_tour(parts, tmp_path, 600.0, said.append) == []
    found = read_tour(tmp_path)
    assert {name: plain["status"] for name, plain in found.items()} == {
        "crash": FAILED, "killed": FAILED, "memory": FAILED, "hang": CUT, "silent": FAILED, "fine": OK
    }  # fmt: skip
    assert found["crash"]["reason"] == "ended with 1: RuntimeError: no kernel image for this device"
    assert found["crash"]["rows"] == ["before"]
    assert found["killed"]["reason"] == "ended by signal 9: it said nothing"
    assert found["memory"]["reason"] == "ended with 1: MemoryError"
    assert found["hang"]["figures"] == {"x": 2}
    assert found["hang"]["reason"] == "not over after 4 s"
    assert [line.split(":")[0] for line in said] == names
    shown = table(names, tmp_path, [])
    for piece in ("tour of some device", "crash: failed", "no kernel image", "fine: ok", "all is well", "  a row"):
        assert piece in shown, piece


def test_nothing_is_done_twice(tmp_path: Path, said: list[str]) -> None:
    parts = [part("fine"), part("crash")]
    run_tour(parts, tmp_path, 600.0, said.append)
    run_tour(parts, tmp_path, 600.0, said.append, resume=tmp_path)
    assert ran(tmp_path) == ["fine", "crash"]
    run_tour(parts, tmp_path, 600.0, said.append, resume=tmp_path, again=["crash"])
    assert ran(tmp_path) == ["fine", "crash", "crash"]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    run_tour(parts, elsewhere, 600.0, said.append, resume=tmp_path)
    assert ran(elsewhere) == []
    assert read_tour(elsewhere) == read_tour(tmp_path)
    run_tour(parts, tmp_path, 600.0, said.append)
    assert ran(tmp_path)[3:] == ["fine", "crash"]


def test_a_part_without_room_is_left_for_another_command(tmp_path: Path, said: list[str]) -> None:
    parts = [part("fine", 590.0), part("crash", 1_000.0), part("silent", 60.0)]
    assert run_tour(parts, tmp_path, 600.0, said.append) == ["crash"]
    assert ran(tmp_path) == ["fine", "silent"]
    assert run_tour(parts, tmp_path, 600.0, said.append, resume=tmp_path) == []
    assert ran(tmp_path) == ["fine", "silent", "crash"]
    assert "left: crash; the same command with --resume goes on" in table(["fine"], tmp_path, ["crash"])


def test_an_elastic_part_is_told_its_time_and_goes_on_until_it_is_over(tmp_path: Path, said: list[str]) -> None:
    code = "records = path.parent.with_name('records.jsonl'); again = records.exists(); records.touch()\n"
    code += "tell('ok' if again else 'cut', line=sys.argv[-2])"
    parts = [part("training", 60.0, elastic=True, code=code)]
    assert run_tour(parts, tmp_path, 600.0, said.append) == ["training"]
    assert 500 <= int(read_tour(tmp_path)["training"]["line"]) <= 595
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert run_tour(parts, elsewhere, 600.0, said.append, resume=tmp_path) == []
    assert read_tour(elsewhere)["training"]["status"] == OK


def test_a_file_that_is_no_tour_is_not_taken_for_one(tmp_path: Path) -> None:
    assert read_tour(tmp_path) == {}
    for text in ("{", "[]", '{"schema": 0, "parts": {"fine": {"status": "ok"}}}', '{"schema": 1, "parts": []}'):
        (tmp_path / TOUR).write_text(text)
        assert read_tour(tmp_path) == {}, text


def test_what_was_found_is_on_disk_before_the_next_part_begins(tmp_path: Path, said: list[str]) -> None:
    code = "tell('ok', line=','.join(read_tour(path.parents[1])))"
    looks = part("fine", code="from trainers.bench.tour import read_tour\n" + code)
    run_tour([part("crash"), looks], tmp_path, 600.0, said.append)
    assert read_tour(tmp_path)["fine"]["line"] == "crash"


def test_a_loss_that_is_no_number_is_told_by_its_name(tmp_path: Path, said: list[str]) -> None:
    run_tour([part("nan")], tmp_path, 600.0, said.append)
    assert read_tour(tmp_path)["nan"]["figures"] == {"loss": "NaN", "losses": [1.0, "Infinity"]}


def test_what_no_part_can_do_ends_the_tour_and_counts_for_none(tmp_path: Path, said: list[str]) -> None:
    with pytest.raises(InputError, match=r"^--device: cuda, and no GPU here$"):
        run_tour([part("fine"), part("refused")], tmp_path, 600.0, said.append)
    assert read_tour(tmp_path).keys() == {"fine"}


def test_the_table_is_short_whatever_the_parts_say(tmp_path: Path) -> None:
    names = [f"part-{index}" for index in range(12)]
    parts: dict[str, Any] = {}
    for index, name in enumerate(names):
        rows = [f"{name} {row} " + "x" * 300 for row in range(index * 40)]
        parts[name] = {"status": OK, "seconds": 1.0, "line": "y" * 500, "rows": rows}
    (tmp_path / TOUR).write_text(json.dumps({"schema": TOUR_SCHEMA, "parts": parts}))
    shown = table(names, tmp_path, ["more"])
    assert len(shown) <= MOST_TABLE < 12_000
    assert all(f"\n{headline(name, parts[name])[:100]}" in shown for name in names)
    assert shown.endswith("goes on")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--device", "zz"), "--device: 'zz' is not cpu or cuda"),
        (("--seconds", "0"), "--seconds: 0 is not more than 10"),
        (
            ("--device", "cpu", "--part", "tests"),
            "--part: 'tests' is not one of machine, loss, boundary, steps, rivals",
        ),
        (("--again", "huge"), "--again: 'huge' is not one of machine, loss, boundary, captured-270m"),
        (("--specs", "specs.jsonl"), "--specs and --corpus: one without the other; give both or none"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--out", str(tmp_path / "out"), *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(message)
    assert not (tmp_path / "out").exists()


def test_the_first_two_minutes_hold_what_everything_rests_on() -> None:
    parts = parts_of("cuda", None, None, Path())
    assert [one.name for one in parts][:3] == ["machine", "loss", "boundary"]
    assert all(one.seconds <= 540 - 10 for one in parts), "each fits a command by itself"
    assert MEASURES.keys() == GPU_LIMITS.keys() | CPU_LIMITS.keys()


def tour(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "trainers.bench.tour", "--device", "cpu", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment, timeout=600)


@pytest.mark.slow
def test_a_tour_of_a_processor(tmp_path: Path) -> None:
    """Every part of it with small shapes, and trials of a list; the second command has nothing to do."""
    specs, out = tmp_path / "specs.jsonl", tmp_path / "out"
    trials = [
        small.spec(total_steps=12, decay_steps=4),
        small.spec("tst", total_steps=12, decay_steps=4, bag_size=2, step_ratio=0.5),
    ]
    specs.write_text(trials_to_text([TrialLine(trial) for trial in trials]))
    given = ("--seconds", "540", "--out", out, "--resume", out, "--specs", specs, "--corpus", small.corpus().directory)
    done = tour(*given)
    assert done.returncode == 0, done.stdout + done.stderr
    names = ["machine", "loss", "boundary", "steps", "rivals", "training"]
    found = read_tour(out)
    assert list(found) == names
    assert {plain["status"] for plain in found.values()} == {OK}
    assert found["machine"]["figures"]["attention flash"]["right"]
    assert "No viable backend" in found["machine"]["figures"]["attention cuDNN"]["failed"]
    assert found["boundary"]["line"].startswith("captured is eager within")
    assert {"baseline s=1 eager", "superposition s=16 eager", "kernels"} <= found["steps"]["figures"].keys()
    assert found["rivals"]["figures"]["paper s=6 eager"]["over_ours"] > 0
    assert len(read_records(out / "records.jsonl")) == 2
    assert len(done.stdout) < 12_000
    assert (out / CACHES).exists()
    again = tour(*given)
    assert again.returncode == 0
    assert read_tour(out) == found
