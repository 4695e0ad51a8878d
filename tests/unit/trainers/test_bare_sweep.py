"""Training from a list: records as if trained alone, stops and failures survived, winners filled in, no library needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.support import small
from tests.support.places import ROOT
from tests.support.strategies import record_of, spec_of
from trainers.bare_sweep import BareEnd, BareSite, BareSweep, refuse_unfit
from trainers.contract.record import Diverged, Failed, RunRecord
from trainers.contract.record_lines import BadLinesError, RecordsFile, read_records
from trainers.contract.spec import TrialSpec
from trainers.contract.stage import RESULT, STATE, ParentLostError, StageJob, StageResult
from trainers.planning.assemble import assemble_record
from trainers.planning.lineage import path_of
from trainers.planning.spec_lines import TrialLine, filled_in, read_trials, trials_to_text, winner_of
from trainers.run import main
from trainers.training.checkpoint import NOTE
from trainers.training.stage import run_stage

EVERY = 4
LADDER = [small.spec(total_steps=steps, decay_steps=4) for steps in (12, 20, 30)]
FAN = [small.spec("tst", total_steps=20, decay_steps=4, bag_size=2, step_ratio=ratio) for ratio in (0.2, 0.5)]


@dataclass
class Desk:
    """One file of records and one folder of stages, through any number of calls."""

    folder: Path
    said: list[str]
    export: Path | None = None

    @property
    def out(self) -> Path:
        return self.folder / "records.jsonl"

    @property
    def site(self) -> BareSite:
        return BareSite(self.folder / "stages", "cpu", "eager", evaluate_every=EVERY, export=self.export)

    def run(self, trials: list[TrialLine], corpus: Any = None, stop_when: str = "") -> BareEnd:
        """Train; a progress line that contains `stop_when` asks for a stop."""
        self.site.scratch.mkdir(exist_ok=True)
        self.site.stop_file.unlink(missing_ok=True)

        def say(line: str) -> None:
            self.said.append(line)
            if stop_when and stop_when in line:
                self.site.stop_file.touch()

        with RecordsFile(self.out) as records:
            return BareSweep(tuple(trials), corpus or small.corpus(), self.site, records, say).run()

    def trained(self) -> dict[str, int]:
        """When the result of each stage was written."""
        return {file.parent.name: file.stat().st_mtime_ns for file in self.site.scratch.glob(f"*/{RESULT}")}

    def damage_states(self) -> int:
        files = [file for folder in self.site.scratch.glob(f"*/{STATE}") for file in folder.glob("*.safetensors")]
        for file in files:
            file.write_bytes(b"x" + file.read_bytes()[1:])
        return len(files)

    def records(self) -> dict[str, RunRecord]:
        return {record.spec.spec_id: record for record in read_records(self.out)}


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path, [])


@pytest.fixture(scope="module")
def uncut(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """All trials, trained in one call."""
    whole = Desk(tmp_path_factory.mktemp("uncut"), [])
    assert whole.run(lines([*LADDER, *FAN])) == BareEnd(5, 0, 0)
    return whole


def alone(spec: TrialSpec, store: Path) -> RunRecord:
    """The record of a trial trained in one piece."""
    job = replace(small.job(spec, store, evaluate_every=EVERY), keep_state=False)
    where = record_of(spec_of()).provenance
    chain = [run_stage(job, small.corpus())]
    return assemble_record(
        spec, "confirmation", chain, where, devices=1, corpus_tokens=small.corpus().train_tokens, evaluate_every=EVERY
    )


def losses(record: RunRecord) -> list[tuple[int, int, float]]:
    return [(point.step, point.tokens, point.loss) for point in record.curve.points]


def lines(specs: list[TrialSpec]) -> list[TrialLine]:
    return [TrialLine(spec) for spec in specs]


def test_records_are_those_of_trials_trained_alone_and_prefixes_are_trained_once(uncut: Desk, tmp_path: Path) -> None:
    specs = [*LADDER, *FAN]
    found = uncut.records()
    assert list(found) == [spec.spec_id for spec in specs]
    for spec in specs:
        expected = alone(spec, tmp_path / "alone")
        assert losses(found[spec.spec_id]) == losses(expected)
        assert found[spec.spec_id].outcome == expected.outcome
        assert found[spec.spec_id].corpus_tokens == expected.corpus_tokens
    steps = 0
    for result in uncut.site.scratch.glob("*/result.json"):
        plain = json.loads(result.read_text())
        steps += plain["end"] - plain["start"]
    assert steps == 8 + 4 + 8 + 4 + 10 + 4 + (4 + 16 + 6 + 10), "each shared prefix once"
    assert not list(uncut.site.scratch.glob(f"*/{STATE}")), "no state is kept that nobody goes on from"
    assert sum(r.timing.incurred_seconds for r in found.values()) < sum(r.timing.billed_seconds for r in found.values())


@pytest.mark.parametrize("where", ["steps=12: step 4", "steps=20: step 16", "ended 2/5", "steps=20: step 4 of 20"])
def test_a_stop_loses_nothing(desk: Desk, uncut: Desk, where: str) -> None:
    trials = lines([*LADDER, *FAN])
    first = desk.run(trials, stop_when=where)
    assert first.left > 0
    assert desk.run(trials) == BareEnd(5, 0, 0)
    assert {key: losses(record) for key, record in desk.records().items()} == {
        key: losses(record) for key, record in uncut.records().items()
    }
    before = desk.out.read_bytes()
    assert desk.run(trials) == BareEnd(5, 0, 0)
    assert desk.out.read_bytes() == before, "nothing is trained twice"


def test_a_damaged_state_is_trained_again(desk: Desk) -> None:
    desk.run(lines(LADDER), stop_when="ended 1/3")
    trunk = path_of(LADDER[0], "eager").node(8)
    (state,) = (desk.site.scratch / trunk / STATE).glob("*.safetensors")
    state.write_bytes(b"x" + state.read_bytes()[1:])
    assert desk.run(lines(LADDER)) == BareEnd(3, 0, 0)
    assert (desk.site.scratch / trunk).exists()
    assert not (desk.site.scratch / trunk / STATE / NOTE).exists()


def test_two_damaged_states_on_one_way_are_trained_again(desk: Desk) -> None:
    longest_first = lines(LADDER[::-1])
    desk.run(longest_first, stop_when="ended 1/3")
    assert desk.damage_states() == 2
    assert desk.run(longest_first) == BareEnd(3, 0, 0)


def test_a_disk_that_damages_every_state_ends_in_failures_not_in_a_loop(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def on_a_bad_disk(job: StageJob, *arguments: Any) -> StageResult:
        if job.parent is not None:
            raise ParentLostError(f"stage {job.node} cannot start: its parent is damaged")
        return run_stage(job, *arguments)

    monkeypatch.setattr("trainers.bare_sweep.run_stage", on_a_bad_disk)
    assert desk.run(lines(LADDER)) == BareEnd(3, 3, 0)
    assert all(isinstance(record.outcome, Failed) for record in desk.records().values())
    monkeypatch.undo()
    assert desk.run(lines(LADDER)) == BareEnd(3, 0, 0)


def test_a_result_that_cannot_be_followed_back_is_trained_again(desk: Desk, uncut: Desk) -> None:
    """The record and a result in the middle of the way are lost, the result at its end is there."""
    desk.run(lines(LADDER))
    desk.out.unlink()
    (desk.site.scratch / path_of(LADDER[2], "eager").node(16) / RESULT).write_text("")
    assert desk.run(lines(LADDER)) == BareEnd(3, 0, 0)
    for spec in LADDER:
        assert losses(desk.records()[spec.spec_id]) == losses(uncut.records()[spec.spec_id])


def test_what_is_not_this_list_s_stays_in_the_folder(desk: Desk) -> None:
    mine = desk.site.scratch / "project" / STATE
    mine.mkdir(parents=True)
    (mine / "thesis.txt").write_text("years of work")
    desk.run(lines(LADDER), stop_when="ended 1/3")
    waiting = set(desk.site.scratch.glob(f"*/{STATE}"))
    assert len(waiting) == 2
    before = desk.trained()
    other = Desk(desk.folder, [])
    assert other.run(lines([small.spec(total_steps=12, seed=5)])) == BareEnd(1, 0, 0)
    assert set(desk.site.scratch.glob(f"*/{STATE}")) == waiting
    assert desk.run(lines(LADDER)) == BareEnd(3, 0, 0)
    assert before.items() <= desk.trained().items()
    assert set(desk.site.scratch.glob(f"*/{STATE}")) == {mine}
    assert (mine / "thesis.txt").read_text() == "years of work"


def test_models_are_exported_of_stages_that_were_trained_before(desk: Desk) -> None:
    desk.run(lines(LADDER))
    desk.out.unlink()
    desk.export = desk.folder / "models"
    assert desk.run(lines(LADDER)) == BareEnd(3, 0, 0)
    assert {folder.name for folder in desk.export.iterdir()} == {spec.spec_id for spec in LADDER}
    assert not list(desk.site.scratch.glob(f"*/{STATE}"))


def test_trials_of_one_way_are_trained_once_and_both_leave_a_model(desk: Desk) -> None:
    pair = [small.spec(total_steps=12), replace(small.spec(total_steps=12), scale="other")]
    desk.export = desk.folder / "models"
    assert desk.run(lines(pair)) == BareEnd(2, 0, 0)
    assert {folder.name for folder in desk.export.iterdir()} == {spec.spec_id for spec in pair}
    assert len(desk.trained()) == 2, "its constant part and its decay"


def test_a_shared_stage_that_diverges_ends_all_its_trials_at_once(desk: Desk) -> None:
    wild = [small.spec(total_steps=steps, decay_steps=4, learning_rate=1e4) for steps in (60, 90, 120)]
    assert desk.run(lines(wild)) == BareEnd(3, 3, 0)
    found = [desk.records()[spec.spec_id] for spec in wild]
    assert all(isinstance(record.outcome, Diverged) for record in found)
    assert len(desk.trained()) == 1
    assert [record.timing.incurred_seconds > 0 for record in found].count(True) == 1


def test_winners_go_on_from_the_states_of_the_tuning(desk: Desk) -> None:
    tuning = TrialLine(small.spec(total_steps=12), "tuning")
    winners = [TrialLine(small.spec(total_steps=steps, learning_rate=1.0), winner=True) for steps in (20, 30)]
    assert desk.run([*winners, tuning]) == BareEnd(3, 0, 0)
    steps = 0
    for result in desk.site.scratch.glob(f"*/{RESULT}"):
        plain = json.loads(result.read_text())
        steps += plain["end"] - plain["start"]
    assert steps <= 12 + (20 - 8) + (30 - 16)


@dataclass(frozen=True)
class UnreadableFor:
    """A corpus whose text cannot be read in the order of one seed."""

    seed: int
    corpus: Any

    def stream(self, seed: int, **arguments: Any) -> Any:
        if seed == self.seed:
            raise OSError("the disk is gone")
        return self.corpus.stream(seed, **arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.corpus, name)


def test_a_failed_trial_is_a_record_the_rest_goes_on_and_it_is_tried_again(desk: Desk) -> None:
    bad, good = small.spec(seed=7), small.spec(seed=8)
    assert desk.run(lines([bad, good]), UnreadableFor(7, small.corpus())) == BareEnd(2, 1, 0)
    found = desk.records()
    assert found[bad.spec_id].outcome == Failed("OSError: the disk is gone")
    assert found[good.spec_id].final_loss is not None
    assert desk.run(lines([bad, good])) == BareEnd(2, 0, 0)
    assert desk.records()[bad.spec_id].final_loss is not None
    assert len(desk.out.read_text().splitlines()) == 3, "the good one was not trained again"


@dataclass
class UnreadableOnce:
    """A corpus that cannot be read when it is asked for the `number`-th time."""

    number: int
    corpus: Any
    asked: int = 0

    def stream(self, seed: int, **arguments: Any) -> Any:
        self.asked += 1
        if self.asked == self.number:
            raise OSError("the disk is gone")
        return self.corpus.stream(seed, **arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.corpus, name)


def test_a_trial_that_failed_behind_a_shared_prefix_goes_on_from_there(desk: Desk, uncut: Desk) -> None:
    trunk = desk.site.scratch / path_of(LADDER[0], "eager").node(8)
    assert desk.run(lines(LADDER), UnreadableOnce(2, small.corpus())) == BareEnd(3, 1, 0)
    assert isinstance(desk.records()[LADDER[0].spec_id].outcome, Failed)
    trained = (trunk / RESULT).stat().st_mtime_ns
    assert desk.run(lines(LADDER)) == BareEnd(3, 0, 0)
    assert (trunk / RESULT).stat().st_mtime_ns == trained
    for spec in LADDER:
        assert losses(desk.records()[spec.spec_id]) == losses(uncut.records()[spec.spec_id])
    assert not list(desk.site.scratch.glob(f"*/{STATE}"))


def test_a_divergence_is_a_record(desk: Desk) -> None:
    wild = small.spec(total_steps=60, decay_steps=0, learning_rate=1e4)
    desk.run(lines([wild]))
    (record,) = desk.records().values()
    assert isinstance(record.outcome, Diverged)


def tuning_records(table: dict[tuple[float, int], float | None], total_steps: int = 4_000) -> list[RunRecord]:
    """`(learning rate, seed)` to the final loss, None for a divergence."""
    return [
        record_of(
            spec_of(learning_rate=rate, seed=seed, total_steps=total_steps),
            purpose="tuning",
            **({"final_loss": loss} if loss is not None else {"outcome": Diverged(10, "nan")}),
        )
        for (rate, seed), loss in table.items()
    ]


def test_the_winner_has_the_lowest_mean_over_the_most_seeds_at_the_highest_budget() -> None:
    table = {(1e-3, 0): 2.80, (1e-3, 1): 2.90, (2e-3, 0): 2.70, (2e-3, 1): 2.98, (4e-3, 0): 2.5, (4e-3, 1): None}
    winner = winner_of(tuning_records(table))
    assert winner is not None
    assert winner.schedule.learning_rate == 2e-3
    lower = tuning_records({(8e-3, 0): 1.0}, total_steps=2_000)
    assert winner_of([*lower, *tuning_records(table)]) == winner
    assert winner_of(tuning_records({(1e-3, 0): None})) is None


def test_winners_wait_for_the_tuning_of_all_methods() -> None:
    rates = (1e-3, 2e-3)
    base = [TrialLine(spec_of(learning_rate=rate), "tuning") for rate in rates]
    tst = [TrialLine(spec_of("tst", learning_rate=rate), "tuning") for rate in rates]
    wanted = TrialLine(spec_of(learning_rate=9e-3, seed=1_000, total_steps=8_000), winner=True)
    trials = [*base, *tst, wanted]
    ended = {
        line.spec.spec_id: record_of(line.spec, purpose="tuning", final_loss=3 - 100 * line.spec.schedule.learning_rate)
        for line in trials[:-2]
    }
    assert len(filled_in(trials, ended)) == 4
    last = trials[-2].spec
    ended[last.spec_id] = record_of(last, purpose="tuning", outcome=Failed("out of memory"))
    *_, (spec, purpose) = filled_in(trials, ended)
    assert purpose == "confirmation"
    assert spec == replace(wanted.spec, schedule=replace(wanted.spec.schedule, learning_rate=2e-3))


def test_one_list_tunes_and_confirms(desk: Desk) -> None:
    rates = (0.01, 1e-5)
    tuning = [TrialLine(small.spec(total_steps=12, learning_rate=rate), "tuning") for rate in rates]
    confirm = TrialLine(small.spec(total_steps=20, learning_rate=1.0, seed=1_000), winner=True)
    assert desk.run([confirm, *tuning], stop_when="ended 2/3") == BareEnd(2, 0, 1)
    assert desk.run([confirm, *tuning]) == BareEnd(3, 0, 0)
    found = list(desk.records().values())
    assert [record.purpose for record in found] == ["tuning", "tuning", "confirmation"]
    assert (found[2].spec.seed, found[2].spec.schedule.learning_rate) == (1_000, 0.01)


def test_without_a_finished_tuning_trial_its_confirmations_are_left_out(desk: Desk) -> None:
    tuning = TrialLine(small.spec(total_steps=60, decay_steps=0, learning_rate=1e4), "tuning")
    confirm = TrialLine(small.spec(seed=1_000), winner=True)
    assert desk.run([tuning, confirm]) == BareEnd(1, 1, 1)
    assert "no tuning trial finished" in desk.said[-1]


def test_lists_come_back_as_they_were_written(tmp_path: Path) -> None:
    trials = (
        TrialLine(spec_of(), "tuning", number=1),
        TrialLine(spec_of("tst"), number=2),
        TrialLine(spec_of(seed=1_000), "noise_floor", winner=True, number=3),
    )
    file = tmp_path / "specs.jsonl"
    file.write_text(trials_to_text(trials))
    assert read_trials(file) == trials


def test_bad_lines_are_listed_and_nothing_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = json.loads(trials_to_text([TrialLine(spec_of())]))
    bare = good["spec"]
    file = tmp_path / "specs.jsonl"
    content = [
        good,
        bare,
        {**good, "stage": "warm-up"},
        {**good, "winner": True},
        {**good, "sead": 1},
        {"spec": {**bare, "method": "magic"}},
        {"spec": {**bare, "numerics": 0}},
        {"spec": 3},
        [],
    ]
    file.write_text("\n".join(json.dumps(line) for line in content) + '\n\n{"spec": NaN}\n{')
    assert main([str(file), "--corpus", str(tmp_path), "--out", str(tmp_path / "out.jsonl")]) == 2
    problems = capsys.readouterr().err.splitlines()
    assert [problem.split(": ")[0] for problem in problems] == [
        f"specs.jsonl:{number}" for number in (3, 5, 6, 7, 8, 9, 11, 12)
    ]
    assert "'warm-up' is not one of tuning, probe, confirmation, noise_floor" in problems[0]
    assert "method: 'magic' is not one of" in problems[2]
    file.write_text("\n".join(json.dumps(line) for line in content[:2] + content[3:4]))
    assert main([str(file), "--corpus", str(tmp_path), "--out", str(tmp_path / "out.jsonl")]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "specs.jsonl:2: the trial of line 1 again",
        "specs.jsonl:3: winner: no tuning trial of nano baseline in the file",
    ]
    assert list(tmp_path.iterdir()) == [file]


def test_another_text_is_one_clear_line(desk: Desk) -> None:
    trials = tuple(TrialLine(spec_of(seed=seed), number=seed + 1) for seed in range(3))
    with pytest.raises(BadLinesError) as caught:
        refuse_unfit(trials, small.corpus(), desk.site, "specs.jsonl")
    (problem,) = caught.value.problems
    assert problem.startswith("specs.jsonl: every trial is for the corpus c0ffee with the tokenizer deadbeef; ")
    assert small.corpus().fingerprint in problem
    several = replace(desk.site, micro_sequences=5)
    fitting = small.spec()
    with pytest.raises(BadLinesError, match=r"^specs.jsonl:4: --micro-sequences 5 does not divide its"):
        refuse_unfit((TrialLine(fitting, number=4),), small.corpus(), several, "specs.jsonl")


def test_a_line_that_was_cut_short_is_dropped_and_two_writers_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "records.jsonl"
    first, second = record_of(spec_of()), record_of(spec_of(seed=1))
    with RecordsFile(file) as records:
        records.write(first)
        with pytest.raises(ValueError, match="another process writes"):
            RecordsFile(file)
    whole = file.read_bytes()
    file.write_bytes(whole + whole[:100])
    with RecordsFile(file) as records:
        assert records.records == (first,)
        records.write(second)
    assert read_records(file) == (first, second)
    file.write_bytes(whole + b'{"schema": 1}\n3\n')
    with pytest.raises(BadLinesError) as caught:
        RecordsFile(file)
    assert [problem[:16] for problem in caught.value.problems] == ["records.jsonl:2:", "records.jsonl:3:"]


def test_the_time_runs_while_a_form_of_the_step_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a GPU that is up to minutes of compiling; here an hour on a clock of its own."""
    now = [1_000.0]

    def tried(*arguments: object) -> str:
        now[0] += 3_601
        return "eager"

    monkeypatch.setattr("trainers.run.monotonic", lambda: now[0])
    monkeypatch.setattr("trainers.training.execution.resolve_execution", tried)
    file, out = tmp_path / "specs.jsonl", tmp_path / "records.jsonl"
    file.write_text(trials_to_text(lines(LADDER[:1])))
    given = [str(file), "--corpus", str(small.corpus().directory), "--out", str(out), "--device", "cpu"]
    assert main([*given, "--hours", "1"]) == 3
    assert out.read_text() == ""
    (said,) = capsys.readouterr().out.splitlines()
    assert said.startswith("0 trials ended")
    assert main([*given, "--hours", "2"]) == 0


