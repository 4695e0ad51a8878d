"""A ledger that nobody waits for, on a real MLflow: a server that is killed and comes back, a disk without room, a driver
that dies with entries unwritten. Nothing is lost, nothing doubled."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient

from sweeper.ledger import spooled
from sweeper.ledger.connection import connect
from sweeper.ledger.dashboard import free_port, running_server
from sweeper.ledger.entries import LOSS_KEY, MAX_POINTS
from sweeper.ledger.location import default_tracking_uri
from sweeper.ledger.mlflow_ledger import Ledger
from sweeper.ledger.spooled import FILE, SpooledLedger
from tests.support.ledger_factory import MLFLOW_WARNINGS, about_of, empty_results
from tests.support.strategies import record_of, spec_of
from trainers.contract.record import EvalPoint, Failed, LossCurve, RunRecord, record_to_dict

pytestmark = MLFLOW_WARNINGS
NAME = "quickstart"


@pytest.fixture
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return empty_results(tmp_path_factory)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spooled, "BATCH_SECONDS", 0.1)
    monkeypatch.setattr(spooled, "PAUSES", (0.5, 1.0))


def curve_record(seed: int, points: int) -> RunRecord:
    record = record_of(spec_of(seed=seed))
    steps = record.spec.schedule.total_steps
    curve = [
        EvalPoint(
            round((index + 1) * steps / points), index + 1, float(index + 1), index + 1.0, 5 - index / points, "main"
        )
        for index in range(points)
    ]
    return replace(record, curve=LossCurve(tuple(curve)))


def tell(ledger: SpooledLedger, record: RunRecord, points: slice = slice(None)) -> None:
    for point in record.curve.points[:-1][points]:
        ledger.point(record.spec, point.step, point.loss, point.tokens, point.flops, point.seconds)


def charts(uri: str, experiment_id: str) -> dict[str, Counter[int]]:
    """How often the dashboard has each step of each trial's loss."""
    client = MlflowClient(uri)
    runs = client.search_runs([experiment_id], "tags.`sweeper.kind` = 'trial'")
    return {
        run.data.tags["spec_id"]: Counter(point.step for point in client.get_metric_history(run.info.run_id, LOSS_KEY))
        for run in runs
    }


def steps_of(record: RunRecord) -> Counter[int]:
    return Counter(point.step for point in record.curve.points)


@contextmanager
def spooling(
    results: Path, uri: str | None = None, say: Callable[[str], None] = lambda line: None
) -> Iterator[tuple[Ledger, SpooledLedger]]:
    with (
        Ledger.open(results, NAME, uri, create=True) as plain,
        SpooledLedger(plain, results / NAME, say) as ledger,
    ):
        ledger.begin(about_of(NAME))
        yield plain, ledger


