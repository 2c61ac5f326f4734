"""Labs for tests: `unmoor lab` as a program."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

UNMOOR = Path(sys.executable).with_name("unmoor")


def lab_command(*arguments: str, stdin: str = "") -> str:
    """Run `unmoor lab` with these arguments, which must succeed; return its output."""
    done = subprocess.run(
        [UNMOOR, "lab", *arguments], input=stdin, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr or done.stdout
    return done.stdout


def ssh(name: str, host: str, script: str, stdin: str = "") -> str:
    """Run a shell script on a host of a lab, which must succeed; return its output."""
    options = [
        "-o",
        "ControlMaster=auto",
        "-o",
        "ControlPersist=60",
        "-o",
        f"ControlPath=/run/unmoor-lab/{name}/%h",
    ]
    done = subprocess.run(
        ["ssh", "-F", f"/run/unmoor-lab/{name}/ssh_config", *options, host, script],
        input=stdin, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr or done.stdout
    return done.stdout
