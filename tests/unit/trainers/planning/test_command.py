"""What a command's words come to."""

from __future__ import annotations

from dataclasses import replace

import pytest

from trainers.contract.spec import ForeignSpec, Schedule
from trainers.planning.command import command_line, environment, fill, placeholders, reads_file, shell_line

MACHINE = {"trial": "/t.json", "out": "/out", "python": "/py"}
SPEC = ForeignSpec(
    scale="small",
    scale_values=(("size", 6),),
    method="tst",
    parameters=(("bag_size", 4), ("step_ratio", 0.3)),
    command=("{python}", "train.py", "--lr={learning_rate}", '{{"seed": {seed}}}'),
    environment=(("RUN", "{method} {scale.size}"), ("JSON", "{{}}")),
    code="",
    loss_from="",
    decayed=True,
    schedule=Schedule(100, 0, 0, 2e-3),
    seed=7,
)


@pytest.mark.parametrize(
    ("word", "found", "filled"),
    [
        ("{seed}", ["seed"], "7"),
        ("a{seed}b{seed}", ["seed", "seed"], "a7b7"),
        ("{{seed}}", [], "{seed}"),
        ("{{{seed}}}", ["seed"], "{7}"),
        ('{{"a": {{"b": {seed}}}}}', ["seed"], '{"a": {"b": 7}}'),
        (r"\d{{3}}", [], r"\d{3}"),
        ("{ seed }", [" seed "], "{ seed }"),
        ("{bag-size}", ["bag-size"], "{bag-size}"),
        ("{}", [""], "{}"),
        ("{seed", ["{"], "{seed"),
        ("seed}", ["}"], "seed}"),
        ("plain", [], "plain"),
    ],
)
def test_braces_are_placeholders_or_doubled(word: str, found: list[str], filled: str) -> None:
    assert placeholders(word) == found
    assert fill(word, {"seed": 7}) == filled


def test_words_and_variables_are_filled() -> None:
    assert command_line(SPEC, MACHINE) == ["/py", "train.py", "--lr=0.002", '{"seed": 7}']
    assert not reads_file(SPEC)
    assert reads_file(replace(SPEC, environment=(("CONFIG", "{trial}"),)))
    assert not reads_file(replace(SPEC, command=("{{trial}}",)))
    assert environment(SPEC, MACHINE) == {"RUN": "tst 6", "JSON": "{}"}
    assert shell_line(SPEC, MACHINE) == "JSON='{}' RUN='tst 6' /py train.py --lr=0.002 '{\"seed\": 7}'"
