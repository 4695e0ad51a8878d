"""The files that are shipped, the schema for editors, and how plain words of YAML are read."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema  # type: ignore[import-untyped]
import pytest
import yaml

from sweeper.space.errors import SearchSpaceError
from sweeper.space.json_schema import schema_text, search_space_schema
from sweeper.space.load import load_own_space, load_search_space, parse_search_space
from sweeper.space.schema import Grid, IntegerRange, SearchSpace
from sweeper.space.trials import make_spec
from sweeper.space.yaml_lines import read_yaml
from tests.support.places import GOLDEN, SHIPPED
from trainers.contract.spec import TrialSpec, own
from trainers.planning.lineage import build_tree, path_of

FILES = sorted(path.name for path in SHIPPED.glob("*.yaml"))
OURS = ("quickstart.yaml", "methods.yaml", "gpu-1m.yaml", "your-trainer.yaml", "transformers.yaml")


def plain(value: object) -> object:
    """The values of a file as a JSON Schema validator takes them."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, tuple) else value


def spec(space: SearchSpace, method: str, total_steps: int, **parameters: float | str) -> TrialSpec:
    made = make_spec(
        space,
        scale=space.scales[0],
        method=method,
        parameters=parameters,
        total_steps=total_steps,
        seed=0,
        corpus_fingerprint="corpus",
        tokenizer_fingerprint="tokenizer",
        vocab_size=space.tokenizer.vocab_size,
    )
    return own(made)


@pytest.mark.parametrize("name", FILES)
def test_a_shipped_file_is_valid_and_says_what_it_decides(name: str) -> None:
    text = (SHIPPED / name).read_text(encoding="utf-8")
    space = load_search_space(SHIPPED / name)
    assert space.name == Path(name).stem
    first, second = text.splitlines()[:2]
    assert first == "# yaml-language-server: $schema=schema.json"
    assert second.startswith("# ")
    jsonschema.Draft202012Validator(search_space_schema()).validate(plain(read_yaml(text)[0].value))


def test_the_published_scales_are_shipped() -> None:
    assert {"tst-270m.yaml", "tst-600m.yaml", "tst-3b.yaml", "moe-10b-a1b.yaml", "paper-grid.yaml"} <= set(FILES)


@pytest.mark.parametrize("name", [name for name in FILES if name not in OURS])
def test_a_published_recipe_has_the_published_values(name: str) -> None:
    space = load_own_space(SHIPPED / name)
    vocabulary, tokens_per_step, learning_rate = {
        "270m": (128_256, 2_097_152, 2e-3),
        "600m": (128_256, 2_097_152, 1e-3),
        "3b": (128_256, 2_097_152, 2e-4),
        "10b-a1b": (151_936, 8_388_608, 3e-4),
    }[space.scales[0]]
    assert (space.tokenizer.vocab_size, space.tokens_per_step) == (vocabulary, tokens_per_step)
    assert (space.schedule.warmup_steps, space.schedule.decay_fraction) == (2_000, 0.1)
    assert (space.optimizer.beta1, space.optimizer.beta2) == (0.9, 0.95)
    rates = space.methods["baseline"].axes["learning_rate"]
    assert isinstance(rates, Grid)
    assert learning_rate in rates.grid
    largest = {name: max(method.budgets.confirmation) for name, method in space.methods.items()}
    assert len(space.methods["baseline"].budgets.confirmation) >= 3
    assert largest["baseline"] >= 2 * largest["tst"]


def test_the_grid_of_the_paper_shares_two_fifths_of_its_steps() -> None:
    space = load_own_space(SHIPPED / "paper-grid.yaml")
    bags = space.methods["tst"].axes["bag_size"]
    assert isinstance(bags, IntegerRange)
    trials = [
        spec(space, "tst", 20_000, bag_size=bag, step_ratio=tenth / 10, bag_weighting="uniform", learning_rate=2e-3)
        for bag in range(bags.integers[0], bags.integers[1] + 1)
        for tenth in range(1, 11)
    ]
    assert len(trials) == space.search.trials_per_arm == 150
    alone = sum(trial.schedule.total_steps for trial in trials)
    assert build_tree(path_of(trial, "eager") for trial in trials).steps <= 0.6 * alone


