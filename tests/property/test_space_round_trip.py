"""Any valid space survives being written and read; no damage to a file gives anything but a `SearchSpaceError`."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeper.space.errors import SearchSpaceError
from sweeper.space.load import parse_search_space
from sweeper.space.schema import SearchSpace
from tests.support.places import SHIPPED
from trainers.contract.scales import SCALES

TEXTS = [path.read_text(encoding="utf-8") for path in sorted(SHIPPED.glob("*.yaml"))]
NAME = Path("file.yaml")
WEIGHTINGS = ("uniform", "power_law", "exponential", "first_token")


def increasing(values: st.SearchStrategy[Any], most: int = 5) -> st.SearchStrategy[list[Any]]:
    return st.lists(values, min_size=1, max_size=most, unique=True).map(sorted)


def ordered(values: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    return st.tuples(values, values).map(sorted)


rates = st.floats(1e-6, 1.0)
ratios = st.floats(0.0, 1.0)
learning_rate_axes = st.one_of(
    rates,
    st.fixed_dictionaries({"grid": increasing(rates)}),
    st.fixed_dictionaries({"log_uniform": ordered(rates)}, optional={"per_octave": st.integers(1, 3)}),
    st.fixed_dictionaries({"uniform": ordered(rates)}, optional={"step": st.floats(0.01, 1.0)}),
)


@st.composite
def tst_axes(draw: st.DrawFn, learning_rate: Any, context: int) -> dict[str, Any]:
    bags = st.integers(1, min(64, context))
    return {
        "learning_rate": learning_rate,
        "bag_size": draw(
            st.one_of(
                bags,
                st.fixed_dictionaries({"integers": ordered(bags)}),
                st.fixed_dictionaries({"grid": increasing(bags)}),
            )
        ),
        "step_ratio": draw(
            st.one_of(
                ratios,
                st.fixed_dictionaries({"grid": increasing(ratios)}),
                st.fixed_dictionaries({"uniform": ordered(ratios)}, optional={"step": st.floats(0.05, 1.0)}),
            )
        ),
        "bag_weighting": draw(
            st.one_of(
                st.sampled_from(WEIGHTINGS),
                st.lists(st.sampled_from(WEIGHTINGS), min_size=1, unique=True).map(lambda words: {"grid": words}),
            )
        ),
    }


@st.composite
def spaces(draw: st.DrawFn) -> dict[str, Any]:
    """A valid file as plain values."""
    context = draw(st.integers(1, 4_096))
    warmup = draw(st.integers(0, 100))
    budgets = st.fixed_dictionaries(
        {
            "tuning": st.one_of(st.integers(300, 10_000), increasing(st.integers(300, 10_000), most=3)),
            "confirmation": increasing(st.integers(300, 10**6)),
        }
    )
    learning_rate = draw(learning_rate_axes)
    gpus = draw(st.sampled_from(["auto", 0, 0.5, 1, 8]))
    sequences = (gpus if gpus == 8 else 1) * draw(st.integers(1, 1_000))  # ranks share a step's sequences alike
    space = {
        "name": draw(st.from_regex(r"[A-Za-z][A-Za-z0-9._-]{0,63}", fullmatch=True)),
        "question": draw(st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=40)),
        "scales": draw(st.lists(st.sampled_from(sorted(SCALES)), min_size=1, max_size=4, unique=True)),
        "context": context,
        "tokens_per_step": context * sequences,
        "validation_tokens": draw(st.integers(context, 10**6)),
        "schedule": {"warmup_steps": warmup, "decay_fraction": draw(st.sampled_from([0, 0.01, 0.2, 0.5]))},
        "methods": {
            "baseline": {"budgets": draw(budgets), "axes": {"learning_rate": learning_rate}},
            "tst": {"budgets": draw(budgets), "axes": draw(tst_axes(learning_rate, context))},
        },
        "search": {
            "trials_per_arm": draw(st.integers(1, 64)),
            "sampler": draw(st.sampled_from(["auto", "gp", "tpe", "random", "grid"])),
        },
    }
    optional = {
        "tokenizer": {"vocab_size": draw(st.integers(257, 600))},
        "corpus": {"source": "files", "paths": ["text/*.txt"], "validation_fraction": draw(st.floats(0.01, 0.49))},
        "seeds": {"tuning": [0, 7], "confirmation": draw(increasing(st.integers(1_000, 2**32 - 1)))},
        "resources": {"gpus": gpus},
        "price": {"per_gpu_hour": draw(st.floats(0, 100))},
        "precision": "bf16",
    }
    return space | {key: optional[key] for key in draw(st.sets(st.sampled_from(sorted(optional))))}


class Writer(yaml.SafeDumper):
    """Quotes all text: PyYAML would write the word `1e5` as a number of YAML 1.2."""


Writer.add_representer(str, lambda writer, text: writer.represent_scalar("tag:yaml.org,2002:str", text, style='"'))


def as_yaml(plain: dict[str, Any]) -> str:
    return yaml.dump(plain, Dumper=Writer, sort_keys=False, allow_unicode=True)


def written(space: SearchSpace) -> str:
    # Without defaults: a key of another source is refused, whatever it says.
    return as_yaml(space.model_dump(mode="json", exclude_defaults=True))


@settings(max_examples=100)
@given(spaces())
def test_a_space_survives_being_written_and_read(plain: dict[str, Any]) -> None:
    space = parse_search_space(as_yaml(plain), NAME)
    assert space.model_dump(mode="json", exclude_unset=True) == plain
    text = written(space)
    again = parse_search_space(text, NAME)
    assert again == space
    assert written(again) == text


def refused_or_read(text: str) -> None:
    """Reading must end in a space, or in messages of one line each that name the file."""
    error = refusal(text)
    if error is None:
        return
    lines = str(error).split("\n")
    assert len(lines) == len(error.problems) >= 1
    assert all(line.startswith("file.yaml:") and line.isprintable() for line in lines)
    numbers = [problem.line or 0 for problem in error.problems]
    assert numbers == sorted(numbers)
    assert 1 <= numbers[0] <= numbers[-1] <= len(text.splitlines()) + 1


def refusal(text: str) -> SearchSpaceError | None:
    try:
        parse_search_space(text, NAME)
    except SearchSpaceError as error:
        return error
    return None


junk = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        ["\t", "\n  ", "- ", ": ", "{", "}", "[", "*a", "&a ", "!!int ", "!!python/name:os ", "%", "'", "|"]
    ),
)


@settings(max_examples=200)
@given(st.sampled_from(TEXTS), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 12), junk), min_size=1, max_size=4))
def test_damage_to_the_text_gives_messages(text: str, cuts: list[tuple[float, int, str]]) -> None:
    for where, length, inserted in cuts:
        start = int(where * len(text))
        text = text[:start] + inserted + text[start + length :]
    refused_or_read(text)


anything = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.sampled_from([10**400, -(10**18), 0, -1, 2**63]),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)),
    max_leaves=6,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    if isinstance(value, dict):
        found += [place for key, inner in value.items() for place in places(inner, (*path, key))]
    elif isinstance(value, list):
        found += [place for index, inner in enumerate(value) for place in places(inner, (*path, index))]
    return found


@settings(max_examples=200)
@given(st.data(), spaces())
def test_damage_to_the_values_gives_messages(data: st.DataObject, plain: dict[str, Any]) -> None:
    damaged = copy.deepcopy(plain)
    place = data.draw(st.sampled_from(places(damaged)))
    parent: Any = damaged
    for part in place[:-1]:
        parent = parent[part]
    if isinstance(parent, dict) and data.draw(st.booleans()):
        parent[data.draw(st.text(max_size=6))] = parent.pop(place[-1])
    else:
        parent[place[-1]] = data.draw(anything)
    refused_or_read(as_yaml(damaged))
