"""What `sweeper` answers before any command: its version, its help, and the shell that completes it."""

from __future__ import annotations

import os
import subprocess
import tomllib

import pytest

from tests.support.places import ROOT, SWEEPER

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def sweeper(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SWEEPER, *arguments], capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )


def test_the_version_is_the_project_s() -> None:
    done = sweeper("--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{PROJECT['name']} {PROJECT['version']}\n"


@pytest.mark.parametrize("columns", [80, 120])
def test_the_help_names_the_options_of_the_program_within_the_terminal(columns: int) -> None:
    done = sweeper("--help", COLUMNS=str(columns))
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= columns
    for option in ("--version", "--install-completion", "--show-completion", "--help"):
        assert option in done.stdout


def test_bash_completes_commands_and_options() -> None:
    """As bash does it: the function that the script defines is called with the words of the line."""
    script = sweeper(_SWEEPER_COMPLETE="source_bash").stdout
    ask = 'COMP_WORDS=(sweeper "$@"); COMP_CWORD=$#; _sweeper_completion sweeper; printf "%s\\n" "${COMPREPLY[@]}"'

    def completed(*words: str) -> list[str]:
        command = ["bash", "--norc", "-c", f"{script}\n{ask}", "bash", *words]
        path = os.pathsep.join([str(SWEEPER.parent), os.environ["PATH"]])
        done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "PATH": path})
        return done.stdout.split()

    assert completed("re") == ["recipe", "report", "replay"]
    assert "--max-gpu-hours" in completed("run", "--max")