def test_the_schema_for_editors_is_current() -> None:
    committed = (SHIPPED / "schema.json").read_text(encoding="utf-8")
    assert committed == schema_text(), "write it anew: python -m sweeper.space.json_schema"
    jsonschema.Draft202012Validator.check_schema(json.loads(committed))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("[pico]", "[tiny]"),
        ("  tst:", "  tts:"),
        ("bag_size:", "bag_sise:"),
        ("context: 64", "contxt: 64"),
        ("decay_fraction: 0.2", "decay_fraction: 1.5"),
        ("bag_weighting: uniform", "bag_weighting: {words: [uniform]}"),
        ("source: stdlib", "source: internet"),
        ("sampler: auto", "sampler: hyperband"),
    ],
)
def test_the_schema_for_editors_can_object(before: str, after: str) -> None:
    text = (SHIPPED / "quickstart.yaml").read_text(encoding="utf-8")
    assert before in text
    value = plain(read_yaml(text.replace(before, after))[0].value)
    assert not jsonschema.Draft202012Validator(search_space_schema()).is_valid(value)


def test_plain_words_are_those_of_yaml_1_2() -> None:
    document, problems = read_yaml("[1e-3, 1E3, 3., .5, -2, 1_000, no, on, 1:30, 2026-05-07, 010, '1', ~, true]")
    assert problems == ()
    expected = (1e-3, 1e3, 3.0, 0.5, -2, 1000, "no", "on", "1:30", "2026-05-07", 10, "1", None, True)
    assert document.value == expected
    assert isinstance(document.value, tuple)
    assert [type(value) for value in document.value] == [type(value) for value in expected]


def test_reading_leaves_pyyaml_as_it_was() -> None:
    assert yaml.safe_load("[1e-3, no]") == ["1e-3", False]


def test_two_arms_can_share_one_axis_by_an_alias() -> None:
    text = (SHIPPED / "tst-3b.yaml").read_text(encoding="utf-8")
    assert "*learning_rate" in text
    space = parse_search_space(text, Path("tst-3b.yaml"))
    assert space.methods["tst"].axes["learning_rate"] == space.methods["baseline"].axes["learning_rate"]


def test_a_byte_order_mark_is_no_part_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "marked.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + (SHIPPED / "quickstart.yaml").read_bytes())
    assert load_search_space(path) == load_search_space(SHIPPED / "quickstart.yaml")


def test_a_constant_and_a_grid_of_one_value_are_equal_learning_rates() -> None:
    text = (SHIPPED / "paper-grid.yaml").read_text(encoding="utf-8")
    changed = text.replace("learning_rate: {grid: [2.0e-3]}", "learning_rate: 2.0e-3", 1)
    assert changed != text
    assert parse_search_space(changed, Path("changed.yaml")).methods["baseline"].axes["learning_rate"] == 2e-3


def test_axes_of_equal_values_are_equal_tuning_however_they_are_written() -> None:
    text = (GOLDEN / "space_errors" / "learning_rates_unequal.yaml").read_text(encoding="utf-8")
    unequal = "{grid: [1e-3, 2e-3, 4e-3]}"
    assert unequal in text
    parse_search_space(text.replace(unequal, "{log_uniform: [1e-3, 2e-3], per_octave: 1}"), Path("equal.yaml"))
    with pytest.raises(SearchSpaceError, match="arms are tuned over equal learning rates"):
        parse_search_space(text.replace(unequal, "{log_uniform: [1e-3, 2e-3], per_octave: 2}"), Path("unequal.yaml"))


def test_a_range_without_a_step_has_as_many_points_as_are_searched() -> None:
    text = (GOLDEN / "space_errors" / "trials_too_many.yaml").read_text(encoding="utf-8")
    ranged = text.replace("{grid: [1e-3, 2e-3]}", "{uniform: [1e-3, 2e-3]}").replace("500", "901")
    with pytest.raises(SearchSpaceError, match="901 is more than baseline's 9 points times 100 search seeds"):
        parse_search_space(ranged, Path("trials.yaml"))
