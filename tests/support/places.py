"""Where this checkout and what it is tested with lie."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
SHIPPED = ROOT / "search_spaces"
SWEEPER = Path(sys.executable).with_name("sweeper")
"""The installed command."""
