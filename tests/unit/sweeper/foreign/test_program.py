"""A program that is not there is refused with its line, wherever starting it would have looked."""

from __future__ import annotations

from pathlib import Path

import pytest

from sweeper import RunOptions, UserError, plan, run
from sweeper.materials import dry_run
from tests.unit.sweeper.foreign.test_dry import SPACE


def written(folder: Path, program: str, more: str = "", own: str = "") -> RunOptions:
    (folder / "train.py").write_text("")
    for name in ("bin/mine", "here"):
        file = folder / name
        file.parent.mkdir(exist_ok=True)
        file.write_text("#!/bin/sh\n")
        file.chmod(0o755)
    text = SPACE.format(resumes="false", metrics="{points: points.jsonl}").replace('"{python}"', program)
    text = text.replace("  code:", f"{more}  code:")
    if own:
        text = text.replace("  baseline: {", f'  baseline: {{\n    command: [{own}, "{{trial}}"],\n    ')
    file = folder / "dry.yaml"
    file.write_text(text)
    return RunOptions(file, folder / "results", executor="inline")


@pytest.mark.parametrize(
    ("program", "more", "own", "said"),
    [
        ("pythonn", "", "", r"dry.yaml:5: trainer.command.*'pythonn' is no program in the PATH that it is given"),
        ("./there", "", "", r"dry.yaml:5: trainer.command.*'./there' is no program in /"),
        ("./train.py", "", "", r"dry.yaml:5: trainer.command.*'./train.py' is no program in /"),
        ("mine", "  environment: {PATH: elsewhere}\n", "", r"dry.yaml:5: trainer.command.*'mine' is no program"),
        ("sh", "", "'no{scale.size}'", r"dry.yaml:13: methods.baseline.command.*'no6' is no program"),
    ],
)
def test_a_program_that_is_not_there_is_refused_before_anything_starts(
    tmp_path: Path, program: str, more: str, own: str, said: str
) -> None:
    options = written(tmp_path, program, more, own)
    for ask in (plan, run, lambda given: dry_run(given, print)):
        with pytest.raises(UserError, match=said):
            ask(options)  # type: ignore[operator]
    assert not list(tmp_path.glob("results/*/stages/*"))


@pytest.mark.parametrize(
    ("program", "more"),
    [
        ("sh", ""),
        ("./here", ""),
        ("bin/mine", ""),
        ("mine", "  environment: {PATH: 'elsewhere:bin'}\n"),
        ("'{python}'", ""),
        ("'{out}/made'", ""),
    ],
)
def test_a_program_that_starting_would_find_is_planned(tmp_path: Path, program: str, more: str) -> None:
    assert plan(written(tmp_path, program, more)).commands
