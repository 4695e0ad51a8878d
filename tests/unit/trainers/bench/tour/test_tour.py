"""A tour survives its parts: what crashes, hangs or takes all memory costs itself, and nothing is done twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support import small
from tests.support.places import ROOT
from trainers.bench.tour.__main__ import main
from trainers.bench.tour.caches import CACHES, FOLDER, compiled_kernels
from trainers.bench.tour.order import (
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
    Training,
    headline,
    parts_of,
    read_tour,
    run_tour,
    table,
)
from trainers.bench.tour.parts import MEASURES, FoundWrongError, Report
from trainers.bench.tour.parts import main as measure
from trainers.bench.tour.process import run_bound
from trainers.contract.errors import InputError
from trainers.contract.record_lines import read_records
from trainers.planning.spec_lines import TrialLine, trials_to_text

TELLS = """
import sys
from pathlib import Path
from trainers.bench.tour.order import write_part
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


def part(name: str, seconds: float = 60.0, *, elastic: bool = False, code: str = "", **asked: str) -> Part:
    return Part(name, seconds, (sys.executable, "-c", TELLS + (code or CODE[name])), elastic, asked)


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
    parts = [part("fine", 590.0), part("crash", 3_000.0), part("silent", 60.0)]
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


def test_time_that_is_left_over_goes_to_parts_that_may_do_with_less(tmp_path: Path, said: list[str]) -> None:
    parts = [part("fine", 590.0), replace(part("fine", 1_000.0), name="long"), part("silent", 60.0)]
    assert run_tour(parts, tmp_path, 600.0, said.append) == []
    assert ran(tmp_path) == ["fine", "silent", "long"]
    assert read_tour(tmp_path)["long"]["given"] < 600


@pytest.mark.parametrize(
    ("given", "seconds", "times"), [(100.0, 600.0, 1), (300.0, 600.0, 0), (100.0, 90.0, 0), (None, 600.0, 0)]
)
def test_what_was_cut_for_want_of_time_is_run_again_where_there_is_more(
    given: float | None, seconds: float, times: int, tmp_path: Path, said: list[str]
) -> None:
    cut = {"status": CUT, "seconds": 100.0, **({} if given is None else {"given": given})}
    (tmp_path / TOUR).write_text(json.dumps({"schema": TOUR_SCHEMA, "parts": {"fine": cut}}))
    assert run_tour([part("fine", 300.0)], tmp_path, seconds, said.append, resume=tmp_path) == []
    assert len(ran(tmp_path)) == times


def test_training_that_failed_is_tried_again(tmp_path: Path, said: list[str]) -> None:
    code = "again = path.with_name('again'); assert again.exists() or again.touch(); tell('ok')"
    parts = [part("training", elastic=True, code=code)]
    assert run_tour(parts, tmp_path, 600.0, said.append) == []
    assert read_tour(tmp_path)["training"]["status"] == FAILED
    assert run_tour(parts, tmp_path, 600.0, said.append, resume=tmp_path) == []
    assert read_tour(tmp_path)["training"]["status"] == OK


def test_parts_of_another_device_or_list_are_not_gone_on_with(tmp_path: Path, said: list[str]) -> None:
    def go_on(*parts: Part, again: tuple[str, ...] = ()) -> None:
        run_tour(parts, tmp_path, 600.0, said.append, resume=tmp_path, again=again)

    go_on(part("fine", device="cpu", list="abc"))
    with pytest.raises(
        InputError, match=r"^--resume: fine is there of another device \(cpu, this command has cuda\); "
    ):
        go_on(part("fine", device="cuda", list="abc"))
    with pytest.raises(InputError, match=r"^--resume: fine is there of another list \(abc, this command has def\); "):
        go_on(part("fine", device="cpu", list="def"))
    go_on(part("fine", device="cpu", list="def"), again=("fine",))
    assert read_tour(tmp_path)["fine"]["asked"] == {"device": "cpu", "list": "def"}
    code = "write_part(path, 'ok', environment={'device': 'another card'})"
    with pytest.raises(
        InputError, match=r"^--resume: its parts are of some device, and silent ran on another card here; "
    ):
        go_on(part("silent", device="cpu", code=code))
    assert read_tour(tmp_path).keys() == {"fine"}


