"""`sweeper status --watch` in a real pseudo-terminal beside a sweep that trains."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sweeper.engine.status import FILE as STATUS
from tests.integration.test_command_line import FILE, SWEEPER, results

__all__ = ["results"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning"),
]
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
UP = re.compile(r"\x1b\[(\d+)?A")


def test_it_is_drawn_again_in_place_until_nobody_drives(results: Path, tmp_path: Path) -> None:
    text = FILE.read_text(encoding="utf-8").replace("[40, 60, 80]", "[600, 700, 800]").replace("[40]", "[600]")
    file = tmp_path / "some.yaml"
    file.write_text(text, encoding="utf-8")
    command = [str(SWEEPER), "run", str(file), "--results", str(results), "--executor", "inline"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as driver:
        while not (results / "tiny" / STATUS).exists():
            assert driver.poll() is None, driver.communicate()
            time.sleep(0.1)
        with ThreadPoolExecutor() as terminals:
            both = {columns: terminals.submit(watched, results, columns) for columns in (80, 120)}
        _, err = driver.communicate(timeout=300)
        assert driver.returncode == 0, err
    for columns, terminal in both.items():
        code, seen = terminal.result()
        assert code == 0, seen
        assert len(UP.findall(seen)) >= 3, "drawn again where it stood"
        lines = re.split(r"[\r\n]+", CONTROL.sub("", seen))
        assert [line for line in lines if len(line) > columns] == []
        assert any("step" in line and "loss" in line for line in lines), "stages that train"
        assert any(re.search(r"nano (baseline|tst)\s+\d", line) for line in lines), lines
        assert any(line.startswith("finished") for line in lines), lines[-12:]


def watched(results: Path, columns: int) -> tuple[int, str]:
    """Exit code and all that is written to a terminal of `columns` columns."""
    main, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(columns), "LINES": "40"}
    command = [str(SWEEPER), "status", "tiny", "--results", str(results), "--watch"]
    seen = b""
    with subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, env=environment) as watching:
        os.close(terminal)
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            if not select.select([main], [], [], 1.0)[0]:
                continue
            try:
                part = os.read(main, 65536)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            seen += part
        code = watching.wait(timeout=60)
    os.close(main)
    return code, seen.decode(errors="replace")
