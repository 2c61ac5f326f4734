"""The command `unmoor` of this checkout as a separate process."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

UNMOOR = (sys.executable, "-c", "from unmoor.commands import main; main()")


def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `unmoor` with these arguments; `options` are those of subprocess.run."""
    options = {"capture_output": True, "text": True, "timeout": 120, **options}
    return subprocess.run([*UNMOOR, *arguments], check=False, **options)


def output(process: subprocess.Popen[str], status: int = 0) -> str:
    """Wait for a process and return its output, or its errors where `status` is 2 (usage) or more."""
    with process:
        try:
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == status, out + err
    return out if status < 2 else err