def test_a_list_is_known_by_its_content(tmp_path: Path) -> None:
    hashes = []
    for text in ("a", "b", "a"):
        (tmp_path / "list").write_text(text)
        training = parts_of("cpu", Training(tmp_path / "list", tmp_path, 1_000, 65_536), tmp_path)[-1]
        hashes.append(training.asked["list"])
    assert hashes[0] == hashes[2] != hashes[1]
    words = " ".join(training.command)
    assert "--evaluate-every 1000 --evaluate-tokens 65536" in words


def test_compiled_kernels_are_packed_after_each_part_and_at_any_end(tmp_path: Path) -> None:
    out, later = tmp_path / "out", tmp_path / "later"
    out.mkdir(), later.mkdir()

    def names() -> set[str]:
        with tarfile.open(out / CACHES) as archive:
            return {Path(name).name for name in archive.getnames()} - {""}

    with suppress(KeyboardInterrupt), compiled_kernels(out, None) as pack:
        place = Path(os.environ["TRITON_CACHE_DIR"])
        place.mkdir()
        (place / "first").touch()
        pack()
        assert "first" in names()
        (place / "second").touch()
        raise KeyboardInterrupt
    assert {"first", "second"} <= names()
    assert not (out / FOLDER).exists()
    with compiled_kernels(later, out):
        assert (Path(os.environ["TRITON_CACHE_DIR"]) / "second").exists()
    (out / FOLDER / "left").mkdir(parents=True)
    with compiled_kernels(out, None):
        assert (out / FOLDER / "left").exists(), "of a command that was killed"
    assert [file.name for file in out.iterdir()] == [CACHES]


DRIVER = """
import sys
from pathlib import Path
from trainers.bench.tour import __main__
from trainers.bench.tour.order import Part
codes = {codes!r}
__main__.parts_of = lambda *given: [Part(name, 60.0, (sys.executable, "-c", code)) for name, code in codes.items()]
sys.exit(__main__.main(sys.argv[1:]))
"""
WAITS = "import os, signal; path.with_name('pid').write_text(str(os.getpid())); tell('cut', figures={'x': 2}); signal.pause()"


def driven(out: Path, *more: str) -> subprocess.Popen[str]:
    """A tour whose second part waits for ever; back when it does."""
    code = DRIVER.format(codes={"fine": TELLS + CODE["fine"], "waits": TELLS + WAITS})
    command = [sys.executable, "-c", code, "--out", str(out), *more]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    tour = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    for _ in range(1_200):
        if (out / PARTS / "pid").exists() and (out / PARTS / "pid").read_text():
            return tour
        time.sleep(0.05)
    tour.kill()
    raise AssertionError(tour.communicate())


def is_gone(process: int) -> bool:
    for _ in range(200):
        try:
            if Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_however_a_tour_ends_its_part_ends_too(number: signal.Signals, tmp_path: Path) -> None:
    tour = driven(tmp_path)
    waits = int((tmp_path / PARTS / "pid").read_text())
    tour.send_signal(number)
    said, errors = tour.communicate(timeout=60)
    assert is_gone(waits)
    assert read_tour(tmp_path).keys() == {"fine"}, "the other one is not over"
    assert errors == ""
    if number != signal.SIGKILL:
        assert tour.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[number]
        assert said.endswith("left: waits; the same command with --resume goes on\n")
        assert "tour of some device" in said
        assert (tmp_path / CACHES).exists()
        assert not (tmp_path / FOLDER).exists()


def interrupt_when(path: Path) -> None:
    while not path.exists():
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGINT)


def test_a_part_has_a_moment_to_save_what_it_has(tmp_path: Path) -> None:
    """As training does, whose process is below the part's."""
    code = "import signal; signal.signal(signal.SIGTERM, lambda *_: (path.with_name('saved').touch(), sys.exit()))\n"
    whole = (
        TELLS
        + f"import subprocess; child = subprocess.Popen([sys.executable, '-c', {TELLS + code + WAITS!r}, str(path)])\n"
    )
    whole += "import signal; signal.signal(signal.SIGTERM, lambda *_: None); child.wait()"
    asker = threading.Thread(target=interrupt_when, args=(tmp_path / "pid",))
    asker.start()
    with (tmp_path / "log").open("wb") as log, pytest.raises(KeyboardInterrupt):
        run_bound([sys.executable, "-c", whole, str(tmp_path / "part.json")], log, 60.0, 20.0)
    asker.join()
    assert (tmp_path / "saved").exists()


