"""The command `unmoor` of this checkout, as a process of its own."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

UNMOOR = (sys.executable, "-c", "from unmoor.commands import main; main()")


def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `unmoor` with these arguments; `options` are those of subprocess.run."""
    options = {"capture_output": True, "text": True, "timeout": 120, **options}
    return subprocess.run([*UNMOOR, *arguments], check=False, **options)
