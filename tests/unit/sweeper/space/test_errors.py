"""What a user is told about a bad search-space file. The golden text is written anew by running this file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sweeper.space.code_files import MOST_FILES
from sweeper.space.errors import SearchSpaceError
from sweeper.space.load import load_search_space, parse_search_space
from tests.support.places import GOLDEN, SHIPPED

HERE = GOLDEN / "space_errors"
CASES = sorted(path.stem for path in HERE.glob("*.yaml"))


def told(case: str) -> list[str]:
    path = HERE / f"{case}.yaml"
    with pytest.raises(SearchSpaceError) as caught:
        parse_search_space(path.read_text(encoding="utf-8"), Path(path.name))
    return str(caught.value).splitlines()


def test_every_mistake_is_told_in_the_golden_words() -> None:
    lines = [line for case in CASES for line in told(case)]
    assert lines == (HERE / "messages.txt").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize(
    "case", [case for case in CASES if case not in ("axis_log_of_zero", "learning_rate_not_positive")]
)
def test_one_mistake_makes_one_line(case: str) -> None:
    several = {
        "several": 4,
        "seeds_meet": 2,
        "tokenizer_file_bare": 2,
        "tokenizer_hub_bare": 3,
        "corpus_hub_nameless": 2,
        "budget_too_long": 2,
        "budget_without_decay": 2,
        "method_name_missing": 10,
    }
    assert len(told(case)) == several.get(case, 1)


def test_twenty_mistakes_are_told_and_the_rest_is_counted() -> None:
    with pytest.raises(SearchSpaceError) as caught:
        parse_search_space("".join(f"key_{number}: 1\n" for number in range(50)), Path("many.yaml"))
    lines = str(caught.value).splitlines()
    assert len(lines) == 21
    assert lines[-1] == f"and {len(caught.value.problems) - 20} more like these"


def test_several_mistakes_stand_in_the_order_of_their_lines() -> None:
    numbers = [int(line.split(":")[1]) for line in told("several")]
    assert numbers == sorted(numbers)


def test_the_error_names_file_line_and_value(tmp_path: Path) -> None:
    path = tmp_path / "tst-270m.yaml"
    text = (SHIPPED / "tst-270m.yaml").read_text(encoding="utf-8")
    path.write_text(text.replace("{uniform: [0.1, 0.5], step: 0.05}", "1.4"), encoding="utf-8")
    line = next(number for number, line in enumerate(text.splitlines(), 1) if "step_ratio:" in line)
    with pytest.raises(SearchSpaceError) as caught:
        load_search_space(path)
    assert str(caught.value) == f"{path}:{line}: step_ratio: 1.4 is not in [0, 1]"
    assert (caught.value.path, caught.value.line) == (path, line)
    assert caught.value.message == "step_ratio: 1.4 is not in [0, 1]"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"name: caf\xe9\n", ":1: is not UTF-8 text"),
        (b"name: small\nquestion: \xff\n", ":2: is not UTF-8 text"),
        (b"#" * 1_000_001, ": is larger than 1,000,000 bytes"),
        (b"name: a\x00b\n", ":1: not valid YAML"),
        (b'name: "\\UFFFFFFFF"\n', ":1: not valid YAML"),
        (b"[" * 5_000, ":1: nested deeper than 20 levels"),
        (b"a: &a [*a]\n", ":1: nested deeper than 20 levels"),
        (b"name: a\n---\nname: b\n", ":2: not valid YAML"),
        (b"? [a]\n: b\n", ":1: a key that is a list or a mapping"),
    ],
)
def test_a_file_that_is_no_space_at_all_is_refused_in_one_line(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(SearchSpaceError) as caught:
        load_search_space(path)
    assert f"{path}{said}" in str(caught.value).splitlines()[0]


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SearchSpaceError, match=r"missing\.yaml: cannot be read: No such file"):
        load_search_space(tmp_path / "missing.yaml")
    with pytest.raises(SearchSpaceError, match="cannot be read: Is a directory"):
        load_search_space(tmp_path)


def test_a_tag_never_runs(tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    text = f'name: !!python/object/apply:os.mkdir ["{witness}"]\n'
    with pytest.raises(SearchSpaceError, match="is not allowed"):
        parse_search_space(text, Path("bad.yaml"))
    assert not witness.exists()


if __name__ == "__main__":
    lines = [line for case in CASES for line in told(case)]
    (HERE / "messages.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "confirmation: [1000, 1001, 1002, 1003, 1004, 1005, 1006]",
            "seeds",
            "seeds.confirmation: .* has 8000 values; 2000 are",
        ),
        ("confirmation: [4000, 6000, 9000]", "budgets", "budgets.confirmation: .* has 8000 values; 100 are allowed"),
    ],
)
def test_sizes_that_nobody_can_mean_are_refused_before_they_are_planned(old: str, new: str, message: str) -> None:
    text = (SHIPPED / "quickstart.yaml").read_text(encoding="utf-8")
    assert old in text
    many = f"confirmation: {list(range(5_000, 13_000))}"
    with pytest.raises(SearchSpaceError, match=message):
        parse_search_space(text.replace(old, many, 1), Path(f"{new}.yaml"))


EXAMPLES = re.findall(r"```yaml\n(.*?)```", (SHIPPED / "README.md").read_text(encoding="utf-8"), re.DOTALL)
NUMBER = re.compile(r"(?<=[ \[])[0-9][0-9.e-]*(?=[ ,\]}\n])")


@pytest.mark.parametrize("number", ["10000000000000000", "-1.0e+300", ".nan", ".inf", "1.0e+400"])
@pytest.mark.parametrize("example", EXAMPLES, ids=["own", "foreign"])
def test_no_number_of_a_file_is_beyond_all_sense(example: str, number: str) -> None:
    """Whichever it is, in lines that can be read."""
    example = re.sub(r" +#.*", "", example).replace("# target_loss", "target_loss")
    places = list(NUMBER.finditer(example))
    assert len(places) > 15
    for place in places:
        bad = f"{example[: place.start()]}{number}{example[place.end() :]}"
        with pytest.raises(SearchSpaceError) as caught:
            parse_search_space(bad, Path("space.yaml"))
        assert all(len(line) < 300 for line in str(caught.value).splitlines())


def test_a_glob_of_code_that_names_a_whole_tree_is_refused_before_it_is_walked(tmp_path: Path) -> None:
    many = tmp_path / "many"
    many.mkdir()
    for number in range(MOST_FILES + 1):
        (many / f"{number}.py").touch()
    text = (SHIPPED / "your-trainer.yaml").read_text(encoding="utf-8")
    directory, code = (next(line for line in text.splitlines() if f" {key}:" in line) for key in ("directory", "code"))
    text = text.replace(directory, f"  directory: {tmp_path}").replace(code, '  code: ["**/*"]')
    (tmp_path / "space.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(SearchSpaceError, match=r"trainer.code.* names more than 2,000 files"):
        load_search_space(tmp_path / "space.yaml")