def test_what_a_part_finds_wrong_is_told_in_its_own_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tour takes the last line of what it said."""

    def wrong(report: Report) -> str:
        report.add("error", 0.5, "a row")
        raise FoundWrongError("gradients are 0.5 from float64, and 0.01 is allowed")

    monkeypatch.setitem(MEASURES, "loss", wrong)
    monkeypatch.setattr("sys.argv", ["parts", "cpu", "loss", str(tmp_path / "loss.json")])
    assert measure() == 1
    assert capsys.readouterr().out == "gradients are 0.5 from float64, and 0.01 is allowed\n"
    assert json.loads((tmp_path / "loss.json").read_text())["figures"] == {"error": 0.5}


def test_a_file_that_is_no_tour_is_not_taken_for_one(tmp_path: Path) -> None:
    assert read_tour(tmp_path) == {}
    half = '{"schema": 1, "parts": {"fine": [], "crash": {"status": "ok"}, "hang": {"seconds": 1, "status": 2}}}'
    for text in ("{", "[]", half, '{"schema": 0, "parts": {"fine": {"status": "ok"}}}', '{"schema": 1, "parts": []}'):
        (tmp_path / TOUR).write_text(text)
        assert read_tour(tmp_path) == {}, text


def test_what_was_found_is_on_disk_before_the_next_part_begins(tmp_path: Path, said: list[str]) -> None:
    code = "tell('ok', line=','.join(read_tour(path.parents[1])))"
    looks = part("fine", code="from trainers.bench.tour.order import read_tour\n" + code)
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
        (("--seconds", "0"), "--seconds: '0' is not a number above 10"),
        (("--seconds", "abc"), "--seconds: 'abc' is not a number above 10"),
        (("--seconds", "inf"), "--seconds: 'inf' is not a number above 10"),
        (("--evaluate-every", "-1"), "--evaluate-every: '-1' is not a whole number"),
        (("--wide",), "unrecognized arguments: --wide"),
        (
            ("--device", "cpu", "--part", "tests"),
            "--part: 'tests' is not one of machine, loss, boundary, steps, rivals",
        ),
        (("--again", "huge"), "--again: 'huge' is not one of machine, loss, boundary, captured-270m"),
        (("--part", "training"), "--part: training needs --specs and --corpus"),
        (("--specs", "specs.jsonl"), "--specs and --corpus: one without the other; give both or none"),
        (("--specs", "/no/list", "--corpus", "/no/corpus"), "/no/list: No such file or directory"),
        (("--specs", "LIST", "--corpus", "/no/corpus"), "/no/corpus: no prepared corpus"),
        (("--specs", "OTHER", "--corpus", "CORPUS"), "--specs: OTHER is not for the corpus in CORPUS"),
        (("--out", str(ROOT / "README.md")), f"{ROOT / 'README.md'}: File exists"),
        (("--out", "/proc/nix"), "/proc/nix: No such file or directory"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = small.spec()
    places = {"LIST": tmp_path / "LIST", "OTHER": tmp_path / "OTHER", "CORPUS": small.corpus().directory}
    places["LIST"].write_text(trials_to_text([TrialLine(mine)]))
    places["OTHER"].write_text(trials_to_text([TrialLine(replace(mine, corpus_fingerprint="another"))]))
    assert main(["--out", str(tmp_path / "out"), *(str(places.get(word, word)) for word in arguments)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    for word, place in places.items():
        message = message.replace(word, str(place))
    assert line.startswith(message)
    assert not (tmp_path / "out").exists()


def test_the_first_two_minutes_hold_what_everything_rests_on() -> None:
    parts = parts_of("cuda", None, Path())
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
    given += ("--evaluate-every", "4", "--evaluate-tokens", "64")
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
    records = read_records(out / "records.jsonl")
    assert [[point.step for point in record.curve.points if point.step % 4 == 0] for record in records] == [
        [4, 8, 12]
    ] * 2
    assert len(done.stdout) < 12_000
    assert (out / CACHES).exists()
    again = tour(*given)
    assert again.returncode == 0
    assert read_tour(out) == found
