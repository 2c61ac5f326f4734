"""Other makers' programs, where `make peers` fetched them or somebody installed them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_TOOL = ROOT / "tools" / "peers"


def command(program: str, *arguments: str | Path) -> list[str | Path]:
    """How to run a program, as one process.

    Skips the test where it is missing and `make peers` never ran. Where it ran, as before `make unit`,
    its list lacks a package: the test fails.
    """
    if subprocess.run([_TOOL, "has", program], check=False).returncode:
        fetched = (ROOT / ".cache" / "peers" / "fetched").exists()
        (pytest.fail if fetched else pytest.skip)(f"{program} is not here: make peers")
    return [_TOOL, "run", program, *arguments]