def await_(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_points_are_there_while_a_trial_trains_and_once_when_it_has_ended(results: Path) -> None:
    record = curve_record(1, 20)
    with spooling(results) as (plain, ledger):
        ledger.schedule(record.spec, record.purpose)
        ledger.started(record.spec)
        tell(ledger, record, slice(0, 12))
        uri = default_tracking_uri(results)
        await_(lambda: sum(charts(uri, plain.experiment_id).get(record.spec.spec_id, Counter()).values()) == 12)
        # Cut, and gone on with from the last state: what was said since then is said again.
        tell(ledger, record, slice(8, None))
        ledger.write(record)
        ledger.finish("finished", "done", None)
        assert charts(uri, plain.experiment_id) == {record.spec.spec_id: steps_of(record)}
        assert ledger.records() == [record]
        assert not ledger.pending()
        assert set(ledger.run_links()) == {record.spec.spec_id}
    assert (results / NAME / FILE).read_bytes() == b""
    with Ledger.open(results, NAME, create=False) as read:
        assert read.records() == [record]


def test_a_curve_of_many_points_keeps_to_its_number(results: Path) -> None:
    record = curve_record(2, 1_200)
    with spooling(results) as (plain, ledger):
        ledger.schedule(record.spec, record.purpose)
        tell(ledger, record, slice(0, None, 3))
        ledger.write(record)
        ledger.finish("finished", "done", None)
        (chart,) = charts(default_tracking_uri(results), plain.experiment_id).values()
    assert set(chart.values()) == {1}
    assert len(chart) <= MAX_POINTS
    assert record.curve.points[-1].step in chart


@pytest.mark.slow
def test_a_server_that_is_killed_and_comes_back_has_everything_once(results: Path) -> None:
    """Ten trials say a thousand points; the server is killed with SIGKILL in the middle and is away for some seconds."""
    records = [curve_record(seed, 100) for seed in range(10)]
    said: list[str] = []
    port = free_port()
    with running_server(results, port=port) as (uri, first), spooling(results, uri, said.append) as (plain, ledger):
        for record in records[:5]:
            ledger.schedule(record.spec, record.purpose)
            tell(ledger, record, slice(0, 50))
        time.sleep(1)
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
        began = time.monotonic()
        for record in records[:5]:
            tell(ledger, record, slice(50, None))
            ledger.write(record)
        for record in records[5:]:
            ledger.schedule(record.spec, record.purpose)
            tell(ledger, record)
            ledger.write(record)
        assert time.monotonic() - began < 10, "a sweep waits for no server"
        await_(lambda: bool(ledger.speak() or said))
        assert "does not answer" in said[0]
        assert (results / NAME / FILE).stat().st_size
        assert [record.spec.spec_id for record in ledger.records()] == [r.spec.spec_id for r in records]
        time.sleep(5)
        with running_server(results, port=port):
            ledger.finish("finished", "done", None)
            assert charts(uri, plain.experiment_id) == {r.spec.spec_id: steps_of(r) for r in records}
            with Ledger.open(results, NAME, uri, create=False) as read:
                assert read.records() == records
                assert not read.damaged()
    assert any("answers again" in line for line in said)
    assert (results / NAME / FILE).read_bytes() == b""


@pytest.mark.slow
def test_a_server_that_is_gone_for_good_is_one_line_and_the_next_driver_writes(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spooled, "END_SECONDS", 3.0)
    record = curve_record(3, 10)
    said: list[str] = []
    port = free_port()
    with running_server(results, port=port) as (uri, server), spooling(results, uri, said.append) as (_, ledger):
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        ledger.schedule(record.spec, record.purpose)
        tell(ledger, record)
        ledger.write(record)
        ledger.finish("finished", "done", None)
    assert "11 entries wait in" in said[-1]
    assert len(said[-1].splitlines()) == 1
    said.clear()
    with running_server(results, port=port) as (uri, _), spooling(results, uri, said.append) as (plain, ledger):
        assert said == ["11 entries that the ledger had not taken are written"]
        assert ledger.records() == [record]
        ledger.finish("finished", "done", None)
        assert charts(uri, plain.experiment_id) == {record.spec.spec_id: steps_of(record)}


def test_what_was_said_twice_is_there_once(results: Path) -> None:
    """A driver that was killed after the ledger had taken everything, and before it knew: all is written again."""
    record, failed = curve_record(4, 10), replace(record_of(spec_of(seed=5)), outcome=Failed("no luck"))
    mended = curve_record(5, 5)
    with spooling(results) as (plain, ledger):
        for one in (record, failed):
            ledger.schedule(one.spec, one.purpose)
            tell(ledger, one)
            ledger.write(one)
        ledger.reopen(failed.spec)
        ledger.write(mended)
        text = (results / NAME / FILE).read_bytes()
        ledger.finish("finished", "done", None)
        before = charts(default_tracking_uri(results), plain.experiment_id)
    (results / NAME / FILE).write_bytes(text + b'{"op": "points", "spec_id": "cut in the mid')
    with spooling(results) as (plain, ledger):
        assert ledger.records() == [record, mended]
        ledger.finish("finished", "done", None)
        assert charts(default_tracking_uri(results), plain.experiment_id) == before


def test_damaged_entries_are_counted_and_the_others_written(results: Path) -> None:
    record, said = curve_record(9, 3), list[str]()
    good = json.dumps({"op": "write", "record": record_to_dict(record)}).encode()
    bad = [
        b"[]",
        b"3",
        b"{}",
        b'{"op": "dance"}',
        b'{"op": "write", "record": []}',
        b'{"op": "points", "spec_id": 3, "points": 3}',
    ]
    (results / NAME).mkdir(parents=True)
    (results / NAME / FILE).write_bytes(b"\n".join([*bad, good, b"\xff\xfe\x00", b"[" * 100_000, b'{"op": "wri']))
    with spooling(results, say=said.append) as (plain, ledger):
        assert ledger.records() == [record]
        ledger.finish("finished", "done", None)
        assert plain.records() == [record]
    assert said == [
        "1 entries that the ledger had not taken are written",
        f"{results / NAME / FILE}: 6 of its entries are damaged; what they said is found in the stages again",
    ]


def test_a_run_that_was_half_made_is_completed(results: Path) -> None:
    """The call that made a trial's run had no answer: the next try finds the run, and makes no second one."""
    record = curve_record(6, 3)
    with Ledger.open(results, NAME, create=True) as ledger:
        ledger.begin(about_of(NAME))

        def dies(*_: object, **__: object) -> None:
            raise ConnectionError("the server went away")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Ledger, "_batch", dies)
            with pytest.raises(ConnectionError):
                ledger.schedule(record.spec, record.purpose)
        ledger.look_again()
        ledger.schedule(record.spec, record.purpose)
        ledger.write(record)
        client = connect(default_tracking_uri(results))
        (run,) = client.search_runs([ledger.experiment_id], "tags.`sweeper.kind` = 'trial'")
    assert run.data.params["scale"] == record.spec.scale


FULL = """
import resource, sys
from pathlib import Path
from tests.integration.test_live_ledger import NAME, curve_record, spooling, tell
results = Path(sys.argv[1])
with spooling(results, say=print) as (plain, ledger):
    spool = results / NAME / "unwritten.jsonl"
    plain.chart = plain.write = lambda *_: 1 / 0  # the ledger takes nothing, so that the file grows
    resource.setrlimit(resource.RLIMIT_FSIZE, (spool.stat().st_size + 20_000,) * 2)
    seed = 0
    while ledger.full is None:
        record = curve_record(100 + seed, 20)
        ledger.schedule(record.spec, record.purpose)
        tell(ledger, record)
        ledger.write(record)
        seed += 1
    print("full", seed, ledger.full)
    import os
    os._exit(0)
"""


def test_a_file_that_may_not_grow_is_said_and_holds_whole_entries(results: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", FULL, str(results)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "make room there" in done.stdout
    lines = (results / NAME / FILE).read_text(encoding="utf-8").splitlines()
    told = [json.loads(line) for line in lines]
    assert len(told) > 10
    whole = [entry for entry in told if entry["op"] == "write"]
    with spooling(results) as (_, ledger):
        assert len(ledger.records()) == len(whole)
