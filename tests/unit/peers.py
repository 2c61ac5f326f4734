"""Other makers' programs, where `make peers` fetched them or somebody installed them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

_TOOL = Path(__file__).parents[2] / "tools" / "peers"


def command(program: str, *arguments: str | Path) -> list[str | Path]:
    """How to run a program, as one process; skips the test where it is missing."""
    if subprocess.run([_TOOL, "has", program], check=False).returncode:
        pytest.skip(f"{program} is not here (make peers fetches it)")
    return [_TOOL, "run", program, *arguments]
