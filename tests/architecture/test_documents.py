"""The documents say what is true: their maps, links, commands, files, keys and lengths are held against the code."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from reports.checks.all_checks import run_checks
from reports.evidence.importing import COLUMNS, OPTIONAL_COLUMNS, READING_COLUMNS
from reports.evidence.points import OPTIONAL_POINT_COLUMNS, POINT_COLUMNS
from reports.published import published_study
from sweeper.cli.app import app
from sweeper.space.foreign_schema import ForeignSpace
from sweeper.space.load import parse_search_space
from sweeper.space.schema import SearchSpace
from tests.support.places import ROOT, SHIPPED
from trainers.contract.scales import SCALES
from trainers.methods import METHODS

MAPS = ("sweeper", "trainers", "reports", "search_spaces")
"""Packages with a README of their own, which holds the map of its rooms."""
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", *(f"{package}/README.md" for package in MAPS))
DOCUMENTS += ("sweeper/clusters/README.md", "trainers/LOG.md", "reports/COVERAGE.md", "trainers/examples/README.md")
INSTRUCTIONS = tuple(name for name in DOCUMENTS if name.endswith("README.md") or name == "CONTRIBUTING.md")
"""Documents whose commands are meant to be typed today; the log quotes those of its own day."""
MOST_WORDS = 1_300
"""Of the README's prose: without code, tables and pictures."""
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def text_of(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def prose(text: str) -> str:
    """A document without its code blocks, tables and pictures."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    return "\n".join(line for line in text.splitlines() if not line.startswith(("|", "![")))


# the maps


def tree_entries(document: str) -> dict[str, str]:
    """Paths of a document's tree, each with what stands beside it."""
    entries: dict[str, str] = {}
    above: list[str] = []
    trees = [block for block in blocks(text_of(document), "text") if re.match(r"[\w.]+(/|\.\w+) {2,}", block)]
    for line in "".join(trees).splitlines():
        name, words = line.split(maxsplit=1)
        above = [*above[: (len(line) - len(line.lstrip())) // 2], name]
        entries["".join(above)] = words
    return entries


def sentences_of(package: str) -> dict[str, str]:
    """The first paragraph of what a package and each of its rooms says of itself, by path."""
    found = {}
    for file in (ROOT / package).rglob("__init__.py"):
        text = ast.get_docstring(ast.parse(file.read_text("utf-8"))) or ""
        found[file.parent.relative_to(ROOT).as_posix() + "/"] = " ".join(text.partition("\n\n")[0].split())
    return found


@pytest.mark.parametrize("package", MAPS)
def test_a_package_s_map_has_its_rooms_in_their_own_words(package: str) -> None:
    sentences = sentences_of(package)
    assert tree_entries(f"{package}/README.md") == sentences
    assert tree_entries("README.md")[f"{package}/"] == sentences[f"{package}/"]


def test_the_readme_has_the_top_level_and_the_tests_are_told_by_kind() -> None:
    top = tree_entries("README.md")
    hidden = {".github/", ".gitignore", ".pre-commit-config.yaml"}
    done = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode == 0:
        files = {f"{first}/" if rest else first for first, _, rest in (n.partition("/") for n in done.stdout.split())}
        assert top.keys() == files - hidden
    tests = tree_entries("CONTRIBUTING.md")
    folders = {f"tests/{one.name}/" for one in (ROOT / "tests").iterdir() if any(one.glob("**/*.*"))}
    assert tests.keys() - {"tests/"} == folders - {"tests/__pycache__/"}


# links and pictures


def anchors(text: str) -> set[str]:
    """Names of a document's headings as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def broken_links(document: str, text: str) -> list[str]:
    here = (ROOT / document).parent
    found = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = link.partition("#")
        if path.startswith(("https://", "mailto:")):
            continue
        target = (here / path).resolve() if path else ROOT / document
        there = target.is_relative_to(ROOT) and target.exists()
        if not there or (anchor and anchor not in anchors(target.read_text(encoding="utf-8"))):
            found.append(link)
    return found


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_and_picture_is_there(document: str) -> None:
    assert broken_links(document, text_of(document)) == []


def test_a_broken_link_is_found() -> None:
    text = (
        "[a](nowhere.md) ![b](reports/pictures/none.png) [c](README.md#no-heading) [d](README.md#run-it) [e](#run-it)"
    )
    assert broken_links("README.md", text) == ["nowhere.md", "reports/pictures/none.png", "README.md#no-heading"]


def test_every_picture_is_shown() -> None:
    shown = {Path(link).name for name in DOCUMENTS for link in re.findall(r"!\[[^]]*\]\(([^)]+)\)", text_of(name))}
    assert {file.name for file in (ROOT / "reports" / "pictures").iterdir()} == shown


# commands


def commands(text: str) -> Iterator[list[str]]:
    """Commands of the bash blocks and of inline code, as words; `a && b` are two."""
    lines = [line for block in blocks(text, "bash") for line in block.replace("\\\n", " ").splitlines()]
    programs = r"(?:sweeper|python -m|bash|uv|uvx|git|\.venv/bin/\w+) "
    code = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    inline = [" ".join(found.split()) for found in re.findall(r"`([^`]+)`", code)]
    for line in [*lines, *(found for found in inline if re.match(programs, found))]:
        for part in line.split(" && "):
            words = shlex.split(part)
            yield words[3:] if words[:3] == ["uv", "run", "--no-sync"] else words


MACHINES_OWN = ("sbatch", "scancel", "kubectl")
"""What a cluster brings; the set-up does not."""


def objection(words: list[str]) -> str | None:
    """Why a command could not be run as it stands, or None. Nothing is run but `--help`."""
    program, arguments = words[0].removeprefix(".venv/bin/"), words[1:]
    missing = [
        word
        for word in arguments
        if word.startswith(("search_spaces/", "tests/", "sweeper/")) and not (ROOT / word).exists()
    ]
    if missing:
        return f"{missing} is not there"
    if program == "sweeper":
        return sweeper_objection(arguments)
    if program == "python" and arguments[0] == "-m":
        return module_objection(arguments[1], arguments[2:])
    if words[0] != program and not Path(sys.executable).with_name(program).exists():
        return f"{program} is not installed by the set-up"
    return (
        None
        if program
        in (
            "pytest",
            "ruff",
            "mypy",
            "lint-imports",
            "pip",
            "python3",
            "uv",
            "uvx",
            "git",
            "bash",
            "lm_eval",
            *MACHINES_OWN,
        )
        else program
    )


def sweeper_objection(arguments: list[str]) -> str | None:
    """What the command line's own parser says; what the words name is not looked for."""
    command: Any = get_command(app)
    if arguments[:1] and arguments[0].startswith("-"):
        known = {option for parameter in command.params for option in parameter.opts}
        return None if arguments[0] in known | {"--help"} else f"no option {arguments[0]}"
    if arguments == ["COMMAND", "--help"] or (len(arguments) == 1 and arguments[0] in command.commands):
        return None  # spoken of, not typed
    try:
        with command.make_context("sweeper", list(arguments)) as context:
            name, chosen, rest = command.resolve_command(context, list(arguments))
            chosen.make_context(name, rest, parent=context)
    except Exception as error:  # the parser's own classes are typer's or click's, by version
        return str(getattr(error, "message", error))
    return None


def module_objection(module: str, arguments: list[str]) -> str | None:
    if importlib.util.find_spec(module) is None:
        return f"no module {module}"
    asked = [word for word in arguments if word.startswith("--")]
    if not asked:
        return None
    help_text = subprocess.run(
        [sys.executable, "-m", module, "--help"], capture_output=True, text=True, cwd=ROOT, check=True
    ).stdout
    unknown = [option for option in asked if not re.search(rf"(?<![\w-]){option}(?![\w-])", help_text)]
    return f"no option {', '.join(unknown)}" if unknown else None


@pytest.mark.parametrize("document", INSTRUCTIONS)
def test_every_command_can_be_typed(document: str) -> None:
    found = list(commands(text_of(document)))
    assert found
    assert {shlex.join(words): why for words in found if (why := objection(words)) is not None} == {}


@pytest.mark.parametrize(
    "line",
    [
        "sweeper plan --tree",
        "sweeper run search_spaces/none.yaml",
        "sweeper run FILE --stacks 4",
        "sweeper train FILE",
        "sweeper --verbose",
        "python -m trainers.run LIST --minutes 3",
        "python -m trainers.none",
        ".venv/bin/none --help",
        "make test",
    ],
)
def test_a_command_that_is_wrong_is_found(line: str) -> None:
    assert objection(shlex.split(line)) is not None


def test_the_command_line_s_page_has_every_command() -> None:
    text = text_of("sweeper/README.md")
    assert [name for name in get_command(app).commands if f"`sweeper {name}" not in text] == []  # type: ignore[attr-defined]


def test_python_blocks_import_what_there_is() -> None:
    (code,) = blocks(text_of("README.md"), "python")
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module:
            module = importlib.import_module(node.module)
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


# what the pages list


def keys_of(schema: dict[str, Any]) -> set[str]:
    """Every key of a search-space file, but for the names of axes."""
    models = [schema, *schema["$defs"].values()]
    return {key for model in models for key in model.get("properties", {})}


def test_the_file_s_page_has_every_key_and_its_example_is_a_file() -> None:
    text = text_of("search_spaces/README.md")
    example, foreign = blocks(text, "yaml")
    assert parse_search_space(example, Path("README.md")).search.sampler == "auto"
    assert isinstance(parse_search_space(foreign, Path("README.md")), ForeignSpace)
    keys = keys_of(SearchSpace.model_json_schema()) | keys_of(ForeignSpace.model_json_schema())
    assert [key for key in sorted(keys) if not re.search(rf"\b{key}\b", text)] == []


def test_the_defaults_that_the_example_shows_are_the_defaults() -> None:
    """A file that gives only what is marked as needed means what the whole example means, where that shows defaults."""
    example = blocks(text_of("search_spaces/README.md"), "yaml")[0]
    shown = parse_search_space(example, Path("README.md"))
    needed = {name for name, field in SearchSpace.model_fields.items() if field.is_required()}
    marked = set(re.findall(r"^(\w+):.*# needed", example, flags=re.MULTILINE)) | {"schedule", "search"}
    assert marked == needed
    for name, field in SearchSpace.model_fields.items():
        if name not in needed and name not in ("budget", "price", "target_loss"):
            assert getattr(shown, name) == field.get_default(call_default_factory=True), name
    for model in (shown.search, shown.schedule):
        for name, field in type(model).model_fields.items():
            assert field.is_required() or getattr(model, name) == field.default, name


def test_the_pages_list_what_there_is() -> None:
    formats, trained, judged = (text_of(f"{name}/README.md") for name in ("search_spaces", "trainers", "reports"))
    assert [file.name for file in SHIPPED.glob("*.yaml") if f"]({file.name})" not in formats] == []
    columns = (*COLUMNS, *OPTIONAL_COLUMNS, *READING_COLUMNS, *POINT_COLUMNS, *OPTIONAL_POINT_COLUMNS)
    assert [name for name in columns if f"`{name}`" not in formats] == []
    rows = dict(re.findall(r"^\| `(\w+)` \|.*?\|([^|]*)\|$", trained, flags=re.MULTILINE))
    assert {name: tuple(sorted(re.findall(r"`(\w+)`", rows[name]))) for name in METHODS} == {
        name: tuple(sorted(method.parameters)) for name, method in METHODS.items()
    }
    assert [name for name in SCALES if f"`{name}`" not in trained] == []
    names = [check.name.removeprefix("Same ") for check in run_checks(published_study(), ())]
    assert [name for name in names if name not in judged] == []


def test_the_readme_is_short() -> None:
    assert len(prose(text_of("README.md")).split()) <= MOST_WORDS


# beside the documents


def test_the_changelog_has_the_version() -> None:
    assert f"## [{PROJECT['version']}]" in text_of("CHANGELOG.md")


def test_a_commit_is_checked_by_the_pinned_ruff() -> None:
    (rev,) = [
        repo["rev"] for repo in yaml.safe_load(text_of(".pre-commit-config.yaml"))["repos"] if repo["repo"] != "local"
    ]
    assert f"ruff=={rev.removeprefix('v')}" in text_of(".ci/constraints.txt").splitlines()


def test_the_workflow_runs_what_has_to_pass() -> None:
    (job,) = yaml.safe_load(text_of(".github/workflows/ci.yml"))["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == ["CI=true bash .ci/run"]
    oldest = PROJECT["requires-python"].removeprefix(">=")
    assert job["strategy"]["matrix"]["python"][0] == oldest


def test_every_fault_is_shown_by_a_test_that_is_there() -> None:
    rows = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text_of("sweeper/clusters/README.md"))
    assert len(rows) > 20
    assert [f"{file}::{name}" for file, name in rows if f"def {name}(" not in text_of(file)] == []