BARE = """
import sys
sys.modules.update(dict.fromkeys({absent!r}))
from trainers.run import main
sys.exit(main(sys.argv[1:]))
"""
ABSENT = {
    "ray", "mlflow", "optuna", "pydantic", "pandas", "plotly", "scipy", "typer", "rich", "yaml", "tokenizers", "jinja2",
    "psutil", "sweeper", "reports",
}  # fmt: skip


@pytest.mark.slow
def test_the_command_needs_torch_numpy_safetensors_and_msgspec_only(uncut: Desk, tmp_path: Path) -> None:
    file, out = tmp_path / "specs.jsonl", tmp_path / "records.jsonl"
    file.write_text(trials_to_text(lines(LADDER[:2])))
    command = [sys.executable, "-c", BARE.format(absent=ABSENT), str(file), "--corpus", str(small.corpus().directory)]
    command += ["--out", str(out), "--evaluate-every", str(EVERY)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def call(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *more], capture_output=True, text=True, env=environment, cwd=tmp_path)

    late = call("--hours", "1e-9")
    assert (late.returncode, out.read_text()) == (3, ""), late.stderr
    done = call()
    assert done.returncode == 0, done.stderr
    assert "2 trials ended, 0 of them without a final loss; 0 left" in done.stdout
    records = read_records(out)
    assert [record.spec for record in records] == LADDER[:2]
    assert {record.outcome for record in records} == {uncut.records()[spec.spec_id].outcome for spec in LADDER[:2]}


def test_of_many_bad_lines_twenty_are_told_and_the_rest_is_counted(tmp_path: Path) -> None:
    file = tmp_path / "records.jsonl"
    file.write_text("[]\n" * 7_640, encoding="utf-8")
    with pytest.raises(BadLinesError) as caught:
        read_records(file)
    lines = str(caught.value).splitlines()
    assert (len(caught.value.problems), len(lines)) == (7_640, 21)
    assert lines[0].startswith("records.jsonl:1: ")
    assert lines[-1] == "and 7,620 more like these"
